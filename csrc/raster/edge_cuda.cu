// The "edge" silhouette on the GPU. A hash table joins the faces' half-edges, a block an image lists its contour edges,
// and one warp a row gathers those that meet the row; its first lane sweeps them, all lanes write the row. Nothing
// depends on the order in which threads run but sums of gradients, unless one warp an image adds them up
// (deterministic).
#include "raster/edge_math.h"
#include "raster/face_gradients.h"
#include "raster/raster_tensors.h"

namespace dhpe {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kScratchBytes = 64 << 20;  // of all warps together; fewer of them run where rows could need more
constexpr unsigned long long kNoEdge = ~0ull;
constexpr int kNoHalfEdge = 0x7f;  // of each byte

// Half-edge 3 f + k leads from corner k of face f to the next; all that join the same two vertices share a slot.
struct EdgeTable {
  unsigned long long* keys;  // (slots,)
  int32_t* first;            // (slots,) the lowest half-edge
  int32_t* slot_of;          // (3 F,), -1 where a vertex id is out of range
  int32_t* balance;          // (B, slots) see contour_edge
  int64_t slots;             // a power of two
  ContourEdge* contours;     // (B, 3 F)
  int32_t* n_contours;       // (B,)
};

// What a warp needs for one row.
struct RowScratch {
  unsigned char* bytes;
  int64_t bytes_per_warp, max_pieces;
  int width;

  __host__ __device__ RowScratch(int64_t n_faces, int width_) : bytes(nullptr), max_pieces(3 * n_faces), width(width_) {
    const int64_t need = coverage_bytes() + max_pieces * static_cast<int64_t>(sizeof(Piece) + sizeof(int32_t));
    bytes_per_warp = (need + 15) / 16 * 16;
  }
  __host__ __device__ int64_t coverage_bytes() const { return 2 * static_cast<int64_t>(sizeof(double)) * (width + 1); }
  __device__ unsigned char* own() const { return bytes + first_task() * bytes_per_warp; }
  __device__ double* coverage() const { return reinterpret_cast<double*>(own()); }
  __device__ Piece* pieces() const { return reinterpret_cast<Piece*>(own() + coverage_bytes()); }
  __device__ int32_t* order() const { return reinterpret_cast<int32_t*>(pieces() + max_pieces); }
};

__global__ void join_half_edges(const int32_t* faces, int64_t n_faces, int64_t n_verts, EdgeTable t) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t h = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; h < 3 * n_faces; h += step) {
    const int32_t a = faces[h], b = faces[h % 3 == 2 ? h - 2 : h + 1];
    t.slot_of[h] = -1;
    if (a < 0 || b < 0 || a >= n_verts || b >= n_verts) continue;
    const unsigned long long low = a < b ? a : b, high = a < b ? b : a, key = low << 32 | high;
    unsigned long long slot = (key * 0x9E3779B97F4A7C15ull >> 20) & (t.slots - 1);
    for (;; slot = (slot + 1) & (t.slots - 1)) {
      const unsigned long long found = atomicCAS(t.keys + slot, kNoEdge, key);
      if (found == kNoEdge || found == key) break;
    }
    t.slot_of[h] = static_cast<int32_t>(slot);
    atomicMin(t.first + slot, static_cast<int32_t>(h));
  }
}

template <typename T>
__global__ void balance_edges(RasterMesh<T> m, RasterOptions<T> o, int64_t batch, EdgeTable t) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < batch * m.n_faces; i += step) {
    const int64_t image = i / m.n_faces, face = i % m.n_faces;
    const int side = face_side(m, o, m.verts_px + image * m.n_verts * 3, face);
    if (side == 0) continue;
    for (int k = 0; k < 3; ++k) {
      const bool rises = m.faces[3 * face + k] < m.faces[3 * face + (k == 2 ? 0 : k + 1)];
      atomicAdd(t.balance + image * t.slots + t.slot_of[3 * face + k], rises ? side : -side);
    }
  }
}

