// The energy that Levenberg-Marquardt minimises, as dhpe_fast/refinement/gauss_newton.py has it (the readable version),
// for a team of workers: one thread on the CPU, a block on the GPU. Every function is called by the whole team; what it
// writes is seen by all after the next `sync`.
#pragma once

#include "common/rotation.h"
#include "refine/newton.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

// A team of one. The workers of a larger one, `size` in all, also stand in `rows` x `lanes`: row i of a matrix belongs
// to those with row() == i % rows(), and of these, column j to the one with lane() == j % lanes().
struct Solo {
  static constexpr int rank() { return 0; }
  static constexpr int size() { return 1; }
  static constexpr int row() { return 0; }
  static constexpr int rows() { return 1; }
  static constexpr int lane() { return 0; }
  static constexpr int lanes() { return 1; }
  static void sync() {}
};

// The first number >= `start` that leaves the rest `mine` when divided by `count`.
DHPE_HD int first_of(int start, int mine, int count) {
  return count == 1 ? start : start + (mine - start % count + count) % count;
}

constexpr double kInfinity = __builtin_huge_val();

DHPE_HD double* pose_of(NewtonPoint& p) { return p.state; }
DHPE_HD double* betas_of(NewtonPoint& p) { return p.state + kNewtonPose; }
DHPE_HD double* rotation_of(NewtonPoint& p) { return p.state + kRotationAt; }
DHPE_HD double* cam_of(NewtonPoint& p) { return p.state + kCamAt; }

DHPE_HD bool is_finite(double x) { return x - x == 0; }

DHPE_HD int first_node(int finger) { return 1 + kFingerNodes * finger; }

// Nodes count fingers as MANO does, the evidence as STD does: thumb, index, middle, ring, little.
DHPE_HD int std_joint(int node) {
  if (node == 0) return 0;
  const int finger = (node - 1) / kFingerNodes, first = node - first_node(finger);
  const int std_finger = finger == 4 ? 0 : finger == 2 ? 4 : finger == 3 ? 3 : finger + 1;
  return first_node(std_finger) + first;
}

// J with R(v + dv) = R(J dv) R(v) to first order: I + b [v]_x + c [v]_x^2, c = (t - sin t)/t^3.
DHPE_HD Mat3<double> left_jacobian(const Vec3<double>& v) {
  const double q = dot(v, v);
  const RodriguesTerms<double> r = rodrigues_terms(q);
  // clang-format off
  const double c = q < 0.25 ? 1. / 6 + q * (-1. / 120 + q * (1. / 5040 + q * (-1. / 362880 + q * (1. / 39916800 +
                              q * (-1. / 6227020800)))))
                            : (1 - r.a) / q;
  // clang-format on
  const double d = 1 - c * q;
  return {{d + c * v.x * v.x, c * v.x * v.y - r.b * v.z, c * v.x * v.z + r.b * v.y, c * v.x * v.y + r.b * v.z,
           d + c * v.y * v.y, c * v.y * v.z - r.b * v.x, c * v.x * v.z - r.b * v.y, c * v.y * v.z + r.b * v.x,
           d + c * v.z * v.z}};
}

DHPE_HD void store3(double* to, const Vec3<double>& v) {
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
}

DHPE_HD void store9(double* to, const Mat3<double>& m) {
  for (int i = 0; i < 9; ++i) to[i] = m.m[i];
}

