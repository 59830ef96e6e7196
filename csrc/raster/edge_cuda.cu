// The "edge" silhouette on the GPU. A warp a row gathers the contour edges that meet it (see edge_contours.h); its
// first lane sweeps them, all lanes write the row. Nothing depends on the order in which threads run but sums of
// gradients, and with `deterministic` those neither: warps take bands of rows, each with gradients of its own, which
// are then added up in order.
//
// A row works in shared memory if it has up to kSharedPieces edges. Others are left to a second and a third launch,
// which have memory for more edges and the fewer warps the more each needs: rows of a hand have some 30 edges.
#include <algorithm>

#include "raster/edge_contours.h"
#include "raster/silhouette_cuda.h"

namespace dhpe {
namespace {

constexpr int kSharedPieces = 64;
constexpr int kSharedWidth = 255;  // images no wider keep the coverage of a row in shared memory
constexpr int64_t kMidPieces = 1024;
constexpr int64_t kMaxMidPieces = 8192;      // a mesh with fewer half-edges needs no third launch
constexpr int64_t kScratchBytes = 64 << 20;  // of a launch; one warp has what it needs in any case
constexpr int64_t kBandBytes = 64 << 20;     // gradients of bands
constexpr int64_t kWantedTasks = 2048;       // bands of all images: enough for an H100, no more to be added up
constexpr int kPieceBytes = sizeof(Piece) + sizeof(int32_t);

// Rows in bands, each a warp's task. `slot` is an image's place in the slice.
struct RowTasks {
  int64_t first_image, n_images;
  int height, width, bands, band_rows;
  uint8_t* pending;  // (n_images, bands): bit i is set where launch i finds rows to do, i = 1, 2

  __host__ __device__ int64_t count() const { return n_images * bands; }
};

// One of up to three launches: it does rows of more than `done`, up to `capacity` edges.
struct RowLaunch {
  int index;
  int64_t done, capacity, mid_capacity;
  int64_t warps, bytes_per_warp, coverage_bytes;
  unsigned char* scratch;

  __device__ unsigned char* own() const { return scratch + first_task() * bytes_per_warp; }
};

struct RowMemory {
  Piece* pieces;
  int32_t* order;
  double* coverage;  // (2 (width + 1),)
};

template <bool kShared>
__device__ RowMemory row_memory(const RowLaunch& launch, Piece* pieces, int32_t* order, double* coverage) {
  unsigned char* own = launch.own();
  if (launch.coverage_bytes > 0) coverage = reinterpret_cast<double*>(own);
  if constexpr (kShared) return {pieces, order, coverage};
  pieces = reinterpret_cast<Piece*>(own + launch.coverage_bytes);
  return {pieces, reinterpret_cast<int32_t*>(pieces + launch.capacity), coverage};
}

// The pieces of one row, gathered by all lanes of a warp. Counts those beyond the capacity, too.
struct PieceGatherer {
  const ContourEdge* list;
  Piece* pieces;
  int64_t capacity;
  int row, width;
  int count = 0;

