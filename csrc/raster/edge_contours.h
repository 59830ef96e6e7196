// The contour edges of the "edge" silhouette on the GPU: a hash table joins the faces' half-edges, which is the mesh's
// business and done once a batch; then every image adds up its faces' orientations by edge and lists the edges that do
// not balance. CUDA only.
//
// Work: a probe or two per half-edge, twice a read of each half-edge's slot per image. The list comes in the order of
// the edges' first half-edges, whatever the order in which threads run: one kernel counts per chunk of half-edges, the
// next adds up the counts before its own chunk.
#pragma once

#include "raster/edge_math.h"
#include "raster/face_bins.h"
#include "raster/raster_tensors.h"

namespace dhpe {
namespace {

constexpr int kThreads = 256;
constexpr int kChunkRounds = 4, kChunkEdges = kChunkRounds * kThreads;
constexpr unsigned long long kNoEdge = ~0ull;
constexpr int64_t kMaxEdgeFaces = 1 << 28;  // so that slots of the table fit 31 bits
// The edges of the images at work together may take so much; larger batches are done in slices.
constexpr int64_t kMaxContourBytes = 64 << 20;
// Half-edges of a mesh up to which a row walks all contour edges of its image instead of those of its bin. A warp takes
// 32 at a step, and of a hand's edges one in twenty is a contour: a hundred steps, less than the row's sweep takes.
constexpr int64_t kMaxWalkedEdges = 1 << 16;

// Half-edge 3 f + k leads from corner k of face f to the next; all that join the same two vertices share a slot.
struct EdgeTable {
  unsigned long long* keys;  // (2^bits,)
  unsigned* first;           // (2^bits,) the lowest half-edge
  int32_t* slot_of;          // (3 F,), -1 where a vertex id is out of range
  int bits;

  __host__ __device__ int64_t slots() const { return int64_t{1} << bits; }
};

// Of a slice of images; `slot` below is an image's place in it.
struct Contours {
  ContourEdge* edges;  // (slice, 3 F)
  int32_t* balance;    // (slice, slots) see contour_edge
  int32_t* in_chunk;   // (slice, chunks) how many edges of a chunk are listed
  int32_t* count;      // (slice,)
  int64_t n_half_edges, chunks;

  __device__ const ContourEdge* list(int64_t slot) const { return edges + slot * n_half_edges; }
};

__device__ inline int64_t next_half_edge(int64_t h) { return h % 3 == 2 ? h - 2 : h + 1; }

__global__ void __launch_bounds__(kThreads)
    join_half_edges(const int32_t* faces, int64_t n_half_edges, int64_t n_verts, EdgeTable t) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t h = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; h < n_half_edges; h += step) {
    const int32_t a = faces[h], b = faces[next_half_edge(h)];
    t.slot_of[h] = -1;
    if (a < 0 || b < 0 || a >= n_verts || b >= n_verts) continue;
    const unsigned long long low = a < b ? a : b, high = a < b ? b : a, key = low << 32 | high;
    unsigned long long slot = key * 0x9E3779B97F4A7C15ull >> (64 - t.bits);
    for (;; slot = (slot + 1) & (t.slots() - 1)) {
      const unsigned long long found = atomicCAS(t.keys + slot, kNoEdge, key);
      if (found == kNoEdge || found == key) break;
    }
    t.slot_of[h] = static_cast<int32_t>(slot);
    atomicMin(t.first + slot, static_cast<unsigned>(h));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    balance_edges(RasterMesh<T> m, RasterOptions<T> o, EdgeTable t, Contours c, int64_t first_image, int64_t n_images) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n_images * m.n_faces; i += step) {
    const int64_t slot = i / m.n_faces, face = i % m.n_faces;
    const int side = face_side(m, o, m.verts_px + (first_image + slot) * m.n_verts * 3, face);
    if (side == 0) continue;
    for (int k = 0; k < 3; ++k) {
      const bool rises = m.faces[3 * face + k] < m.faces[3 * face + (k == 2 ? 0 : k + 1)];
      atomicAdd(c.balance + slot * t.slots() + t.slot_of[3 * face + k], rises ? side : -side);
    }
  }
}

