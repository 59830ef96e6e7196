// Linear blend skinning of large batches on the GPU, forward. One kernel computes every hand's chain; a second one is
// the matrix product (hands, S + P) x (S + P, 3 V) of the blend shapes, whose result is skinned before it leaves the
// block: `bent` and `verts` are written once, and nothing between them touches global memory.
//
// Cost for B hands of MANO: 145 * 2334 multiply-adds a hand are 10 ns on an H100 (67 TFLOP/s); writing 18.7 kB are
// 5.6 ns (3.35 TB/s). From the L2 cache a tile of 64 hands by 64 vertices reads 111 kB of basis, 37 kB of coefficients
// and 49 kB of transforms: with the output 59 kB a hand, 11 ns (5.5 TB/s). Of these the transforms are 10 kB, 1.8 ns:
// less than each of a hand's 13 vertex tiles would wait for a chain of its own.
#include "lbs/lbs_cuda.h"

namespace dhpe {
namespace {

// ---- Chains ---------------------------------------------------------------------------------------------------------

constexpr int kPoseThreads = 64;

template <typename T>
__global__ void __launch_bounds__(kPoseThreads) pose_kernel(LbsModel<T> m, const T* pose, bool pose_is_matrix,
                                                            const T* betas, T* joints, PosedHands<T> out, int64_t B) {
  __shared__ SharedChain<T> s;
  const int tid = threadIdx.x, n_joints = static_cast<int>(m.n_joints), n_shape = static_cast<int>(m.n_shape);
  const int64_t at = blockIdx.x, b = at < B ? at : B - 1;
  start_chain(m, pose + b * n_joints * (pose_is_matrix ? 9 : 3), pose_is_matrix, betas + b * n_shape, s);
  walk_chain(m, s);
  if (out.coeffs && tid >= kWarp)  // while the first warp walks the chain
    for (int k = tid - kWarp; k < n_shape + m.n_pose; k += kPoseThreads - kWarp)
      out.coeffs[k * out.padded + at] = k < n_shape ? betas[b * n_shape + k] : pose_coeff(s.chain, k - n_shape);
  __syncthreads();
  T* transforms = out.transforms + at / out.together * 12 * n_joints * out.together + at % out.together;
  for (int i = tid; i < 12 * n_joints; i += kPoseThreads)
    transforms[static_cast<int64_t>(i) * out.together] = transform_element(s.chain, i / 12, i % 12);
  if (joints && at < B)
    for (int i = tid; i < 3 * n_joints; i += kPoseThreads) joints[b * 3 * n_joints + i] = s.chain.position[i];
}

// ---- Blend shapes and skinning --------------------------------------------------------------------------------------

// A thread owns kHandsEach hands by kVertsEach vertices. Its three coordinates by four vertices are three vectors of 16
// bytes, 48 bytes from those of the next lane: free of bank conflicts.
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kHandGroups = 8, kVertGroups = 16;
constexpr int kVertsEach = 4, kColumnsEach = 3 * kVertsEach;
constexpr int kTileVerts = kVertGroups * kVertsEach, kColumns = 3 * kTileVerts;
static_assert(kHandGroups * kVertGroups == kThreads && kThreads % kTileVerts == 0);

template <typename T>
constexpr int kDepth = 64 / static_cast<int>(sizeof(T));  // rows of the basis in shared memory, twice

// Hands of a thread. Many make the most of what they load: 96 (48) accumulators for 5 (8) vectors of 16 bytes a row.
// Few make more blocks: with 16 hands to a tile, 64 hands already occupy 52 SMs.
template <typename T>
constexpr int kManyHands = 32 / static_cast<int>(sizeof(T));
constexpr int kFewHands = 2;

// From here on, large tiles, of which 1024 hands make 208, two for most SMs of an H100. For fewer hands small tiles
// should win: shared memory holds them to some 2/3 of the arithmetic rate, but there are four times as many.
constexpr int64_t kManyHandsBatch = 1024;

template <typename T, int kHandsEach>
struct Panels {
  alignas(16) T coeffs[2][kDepth<T>][kHandGroups * kHandsEach];
  alignas(16) T basis[2][kDepth<T>][kColumns];
};

// What a pass over one hand of each group needs after the product; it lies where the panels were.
template <typename T>
struct Skinning {
  alignas(16) T bent[kHandGroups][kColumns];
  alignas(16) T verts[kHandGroups][kColumns];
  // then the hands' transforms (kHandGroups, J, 12)
};

template <typename T, int kHandsEach>
size_t shared_bytes_of(int64_t n_joints) {
  const size_t skinning = sizeof(Skinning<T>) + kHandGroups * n_joints * 12 * sizeof(T);
  return skinning > sizeof(Panels<T, kHandsEach>) ? skinning : sizeof(Panels<T, kHandsEach>);
}

// kPiece elements at a time: rows of the basis start at multiples of 3 V elements.
template <typename T, int kPiece>
__device__ __forceinline__ void copy_columns(const T* from, int count, T* to) {
#pragma unroll
  for (int i = 0; i < kColumns / (kPiece * kWarp); ++i) {
    const int c = (i * kWarp + static_cast<int>(threadIdx.x) % kWarp) * kPiece;
    copy_async<kPiece * sizeof(T)>(to + c, from + c, c < count);
  }
}

template <typename T>
struct BlendTask {
  LbsForward<T> p;
  PosedHands<T> posed;
  int64_t n_hands, vert_tiles;
  bool in_pairs;  // the basis can be copied 8 bytes at a time
};

// Where a block stands.
template <typename T>
struct Tile {
  int64_t hand, column;  // first ones
  int columns;           // as many as there are, at most kColumns

