// What the GPU sources of linear blend skinning share: the launchers, and one hand's kinematic chain in shared memory.
// CUDA only.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "common/warp.h"
#include "lbs/lbs_math.h"

namespace dhpe {

// ---- Launchers: each path tells how many elements of scratch memory it wants ----------------------------------------

// By the path that serves the batch (lbs_cuda.cu), for B > 0 hands; scratch memory lies beside `like`. The host never
// waits: a stream that is being captured into a graph will do.
template <typename T>
void launch_forward(const LbsForward<T>& p, int64_t B, const Tensor& like, cudaStream_t stream);
template <typename T>
void launch_backward(const LbsBackward<T>& p, int64_t B, const Tensor& like, cudaStream_t stream);

// Small batches (lbs_cuda_fused.cu).
template <typename T>
void launch_fused_forward(const LbsForward<T>& p, int64_t B, cudaStream_t stream);
template <typename T>
int64_t fused_backward_scratch(const LbsModel<T>& m, int64_t B);
template <typename T>
void launch_fused_backward(const LbsBackward<T>& p, int64_t B, T* scratch, cudaStream_t stream);

// Large batches (lbs_cuda_tiled.cu, lbs_cuda_tiled_backward.cu).
template <typename T>
int64_t tiled_forward_scratch(const LbsModel<T>& m, int64_t B);
template <typename T>
void launch_tiled_forward(const LbsForward<T>& p, int64_t B, T* scratch, cudaStream_t stream);
template <typename T>
int64_t tiled_backward_scratch(const LbsModel<T>& m, int64_t B);
template <typename T>
void launch_tiled_backward(const LbsBackward<T>& p, int64_t B, T* scratch, cudaStream_t stream);

// Both paths: the backward pass's sums over the vertices, in parts that are added up in their order: no atomics, so
// the gradient is the same bit for bit every time.
template <typename T>
struct VertexParts {
  T* transforms;  // (n_transforms, B, J, 12): dL/d[W | o], row-major
  T* coeffs;      // (n_coeffs, B, S + P)
  int n_transforms, n_coeffs;
};
template <typename T>
void launch_finish(const LbsBackward<T>& p, const VertexParts<T>& parts, int64_t B, int threads, cudaStream_t stream);

// Large batches: the hands' chains, left in memory for the tiles. `padded` >= B hands; those past the last repeat it.
template <typename T>
struct PosedHands {
  T* coeffs;      // (S + P, padded), or null
  T* transforms;  // (padded / together, J, 12, together): rows of [W | o]; `together` hands side by side
  int64_t padded;
  int together;
};
template <typename T>
void launch_pose(const LbsModel<T>& m, const T* pose, bool pose_is_matrix, const T* betas, T* joints,
                 const PosedHands<T>& out, int64_t B, cudaStream_t stream);

constexpr size_t kDefaultSharedBytes = 48 * 1024;  // a kernel that wants more has to say so before its launch

// Whether the rows of the basis can be copied 8 bytes at a time.
template <typename T>
bool in_pairs(const LbsModel<T>& m) {
  const auto aligned = [](const T* p) { return reinterpret_cast<uintptr_t>(p) % 8 == 0; };
  return m.n_verts % 2 == 0 && aligned(m.shapedirs) && aligned(m.posedirs);
}

// ---- Device code ----------------------------------------------------------------------------------------------------

// Row k of the basis lies k * 3 V elements from here: walking down the rows costs no multiplication.
template <typename T>
__device__ __forceinline__ const T* basis_origin(const LbsModel<T>& m, int k) {
  return k < m.n_shape ? m.shapedirs : m.posedirs - m.n_shape * m.n_verts * 3;
}

// A slot's joint, kept inside the table whatever the caller passed: nobody has looked at the values before.
template <typename T>
__device__ __forceinline__ int slot_joint(const LbsModel<T>& m, int64_t slot) {
  const int joint = m.skin_joints[slot];
  return joint < 0 || joint >= m.n_joints ? 0 : joint;
}

// Elements that lie aligned to their vector of up to 16 bytes, in shared or global memory.
template <typename T, int kCount>
struct Packed {
  static constexpr int kWidth = kCount * sizeof(T) < 16 ? kCount : 16 / sizeof(T);
  struct alignas(kWidth * sizeof(T)) Vector {
    T v[kWidth];
  };
  static_assert(kCount % kWidth == 0);
};

template <typename T, int kCount>
__device__ __forceinline__ void load_packed(const T* from, T (&to)[kCount]) {
  using P = Packed<T, kCount>;
  for (int i = 0; i < kCount; i += P::kWidth) {
    const typename P::Vector vector = *reinterpret_cast<const typename P::Vector*>(from + i);
    for (int k = 0; k < P::kWidth; ++k) to[i + k] = vector.v[k];
  }
}

template <typename T, int kCount>
__device__ __forceinline__ void store_packed(const T (&from)[kCount], T* to) {
  using P = Packed<T, kCount>;
  for (int i = 0; i < kCount; i += P::kWidth) {
    typename P::Vector vector;
    for (int k = 0; k < P::kWidth; ++k) vector.v[k] = from[i + k];
    *reinterpret_cast<typename P::Vector*>(to + i) = vector;
  }
}

// From global to shared memory, in flight until the thread waits for its pipeline; zeros if there is nothing to copy.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool exists) {
  if (exists)
    __pipeline_memcpy_async(to, from, kBytes);
  else
    __pipeline_memcpy_async(to, from, kBytes, kBytes);
}