// One block an image; contour edges come in the order of their first half-edge.
template <typename T>
__global__ void __launch_bounds__(kThreads) list_contours(RasterMesh<T> m, int64_t batch, EdgeTable t) {
  __shared__ int warp_counts[kThreads / kWarp];
  const int lane = lane_of(), warp = threadIdx.x / kWarp;
  for (int64_t image = blockIdx.x; image < batch; image += gridDim.x) {
    const int32_t* balance = t.balance + image * t.slots;
    ContourEdge* list = t.contours + image * 3 * m.n_faces;
    int found = 0;
    for (int64_t begin = 0; begin < 3 * m.n_faces; begin += kThreads) {
      const int64_t h = begin + threadIdx.x;
      ContourEdge e = {};
      bool listed = false;
      const int32_t slot = h < 3 * m.n_faces ? t.slot_of[h] : -1;
      if (slot >= 0 && t.first[slot] == h && balance[slot] != 0) {
        const int32_t a = m.faces[h], b = m.faces[h % 3 == 2 ? h - 2 : h + 1];
        e = contour_edge(m.verts_px + image * m.n_verts * 3, a < b ? a : b, a < b ? b : a, balance[slot]);
        listed = e.y1 >= 0 && e.y0 < m.height;
      }
      const unsigned votes = __ballot_sync(kAllLanes, listed);
      if (lane == 0) warp_counts[warp] = __popc(votes);
      __syncthreads();
      int before = found + __popc(votes & ((1u << lane) - 1));
      for (int w = 0; w < kThreads / kWarp; ++w) {
        if (w < warp) before += warp_counts[w];
        found += warp_counts[w];
      }
      if (listed) list[before] = e;
      __syncthreads();  // the next round overwrites the counts
    }
    if (threadIdx.x == 0) t.n_contours[image] = found;
  }
}

// All lanes gather the pieces of a row; every lane gets their number.
__device__ int gather_pieces(const EdgeTable& t, const RowScratch& scratch, int64_t n_faces, int64_t image, int row) {
  const ContourEdge* list = t.contours + image * 3 * n_faces;
  const int n = t.n_contours[image], lane = lane_of();
  int count = 0;
  for (int begin = 0; begin < n; begin += kWarp) {
    const int i = begin + lane;
    Piece p = {};
    const bool meets = i < n && piece_of(list[i], i, row, scratch.width, p);
    const unsigned votes = __ballot_sync(kAllLanes, meets);
    if (meets) scratch.pieces()[count + __popc(votes & ((1u << lane) - 1))] = p;
    count += __popc(votes);
  }
  __syncwarp();
  return count;
}

struct NoTouch {
  __host__ __device__ void operator()(int) const {}
};

template <typename T>
__global__ void edge_forward_kernel(EdgeForward<T> p, int64_t batch, EdgeTable t, RowScratch scratch) {
  const int height = p.mesh.height, width = p.mesh.width, lane = lane_of();
  double* cover = scratch.coverage();
  double* area = cover + width + 1;
  for (int64_t task = first_task(); task < batch * height; task += task_step()) {
    const int64_t image = task / height;
    const int row = static_cast<int>(task % height);
    for (int i = lane; i < 2 * (width + 1); i += kWarp) cover[i] = 0;
    const int count = gather_pieces(t, scratch, p.mesh.n_faces, image, row);
    if (lane == 0 && count > 0) {
      CoverageSink<NoTouch> sink = {cover, area, width, {}};
      sweep_row(scratch.pieces(), count, scratch.order(), sink);
    }
    __syncwarp();
    double covered = 0;  // multiples of 2^-50: exact in any order
    for (int begin = 0; begin < width; begin += kWarp) {
      const int column = begin + lane;
      double sum = column < width ? cover[column] : 0;
      for (int step = 1; step < kWarp; step *= 2) {
        const double left = __shfl_up_sync(kAllLanes, sum, step);
        if (lane >= step) sum += left;
      }
      if (column < width) p.mask[task * width + column] = static_cast<T>(clamp_coverage(covered + sum + area[column]));
      covered += __shfl_sync(kAllLanes, sum, kWarp - 1);
    }
    __syncwarp();
  }
}