  __device__ Tile(const BlendTask<T>& t, int hands) {
    const int64_t n = t.p.model.n_verts * 3;
    hand = blockIdx.x / t.vert_tiles * hands;
    column = blockIdx.x % t.vert_tiles * kColumns;
    columns = static_cast<int>(n - column < kColumns ? n - column : kColumns);
  }
};

template <typename T, int kHandsEach>
__device__ __forceinline__ void load_panel(const BlendTask<T>& t, const Tile<T>& tile, int first, int depth,
                                           Panels<T, kHandsEach>& s, int buffer) {
  constexpr int kVector = 16 / sizeof(T), kVectors = kHandGroups * kHandsEach / kVector;
  const int64_t n = t.p.model.n_verts * 3;
  for (int i = threadIdx.x; i < depth * kVectors; i += kThreads) {
    const int k = i / kVectors, h = i % kVectors * kVector;
    copy_async<16>(&s.coeffs[buffer][k][h], t.posed.coeffs + (first + k) * t.posed.padded + tile.hand + h, true);
  }
#pragma unroll
  for (int i = 0; i < kDepth<T> / kWarps; ++i) {
    const int k = i * kWarps + static_cast<int>(threadIdx.x) / kWarp;
    if (k >= depth) break;
    const T* from = basis_origin(t.p.model, first + k) + (first + k) * n + tile.column;
    if (t.in_pairs)
      copy_columns<T, 8 / sizeof(T)>(from, tile.columns, s.basis[buffer][k]);
    else
      copy_columns<T, 1>(from, tile.columns, s.basis[buffer][k]);
  }
  __pipeline_commit();
}

// sum[hand][column] = template[column] + coefficients x basis.
template <typename T, int kHandsEach>
__device__ __forceinline__ void blend(const BlendTask<T>& t, const Tile<T>& tile, int hand_group, int vert_group,
                                      Panels<T, kHandsEach>& s, T (&sum)[kHandsEach][kColumnsEach]) {
  const LbsModel<T>& m = t.p.model;
  const int rows = static_cast<int>(m.n_shape + m.n_pose);
  if (rows > 0) load_panel(t, tile, 0, rows < kDepth<T> ? rows : kDepth<T>, s, 0);
#pragma unroll
  for (int c = 0; c < kColumnsEach; ++c) {
    const int column = vert_group * kColumnsEach + c;
    const T start = column < tile.columns ? m.v_template[tile.column + column] : T(0);
#pragma unroll
    for (int h = 0; h < kHandsEach; ++h) sum[h][c] = start;
  }
  for (int first = 0, buffer = 0; first < rows; first += kDepth<T>, buffer ^= 1) {
    const int left = rows - first, next = left - kDepth<T>, depth = next > 0 ? kDepth<T> : left;
    __pipeline_wait_prior(0);
    __syncthreads();  // this panel is there for all, and nobody reads the other buffer any more
    if (next > 0) load_panel(t, tile, first + kDepth<T>, next < kDepth<T> ? next : kDepth<T>, s, buffer ^ 1);
#pragma unroll 4
    for (int k = 0; k < depth; ++k) {
      T a[kHandsEach], x[kColumnsEach];
      load_packed(&s.coeffs[buffer][k][hand_group * kHandsEach], a);
      load_packed(&s.basis[buffer][k][vert_group * kColumnsEach], x);
#pragma unroll
      for (int h = 0; h < kHandsEach; ++h)
#pragma unroll
        for (int c = 0; c < kColumnsEach; ++c) sum[h][c] += a[h] * x[c];
    }
  }
  __syncthreads();  // skinning overwrites the panels
}

// One vertex of kHandGroups / 2 hands: warps differ in the hand, lanes in the vertex, so that lanes read few
// transforms.
template <typename T>
__device__ __forceinline__ void skin_vertex(const LbsModel<T>& m, int64_t v, int local, int first_hand, Skinning<T>& s,
                                            const T* transforms) {
  constexpr int kStep = kThreads / kTileVerts, kCount = kHandGroups / kStep;
  T u[kCount][3], x[kCount][3] = {};
#pragma unroll
  for (int h = 0; h < kCount; ++h)
    for (int r = 0; r < 3; ++r) u[h][r] = s.bent[first_hand + h * kStep][3 * local + r];
  for (int64_t slot = v * m.n_slots; slot < (v + 1) * m.n_slots; ++slot) {
    const T w = m.skin_weights[slot];
    if (w == 0) continue;  // often so for a whole warp
    const T* joint = transforms + 12 * slot_joint(m, slot);
#pragma unroll
    for (int h = 0; h < kCount; ++h) {
      T a[12];
      load_packed(joint + (first_hand + h * kStep) * 12 * m.n_joints, a);
#pragma unroll
      for (int r = 0; r < 3; ++r)
        x[h][r] += w * (a[4 * r] * u[h][0] + (a[4 * r + 1] * u[h][1] + (a[4 * r + 2] * u[h][2] + a[4 * r + 3])));
    }
  }
#pragma unroll
  for (int h = 0; h < kCount; ++h)
    for (int r = 0; r < 3; ++r) s.verts[first_hand + h * kStep][3 * local + r] = x[h][r];
}

// By one warp.
template <typename T>
__device__ __forceinline__ void store_columns(const T (&from)[kColumns], int count, T* to) {
#pragma unroll
  for (int i = 0; i < kColumns / kWarp; ++i) {
    const int c = i * kWarp + static_cast<int>(threadIdx.x) % kWarp;
    if (c < count) to[c] = from[c];
  }
}

// Skins and stores what blend() left in registers, one hand of each group at a time.
template <typename T, int kHandsEach>
__device__ __forceinline__ void skin(const BlendTask<T>& t, const Tile<T>& tile, int hand_group, int vert_group,
                                     Skinning<T>& s, const T (&sum)[kHandsEach][kColumnsEach]) {
  constexpr int kVector = 16 / sizeof(T);
  const LbsModel<T>& m = t.p.model;
  const int tid = threadIdx.x, warp = tid / kWarp, lane = tid % kWarp, elements = 12 * static_cast<int>(m.n_joints);
  const int64_t n = m.n_verts * 3, last = m.n_verts - 1, v = tile.column / 3 + tid % kTileVerts;
  T* transforms = reinterpret_cast<T*>(&s + 1);
#pragma unroll 1
  for (int pass = 0; pass < kHandsEach; ++pass) {
    for (int g = warp; g < kHandGroups; g += kWarps) {
      const T* from = t.posed.transforms + (tile.hand + g * kHandsEach + pass) * elements;
      for (int e = lane * kVector; e < elements; e += kWarp * kVector)
        copy_async<16>(transforms + g * elements + e, from + e, true);
    }
    __pipeline_commit();
#pragma unroll
    for (int h = 0; h < kHandsEach; ++h)  // registers have no addresses
      if (h == pass) store_packed(sum[h], &s.bent[hand_group][vert_group * kColumnsEach]);
    __pipeline_wait_prior(0);
    __syncthreads();
    skin_vertex(m, v < last ? v : last, tid % kTileVerts, tid / kTileVerts, s, transforms);
    __syncthreads();
    for (int g = warp; g < kHandGroups; g += kWarps) {
      const int64_t hand = tile.hand + g * kHandsEach + pass, at = hand * n + tile.column;
      if (hand >= t.n_hands) break;
      store_columns(s.verts[g], tile.columns, t.p.verts + at);
      if (t.p.bent) store_columns(s.bent[g], tile.columns, t.p.bent + at);
    }
    __syncthreads();  // the next pass overwrites both
  }
}

template <typename T, int kHandsEach>
__global__ void __launch_bounds__(kThreads, kHandsEach == kFewHands ? 5 : 3) blend_skin_kernel(BlendTask<T> t) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  const Tile<T> tile(t, kHandGroups * kHandsEach);
  // A warp is 4 groups of hands by 8 of vertices.
  const int tid = threadIdx.x, vert_group = tid % 8 + tid / kWarp % 2 * 8, hand_group = tid / 8 % 4 + tid / 64 * 4;
  T sum[kHandsEach][kColumnsEach];
  blend(t, tile, hand_group, vert_group, *reinterpret_cast<Panels<T, kHandsEach>*>(shared_bytes), sum);
  skin(t, tile, hand_group, vert_group, *reinterpret_cast<Skinning<T>*>(shared_bytes), sum);
}

template <typename T, int kHandsEach>
void launch_blend_skin(const BlendTask<T>& t, cudaStream_t stream) {
  const size_t bytes = shared_bytes_of<T, kHandsEach>(t.p.model.n_joints);
  if (bytes > kDefaultSharedBytes)
    STD_CUDA_CHECK(cudaFuncSetAttribute(blend_skin_kernel<T, kHandsEach>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)));
  const int64_t blocks = t.vert_tiles * ceil_div(t.n_hands, kHandGroups * kHandsEach);
  blend_skin_kernel<T, kHandsEach><<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(t);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
int64_t padded_hands(int64_t B) {
  const int64_t hands = kHandGroups * (B < kManyHandsBatch ? kFewHands : kManyHands<T>);
  return ceil_div(B, hands) * hands;
}

}  // namespace

