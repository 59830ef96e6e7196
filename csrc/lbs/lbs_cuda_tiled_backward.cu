// Linear blend skinning of large batches on the GPU, backward: the chains again, then skinning's share of the gradient
// (dL/dbent, and dL/d[W | o] of each joint), the matrix product dL/dbent (hands, 3 V) x basis^T (3 V, S + P), and each
// hand's chain. Every sum runs in a fixed order: the vertices are cut into parts by the sizes alone.
//
// Cost for B hands of MANO on an H100: skinning reads 18.7 kB a hand and writes 9.3 kB, 8.4 ns (3.35 TB/s); the product
// reads the 9.3 kB again, 2.8 ns unless they are still in the L2 cache, and multiplies for 10 ns (67 TFLOP/s), 11 ns
// with the tile's unused rows.
#include "lbs/lbs_cuda.h"

namespace dhpe {
namespace {

// Parts into which the work on one tile of hands is cut: as many as make about `wanted` blocks, each with some work.
inline int parts_of(int64_t work, int64_t hand_tiles, int64_t wanted) {
  const int64_t parts = wanted / hand_tiles < work ? wanted / hand_tiles : work;
  return static_cast<int>(parts > 1 ? parts : 1);
}

// ---- Skinning -------------------------------------------------------------------------------------------------------

// A lane is a hand: which vertex moves with which joint is then the same for a whole warp. Each warp takes vertices for
// dL/dbent, and one joint for dL/d[W | o].
constexpr int kSkinWarps = 16;
constexpr int64_t kSkinBlocks = 528;  // two at a time on each of 132 SMs, twice
template <typename T>
constexpr int kSkinVerts = 128 / static_cast<int>(sizeof(T));  // vertices in shared memory; at most a warp

constexpr int kWeightThreads = 128;

// dense[j][v]: the weight of vertex v to joint j; slots may name a joint twice.
template <typename T>
__global__ void __launch_bounds__(kWeightThreads) dense_weights_kernel(LbsModel<T> m, T* dense) {
  const int64_t v = static_cast<int64_t>(blockIdx.x) * kWeightThreads + threadIdx.x;
  if (v >= m.n_verts) return;
  for (int64_t j = 0; j < m.n_joints; ++j) dense[j * m.n_verts + v] = 0;
  for (int64_t slot = v * m.n_slots; slot < (v + 1) * m.n_slots; ++slot)
    dense[slot_joint(m, slot) * m.n_verts + v] += m.skin_weights[slot];
}

template <typename T>
struct SkinTask {
  LbsBackward<T> p;
  const T* transforms;  // of PosedHands, kWarp hands side by side
  const T* dense;       // (J, V)
  T* out;               // (parts, B, J, 12)
  int64_t n_hands;
  int parts;
};

// Column by column, the hands of a column side by side.
template <typename T>
struct SkinShared {
  static constexpr int kColumns = 3 * kSkinVerts<T>, kPieces = (kColumns + kWarp - 1) / kWarp;
  T grad[kColumns][kWarp + 1], bent[kColumns][kWarp + 1], grad_bent[kColumns][kWarp + 1];
};

template <typename T>
__device__ __forceinline__ void load_vertices(const SkinTask<T>& t, int64_t first_hand, int64_t first_vert, int columns,
                                              SkinShared<T>& s) {
  const int64_t n = t.p.model.n_verts * 3;
#pragma unroll
  for (int i = 0; i < kWarp / kSkinWarps; ++i) {
    const int h = i * kSkinWarps + static_cast<int>(threadIdx.x) / kWarp;
    const int64_t hand = first_hand + h, at = hand * n + 3 * first_vert;
#pragma unroll
    for (int k = 0; k < s.kPieces; ++k) {
      const int c = k * kWarp + static_cast<int>(threadIdx.x) % kWarp;
      if (c >= s.kColumns) break;
      const bool exists = hand < t.n_hands && c < columns;
      s.grad[c][h] = exists ? t.p.grad_verts[at + c] : T(0);
      s.bent[c][h] = exists ? t.p.bent[at + c] : T(0);
    }
  }
}

// dL/dbent of one vertex of the lane's hand: the blended rotation's transpose times the gradient.
template <typename T>
__device__ __forceinline__ void bent_gradient(const LbsModel<T>& m, const T* transforms, int64_t v, int local,
                                              SkinShared<T>& s) {
  const int lane = threadIdx.x % kWarp;
  T r[9] = {};
  for (int64_t slot = v * m.n_slots; slot < (v + 1) * m.n_slots; ++slot) {
    const T w = m.skin_weights[slot];
    if (w == 0) continue;
    const T* joint = transforms + 12 * slot_joint(m, slot) * kWarp;
#pragma unroll
    for (int i = 0; i < 9; ++i) r[i] += w * joint[(i / 3 * 4 + i % 3) * kWarp];
  }
  const T g[3] = {s.grad[3 * local][lane], s.grad[3 * local + 1][lane], s.grad[3 * local + 2][lane]};
#pragma unroll
  for (int c = 0; c < 3; ++c) s.grad_bent[3 * local + c][lane] = r[c] * g[0] + r[3 + c] * g[1] + r[6 + c] * g[2];
}

// The tile's share of dL/d[W | o] of one joint for the lane's hand.
template <typename T>
__device__ __forceinline__ void add_transform_gradient(const T* weights, int count, const SkinShared<T>& s,
                                                       T (&sum)[12]) {
  const int lane = threadIdx.x % kWarp;
  const T weight = lane < count ? weights[lane] : T(0);
  for (unsigned left = __ballot_sync(kAllLanes, weight != 0); left != 0; left &= left - 1) {
    const int v = __ffs(static_cast<int>(left)) - 1;
    const T w = __shfl_sync(kAllLanes, weight, v);
    const T u[4] = {s.bent[3 * v][lane], s.bent[3 * v + 1][lane], s.bent[3 * v + 2][lane], T(1)};
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      const T g = w * s.grad[3 * v + r][lane];
#pragma unroll
      for (int c = 0; c < 4; ++c) sum[4 * r + c] += g * u[c];
    }
  }
}

template <typename T>
__device__ __forceinline__ void store_bent_gradient(const SkinTask<T>& t, int64_t first_hand, int64_t first_vert,
                                                    int columns, const SkinShared<T>& s) {
  const int64_t n = t.p.model.n_verts * 3;
#pragma unroll
  for (int i = 0; i < kWarp / kSkinWarps; ++i) {
    const int h = i * kSkinWarps + static_cast<int>(threadIdx.x) / kWarp;
    T* out = t.p.grad_bent + (first_hand + h) * n + 3 * first_vert;
#pragma unroll
    for (int k = 0; k < s.kPieces; ++k) {
      const int c = k * kWarp + static_cast<int>(threadIdx.x) % kWarp;
      if (first_hand + h < t.n_hands && c < columns) out[c] = s.grad_bent[c][h];
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kSkinWarps* kWarp, 2) skin_backward_kernel(SkinTask<T> t) {
  __shared__ SkinShared<T> s;
  const LbsModel<T>& m = t.p.model;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, n_joints = static_cast<int>(m.n_joints);
  const int64_t part = blockIdx.x % t.parts, first_hand = blockIdx.x / t.parts * kWarp;
  const int64_t tiles = (m.n_verts + kSkinVerts<T> - 1) / kSkinVerts<T>;
  const int64_t begin = part * tiles / t.parts, end = (part + 1) * tiles / t.parts;
  const T* transforms = t.transforms + first_hand * 12 * n_joints + lane;
  for (int first = 0; first < n_joints; first += kSkinWarps) {  // once for a hand
    const int joint = first + warp;
    T sum[12] = {};
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first_vert = tile * kSkinVerts<T>, left = m.n_verts - first_vert;
      const int count = static_cast<int>(left < kSkinVerts<T> ? left : kSkinVerts<T>);
      load_vertices(t, first_hand, first_vert, 3 * count, s);
      __syncthreads();
      if (first == 0)
        for (int v = warp; v < count; v += kSkinWarps) bent_gradient(m, transforms, first_vert + v, v, s);
      if (joint < n_joints) add_transform_gradient(t.dense + joint * m.n_verts + first_vert, count, s, sum);
      __syncthreads();  // `grad_bent` is complete, and the next tile may overwrite the rest
      if (first == 0) store_bent_gradient(t, first_hand, first_vert, 3 * count, s);
    }
    if (joint < n_joints && first_hand + lane < t.n_hands)
      store_packed(sum, t.out + ((part * t.n_hands + first_hand + lane) * n_joints + joint) * 12);
  }
}

// ---- Blend shapes ---------------------------------------------------------------------------------------------------

// A thread owns kHandsEach hands by kRowsEach rows of the basis: MANO's 145 of 160. Both matrices lie along the columns
// over which the product sums, so strips of columns are copied as they are, and vectors of 16 bytes serve 4 (2) columns
// at once; the pitch of 80 bytes keeps 8 neighbouring rows in different banks.
constexpr int kThreads = 128;
constexpr int kHandGroups = 8, kRowGroups = 16, kRowsEach = 10, kTileRows = kRowGroups * kRowsEach;
constexpr int64_t kBlendBlocks = 396;  // three at a time on each of 132 SMs
constexpr int64_t kLeastColumns = 64;  // of a part
static_assert(kHandGroups * kRowGroups == kThreads);
template <typename T>
constexpr int kHandsEach = 32 / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kTileHands = kHandGroups * kHandsEach<T>;
template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kStrip = 4 * kVector<T>;  // columns in shared memory, twice

template <typename T>
struct Strips {
  alignas(16) T hands[2][kTileHands<T>][kStrip<T> + kVector<T>];
  alignas(16) T rows[2][kTileRows][kStrip<T> + kVector<T>];
};

template <typename T>
struct BlendTask {
  LbsBackward<T> p;
  T* out;  // (parts, B, S + P)
  int64_t n_hands, row_tiles;
  int parts;
  bool in_pairs;  // the rows of both matrices can be copied 8 bytes at a time
};

// Where a block stands.
template <typename T>
struct Tile {
  int64_t hand, part;
  int hands;           // as many as there are, at most kTileHands
  int row, rows;       // first one, and their number in the basis
  int64_t begin, end;  // columns

  __device__ explicit Tile(const BlendTask<T>& t) {
    const LbsModel<T>& m = t.p.model;
    const int64_t n = m.n_verts * 3, strips = (n + kStrip<T> - 1) / kStrip<T>, tile = blockIdx.x / t.parts;
    part = blockIdx.x % t.parts;
    row = static_cast<int>(tile % t.row_tiles) * kTileRows;
    rows = static_cast<int>(m.n_shape + m.n_pose);
    hand = tile / t.row_tiles * kTileHands<T>;
    hands = static_cast<int>(t.n_hands - hand < kTileHands<T> ? t.n_hands - hand : kTileHands<T>);
    begin = part * strips / t.parts * kStrip<T>;
    end = (part + 1) * strips / t.parts * kStrip<T>;
    if (end > n) end = n;
  }
};

// A strip of columns of the tile's hands and rows, kPiece elements at a time; zeros where there are none.
template <typename T, int kPiece>
__device__ __forceinline__ void copy_strip(const BlendTask<T>& t, const Tile<T>& tile, int64_t first, Strips<T>& s,
                                           int buffer) {
  constexpr int kPieces = kStrip<T> / kPiece, kStep = kThreads / kPieces;
  const LbsModel<T>& m = t.p.model;
  const int64_t n = m.n_verts * 3;
  const int c = static_cast<int>(threadIdx.x) % kPieces * kPiece, start = static_cast<int>(threadIdx.x) / kPieces;
  const bool inside = first + c < tile.end;
  int64_t at = (tile.hand + start) * n + first + c;
#pragma unroll
  for (int i = 0; i < kTileHands<T> / kStep; ++i, at += kStep * n) {
    const int h = start + i * kStep;
    copy_async<kPiece * sizeof(T)>(&s.hands[buffer][h][c], t.p.grad_bent + at, inside && h < tile.hands);
  }
  at = (tile.row + start) * n + first + c;
#pragma unroll
  for (int i = 0; i < kTileRows / kStep; ++i, at += kStep * n) {
    const int r = start + i * kStep, row = tile.row + r;
    copy_async<kPiece * sizeof(T)>(&s.rows[buffer][r][c], basis_origin(m, row) + at, inside && row < tile.rows);
  }
}

template <typename T>
__device__ __forceinline__ void load_strip(const BlendTask<T>& t, const Tile<T>& tile, int64_t first, Strips<T>& s,
                                           int buffer) {
  if (t.in_pairs)
    copy_strip<T, 8 / sizeof(T)>(t, tile, first, s, buffer);
  else
    copy_strip<T, 1>(t, tile, first, s, buffer);
  __pipeline_commit();
}

template <typename T>
__device__ __forceinline__ void multiply_strip(const Strips<T>& s, int buffer, int hand_group, int row_group,
                                               T (&sum)[kHandsEach<T>][kRowsEach]) {
#pragma unroll 2
  for (int c = 0; c < kStrip<T>; c += kVector<T>) {
    T g[kHandsEach<T>][kVector<T>];
#pragma unroll
    for (int h = 0; h < kHandsEach<T>; ++h) load_packed(&s.hands[buffer][hand_group + h * kHandGroups][c], g[h]);
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) {
      T x[kVector<T>];
      load_packed(&s.rows[buffer][row_group + r * kRowGroups][c], x);
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k)
#pragma unroll
        for (int h = 0; h < kHandsEach<T>; ++h) sum[h][r] += g[h][k] * x[k];
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 3) blend_backward_kernel(BlendTask<T> t) {
  __shared__ Strips<T> s;
  const Tile<T> tile(t);
  // A warp is 4 groups of hands by 8 of rows.
  const int tid = threadIdx.x, row_group = tid % 8 + tid / kWarp % 2 * 8, hand_group = tid / 8 % 4 + tid / 64 * 4;
  T sum[kHandsEach<T>][kRowsEach] = {};
  if (tile.begin < tile.end) load_strip(t, tile, tile.begin, s, 0);
  int buffer = 0;
  for (int64_t first = tile.begin; first < tile.end; first += kStrip<T>, buffer ^= 1) {
    __pipeline_wait_prior(0);
    __syncthreads();  // this strip is there for all, and nobody reads the other buffer any more
    if (first + kStrip<T> < tile.end) load_strip(t, tile, first + kStrip<T>, s, buffer ^ 1);
    multiply_strip(s, buffer, hand_group, row_group, sum);
  }
#pragma unroll
  for (int h = 0; h < kHandsEach<T>; ++h) {
    const int64_t hand = tile.hand + hand_group + h * kHandGroups;
    T* out = t.out + (tile.part * t.n_hands + hand) * tile.rows + tile.row;
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) {
      const int row = row_group + r * kRowGroups;
      if (hand < t.n_hands && tile.row + row < tile.rows) out[row] = sum[h][r];
    }
  }
}

// ---- The whole ------------------------------------------------------------------------------------------------------

constexpr int kFinishThreads = 128;  // the batch fills the GPU

// The path's scratch memory. Vectors of 16 bytes want `transforms` and `parts.transforms` aligned: both start at
// multiples of 12 elements.
template <typename T>
struct Scratch {
  int64_t hand_tiles;  // of the skinning kernel
  T* transforms;       // (hand_tiles, J, 12, kWarp)
  VertexParts<T> parts;
  T* dense;      // (J, V)
  int64_t size;  // of all of it, in elements