  __device__ void add(bool is_edge, int64_t i) {
    Piece p;
    const bool meets = is_edge && piece_of(list[i], static_cast<int32_t>(i), row, width, p);
    const unsigned votes = __ballot_sync(kAllLanes, meets);
    const int at = count + votes_before(votes);
    if (meets && at < capacity) pieces[at] = p;
    count += __popc(votes);
  }
};

__device__ inline int gather_pieces(const Contours& contours, const Bins& bins, int64_t slot, PieceGatherer gatherer) {
  const int n = contours.count[slot];
  if (!bins.words) {
    for (int begin = 0; begin < n; begin += kWarp) gatherer.add(begin + lane_of() < n, begin + lane_of());
    __syncwarp();
    return gatherer.count;
  }
  const int64_t bin = bins.bin_at(slot, 0, gatherer.row), pages = (n + kPageItems - 1) / kPageItems;
  for (int64_t begin = 0; begin < pages; begin += kWarp) {
    const int64_t own = begin + lane_of();
    const bool is_used = own < pages && bins.summary[bin * bins.n_pages + own] != 0;
    for (unsigned used = __ballot_sync(kAllLanes, is_used); used != 0; used &= used - 1) {
      const int64_t page = begin + __ffs(static_cast<int>(used)) - 1;
      const uint32_t word = page_word(bins, bin, page);
      for (unsigned words = __ballot_sync(kAllLanes, word != 0); words != 0; words &= words - 1) {
        const int source = __ffs(static_cast<int>(words)) - 1;
        const uint32_t items = __shfl_sync(kAllLanes, word, source);
        gatherer.add(items >> lane_of() & 1, page * kPageItems + source * kWarp + lane_of());
      }
    }
  }
  __syncwarp();
  return gatherer.count;
}

// Calls visit(slot, band, row, pieces) for the rows of this launch, those of a band in order, with all lanes of a warp.
template <typename Visit>
__device__ void for_rows(const RowTasks& tasks, const RowLaunch& launch, const Contours& contours, const Bins& bins,
                         const RowMemory& memory, const Visit& visit) {
  if (first_task() >= launch.warps) return;
  for (int64_t base = first_task(); base < tasks.count(); base += kWarp * launch.warps) {
    const int64_t own = base + lane_of() * launch.warps;
    const bool is_task = own < tasks.count() && (launch.index == 0 || (tasks.pending[own] >> launch.index & 1));
    for (unsigned left = __ballot_sync(kAllLanes, is_task); left != 0; left &= left - 1) {
      const int64_t task = base + (__ffs(static_cast<int>(left)) - 1) * launch.warps;
      const int64_t slot = task / tasks.bands;
      const int band = static_cast<int>(task % tasks.bands);
      unsigned pending = 0;
      for (int row = band * tasks.band_rows; row < (band + 1) * tasks.band_rows && row < tasks.height; ++row) {
        const int count = gather_pieces(contours, bins, slot,
                                        {contours.list(slot), memory.pieces, launch.capacity, row, tasks.width});
        if (count > launch.capacity)
          pending |= count <= launch.mid_capacity ? 2u : 4u;
        else if (count > launch.done)
          visit(slot, band, row, count);
        __syncwarp();  // the next row overwrites the pieces
      }
      if (launch.index == 0 && lane_of() == 0) tasks.pending[task] = static_cast<uint8_t>(pending);
    }
  }
}

struct NoTouch {
  __host__ __device__ void operator()(int) const {}
};

// The mask of a row from its pieces.
template <typename T>
__device__ void write_row(const RowMemory& memory, int count, int width, T* mask) {
  const int lane = lane_of();
  if (count == 0) {
    for (int column = lane; column < width; column += kWarp) mask[column] = T(0);
    return;
  }
  double* cover = memory.coverage;
  double* area = cover + width + 1;
  for (int i = lane; i < 2 * (width + 1); i += kWarp) cover[i] = 0;
  __syncwarp();
  if (lane == 0) {
    CoverageSink<NoTouch> sink = {cover, area, width, {}};
    sweep_row(memory.pieces, count, memory.order, sink);
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
    if (column < width) mask[column] = static_cast<T>(clamp_coverage(covered + sum + area[column]));
    covered += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
}

template <typename T, bool kShared>
__global__ void __launch_bounds__(kTaskThreads)
    edge_forward_kernel(EdgeForward<T> p, RowTasks tasks, RowLaunch launch, Contours contours, Bins bins) {
  __shared__ double coverage[kWarpsPerBlock][2 * (kSharedWidth + 1)];
  __shared__ Piece pieces[kWarpsPerBlock][kShared ? kSharedPieces : 1];
  __shared__ int32_t order[kWarpsPerBlock][kShared ? kSharedPieces : 1];
  const int warp = threadIdx.x / kWarp;
  const RowMemory memory = row_memory<kShared>(launch, pieces[warp], order[warp], coverage[warp]);
  const auto visit = [&p, &tasks, &memory](int64_t slot, int, int row, int count) {
    const int64_t image = tasks.first_image + slot;
    write_row(memory, count, tasks.width, p.mask + (image * tasks.height + row) * tasks.width);
  };
  for_rows(tasks, launch, contours, bins, memory, visit);
}

// Adds to the vertices' gradients (V, 3) by atomics, or to a band's own (V, 2), where no other warp does.
template <typename T>
struct AddToVertices {
  T* grad;
  double* of_band;  // null where there is none

  __host__ __device__ void operator()(int32_t vertex, double gx, double gy) const {
#if defined(__CUDA_ARCH__)
    if (of_band) {
      double* to = of_band + 2 * static_cast<int64_t>(vertex);
      to[0] += gx;
      to[1] += gy;
    } else {
      T* to = grad + 3 * static_cast<int64_t>(vertex);
      atomicAdd(to, static_cast<T>(gx));
      atomicAdd(to + 1, static_cast<T>(gy));
    }
#else
    (void)vertex, (void)gx, (void)gy;
#endif
  }
};

template <typename T, bool kShared>
__global__ void __launch_bounds__(kTaskThreads)
    edge_backward_kernel(EdgeBackward<T> p, double* of_bands, RowTasks tasks, RowLaunch launch, Contours contours,
                         Bins bins) {
  __shared__ Piece pieces[kWarpsPerBlock][kShared ? kSharedPieces : 1];
  __shared__ int32_t order[kWarpsPerBlock][kShared ? kSharedPieces : 1];
  const int warp = threadIdx.x / kWarp;
  const RowMemory memory = row_memory<kShared>(launch, pieces[warp], order[warp], nullptr);
  const int64_t V = p.mesh.n_verts;
  const auto visit = [&](int64_t slot, int band, int row, int count) {
    if (lane_of() != 0) return;
    const int64_t image = tasks.first_image + slot;
    const AddToVertices<T> add = {p.grad_verts + image * V * 3,
                                  of_bands ? of_bands + (slot * tasks.bands + band) * V * 2 : nullptr};
    GradientSink<T, AddToVertices<T>> sink = {
        contours.list(slot), p.grad_mask + (image * tasks.height + row) * tasks.width, row, tasks.width, add};
    sweep_row(memory.pieces, count, memory.order, sink);
  };
  for_rows(tasks, launch, contours, bins, memory, visit);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    add_up_bands(const double* of_bands, RowTasks tasks, int64_t n_verts, T* grad_verts) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, values = 2 * n_verts;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < tasks.n_images * values; i += step) {
    const int64_t slot = i / values, value = i % values;
    double sum = 0;
    for (int band = 0; band < tasks.bands; ++band) sum += of_bands[(slot * tasks.bands + band) * values + value];
    grad_verts[((tasks.first_image + slot) * n_verts + value / 2) * 3 + value % 2] = static_cast<T>(sum);
  }
}

// The memory of up to three launches over rows, which use it one after the other.
class RowLaunches {
 public:
  RowLaunches(const Tensor& like, int64_t n_half_edges, int64_t n_tasks, int64_t coverage_bytes) {
    const int64_t mid = n_half_edges <= kMaxMidPieces ? n_half_edges : kMidPieces;
    plan({0, -1, kSharedPieces, mid, 0, coverage_bytes, coverage_bytes, nullptr}, n_tasks);
    if (n_half_edges > kSharedPieces)
      plan({1, kSharedPieces, mid, mid, 0, coverage_bytes + mid * kPieceBytes, coverage_bytes, nullptr}, n_tasks);
    if (n_half_edges > mid)
      plan({2, mid, n_half_edges, mid, 0, coverage_bytes + n_half_edges * kPieceBytes, coverage_bytes, nullptr},
           n_tasks);
    bytes_ = torch::stable::new_empty(like, {needed_}, ScalarType::Byte);
    for (RowLaunch& launch : launches_) launch.scratch = bytes_.mutable_data_ptr<uint8_t>();
  }