template <typename T>
void launch_pose(const LbsModel<T>& m, const T* pose, bool pose_is_matrix, const T* betas, T* joints,
                 const PosedHands<T>& out, int64_t B, cudaStream_t stream) {
  pose_kernel<T>
      <<<static_cast<unsigned>(out.padded), kPoseThreads, 0, stream>>>(m, pose, pose_is_matrix, betas, joints, out, B);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
int64_t tiled_forward_scratch(const LbsModel<T>& m, int64_t B) {
  return padded_hands<T>(B) * (m.n_shape + m.n_pose + 12 * m.n_joints);
}

template <typename T>
void launch_tiled_forward(const LbsForward<T>& p, int64_t B, T* scratch, cudaStream_t stream) {
  const LbsModel<T>& m = p.model;
  const int64_t padded = padded_hands<T>(B);
  const PosedHands<T> posed = {scratch, scratch + padded * (m.n_shape + m.n_pose), padded, 1};
  launch_pose(m, p.pose, p.pose_is_matrix, p.betas, p.joints, posed, B, stream);
  if (m.n_verts == 0) return;
  const BlendTask<T> t = {p, posed, B, ceil_div(m.n_verts, kTileVerts), in_pairs(m)};
  if (B < kManyHandsBatch)
    launch_blend_skin<T, kFewHands>(t, stream);
  else
    launch_blend_skin<T, kManyHands<T>>(t, stream);
}

#define DHPE_INSTANTIATE(T)                                                                                     \
  template void launch_pose<T>(const LbsModel<T>&, const T*, bool, const T*, T*, const PosedHands<T>&, int64_t, \
                               cudaStream_t);                                                                   \
  template int64_t tiled_forward_scratch<T>(const LbsModel<T>&, int64_t);                                       \
  template void launch_tiled_forward<T>(const LbsForward<T>&, int64_t, T*, cudaStream_t);
DHPE_INSTANTIATE(float)
DHPE_INSTANTIATE(double)
#undef DHPE_INSTANTIATE

}  // namespace dhpe