// One hand's chain in shared memory.
template <typename T>
struct SharedChain {
  Chain<T> chain;
  int parent[kMaxJoints];
};

// rest_coordinate of lbs_math.h, a hand's usual shape directions loaded all at once: one latency instead of ten.
template <typename T>
__device__ T rest_coordinate_at_once(const LbsModel<T>& m, const T* betas, int index) {
  constexpr int kAtOnce = 10;
  T value = m.joint_template[index];
  const int n_shape = static_cast<int>(m.n_shape), stride = static_cast<int>(m.n_joints) * 3;
  for (int first = 0; first < n_shape; first += kAtOnce) {
    T beta[kAtOnce], direction[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool exists = first + i < n_shape;
      beta[i] = exists ? betas[first + i] : T(0);
      direction[i] = exists ? m.joint_shapedirs[(first + i) * stride + index] : T(0);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) value += beta[i] * direction[i];
  }
  return value;
}

// A joint's distance from the root; -1 for joints that the model does not have.
__device__ __forceinline__ int joint_depth(const int* parent, int joint, int n_joints) {
  if (joint >= n_joints) return -1;
  int depth = 0;
  for (int j = joint; j > 0; j = parent[j]) ++depth;
  return depth;
}

// chain_forward by one warp. Joints of the same depth do not wait for each other: 3 steps instead of 15 for a hand.
template <typename T>
__device__ void chain_forward_by_depth(int n_joints, SharedChain<T>& s) {
  static_assert(kMaxJoints == 2 * kWarp, "two joints a lane");
  const int lane = threadIdx.x % kWarp;
  const int depth[2] = {joint_depth(s.parent, lane, n_joints), joint_depth(s.parent, lane + kWarp, n_joints)};
  if (lane == 0) chain_forward_root(s.chain);
  __syncwarp();
  for (int level = 1; __any_sync(kAllLanes, depth[0] >= level || depth[1] >= level); ++level) {
    if (depth[0] == level) chain_forward_joint(s.chain, lane, s.parent[lane]);
    if (depth[1] == level) chain_forward_joint(s.chain, lane + kWarp, s.parent[lane + kWarp]);
    __syncwarp();
  }
}

// The chain of one hand, by a block of at least two warps: its rotations and resting joints, then the walk.
template <typename T>
__device__ void start_chain(const LbsModel<T>& m, const T* pose, bool pose_is_matrix, const T* betas,
                            SharedChain<T>& s) {
  const int threads = blockDim.x, n_joints = static_cast<int>(m.n_joints);
  for (int j = threadIdx.x; j < n_joints; j += threads) {
    s.parent[j] = static_cast<int>(parent_of(m, j));
    local_rotation(pose, pose_is_matrix, j, s.chain.local + 9 * j);
  }
  for (int i = threads - 1 - static_cast<int>(threadIdx.x); i < 3 * n_joints; i += threads)  // the last warps meanwhile
    s.chain.rest[i] = rest_coordinate_at_once(m, betas, i);
}

// On return, what start_chain() stored is there for all threads; the first warp has the rest of the chain, for which
// the others need a __syncthreads() of their own.
template <typename T>
__device__ void walk_chain(const LbsModel<T>& m, SharedChain<T>& s) {
  __syncthreads();
  if (threadIdx.x < kWarp) chain_forward_by_depth(static_cast<int>(m.n_joints), s);
}

// Element `e` of joint j's [W | o] (3, 4).
template <typename T>
__device__ __forceinline__ T transform_element(const Chain<T>& c, int j, int e) {
  const int row = e / 4, column = e % 4;
  if (column < 3) return c.world[9 * j + 3 * row + column];
  const Vec3<T> o = skin_offset(c, j);
  return row == 0 ? o.x : row == 1 ? o.y : o.z;
}

// Coefficient i of the pose directions: R - I of joints 1..J-1.
template <typename T>
__device__ __forceinline__ T pose_coeff(const Chain<T>& c, int i) {
  return c.local[9 + i] - (i % 9 % 4 == 0 ? T(1) : T(0));
}

}  // namespace dhpe
