// One hand's camera, joints, prior and step, value beside derivative, for host and device.
#pragma once

#include <cmath>

#include "refine/refine.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

// ---- Camera: v' = M v + t with M = scale R(quat) --------------------------------------------------------------------

constexpr double kMinQuatLength = 1e-8;  // a shorter one is read as the identity: QUAT_EPS of rotation.py

template <typename T>
struct HandCamera {
  T unit[4];         // w, x, y, z
  T inverse_length;  // of the quaternion; 0 where it was read as the identity
  T scale;
  Mat3<T> rotation, matrix;
  Vec3<T> trans;
};

template <typename T>
DHPE_HD HandCamera<T> hand_camera(const T* h) {
  HandCamera<T> c;
  const T* q = h + kQuatAt;
  const T length = std::sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
  const bool usable = length > T(kMinQuatLength);
  c.inverse_length = usable ? 1 / length : T(0);
  for (int i = 0; i < 4; ++i) c.unit[i] = usable ? q[i] / length : T(i == 0);
  const T w = c.unit[0], x = c.unit[1], y = c.unit[2], z = c.unit[3];
  // clang-format off
  c.rotation = {{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}};
  // clang-format on
  c.scale = h[kScaleAt];
  for (int i = 0; i < 9; ++i) c.matrix.m[i] = c.scale * c.rotation.m[i];
  c.trans = load3(h + kTransAt);
  return c;
}

template <typename T>
DHPE_HD Vec3<T> to_crop(const HandCamera<T>& c, const T* vert_m) {
  return mul(c.matrix, load3(vert_m)) + c.trans;
}

// dL/dM = sum over vertices of dL/dv' v^T, and dL/dt.
template <typename T>
struct CameraSums {
  T matrix[9], trans[3];
};

// Adds a vertex to the sums and returns its dL/dv.
template <typename T>
DHPE_HD Vec3<T> from_crop(const HandCamera<T>& c, const T* vert_m, const Vec3<T>& grad, CameraSums<T>& sums) {
  add_outer(sums.matrix, grad, load3(vert_m));
  add_to(sums.trans, grad);
  return mul_transposed(c.matrix, grad);
}

// Fills the camera's part of dL/dh. A quaternion that was read as the identity gets no gradient.
template <typename T>
DHPE_HD void camera_backward(const HandCamera<T>& c, const CameraSums<T>& sums, T* grad_h) {
  T along = 0;
  for (int i = 0; i < 9; ++i) along += sums.matrix[i] * c.rotation.m[i];
  grad_h[kScaleAt] = along;
  for (int i = 0; i < 3; ++i) grad_h[kTransAt + i] = sums.trans[i];
  if (c.inverse_length == 0) {
    for (int i = 0; i < 4; ++i) grad_h[kQuatAt + i] = 0;
    return;
  }
  const T w = c.unit[0], x = c.unit[1], y = c.unit[2], z = c.unit[3];
  T g[9];
  for (int i = 0; i < 9; ++i) g[i] = 2 * c.scale * sums.matrix[i];
  const T by_unit[4] = {x * (g[7] - g[5]) + y * (g[2] - g[6]) + z * (g[3] - g[1]),
                        w * (g[7] - g[5]) + y * (g[1] + g[3]) + z * (g[2] + g[6]) - 2 * x * (g[4] + g[8]),
                        w * (g[2] - g[6]) + x * (g[1] + g[3]) + z * (g[5] + g[7]) - 2 * y * (g[0] + g[8]),
                        w * (g[3] - g[1]) + x * (g[2] + g[6]) + y * (g[5] + g[7]) - 2 * z * (g[0] + g[4])};
  T radial = 0;
  for (int i = 0; i < 4; ++i) radial += by_unit[i] * c.unit[i];
  for (int i = 0; i < 4; ++i) grad_h[kQuatAt + i] = (by_unit[i] - radial * c.unit[i]) * c.inverse_length;
}

// ---- Joints ---------------------------------------------------------------------------------------------------------

template <typename T>
struct JointTerm {
  T energy;       // squared distance in the unit interval of the crop
  T distance_px;  // for the gate of Eq. 10
  T gx, gy;       // dL/dj' in crop units
  bool counts;
};

// `at` in crop units, `target_px` in pixels.
template <typename T>
DHPE_HD JointTerm<T> joint_term(const Vec3<T>& at, const T* target_px, int image_size) {
  if (!(std::isfinite(target_px[0]) && std::isfinite(target_px[1]))) return {0, 0, 0, 0, false};
  const T size = static_cast<T>(image_size);
  const T dx = (T(0.5) * at.x + T(0.5)) * size - target_px[0], dy = (T(0.5) * at.y + T(0.5)) * size - target_px[1];
  const T distance_sq = dx * dx + dy * dy;
  return {distance_sq / (size * size), std::sqrt(distance_sq), dx / size, dy / size, true};
}

// Eq. 10 with the given joints for the truth.
template <typename T>
DHPE_HD bool is_near(T distance_px_sum, int count, double tau_px) {
  return count > 0 && distance_px_sum / static_cast<T>(count) < static_cast<T>(tau_px);
}

// ---- Priors: energy terms kPose, kShape, kLimits and their weighted gradient ----------------------------------------