  // Calls launch(RowLaunch, blocks) in order.
  template <typename Launch>
  void run(const Launch& launch) const {
    for (int i = 0; i < count_; ++i) launch(launches_[i], warp_blocks(launches_[i].warps));
  }

 private:
  void plan(RowLaunch launch, int64_t n_tasks) {
    launch.bytes_per_warp = (launch.bytes_per_warp + 15) / 16 * 16;
    const int64_t affordable = launch.bytes_per_warp > 0 ? kScratchBytes / launch.bytes_per_warp : kMaxGrid;
    launch.warps = std::max<int64_t>(std::min(n_tasks, affordable), 1);
    needed_ = std::max(needed_, launch.warps * launch.bytes_per_warp);
    launches_[count_++] = launch;
  }

  RowLaunch launches_[3];
  int count_ = 0;
  int64_t needed_ = 0;
  Tensor bytes_;
};

// A row a task, or fewer tasks where each needs `task_bytes` of its own.
inline RowTasks row_tasks(int64_t n_images, int height, int width, int64_t task_bytes) {
  const int64_t affordable = task_bytes > 0 ? std::min(kBandBytes / task_bytes, kWantedTasks) / n_images : height;
  const int bands = static_cast<int>(std::clamp<int64_t>(affordable, 1, height));
  const int rows = (height + bands - 1) / bands;
  return {0, n_images, height, width, (height + rows - 1) / rows, rows, nullptr};
}

}  // namespace

Tensor silhouette_edge_cuda(Tensor verts_px, Tensor faces, int64_t height, int64_t width, std::optional<double> z_near,
                            bool fill_back) {
  const char* op = "silhouette_edge";
  const RasterMeshTensors mesh(op, verts_px, faces, height, width);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  const int64_t B = verts_px.size(0), F = mesh.faces.size(0);
  const cudaStream_t stream = current_stream(verts_px);
  Tensor mask = new_image(verts_px, B, height, width);
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const auto options = raster_options<scalar_t>(op, z_near.has_value(), z_near, !fill_back);
    const EdgeForward<scalar_t> p = {mesh.mesh<scalar_t>(), options, mask.mutable_data_ptr<scalar_t>()};
    if (B == 0 || F == 0) {
      zero_async(p.mask, mask.numel() * static_cast<int64_t>(sizeof(scalar_t)), stream);
      return;
    }
    ContourFinder<scalar_t> finder(op, mesh, options, stream);
    RowTasks tasks = row_tasks(finder.slice, p.mesh.height, p.mesh.width, 0);
    Tensor pending = torch::stable::new_empty(verts_px, {tasks.count()}, ScalarType::Byte);
    tasks.pending = pending.mutable_data_ptr<uint8_t>();
    const int64_t coverage = width > kSharedWidth ? 2 * static_cast<int64_t>(sizeof(double)) * (width + 1) : 0;
    const RowLaunches launches(verts_px, 3 * F, tasks.count(), coverage);
    for (int64_t first = 0; first < B; first += finder.slice) {
      tasks.first_image = first;
      tasks.n_images = std::min(finder.slice, B - first);
      finder.find(first, tasks.n_images);
      launches.run([&](const RowLaunch& rows, unsigned blocks) {
        const auto kernel =
            rows.index == 0 ? edge_forward_kernel<scalar_t, true> : edge_forward_kernel<scalar_t, false>;
        kernel<<<blocks, kTaskThreads, 0, stream>>>(p, tasks, rows, finder.contours, finder.bins());
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      });
    }
  });
  return mask;
}