template <typename T>
struct AddToVertices {
  T* grad;  // (V, 3)
  bool alone;

  __host__ __device__ void operator()(int32_t vertex, double gx, double gy) const {
#if defined(__CUDA_ARCH__)
    T* to = grad + 3 * static_cast<int64_t>(vertex);
    if (alone) {
      to[0] += static_cast<T>(gx);
      to[1] += static_cast<T>(gy);
    } else {
      atomicAdd(to, static_cast<T>(gx));
      atomicAdd(to + 1, static_cast<T>(gy));
    }
#else
    (void)vertex, (void)gx, (void)gy;
#endif
  }
};

// A task is a row, or an image whose rows come in order.
template <typename T>
__global__ void edge_backward_kernel(EdgeBackward<T> p, int64_t batch, EdgeTable t, RowScratch scratch,
                                     bool deterministic) {
  const int height = p.mesh.height, width = p.mesh.width;
  const int rows = deterministic ? height : 1;
  for (int64_t task = first_task(); task < batch * height / rows; task += task_step()) {
    const int64_t image = task * rows / height;
    const int begin = static_cast<int>(task * rows % height);
    for (int row = begin; row < begin + rows; ++row) {
      const int count = gather_pieces(t, scratch, p.mesh.n_faces, image, row);
      if (lane_of() == 0 && count > 0) {
        const AddToVertices<T> add = {p.grad_verts + image * p.mesh.n_verts * 3, deterministic};
        GradientSink<T, AddToVertices<T>> sink = {t.contours + image * 3 * p.mesh.n_faces,
                                                  p.grad_mask + (image * height + row) * width, row, width, add};
        sweep_row(scratch.pieces(), count, scratch.order(), sink);
      }
      __syncwarp();
    }
  }
}

// The memory behind an EdgeTable and the warps' scratch.
struct EdgeWork {
  Tensor bytes, scratch_bytes;
  EdgeTable table;
  RowScratch scratch;
  int64_t warps;

  EdgeWork(const Tensor& verts_px, int64_t B, int64_t F, int width, int64_t tasks, cudaStream_t stream)
      : scratch(F, width) {
    int64_t slots = 16;
    while (slots < 6 * F) slots *= 2;
    const int64_t keys = slots * 8, contours = B * 3 * F * static_cast<int64_t>(sizeof(ContourEdge));
    const int64_t ints = (slots + B * slots + 3 * F + B) * 4;
    bytes = torch::stable::new_empty(verts_px, {keys + contours + ints}, ScalarType::Byte);
    unsigned char* at = bytes.mutable_data_ptr<uint8_t>();
    table.slots = slots;
    table.keys = reinterpret_cast<unsigned long long*>(at);
    table.contours = reinterpret_cast<ContourEdge*>(at + keys);
    table.first = reinterpret_cast<int32_t*>(at + keys + contours);
    table.balance = table.first + slots;
    table.slot_of = table.balance + B * slots;
    table.n_contours = table.slot_of + 3 * F;
    STD_CUDA_CHECK(cudaMemsetAsync(table.keys, 0xff, keys, stream));
    STD_CUDA_CHECK(cudaMemsetAsync(table.first, kNoHalfEdge, slots * 4, stream));
    STD_CUDA_CHECK(cudaMemsetAsync(table.balance, 0, B * slots * 4, stream));
    const int64_t affordable = kScratchBytes / scratch.bytes_per_warp + 1;
    const int64_t wanted = tasks < affordable ? tasks : affordable;
    warps = (wanted + kWarpsPerBlock - 1) / kWarpsPerBlock * kWarpsPerBlock;
    scratch_bytes = torch::stable::new_empty(verts_px, {warps * scratch.bytes_per_warp}, ScalarType::Byte);
    scratch.bytes = scratch_bytes.mutable_data_ptr<uint8_t>();
  }

  unsigned blocks() const { return static_cast<unsigned>(warps / kWarpsPerBlock); }