  Scratch(const LbsModel<T>& m, int64_t B, T* at) {
    const int64_t rows = m.n_shape + m.n_pose, elements = 12 * m.n_joints;
    hand_tiles = ceil_div(B, kWarp);
    parts.n_transforms = parts_of(ceil_div(m.n_verts, kSkinVerts<T>), hand_tiles, kSkinBlocks);
    parts.n_coeffs = parts_of(ceil_div(m.n_verts * 3, kLeastColumns), ceil_div(B, kTileHands<T>), kBlendBlocks);
    const int64_t transforms_size = hand_tiles * elements * kWarp, sums_size = parts.n_transforms * B * elements;
    const int64_t dense_size = m.n_joints * m.n_verts;
    size = transforms_size + sums_size + dense_size + parts.n_coeffs * B * rows;
    transforms = at;
    parts.transforms = at ? at + transforms_size : nullptr;
    dense = at ? parts.transforms + sums_size : nullptr;
    parts.coeffs = at ? dense + dense_size : nullptr;
  }
};

}  // namespace

template <typename T>
int64_t tiled_backward_scratch(const LbsModel<T>& m, int64_t B) {
  return Scratch<T>(m, B, nullptr).size;
}

template <typename T>
void launch_tiled_backward(const LbsBackward<T>& p, int64_t B, T* scratch, cudaStream_t stream) {
  const LbsModel<T>& m = p.model;
  const Scratch<T> s(m, B, scratch);
  launch_pose<T>(m, p.pose, p.pose_is_matrix, p.betas, nullptr, {nullptr, s.transforms, s.hand_tiles * kWarp, kWarp}, B,
                 stream);
  if (m.n_verts > 0) {
    dense_weights_kernel<T><<<ceil_div(m.n_verts, kWeightThreads), kWeightThreads, 0, stream>>>(m, s.dense);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const SkinTask<T> skin = {p, s.transforms, s.dense, s.parts.transforms, B, s.parts.n_transforms};
  skin_backward_kernel<T><<<static_cast<unsigned>(s.hand_tiles * skin.parts), kSkinWarps * kWarp, 0, stream>>>(skin);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const BlendTask<T> blend = {
      p, s.parts.coeffs, B, ceil_div(m.n_shape + m.n_pose, kTileRows), s.parts.n_coeffs, in_pairs(m)};
  const int64_t blocks = ceil_div(B, kTileHands<T>) * blend.row_tiles * blend.parts;
  if (blocks > 0) {
    blend_backward_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(blend);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  launch_finish(p, s.parts, B, kFinishThreads, stream);
}

#define DHPE_INSTANTIATE(T)                                                \
  template int64_t tiled_backward_scratch<T>(const LbsModel<T>&, int64_t); \
  template void launch_tiled_backward<T>(const LbsBackward<T>&, int64_t, T*, cudaStream_t);
DHPE_INSTANTIATE(float)
DHPE_INSTANTIATE(double)
#undef DHPE_INSTANTIATE

}  // namespace dhpe