Tensor silhouette_edge_backward_cuda(Tensor grad_mask, Tensor verts_px, Tensor faces, std::optional<double> z_near,
                                     bool fill_back, bool deterministic) {
  const char* op = "_silhouette_edge_backward";
  const RasterMeshTensors mesh(op, verts_px, faces, extent(grad_mask, 1), extent(grad_mask, 2));
  const int64_t B = verts_px.size(0), F = mesh.faces.size(0), V = verts_px.size(1);
  check_tensor(op, "grad_mask", grad_mask, {B, mesh.height, mesh.width}, verts_px.scalar_type(), verts_px);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  grad_mask = torch::stable::contiguous(grad_mask);
  const cudaStream_t stream = current_stream(verts_px);
  Tensor grad_verts = torch::stable::new_empty(verts_px, {B, V, 3});
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const auto options = raster_options<scalar_t>(op, z_near.has_value(), z_near, !fill_back);
    const EdgeBackward<scalar_t> p = {mesh.mesh<scalar_t>(), options, grad_mask.const_data_ptr<scalar_t>(),
                                      grad_verts.mutable_data_ptr<scalar_t>()};
    zero_async(p.grad_verts, grad_verts.numel() * static_cast<int64_t>(sizeof(scalar_t)), stream);
    if (B == 0 || F == 0 || V == 0) return;
    ContourFinder<scalar_t> finder(op, mesh, options, stream);
    const int64_t band_bytes = deterministic ? 2 * static_cast<int64_t>(sizeof(double)) * V : 0;
    const int64_t affordable = band_bytes > 0 ? std::max<int64_t>(kBandBytes / band_bytes, 1) : finder.slice;
    const int64_t slice = std::min(finder.slice, affordable);
    RowTasks tasks = row_tasks(slice, p.mesh.height, p.mesh.width, band_bytes);
    Tensor pending = torch::stable::new_empty(verts_px, {tasks.count()}, ScalarType::Byte);
    tasks.pending = pending.mutable_data_ptr<uint8_t>();
    Tensor bands = torch::stable::new_empty(verts_px, {tasks.count() * band_bytes}, ScalarType::Byte);
    double* of_bands = deterministic ? reinterpret_cast<double*>(bands.mutable_data_ptr<uint8_t>()) : nullptr;
    const RowLaunches launches(verts_px, 3 * F, tasks.count(), 0);
    for (int64_t first = 0; first < B; first += slice) {
      tasks.first_image = first;
      tasks.n_images = std::min(slice, B - first);
      finder.find(first, tasks.n_images);
      zero_async(of_bands, tasks.count() * band_bytes, stream);
      launches.run([&](const RowLaunch& rows, unsigned blocks) {
        const auto kernel =
            rows.index == 0 ? edge_backward_kernel<scalar_t, true> : edge_backward_kernel<scalar_t, false>;
        kernel<<<blocks, kTaskThreads, 0, stream>>>(p, of_bands, tasks, rows, finder.contours, finder.bins());
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      });
      if (!deterministic) continue;
      const unsigned blocks = capped_grid(2 * V * tasks.n_images, kThreads);
      add_up_bands<scalar_t><<<blocks, kThreads, 0, stream>>>(of_bands, tasks, V, p.grad_verts);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return grad_verts;
}

}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CUDA, m) {
  m.impl("silhouette_edge", TORCH_BOX(&dhpe::silhouette_edge_cuda));
  m.impl("_silhouette_edge_backward", TORCH_BOX(&dhpe::silhouette_edge_backward_cuda));
}
