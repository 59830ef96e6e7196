// Linear blend skinning of small batches on the GPU, where the time is latency: nearly all of a launch goes by waiting.
// A block takes few vertices of one hand, so that even one hand of MANO occupies 49 SMs, and asks for its part of the
// basis before it walks the kinematic chain, which every block does for itself. The price is that each hand reads the
// whole basis (1.35 MB) from the L2 cache; lbs_cuda_tiled.cu shares it among hands.
//
// Backward: each block leaves its sums over its vertices; a second kernel adds them up in order and walks the chain.
#include "lbs/lbs_cuda.h"

namespace dhpe {
namespace {

constexpr int kTileVerts = 16;  // vertices of a block
constexpr int kColumns = 3 * kTileVerts;
constexpr int kThreads = 384;
constexpr int kGroups = kThreads / kColumns;       // forward: a thread a column, the rows of the basis dealt to 8
constexpr int kRowGroups = kThreads / kTileVerts;  // backward: 16 lanes a row, three columns each
constexpr int kRowsAhead = 20;                     // forward: rows a thread loads at once; MANO has 145 = 8 * 18.1
constexpr int kRowsAheadBackward = 7;              // backward: 145 = 24 * 6.04
constexpr int kFinishThreads = 384;                // a thread a sum: MANO has 16 * 12 + 145 of them
static_assert(kThreads % kWarp == 0 && kThreads % kColumns == 0 && kWarp % kTileVerts == 0);

inline int64_t tiles_of(int64_t n_verts) { return n_verts > 0 ? ceil_div(n_verts, kTileVerts) : 1; }

template <typename T>
struct ForwardShared {
  SharedChain<T> hand;
  alignas(16) T transforms[kMaxJoints * 12];
  T coeffs[kMaxCoeffs];
  T partial[kGroups][kColumns];
  T bent[kColumns];
};

// Rows first, first + kGroups, ... of the basis at one of its columns; zeros outside.
template <typename T>
__device__ __forceinline__ void load_column(const LbsModel<T>& m, int64_t column, bool inside, int first,
                                            T (&row)[kRowsAhead]) {
  const int rows = static_cast<int>(m.n_shape + m.n_pose);
  const int64_t n = m.n_verts * 3;
  int64_t at = first * n + column;
#pragma unroll
  for (int i = 0; i < kRowsAhead; ++i, at += kGroups * n) {
    const int k = first + i * kGroups;
    row[i] = inside && k < rows ? basis_origin(m, k)[at] : T(0);
  }
}

// Coordinate r of vertex v after skinning.
template <typename T>
__device__ T skinned_coordinate(const LbsModel<T>& m, const T* transforms, int64_t v, int r, const T* bent) {
  T x = 0;
#pragma unroll 4
  for (int64_t slot = v * m.n_slots; slot < (v + 1) * m.n_slots; ++slot) {
    const T* t = transforms + 12 * slot_joint(m, slot) + 4 * r;
    const T w = m.skin_weights[slot];
    // An unused slot may name a joint that is infinitely far.
    x += w == 0 ? T(0) : w * (t[0] * bent[0] + t[1] * bent[1] + t[2] * bent[2] + t[3]);
  }
  return x;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) fused_forward_kernel(LbsForward<T> p) {
  __shared__ ForwardShared<T> s;
  const LbsModel<T>& m = p.model;
  const int tid = threadIdx.x, column = tid % kColumns, group = tid / kColumns;
  const int n_joints = static_cast<int>(m.n_joints), n_shape = static_cast<int>(m.n_shape);
  const int rows = n_shape + static_cast<int>(m.n_pose);
  const int64_t n = m.n_verts * 3, b = blockIdx.y, at = int64_t(blockIdx.x) * kColumns + column;
  const bool inside = at < n;
  const T* betas = p.betas + b * n_shape;
  start_chain(m, p.pose + b * n_joints * (p.pose_is_matrix ? 9 : 3), p.pose_is_matrix, betas, s.hand);
  T row[kRowsAhead];
  load_column(m, at, inside, group, row);
  T sum = inside && group == 0 ? m.v_template[at] : T(0);
  for (int i = tid; i < n_shape; i += kThreads) s.coeffs[i] = betas[i];
  walk_chain(m, s.hand);
  const Chain<T>& chain = s.hand.chain;
  for (int i = kThreads - 1 - tid; i < m.n_pose; i += kThreads) s.coeffs[n_shape + i] = pose_coeff(chain, i);
  __syncthreads();
  for (int i = kThreads - 1 - tid; i < 12 * n_joints; i += kThreads)
    s.transforms[i] = transform_element(chain, i / 12, i % 12);
  if (blockIdx.x == 0)
    for (int i = tid; i < 3 * n_joints; i += kThreads) p.joints[b * 3 * n_joints + i] = chain.position[i];
  for (int first = group;;) {
#pragma unroll
    for (int i = 0; i < kRowsAhead; ++i)
      if (first + i * kGroups < rows) sum += s.coeffs[first + i * kGroups] * row[i];
    first += kRowsAhead * kGroups;
    if (first - group >= rows) break;
    load_column(m, at, inside, first, row);
  }
  s.partial[group][column] = sum;
  __syncthreads();
  if (group == 0 && inside) {
    for (int g = 1; g < kGroups; ++g) sum += s.partial[g][column];
    s.bent[column] = sum;
    if (p.bent) p.bent[b * n + at] = sum;
  }
  __syncthreads();
  if (group == 0 && inside)
    p.verts[b * n + at] = skinned_coordinate(m, s.transforms, at / 3, column % 3, s.bent + column / 3 * 3);
}

template <typename T>
struct BackwardShared {
  SharedChain<T> hand;
  T weights[kTileVerts][kMaxJoints];  // of each vertex to each joint
  T grad[kColumns], bent[kColumns], grad_bent[kColumns];
};

// Three columns of every row start + row_group, start + row_group + kRowGroups, ...; zeros outside.
template <typename T>
__device__ __forceinline__ void load_rows(const LbsModel<T>& m, int64_t first_column, int start,
                                          T (&row)[kRowsAheadBackward][3]) {
  const int rows = static_cast<int>(m.n_shape + m.n_pose);
  const int first = start + static_cast<int>(threadIdx.x) / kTileVerts;
  const int64_t n = m.n_verts * 3, column = first_column + threadIdx.x % kTileVerts;
  int64_t at = first * n + column;
#pragma unroll
  for (int i = 0; i < kRowsAheadBackward; ++i, at += kRowGroups * n) {
    const int k = first + i * kRowGroups;
#pragma unroll
    for (int c = 0; c < 3; ++c)
      row[i][c] = k < rows && column + c * kTileVerts < n ? basis_origin(m, k)[at + c * kTileVerts] : T(0);
  }
}

template <typename T>
__device__ void load_vertices(const LbsBackward<T>& p, int64_t b, int64_t tile, BackwardShared<T>& s) {
  const LbsModel<T>& m = p.model;
  const int tid = threadIdx.x, owner = kThreads - 1 - tid;
  if (tid < kColumns) {
    const int64_t at = tile * kColumns + tid, n = m.n_verts * 3;
    s.grad[tid] = at < n ? p.grad_verts[b * n + at] : T(0);
    s.bent[tid] = at < n ? p.bent[b * n + at] : T(0);
  }
  if (owner < kTileVerts) {  // a vertex's weights are one thread's: slots may name a joint twice
    for (int j = 0; j < m.n_joints; ++j) s.weights[owner][j] = 0;
    const int64_t v = tile * kTileVerts + owner;
    if (v < m.n_verts)
      for (int64_t slot = v * m.n_slots; slot < (v + 1) * m.n_slots; ++slot)
        s.weights[owner][slot_joint(m, slot)] += m.skin_weights[slot];
  }
}

// Column `column` of the blended rotations' transpose times the gradient.
template <typename T>
__device__ T bent_gradient(int n_joints, const BackwardShared<T>& s, int column) {
  const int v = column / 3, r = column % 3;
  T sum = 0;
  for (int j = 0; j < n_joints; ++j) {
    const T w = s.weights[v][j];
    if (w == 0) continue;
    const T* world = s.hand.chain.world + 9 * j + r;
    sum += w * (world[0] * s.grad[3 * v] + world[3] * s.grad[3 * v + 1] + world[6] * s.grad[3 * v + 2]);
  }
  return sum;
}

// The tile's share of dL/d[W | o], by all warps but the first, which walks the chain.
template <typename T>
__device__ void sum_transforms(int n_joints, const BackwardShared<T>& s, T* out) {
  if (threadIdx.x < kWarp) return;
  for (int i = static_cast<int>(threadIdx.x) - kWarp; i < 12 * n_joints; i += kThreads - kWarp) {
    const int j = i / 12, r = i % 12 / 4, c = i % 4;
    T sum = 0;
    for (int v = 0; v < kTileVerts; ++v) {
      const T w = s.weights[v][j], u = c < 3 ? s.bent[3 * v + c] : T(1);
      sum += w == 0 ? T(0) : w * s.grad[3 * v + r] * u;  // an infinite gradient stays with the vertex's own joints
    }
    out[i] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) fused_backward_kernel(LbsBackward<T> p, VertexParts<T> parts) {
  __shared__ BackwardShared<T> s;
  const LbsModel<T>& m = p.model;
  const int tid = threadIdx.x, rows = static_cast<int>(m.n_shape + m.n_pose), n_joints = static_cast<int>(m.n_joints);
  const int64_t b = blockIdx.y, tile = blockIdx.x, part = tile * gridDim.y + b;
  start_chain(m, p.pose + b * n_joints * (p.pose_is_matrix ? 9 : 3), p.pose_is_matrix, p.betas + b * m.n_shape, s.hand);
  T row[kRowsAheadBackward][3];
  load_rows(m, tile * kColumns, 0, row);
  load_vertices(p, b, tile, s);
  walk_chain(m, s.hand);
  sum_transforms(n_joints, s, parts.transforms + part * n_joints * 12);
  __syncthreads();
  if (tid < kColumns) s.grad_bent[tid] = bent_gradient(n_joints, s, tid);
  __syncthreads();
  for (int start = 0;;) {
#pragma unroll
    for (int i = 0; i < kRowsAheadBackward; ++i) {
      T sum = 0;
#pragma unroll
      for (int c = 0; c < 3; ++c) sum += row[i][c] * s.grad_bent[tid % kTileVerts + c * kTileVerts];
      sum = sum_over_lanes<kTileVerts>(sum);
      const int k = start + i * kRowGroups + tid / kTileVerts;
      if (tid % kTileVerts == 0 && k < rows) parts.coeffs[part * rows + k] = sum;
    }
    start += kRowsAheadBackward * kRowGroups;
    if (start >= rows) break;
    load_rows(m, tile * kColumns, start, row);
  }
}

// ---- Both paths: from the sums over the vertices to the parameters --------------------------------------------------

// chain_backward by one warp, level after level; a joint's lane takes the joint's children, from the last to the first.
template <typename T>
__device__ void chain_backward_by_depth(int n_joints, const SharedChain<T>& s, ChainGrad<T>& g) {
  const int lane = threadIdx.x % kWarp;
  const int joint[2] = {lane, lane + kWarp};
  unsigned long long children[2] = {0, 0};
  int depth[2], level = 0;
  for (int j = 1; j < n_joints; ++j) {
    const unsigned long long bit = 1ull << j;
    if (s.parent[j] == joint[0]) children[0] |= bit;
    if (s.parent[j] == joint[1]) children[1] |= bit;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    depth[i] = joint_depth(s.parent, joint[i], n_joints);
    if (joint[i] < n_joints) chain_backward_offset(s.chain, g, joint[i]);
  }
  __syncwarp();
  while (__any_sync(kAllLanes, depth[0] > level || depth[1] > level)) ++level;
  for (; level >= 0; --level) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (depth[i] == level)
        for (unsigned long long left = children[i]; left != 0;) {
          const int child = 63 - __clzll(static_cast<long long>(left));
          chain_backward_joint(s.chain, g, child, joint[i]);
          left ^= 1ull << child;
        }
    __syncwarp();
  }
  if (lane == 0) chain_backward_root(g);
}

// Sums of one element of all parts, in their order, many loads at once.
template <typename T>
__device__ T sum_of_parts(const T* first, int n_parts, int64_t stride) {
  constexpr int kAtOnce = 16;
  T sum = 0;
  for (int start = 0; start < n_parts; start += kAtOnce) {
    T part[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, first += stride) part[i] = start + i < n_parts ? *first : T(0);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum += part[i];
  }
  return sum;
}

template <typename T>
struct FinishShared {
  SharedChain<T> hand;
  ChainGrad<T> grad;
  T coeffs[kMaxCoeffs];
};

// By all warps but the first, which walks the chain meanwhile.
template <typename T>
__device__ void add_parts(const LbsBackward<T>& p, const VertexParts<T>& parts, int64_t b, int64_t B,
                          FinishShared<T>& s) {
  const LbsModel<T>& m = p.model;
  const int n_joints = static_cast<int>(m.n_joints), elements = 12 * n_joints;
  const int rows = static_cast<int>(m.n_shape + m.n_pose), worker = static_cast<int>(threadIdx.x) - kWarp;
  if (worker < 0) return;
  for (int i = worker; i < elements + rows + 3 * n_joints; i += static_cast<int>(blockDim.x) - kWarp) {
    if (i < elements) {
      const int j = i / 12, r = i % 12 / 4, c = i % 4;
      const T sum = sum_of_parts(parts.transforms + b * elements + i, parts.n_transforms, B * elements);
      (c < 3 ? s.grad.world[9 * j + 3 * r + c] : s.grad.offset[3 * j + r]) = sum;
    } else if (i < elements + rows) {
      const int k = i - elements;
      s.coeffs[k] = sum_of_parts(parts.coeffs + b * rows + k, parts.n_coeffs, B * rows);
    } else {
      const int k = i - elements - rows;
      s.grad.position[k] = p.grad_joints[b * 3 * n_joints + k];
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(LbsBackward<T> p, VertexParts<T> parts, int64_t B) {
  __shared__ FinishShared<T> s;
  const LbsModel<T>& m = p.model;
  const int tid = threadIdx.x, n_joints = static_cast<int>(m.n_joints), n_shape = static_cast<int>(m.n_shape);
  const int64_t b = blockIdx.x, width = m.n_joints * (p.pose_is_matrix ? 9 : 3);
  const T* pose = p.pose + b * width;
  start_chain(m, pose, p.pose_is_matrix, p.betas + b * n_shape, s.hand);
  walk_chain(m, s.hand);
  add_parts(p, parts, b, B, s);
  __syncthreads();
  if (tid < kWarp) chain_backward_by_depth(n_joints, s.hand, s.grad);
  __syncthreads();
  for (int j = tid; j < n_joints; j += static_cast<int>(blockDim.x)) {
    for (int i = 0; i < 9 && j > 0; ++i) s.grad.local[9 * j + i] += s.coeffs[n_shape + 9 * (j - 1) + i];
    store_pose_grad(pose, p.pose_is_matrix, j, s.grad.local, p.grad_pose + b * width);
  }
  const int lane = tid % kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  for (int i = warps - 1 - tid / kWarp; i < n_shape; i += warps) {  // a warp a shape direction, the last ones first
    T sum = 0;
    for (int k = lane; k < 3 * n_joints; k += kWarp) sum += s.grad.rest[k] * m.joint_shapedirs[i * 3 * n_joints + k];
    sum = sum_over_lanes<kWarp>(sum);
    if (lane == 0) p.grad_betas[b * n_shape + i] = s.coeffs[i] + sum;
  }
}

}  // namespace

template <typename T>
void launch_finish(const LbsBackward<T>& p, const VertexParts<T>& parts, int64_t B, int threads, cudaStream_t stream) {
  finish_kernel<T><<<static_cast<unsigned>(B), threads, 0, stream>>>(p, parts, B);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void launch_fused_forward(const LbsForward<T>& p, int64_t B, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(tiles_of(p.model.n_verts)), static_cast<unsigned>(B));
  fused_forward_kernel<T><<<grid, kThreads, 0, stream>>>(p);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
int64_t fused_backward_scratch(const LbsModel<T>& m, int64_t B) {
  return tiles_of(m.n_verts) * B * (12 * m.n_joints + m.n_shape + m.n_pose);
}

template <typename T>
void launch_fused_backward(const LbsBackward<T>& p, int64_t B, T* scratch, cudaStream_t stream) {
  const int64_t tiles = tiles_of(p.model.n_verts);
  const VertexParts<T> parts = {scratch, scratch + tiles * B * 12 * p.model.n_joints, static_cast<int>(tiles),
                                static_cast<int>(tiles)};
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(B));
  fused_backward_kernel<T><<<grid, kThreads, 0, stream>>>(p, parts);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  launch_finish(p, parts, B, kFinishThreads, stream);
}

#define DHPE_INSTANTIATE(T)                                                                 \
  template void launch_fused_forward<T>(const LbsForward<T>&, int64_t, cudaStream_t);       \
  template int64_t fused_backward_scratch<T>(const LbsModel<T>&, int64_t);                  \
  template void launch_fused_backward<T>(const LbsBackward<T>&, int64_t, T*, cudaStream_t); \
  template void launch_finish<T>(const LbsBackward<T>&, const VertexParts<T>&, int64_t, int, cudaStream_t);
DHPE_INSTANTIATE(float)
DHPE_INSTANTIATE(double)
#undef DHPE_INSTANTIATE

}  // namespace dhpe