// Whether half-edge h is the first of a contour edge that meets the image's rows. A chunk may reach beyond the last.
template <typename T>
__device__ bool find_contour(const RasterMesh<T>& m, const EdgeTable& t, const Contours& c, int64_t image, int64_t slot,
                             int64_t h, ContourEdge& e) {
  if (h >= c.n_half_edges) return false;
  const int32_t at = t.slot_of[h];
  if (at < 0 || t.first[at] != h) return false;
  const int32_t balance = c.balance[slot * t.slots() + at];
  if (balance == 0) return false;
  const int32_t a = m.faces[h], b = m.faces[next_half_edge(h)];
  e = contour_edge(m.verts_px + image * m.n_verts * 3, a < b ? a : b, a < b ? b : a, balance);
  return e.y1 >= 0 && e.y0 < m.height;
}

// A block a chunk.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    count_contours(RasterMesh<T> m, EdgeTable t, Contours c, int64_t first_image, int64_t n_images) {
  __shared__ int warp_sums[2][kThreads / kWarp];
  int rounds = 0;
  for (int64_t task = blockIdx.x; task < n_images * c.chunks; task += gridDim.x) {
    const int64_t slot = task / c.chunks, begin = task % c.chunks * kChunkEdges;
    int found = 0;
    for (int round = 0; round < kChunkRounds; ++round) {
      ContourEdge e;
      found += find_contour(m, t, c, first_image + slot, slot, begin + round * kThreads + threadIdx.x, e);
    }
    const int total = rank_in_block(found, warp_sums[rounds++ % 2]).total;
    if (threadIdx.x == 0) c.in_chunk[task] = total;
  }
}

// A block a chunk.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    list_contours(RasterMesh<T> m, EdgeTable t, Contours c, int64_t first_image, int64_t n_images) {
  __shared__ int warp_sums[2][kThreads / kWarp];
  int rounds = 0;
  for (int64_t task = blockIdx.x; task < n_images * c.chunks; task += gridDim.x) {
    const int64_t slot = task / c.chunks, chunk = task % c.chunks;
    const bool is_last = chunk == c.chunks - 1;
    if (c.in_chunk[task] == 0 && !is_last) continue;
    int before = 0;
    for (int64_t i = threadIdx.x; i < chunk; i += kThreads) before += c.in_chunk[slot * c.chunks + i];
    before = rank_in_block(before, warp_sums[rounds++ % 2]).total;
    for (int round = 0; round < kChunkRounds; ++round) {
      ContourEdge e;
      const int64_t h = chunk * kChunkEdges + round * kThreads + threadIdx.x;
      const bool is_listed = find_contour(m, t, c, first_image + slot, slot, h, e);
      const BlockRank rank = rank_in_block(is_listed, warp_sums[rounds++ % 2]);
      if (is_listed) c.edges[slot * c.n_half_edges + before + rank.before] = e;
      before += rank.total;
    }
    if (is_last && threadIdx.x == 0) c.count[slot] = before;
  }
}

// Contour edges as items of bins of whole rows.
struct ContourItems {
  Contours contours;
  int64_t first_image;
  int width, height;

  __device__ int64_t count(int64_t image) const { return contours.count[image - first_image]; }
  __device__ bool box(int64_t image, int64_t i, PixelBox& box) const {
    const ContourEdge& e = contours.list(image - first_image)[i];
    const int y0 = e.y0 > 0 ? static_cast<int>(e.y0) : 0;
    const int y1 = e.y1 < height - 1 ? static_cast<int>(e.y1) : height - 1;
    box = {0, width - 1, y0, y1};
    return true;
  }
};