  template <typename T>
  void find_contours(const RasterMesh<T>& m, const RasterOptions<T>& o, int64_t batch, cudaStream_t stream) {
    const auto grid = [](int64_t n) {
      const int64_t blocks = (n + kThreads - 1) / kThreads;
      return static_cast<unsigned>(blocks < kMaxGrid ? blocks : kMaxGrid);
    };
    join_half_edges<<<grid(3 * m.n_faces), kThreads, 0, stream>>>(m.faces, m.n_faces, m.n_verts, table);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    balance_edges<T><<<grid(batch * m.n_faces), kThreads, 0, stream>>>(m, o, batch, table);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    list_contours<T>
        <<<static_cast<unsigned>(batch < kMaxGrid ? batch : kMaxGrid), kThreads, 0, stream>>>(m, batch, table);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

Tensor silhouette_edge_cuda(Tensor verts_px, Tensor faces, int64_t height, int64_t width, std::optional<double> z_near,
                            bool fill_back) {
  const RasterMeshTensors mesh("silhouette_edge", verts_px, faces, height, width);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  const int64_t B = verts_px.size(0), F = mesh.faces.size(0);
  const cudaStream_t stream = current_stream(verts_px);
  Tensor mask = new_image(verts_px, B, height, width);
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const EdgeForward<scalar_t> p = {
        mesh.mesh<scalar_t>(), raster_options<scalar_t>("silhouette_edge", z_near.has_value(), z_near, !fill_back),
        mask.mutable_data_ptr<scalar_t>()};
    if (B == 0 || F == 0) {
      STD_CUDA_CHECK(cudaMemsetAsync(p.mask, 0, mask.numel() * sizeof(scalar_t), stream));
      return;
    }
    EdgeWork work(verts_px, B, F, p.mesh.width, B * height, stream);
    work.find_contours(p.mesh, p.options, B, stream);
    edge_forward_kernel<scalar_t><<<work.blocks(), kWarp * kWarpsPerBlock, 0, stream>>>(p, B, work.table, work.scratch);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return mask;
}

Tensor silhouette_edge_backward_cuda(Tensor grad_mask, Tensor verts_px, Tensor faces, std::optional<double> z_near,
                                     bool fill_back, bool deterministic) {
  const char* op = "_silhouette_edge_backward";
  const RasterMeshTensors mesh(op, verts_px, faces, grad_mask.size(1), grad_mask.size(2));
  const int64_t B = verts_px.size(0), F = mesh.faces.size(0);
  check_tensor(op, "grad_mask", grad_mask, {B, mesh.height, mesh.width}, verts_px.scalar_type(), verts_px);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  grad_mask = torch::stable::contiguous(grad_mask);
  const cudaStream_t stream = current_stream(verts_px);
  Tensor grad_verts = torch::stable::new_empty(verts_px, {B, verts_px.size(1), 3});
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const EdgeBackward<scalar_t> p = {mesh.mesh<scalar_t>(),
                                      raster_options<scalar_t>(op, z_near.has_value(), z_near, !fill_back),
                                      grad_mask.const_data_ptr<scalar_t>(), grad_verts.mutable_data_ptr<scalar_t>()};
    STD_CUDA_CHECK(cudaMemsetAsync(p.grad_verts, 0, grad_verts.numel() * sizeof(scalar_t), stream));
    if (B == 0 || F == 0) return;
    EdgeWork work(verts_px, B, F, p.mesh.width, deterministic ? B : B * p.mesh.height, stream);
    work.find_contours(p.mesh, p.options, B, stream);
    edge_backward_kernel<scalar_t>
        <<<work.blocks(), kWarp * kWarpsPerBlock, 0, stream>>>(p, B, work.table, work.scratch, deterministic);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return grad_verts;
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CUDA, m) {
  m.impl("silhouette_edge", TORCH_BOX(&dhpe::silhouette_edge_cuda));
  m.impl("_silhouette_edge_backward", TORCH_BOX(&dhpe::silhouette_edge_backward_cuda));
}
