// The GPU kernels between skinning and silhouettes; see refine_cuda.cu. A block takes a hand. CUDA only.
#pragma once

#include "lbs/lbs_cuda.h"
#include "refine/refine_math.h"

namespace dhpe {
namespace {

constexpr int kMeshThreads = 256, kMeshWarps = kMeshThreads / kWarp;
constexpr int kFinishThreads = 64;  // a thread an entry of h
constexpr int kMaskParts = 16;      // blocks that share the pixels of a mask; their sums are added up in order
constexpr int kMaskSums = 4;        // MaskSums, and the feature term's change since its mask
constexpr int kCameraSums = 12;
static_assert(kFinishThreads >= kHandSize && sizeof(CameraSums<float>) == kCameraSums * sizeof(float));

// One evaluation of a batch: what its kernels hand to each other.
template <typename T>
struct RefineWork {
  const T* h;           // (B, 63)
  T* pose;              // (B, 16, 3)
  T* betas;             // (B, 10)
  T* verts_m;           // (B, V, 3)
  T* verts;             // (B, V, 3)
  T* verts_px;          // (B, V, 3), or null
  T* directions;        // (B, V, 3)
  T* grad_verts;        // (B, V, 3)
  T* camera;            // (B, 12) CameraSums
  T* found;             // (B, 4) energies of joints, Laplacian, silhouette, feature
  T* feature_weight;    // (B,) 0 where the gate is closed
  double* mask_sums;    // (B, kMaskParts, kMaskSums)
  const T* grad_px;     // (B, V, 3) from the silhouette, or null
  const T* grad_pose;   // (B, 16, 3)
  const T* grad_betas;  // (B, 10)
};

enum Found : int { kFoundJoints, kFoundLaplacian, kFoundSilhouette, kFoundFeature, kFoundTerms };

// Sums over a block in a fixed order; every thread gets them. `shared` has a place for each warp.
template <int kWarps, typename T>
__device__ T sum_over_block(T value, T* shared) {
  value = sum_over_lanes<kWarp>(value);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shared[w];
  __syncthreads();  // the next call overwrites the places
  return sum;
}

template <typename T>
__device__ void store3(T* to, const Vec3<T>& v) {
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
}

// Row r of the regressor by a warp.
template <typename T>
__device__ Vec3<T> sum_by_warp(const SparseRows<T>& m, int r, const T* points) {
  Vec3<T> sum = {0, 0, 0};
  for (int64_t i = m.start[r] + static_cast<int>(threadIdx.x) % kWarp; i < m.start[r + 1]; i += kWarp) {
    if (i < 0 || i >= m.entries || m.column[i] < 0 || m.column[i] >= m.columns) continue;
    const T* p = points + 3 * static_cast<int64_t>(m.column[i]);
    sum = sum + Vec3<T>{m.value[i] * p[0], m.value[i] * p[1], m.value[i] * p[2]};
  }
  return {sum_over_lanes<kWarp>(sum.x), sum_over_lanes<kWarp>(sum.y), sum_over_lanes<kWarp>(sum.z)};
}

// Joint after joint, so that vertices in several rows get their shares in order.
template <typename T>
__device__ void add_joint_gradients(const SparseRows<T>& m, const JointTerm<T>* joints, T weight, T* grad_verts) {
  for (int j = 0; j < kSkeletonJoints; ++j) {
    if (joints[j].counts)
      for (int64_t i = m.start[j] + static_cast<int64_t>(threadIdx.x); i < m.start[j + 1]; i += kMeshThreads) {
        if (i < 0 || i >= m.entries || m.column[i] < 0 || m.column[i] >= m.columns) continue;
        T* g = grad_verts + 3 * static_cast<int64_t>(m.column[i]);
        atomicAdd(g, weight * m.value[i] * joints[j].gx);  // a row may name a vertex twice
        atomicAdd(g + 1, weight * m.value[i] * joints[j].gy);
      }
    __syncthreads();
  }
}

// From dL/dv' to dL/dv, in place, and the camera's sums.
template <typename T>
__device__ void camera_backward_of_hand(const RefineModel<T>& m, const RefineWork<T>& w, const HandCamera<T>& camera,
                                        T pixels, T* shared) {
  const int64_t n = m.lbs.n_verts * 3, b = blockIdx.x;
  CameraSums<T> sums = {};
  for (int64_t v = threadIdx.x; v < m.lbs.n_verts; v += kMeshThreads) {
    T* g = w.grad_verts + b * n + 3 * v;
    Vec3<T> grad = load3(g);
    if (w.grad_px) {
      const T* px = w.grad_px + b * n + 3 * v;
      grad = grad + Vec3<T>{pixels * px[0], pixels * px[1], T(0)};
    }
    store3(g, from_crop(camera, w.verts_m + b * n + 3 * v, grad, sums));
  }
  const T* parts = sums.matrix;
  for (int i = 0; i < kCameraSums; ++i) {
    const T sum = sum_over_block<kMeshWarps>(i < 9 ? parts[i] : sums.trans[i - 9], shared);
    if (threadIdx.x == 0) w.camera[b * kCameraSums + i] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kMeshThreads)
    mesh_kernel(RefineModel<T> m, RefineTargets<T> targets, RefineOptions o, RefineWork<T> w, bool with_gradient) {
  __shared__ HandCamera<T> camera;
  __shared__ JointTerm<T> joints[kSkeletonJoints];
  __shared__ T shared[kMeshWarps];
  const int64_t b = blockIdx.x, V = m.lbs.n_verts, n = V * 3;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  if (threadIdx.x == 0) camera = hand_camera(w.h + b * kHandSize);
  __syncthreads();
  const T half = static_cast<T>(o.image_size) / 2;
  for (int64_t v = threadIdx.x; v < V; v += kMeshThreads) {
    const Vec3<T> at = to_crop(camera, w.verts_m + b * n + 3 * v);
    store3(w.verts + b * n + 3 * v, at);
    if (w.verts_px) store3(w.verts_px + b * n + 3 * v, Vec3<T>{(at.x + 1) * half, (at.y + 1) * half, at.z});
  }
  __syncthreads();
  const T* verts = w.verts + b * n;
  T* directions = w.directions + b * n;
  T length = 0;
  for (int64_t v = threadIdx.x; v < V; v += kMeshThreads)
    length += length_and_direction(sparse_sum(m.laplacian, v, verts), directions + 3 * v);
  length = sum_over_block<kMeshWarps>(length, shared);
  for (int j = warp; j < kSkeletonJoints; j += kMeshWarps) {
    const Vec3<T> at = sum_by_warp(m.joint_regressor, j, verts);
    if (lane == 0) joints[j] = joint_term(at, targets.joints2d_px + (b * kSkeletonJoints + j) * 2, o.image_size);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    T energy = 0, distance_px = 0;
    int count = 0;
    for (int j = 0; j < kSkeletonJoints; ++j) {
      energy += joints[j].energy;
      distance_px += joints[j].distance_px;
      count += joints[j].counts;
    }
    const bool acts = std::isinf(o.feature_tau_px) || is_near(distance_px, count, o.feature_tau_px);
    T* found = w.found + b * kFoundTerms;
    found[kFoundJoints] = energy;
    found[kFoundLaplacian] = V > 0 ? length / static_cast<T>(V) : T(0);
    found[kFoundSilhouette] = found[kFoundFeature] = 0;
    w.feature_weight[b] = acts ? static_cast<T>(o.weights[kFeature]) : T(0);
  }
  if (!with_gradient) return;
  T* grad_verts = w.grad_verts + b * n;
  const T share = o.weights[kLaplacian] != 0 ? static_cast<T>(o.weights[kLaplacian]) / static_cast<T>(V) : T(0);
  for (int64_t v = threadIdx.x; v < V; v += kMeshThreads) {
    Vec3<T> g = {0, 0, 0};
    if (share != 0) g = sparse_sum(m.laplacian, v, directions);
    store3(grad_verts + 3 * v, Vec3<T>{share * g.x, share * g.y, share * g.z});
  }
  __syncthreads();
  if (o.weights[kJoints] != 0)
    add_joint_gradients(m.joint_regressor, joints, static_cast<T>(o.weights[kJoints]), grad_verts);
  if (!o.draws()) camera_backward_of_hand(m, w, camera, half, shared);
}

template <typename T>
__global__ void __launch_bounds__(kMeshThreads) camera_kernel(RefineModel<T> m, RefineOptions o, RefineWork<T> w) {
  __shared__ HandCamera<T> camera;
  __shared__ T shared[kMeshWarps];
  if (threadIdx.x == 0) camera = hand_camera(w.h + blockIdx.x * kHandSize);
  __syncthreads();
  camera_backward_of_hand(m, w, camera, static_cast<T>(o.image_size) / 2, shared);
}

template <typename T>
__global__ void __launch_bounds__(kMeshThreads)
    mask_sums_kernel(RefineTargets<T> targets, RefineOptions o, RefineWork<T> w, const T* drawn) {
  __shared__ double shared[kMeshWarps];
  const int64_t b = blockIdx.x, pixels = static_cast<int64_t>(o.image_size) * o.image_size, first = b * pixels;
  double sums[kMaskSums] = {};
  for (int64_t i = blockIdx.y * kMeshThreads + threadIdx.x; i < pixels; i += kMaskParts * kMeshThreads) {
    const double m = static_cast<double>(drawn[first + i]);
    if (o.draws_silhouette()) {
      const double given = static_cast<double>(targets.mask[first + i]);
      sums[0] += m * given;
      sums[1] += m;
      sums[2] += given;
    }
    if (o.draws_feature())
      sums[3] += static_cast<double>(targets.slope[first + i]) * (m - static_cast<double>(targets.slope_at[first + i]));
  }
  for (int k = 0; k < kMaskSums; ++k) {
    const double sum = sum_over_block<kMeshWarps>(sums[k], shared);
    if (threadIdx.x == 0) w.mask_sums[(b * kMaskParts + blockIdx.y) * kMaskSums + k] = sum;
  }
}

// The energies of the mask, and the derivative by its pixels unless `grad_mask` is null.
template <typename T>
__global__ void __launch_bounds__(kMeshThreads)
    mask_gradient_kernel(RefineTargets<T> targets, RefineOptions o, RefineWork<T> w, T* grad_mask) {
  const int64_t b = blockIdx.x, pixels = static_cast<int64_t>(o.image_size) * o.image_size, first = b * pixels;
  double sums[kMaskSums] = {};
  for (int part = 0; part < kMaskParts; ++part)
    for (int k = 0; k < kMaskSums; ++k) sums[k] += w.mask_sums[(b * kMaskParts + part) * kMaskSums + k];
  const MaskSums masks = {sums[0], sums[1], sums[2]};
  if (blockIdx.y == 0 && threadIdx.x == 0) {
    T* found = w.found + b * kFoundTerms;
    if (o.draws_silhouette()) found[kFoundSilhouette] = static_cast<T>(iou_loss(masks));
    if (o.draws_feature()) found[kFoundFeature] = static_cast<T>(static_cast<double>(targets.slope_value[b]) + sums[3]);
  }
  if (!grad_mask) return;
  const IouSlope by = iou_slope(masks);
  const double feature_weight = static_cast<double>(w.feature_weight[b]), weight = o.weights[kSilhouette];
  for (int64_t i = blockIdx.y * kMeshThreads + threadIdx.x; i < pixels; i += kMaskParts * kMeshThreads) {
    double g = weight != 0 ? weight * (by.by_given * static_cast<double>(targets.mask[first + i]) + by.constant) : 0;
    // A closed gate lets nothing through, not even what is not a number.
    if (feature_weight != 0) g += feature_weight * static_cast<double>(targets.slope[first + i]);
    grad_mask[first + i] = static_cast<T>(g);
  }
}

// Where the pieces of h go for skinning.
template <typename T>
__device__ void store_parameters(const T* h, int i, T* pose, T* betas) {
  if (i < 3) pose[i] = 0;
  if (i < kPoseSize) pose[3 + i] = h[i];
  if (i >= kShapeAt && i < kShapeAt + kShapeSize) betas[i - kShapeAt] = h[i];
}

template <typename T>
__global__ void __launch_bounds__(kFinishThreads) start_kernel(RefineWork<T> w) {
  const int64_t b = blockIdx.x;
  store_parameters(w.h + b * kHandSize, static_cast<int>(threadIdx.x), w.pose + b * 3 * kHandJoints,
                   w.betas + b * kShapeSize);
}

// What a finish_kernel is to do beyond energies.
template <typename T>
struct FinishTask {
  T* terms;        // of the first hand, kTerms numbers
  int64_t stride;  // from a hand's terms to the next one's
  T* grad_h;       // (B, 63), or null
  // Of a descent, or null:
  T* h;       // (B, 63)
  T* memory;  // (B, kDescentSize)
  const T* rates;
  DescentOptions descent;
  bool is_first;  // iterate of the call
  bool is_exact, moves;
};

template <typename T>
struct FinishShared {
  T grad[kHandSize], pose[kPoseSize], shape[kShapeSize], limits[kHandJoints - 1];
  bool moves;
};

// The priors' energies, and all of dL/dh.
template <typename T>
__device__ void add_up_gradient(const RefineModel<T>& m, const RefineOptions& o, const RefineWork<T>& w,
                                bool with_gradient, FinishShared<T>& s) {
  const int64_t b = blockIdx.x;
  const int i = static_cast<int>(threadIdx.x);
  const T* h = w.h + b * kHandSize;
  if (with_gradient) {
    if (i < kPoseSize) s.grad[i] = w.grad_pose[b * 3 * kHandJoints + 3 + i];
    if (i >= kShapeAt && i < kShapeAt + kShapeSize) s.grad[i] = w.grad_betas[b * kShapeSize + i - kShapeAt];
    if (i == 0) {
      CameraSums<T> sums;
      for (int k = 0; k < 9; ++k) sums.matrix[k] = w.camera[b * kCameraSums + k];
      for (int k = 0; k < 3; ++k) sums.trans[k] = w.camera[b * kCameraSums + 9 + k];
      camera_backward(hand_camera(h), sums, s.grad);
    }
  }
  __syncthreads();
  if (i < kPoseSize && o.weights[kPose] != 0) {
    const T precise = precise_offset(m.prior, h, i);
    s.pose[i] = precise * (h[i] - m.prior.mean[i]);
    if (with_gradient) s.grad[i] += 2 * static_cast<T>(o.weights[kPose]) * precise;
  }
  if (i >= kShapeAt && i < kShapeAt + kShapeSize && o.weights[kShape] != 0) {
    s.shape[i - kShapeAt] = h[i] * h[i];
    if (with_gradient) s.grad[i] += 2 * static_cast<T>(o.weights[kShape]) * h[i];
  }
  __syncthreads();
  if (i < kHandJoints - 1 && o.weights[kLimits] != 0) {
    const Vec3<T> beyond = limit_violation(m.prior, h, i);
    s.limits[i] = dot(beyond, beyond);
    const Vec3<T> g = mul_transposed(load9(m.prior.axes + 9 * i), beyond);
    const T by = 2 * static_cast<T>(o.weights[kLimits]);
    if (with_gradient) add_to(s.grad + 3 * i, Vec3<T>{by * g.x, by * g.y, by * g.z});
  }
  __syncthreads();
}

// By one thread; returns the energy by which iterates are compared.
template <typename T>
__device__ T add_up_terms(const RefineOptions& o, const RefineWork<T>& w, const FinishShared<T>& s, T* terms) {
  const int64_t b = blockIdx.x;
  const T* found = w.found + b * kFoundTerms;
  const auto sum = [](const T* from, int count, double weight) {
    T total = 0;
    for (int i = 0; i < count && weight != 0; ++i) total += from[i];
    return total;
  };
  terms[kJoints] = found[kFoundJoints];
  terms[kLaplacian] = found[kFoundLaplacian];
  terms[kSilhouette] = found[kFoundSilhouette];
  terms[kFeature] = found[kFoundFeature];
  terms[kPose] = sum(s.pose, kPoseSize, o.weights[kPose]);
  terms[kShape] = sum(s.shape, kShapeSize, o.weights[kShape]);
  terms[kLimits] = sum(s.limits, kHandJoints - 1, o.weights[kLimits]);
  T rank = 0;
  for (int i = 0; i < kTotal; ++i)
    if (i != kFeature && o.weights[i] != 0) rank += static_cast<T>(o.weights[i]) * terms[i];
  const T feature_weight = o.draws_feature() ? w.feature_weight[b] : T(0);
  terms[kTotal] = feature_weight != 0 ? rank + feature_weight * terms[kFeature] : rank;
  return std::isinf(o.feature_tau_px) ? terms[kTotal] : rank;
}

template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(RefineModel<T> m, RefineOptions o, RefineWork<T> w, FinishTask<T> task) {
  __shared__ FinishShared<T> s;
  const int64_t b = blockIdx.x;
  const int i = static_cast<int>(threadIdx.x);
  const bool with_gradient = task.grad_h || task.moves;
  add_up_gradient(m, o, w, with_gradient, s);
  if (task.grad_h && i < kHandSize) task.grad_h[b * kHandSize + i] = s.grad[i];
  T* terms = task.terms + b * task.stride;
  if (!task.memory) {
    if (i == 0) add_up_terms(o, w, s, terms);
    return;
  }
  T* h = task.h + b * kHandSize;
  T* memory = task.memory + b * kDescentSize;
  if (i == 0) {
    if (!task.is_first && is_at_rest(memory)) {
      for (int k = 0; k < kTerms; ++k) terms[k] = terms[k - kTerms];
    } else {
      const T last = memory[kLastEnergy];
      const bool was_fresh = status_of(memory) == DescentStatus::fresh;
      const T rank = add_up_terms(o, w, s, terms);
      if (note_iterate<T>({terms[kTotal], rank, task.is_exact}, memory))
        for (int k = 0; k < kHandSize; ++k) memory[kBestHand + k] = h[k];
      if (task.moves && !was_fresh) note_change(task.descent.tolerance, rank, last, memory);
    }
    s.moves = task.moves && !is_at_rest(memory);
  }
  __syncthreads();
  if (!s.moves) return;
  MovedEntry<T> moved = {};
  if (i < kHandSize)
    moved = moved_entry(task.descent.optimizer, adam_bias(static_cast<double>(memory[kSteps]) + 1), h[i], task.rates[i],
                        s.grad[i], i, memory);
  const bool is_finite = __syncthreads_and(i >= kHandSize || std::isfinite(moved.h));
  if (is_finite && i < kHandSize) take_entry(moved, i, h, memory);
  if (i == 0) {
    if (is_finite)
      memory[kSteps] += 1;
    else
      set_status(memory, DescentStatus::not_finite);
  }
  __syncthreads();
  if (i < kHandSize) store_parameters(h, i, w.pose + b * 3 * kHandJoints, w.betas + b * kShapeSize);
}

}  // namespace
}  // namespace dhpe