DHPE_HD Vec3<double> cross(const Vec3<double>& a, const Vec3<double>& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

// ---- energy -------------------------------------------------------------------------------------------------------

// Fills chain and world, and the joints with the skeleton's nodes.
template <typename Team>
DHPE_HD void pose_nodes(const Team& team, const NewtonHand& hand, NewtonPoint& p) {
  const double *pose = pose_of(p), *betas = betas_of(p);
  for (int i = team.rank(); i < 3 * kNodes; i += team.size()) {
    double bone = hand.bones_m[i];
    for (int s = 0; s < kNewtonShape; ++s) bone += betas[s] * hand.bone_dirs[i * kNewtonShape + s];
    p.chain[i] = bone;
  }
  for (int j = team.rank(); j < kFingers * kFingerJoints; j += team.size())
    store9(p.world + 9 * j, rodrigues(load3(pose + 3 * j)));
  team.sync();
  for (int f = team.rank(); f < kFingers; f += team.size()) {
    double* node = p.chain + 3 * first_node(f);
    double* world = p.world + 9 * kFingerJoints * f;
    for (int k = 1; k < kFingerNodes; ++k) {
      const Mat3<double> before = load9(world + 9 * (k - 1));
      store3(node + 3 * k, load3(node + 3 * (k - 1)) + mul(before, load3(node + 3 * k)));
      if (k < kFingerJoints) store9(world + 9 * k, mul(before, load9(world + 9 * k)));
    }
  }
  team.sync();
  for (int i = team.rank(); i < 3 * kNodes; i += team.size()) p.joints[i] = p.chain[i];
}

DHPE_HD double geman_mcclure(double distance_sq, double outlier_sigmas) {
  return 0.5 * distance_sq / (1 + distance_sq / (outlier_sigmas * outlier_sigmas));
}

struct NewtonCamera {
  bool perspective;
  double focal[2], center[2];  // crop units; orthographic: the scale, and the image of the origin
  double origin_m[3];          // perspective: of the hand

  DHPE_HD NewtonCamera(const double* intrinsics, const double* cam) : perspective(intrinsics != nullptr) {
    const double scale = perspective ? 0 : std::exp(cam[0]);
    for (int i = 0; i < 2; ++i) {
      focal[i] = perspective ? intrinsics[i] : scale;
      center[i] = perspective ? intrinsics[2 + i] : cam[1 + i];
    }
    for (int i = 0; i < 3; ++i) origin_m[i] = cam[i];
  }

  // Where a turned point is seen; not a number behind a perspective camera.
  DHPE_HD void project(const double* turned, double* image) const {
    const double z = turned[2] + origin_m[2], in_front = z > 1e-3 ? z : NAN;
    for (int i = 0; i < 2; ++i)
      image[i] =
          perspective ? focal[i] * (turned[i] + origin_m[i]) / in_front + center[i] : focal[i] * turned[i] + center[i];
  }

  // How that image moves along `axis` (0 or 1) when the turned point moves.
  DHPE_HD Vec3<double> by_point(const double* turned, int axis) const {
    const double z = perspective ? turned[2] + origin_m[2] : 1, slope = focal[axis] / z;
    const double by_depth = perspective ? -slope * (turned[axis] + origin_m[axis]) / z : 0;
    return {axis == 0 ? slope : 0, axis == 1 ? slope : 0, by_depth};
  }

  // ... and when the camera's three parameters change.
  DHPE_HD void by_parameters(const double* turned, int axis, double* out) const {
    const Vec3<double> row = by_point(turned, axis);
    out[0] = perspective ? row.x : focal[axis] * turned[axis];
    out[1] = perspective ? row.y : axis == 0;
    out[2] = perspective ? row.z : axis == 1;
  }
};

DHPE_HD double limit_violation(const NewtonHand& hand, const double* pose, int i) {
  const double *axis = hand.axes + 3 * i, *at = pose + i / 3 * 3;
  const double angle = axis[0] * at[0] + axis[1] * at[1] + axis[2] * at[2];
  return angle > hand.high[i] ? angle - hand.high[i] : angle < hand.low[i] ? angle - hand.low[i] : angle * 0;
}

DHPE_HD double beta_excess(double beta, double limit) {
  return beta > limit ? beta - limit : beta < -limit ? beta + limit : 0;
}

// The energy, infinite where it is no number; `mesh_energy` is that of the mesh terms. Needs the joints, fills the rest
// of the point.
template <typename Team>
DHPE_HD double weigh(const Team& team, const NewtonHand& hand, const NewtonEvidence& evidence,
                     const NewtonWeights& weights, double mesh_energy, NewtonPoint& p) {
  const double *pose = pose_of(p), *betas = betas_of(p);
  const Mat3<double> rotation = load9(rotation_of(p));
  const NewtonCamera camera(evidence.intrinsics, cam_of(p));
  for (int n = team.rank(); n < kNodes; n += team.size()) {
    const int joint = std_joint(n);
    const double confidence = evidence.confidence[joint];
    store3(p.turned + 3 * n, mul(rotation, load3(p.joints + 3 * n)));
    double image[2], distance_sq = 0;
    camera.project(p.turned + 3 * n, image);
    for (int i = 0; i < 2; ++i) {
      const double residual = image[i] - (confidence > 0 ? evidence.joints[2 * joint + i] : 0);
      p.residual[2 * n + i] = residual;
      distance_sq += residual * residual / (weights.joint_sigma * weights.joint_sigma);
    }
    p.joint_energy[n] = confidence * geman_mcclure(distance_sq, weights.outlier_sigmas);
  }
  for (int i = team.rank(); i < kNewtonPose; i += team.size()) {
    p.pull[i] = 0;
    p.violation[i] = limit_violation(hand, pose, i);
  }
  for (int j = 0; j < kNewtonPose; ++j) {
    const double offset = pose[j] - hand.mean[j];
    for (int i = team.rank(); i < kNewtonPose; i += team.size())
      p.pull[i] += hand.precision[j * kNewtonPose + i] * offset;
  }
  team.sync();
  double total = mesh_energy, prior = 0, limits = 0, shape = 0, excess = 0;
  for (int n = 0; n < kNodes; ++n) total += p.joint_energy[n];
  for (int i = 0; i < kNewtonPose; ++i) {
    prior += p.pull[i] * (pose[i] - hand.mean[i]);
    limits += p.violation[i] * p.violation[i];
  }
  for (int s = 0; s < kNewtonShape; ++s) {
    const double over = beta_excess(betas[s], weights.beta_limit);
    shape += betas[s] * betas[s];
    excess += over * over;
  }
  total += 0.5 * (weights.pose * prior + weights.shape * shape);
  total += 0.5 * limits / (weights.limit_sigma_rad * weights.limit_sigma_rad);
  total += 0.5 * excess / (weights.beta_limit_sigma * weights.beta_limit_sigma);
  return is_finite(total) ? total : kInfinity;
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