// Coordinate i of precision (pose - mean), as the Mahalanobis distance and its gradient need it.
template <typename T>
DHPE_HD T precise_offset(const PosePriorView<T>& p, const T* pose, int i) {
  T sum = 0;
  for (int k = 0; k < kPoseSize; ++k) sum += p.precision[kPoseSize * i + k] * (pose[k] - p.mean[k]);
  return sum;
}

// How far joint j's anatomical coordinates lie outside of their ranges, signed.
template <typename T>
DHPE_HD Vec3<T> limit_violation(const PosePriorView<T>& p, const T* pose, int j) {
  const Vec3<T> angles = mul(load9(p.axes + 9 * j), load3(pose + 3 * j));
  const T a[3] = {angles.x, angles.y, angles.z};
  T out[3];
  for (int i = 0; i < 3; ++i) {
    const T above = a[i] - p.high[3 * j + i], below = p.low[3 * j + i] - a[i];
    // NaN stays NaN, as in clamp_min.
    out[i] = (above <= 0 ? T(0) : above) - (below <= 0 ? T(0) : below);
  }
  return {out[0], out[1], out[2]};
}

// ---- Iterates and steps ---------------------------------------------------------------------------------------------

// Of a caller's own memory nothing is known: NaN is at rest, too.
template <typename T>
DHPE_HD DescentStatus status_of(const T* memory) {
  const T status = memory[kStatus];
  if (status < T(1)) return DescentStatus::fresh;
  if (status < T(2)) return DescentStatus::moving;
  return status < T(3) ? DescentStatus::converged : DescentStatus::not_finite;
}

template <typename T>
DHPE_HD bool is_at_rest(const T* memory) {
  return status_of(memory) == DescentStatus::converged || status_of(memory) == DescentStatus::not_finite;
}

template <typename T>
DHPE_HD void set_status(T* memory, DescentStatus status) {
  memory[kStatus] = static_cast<T>(static_cast<int>(status));
}

// What is known of an iterate: its energy, and the part of it by which iterates are compared. Between runs of the
// network the energy is an extrapolation, which is nothing to choose an iterate by: `is_exact` is false.
template <typename T>
struct Iterate {
  T total, rank;
  bool is_exact;
};

// Compares a hand's iterate with those before; true if it is the best so far. Energies that are not finite end the
// descent.
template <typename T>
DHPE_HD bool note_iterate(const Iterate<T>& at, T* memory) {
  if (is_at_rest(memory)) return false;
  if (!(std::isfinite(at.total) && std::isfinite(at.rank))) {
    set_status(memory, DescentStatus::not_finite);
    return false;
  }
  const bool is_first = status_of(memory) == DescentStatus::fresh;
  if (is_first) memory[kFirstEnergy] = at.rank;
  const bool is_best = at.is_exact && (is_first || at.rank < memory[kBestEnergy]);
  if (is_best || is_first) memory[kBestEnergy] = at.rank;
  memory[kLastEnergy] = at.rank;
  set_status(memory, DescentStatus::moving);
  return is_best;
}

// Lets a hand rest whose energy `rank` has hardly changed since `last`.
template <typename T>
DHPE_HD void note_change(double tolerance, T rank, T last, T* memory) {
  if (!(tolerance > 0) || status_of(memory) != DescentStatus::moving) return;
  const bool is_idle = std::fabs(rank - last) <= static_cast<T>(tolerance) * std::fabs(rank);
  memory[kIdle] = is_idle ? memory[kIdle] + 1 : T(0);
  if (memory[kIdle] >= T(kIdleToConverge)) set_status(memory, DescentStatus::converged);
}

constexpr double kAdamBeta1 = 0.9, kAdamBeta2 = 0.999, kAdamEps = 1e-8;

// What Adam divides its moments by (Kingma and Ba 2015), for step t = 1, 2, ...
struct AdamBias {
  double first, second;
};

DHPE_HD AdamBias adam_bias(double t) { return {1 - std::pow(kAdamBeta1, t), 1 - std::pow(kAdamBeta2, t)}; }

// An entry of h after a step, and Adam's moments with it: nothing is stored before all entries are known to be finite.
template <typename T>
struct MovedEntry {
  T h, first, second;
};

// Where entry i of h goes, by gradient descent or Adam.
template <typename T>
DHPE_HD MovedEntry<T> moved_entry(Optimizer optimizer, const AdamBias& bias, T h, T rate, T gradient, int i,
                                  const T* memory) {
  MovedEntry<T> to = {h - rate * gradient, memory[kFirstMoment + i], memory[kSecondMoment + i]};
  if (optimizer == Optimizer::gd) return to;
  to.first = T(kAdamBeta1) * to.first + T(1 - kAdamBeta1) * gradient;
  to.second = T(kAdamBeta2) * to.second + T(1 - kAdamBeta2) * (gradient * gradient);
  to.h = h - rate * ((to.first / T(bias.first)) / (std::sqrt(to.second / T(bias.second)) + T(kAdamEps)));
  return to;
}

template <typename T>
DHPE_HD void take_entry(const MovedEntry<T>& to, int i, T* h, T* memory) {
  h[i] = to.h;
  memory[kFirstMoment + i] = to.first;
  memory[kSecondMoment + i] = to.second;
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