// The memory behind an EdgeTable and the Contours of a slice, and the launches that fill them. F > 0.
template <typename T>
class ContourFinder {
 public:
  ContourFinder(const char* op, const RasterMeshTensors& in, const RasterOptions<T>& options, cudaStream_t stream)
      : mesh_(in.mesh<T>()), options_(options), stream_(stream) {
    const int64_t F = mesh_.n_faces, B = in.verts_px.size(0);
    STD_TORCH_CHECK(F <= kMaxEdgeFaces, op, ": faces has ", F, " rows, expected up to ", kMaxEdgeFaces);
    contours.n_half_edges = 3 * F;
    contours.chunks = (3 * F + kChunkEdges - 1) / kChunkEdges;
    table_.bits = 4;
    while (table_.slots() < 6 * F) ++table_.bits;
    const int64_t edge_bytes = static_cast<int64_t>(sizeof(ContourEdge)) * 3 * F;
    const int64_t image_bytes = edge_bytes + 4 * (table_.slots() + contours.chunks + 1);
    slice = kMaxContourBytes / image_bytes;
    slice = slice < 1 ? 1 : slice < B ? slice : B;
    if (3 * F > kMaxWalkedEdges) {
      bins_.emplace(in.verts_px, slice, 3 * F, mesh_.width, mesh_.height, BinShape{kWholeRows, 0, false});
      if (bins_->slice < slice) slice = bins_->slice;
    }
    const int64_t keyed_bytes = 12 * table_.slots();
    bytes_ = torch::stable::new_empty(in.verts_px, {keyed_bytes + slice * image_bytes + 4 * 3 * F}, ScalarType::Byte);
    uint8_t* at = bytes_.mutable_data_ptr<uint8_t>();
    table_.keys = reinterpret_cast<unsigned long long*>(at);
    table_.first = reinterpret_cast<unsigned*>(table_.keys + table_.slots());
    contours.edges = reinterpret_cast<ContourEdge*>(at + keyed_bytes);
    contours.balance = reinterpret_cast<int32_t*>(contours.edges + slice * 3 * F);
    contours.in_chunk = contours.balance + slice * table_.slots();
    contours.count = contours.in_chunk + slice * contours.chunks;
    table_.slot_of = contours.count + slice;
    STD_CUDA_CHECK(cudaMemsetAsync(table_.keys, 0xff, static_cast<size_t>(keyed_bytes), stream_));
    join_half_edges<<<blocks_for(3 * F), kThreads, 0, stream_>>>(mesh_.faces, 3 * F, mesh_.n_verts, table_);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  int64_t slice;      // images at a time
  Contours contours;  // of the images found last

  // All null where rows walk all contour edges.
  Bins bins() const { return bins_ ? bins_->bins : Bins{}; }

  void find(int64_t first_image, int64_t n_images) {
    zero_async(contours.balance, 4 * n_images * table_.slots(), stream_);
    balance_edges<T><<<blocks_for(n_images * mesh_.n_faces), kThreads, 0, stream_>>>(mesh_, options_, table_, contours,
                                                                                     first_image, n_images);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    const unsigned blocks = blocks_for(n_images * contours.chunks * kThreads);
    count_contours<T><<<blocks, kThreads, 0, stream_>>>(mesh_, table_, contours, first_image, n_images);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    list_contours<T><<<blocks, kThreads, 0, stream_>>>(mesh_, table_, contours, first_image, n_images);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    const ContourItems items = {contours, first_image, mesh_.width, mesh_.height};
    if (bins_) bins_->fill(items, first_image, n_images, stream_);
  }

 private:
  static constexpr int kWholeRows = 14;  // 2^14 is kMaxImageSize

  static unsigned blocks_for(int64_t threads) { return capped_grid(threads, kThreads); }

  RasterMesh<T> mesh_;
  RasterOptions<T> options_;
  cudaStream_t stream_;
  EdgeTable table_;
  Tensor bytes_;
  std::optional<BinTensors> bins_;
};

}  // namespace
}  // namespace dhpe
