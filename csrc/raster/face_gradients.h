// Backward passes that add up, face by face, what its pixels say about its corners. CUDA only.
//
// A warp takes a face, over the pixels of its box; faces so large that they would keep the others waiting are put on a
// list, and a block takes each of those. Work: F looks at a face and the pixels of all boxes, which is no more than the
// forward pass has tested.
//
// From faces to vertices: by atomics, or in a fixed order (deterministic). For the latter every face's gradient is
// stored, and a warp per vertex adds up those of its corners. It finds them by reading all faces where meshes and
// batches are small; otherwise the corners are sorted by vertex first, once for the whole batch. The order is that of
// ids either way, and the work is linear in the corners but for the sort, whose passes are few and fixed: no mesh, not
// even one whose faces all meet in a vertex, makes it slow.
#pragma once

#include <array>
#include <tuple>

#include "raster/raster_math.h"
#include "raster/raster_tensors.h"
#include "raster/warp_tasks.h"

namespace dhpe {
namespace {

constexpr int kLargeThreads = 256, kLargeWarps = kLargeThreads / kWarp;
constexpr unsigned kLargeBlocks = 512;  // of an H100, each multiprocessor runs four
// A face is large where its box is wider and higher than this together: a warp looks at 65,536 pixels at most, in some
// 2,000 steps. Images no larger have none.
constexpr int kMaxSmallExtent = 512;

// Comparisons of a vertex with a corner, in a whole batch, up to which sorting does not pay: it takes some ten
// operations in the stream, 20 us, and 32 comparisons take a warp some six instructions. One hand is 3.6 million. An
// estimate, to be replaced by measurement.
constexpr double kMaxCornerTests = 1 << 26;

constexpr int kFaceValues = 9;  // 3 corners x 3

// On this device nobody has looked at the ids before.
template <typename T>
__device__ bool has_vertices(const RasterMesh<T>& m, int64_t face) {
  for (int k = 0; k < 3; ++k)
    if (m.faces[3 * face + k] < 0 || m.faces[3 * face + k] >= m.n_verts) return false;
  return true;
}

// The warps that share a face, and which of them this is.
struct Team {
  int warp, warps;

  __device__ int thread() const { return warp * kWarp + lane_of(); }
  __device__ int threads() const { return warps * kWarp; }
};

// Where gradients of faces go.
template <typename T>
struct FaceSums {
  RasterMesh<T> mesh;
  T* grad_faces;  // (B, F, 9), or null: at once to
  T* grad_verts;  // (B, V, 3)

  __device__ void put(int64_t image, int64_t face, int k, T sum) const {
    if (grad_faces)
      grad_faces[(image * mesh.n_faces + face) * kFaceValues + k] = sum;
    else if (sum != 0)
      atomicAdd(grad_verts + (image * mesh.n_verts + mesh.faces[3 * face + k / 3]) * 3 + k % 3, sum);
  }
};

struct LargeFaces {
  unsigned long long* count;
  int64_t* tasks;  // (B F,) image * F + face; null where no face is large
};

// Every lane holds a part of a face's gradient; lane k gets the sum of value k.
template <typename T>
__device__ T sum_of_own_value(const T* part) {
  T own = 0;
  for (int k = 0; k < kFaceValues; ++k) {
    const T sum = sum_over_lanes<kWarp>(part[k]);
    if (lane_of() == k) own = sum;
  }
  return own;
}

// A `Body` has mesh; Prepared, which has pixels(); prepare(image, face, Prepared&), false for a face without gradient;
// and add(image, face, Prepared, Team, T* part), which adds this thread's share.
template <typename T, typename Body>
__global__ void __launch_bounds__(kTaskThreads)
    small_face_gradients(Body body, int64_t batch, FaceSums<T> sums, LargeFaces large) {
  const int64_t n_faces = sums.mesh.n_faces;
  for (int64_t task = first_task(); task < batch * n_faces; task += task_step()) {
    const int64_t image = task / n_faces, face = task % n_faces;
    typename Body::Prepared prepared;
    if (!body.prepare(image, face, prepared)) continue;
    const PixelBox box = prepared.pixels();
    if (large.tasks && box.x1 - box.x0 + box.y1 - box.y0 + 2 > kMaxSmallExtent) {
      if (lane_of() == 0) large.tasks[atomicAdd(large.count, 1ull)] = task;
      continue;
    }
    T part[kFaceValues] = {};
    body.add(image, face, prepared, Team{0, 1}, part);
    const T own = sum_of_own_value(part);
    if (lane_of() < kFaceValues) sums.put(image, face, lane_of(), own);
  }
}

template <typename T, typename Body>
__global__ void __launch_bounds__(kLargeThreads) large_face_gradients(Body body, FaceSums<T> sums, LargeFaces large) {
  __shared__ T of_warp[kLargeWarps][kFaceValues];
  const int64_t n_faces = sums.mesh.n_faces, n_tasks = static_cast<int64_t>(*large.count);
  const int warp = threadIdx.x / kWarp;
  for (int64_t i = blockIdx.x; i < n_tasks; i += gridDim.x) {
    const int64_t image = large.tasks[i] / n_faces, face = large.tasks[i] % n_faces;
    typename Body::Prepared prepared;
    T part[kFaceValues] = {};
    if (body.prepare(image, face, prepared)) body.add(image, face, prepared, Team{warp, kLargeWarps}, part);
    const T own = sum_of_own_value(part);
    if (lane_of() < kFaceValues) of_warp[warp][lane_of()] = own;
    __syncthreads();
    if (threadIdx.x < kFaceValues) {
      T sum = 0;
      for (int w = 0; w < kLargeWarps; ++w) sum += of_warp[w][threadIdx.x];
      sums.put(image, face, static_cast<int>(threadIdx.x), sum);
    }
    __syncthreads();  // the next face overwrites the sums
  }
}

// Adds up three values in every lane and writes them to the vertex.
template <typename T>
__device__ void put_vertex_gradient(T* sum, T* grad_vertex) {
  for (int k = 0; k < 3; ++k) {
    sum[k] = sum_over_lanes<kWarp>(sum[k]);
    if (lane_of() == 0) grad_vertex[k] = sum[k];
  }
}

// One warp a vertex reads every corner of every face.
template <typename T>
__global__ void __launch_bounds__(kTaskThreads) gather_by_reading_all(FaceSums<T> sums, int64_t batch) {
  const RasterMesh<T>& m = sums.mesh;
  for (int64_t task = first_task(); task < batch * m.n_verts; task += task_step()) {
    const int64_t image = task / m.n_verts, vertex = task % m.n_verts;
    const T* grad = sums.grad_faces + image * m.n_faces * kFaceValues;
    T sum[3] = {};
    for (int64_t corner = lane_of(); corner < 3 * m.n_faces; corner += kWarp)
      if (m.faces[corner] == vertex)
        for (int k = 0; k < 3; ++k) sum[k] += grad[3 * corner + k];
    put_vertex_gradient(sum, sums.grad_verts + 3 * task);
  }
}

// Corners sorted by vertex; those of one vertex ascend.
struct SortedCorners {
  const int32_t* vertices;  // (3 F,) ascending
  const int64_t* corners;   // (3 F,)
  int64_t* begin;           // (V + 1,) where the corners of each vertex begin
  int64_t n_corners;
};

__global__ void __launch_bounds__(kTaskThreads) find_vertices(SortedCorners sorted, int64_t n_verts) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTaskThreads;
  for (int64_t v = static_cast<int64_t>(blockIdx.x) * kTaskThreads + threadIdx.x; v <= n_verts; v += step) {
    int64_t low = 0, high = sorted.n_corners;  // the first corner of a vertex that is not less lies between
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (sorted.vertices[middle] < v)
        low = middle + 1;
      else
        high = middle;
    }
    sorted.begin[v] = low;
  }
}

template <typename T>
__global__ void __launch_bounds__(kTaskThreads) gather_sorted(FaceSums<T> sums, int64_t batch, SortedCorners sorted) {
  const RasterMesh<T>& m = sums.mesh;
  for (int64_t task = first_task(); task < batch * m.n_verts; task += task_step()) {
    const int64_t image = task / m.n_verts, vertex = task % m.n_verts;
    const T* grad = sums.grad_faces + image * m.n_faces * kFaceValues;
    const int64_t end = sorted.begin[vertex + 1];
    T sum[3] = {};
    for (int64_t i = sorted.begin[vertex] + lane_of(); i < end; i += kWarp)
      for (int k = 0; k < 3; ++k) sum[k] += grad[3 * sorted.corners[i] + k];
    put_vertex_gradient(sum, sums.grad_verts + 3 * task);
  }
}

// aten::sort.stable(Tensor self, *, bool? stable, int dim=-1, bool descending=False) -> (Tensor values, Tensor indices)
inline std::tuple<Tensor, Tensor> stable_sort(const Tensor& values) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack = {from(values), from(std::optional<bool>(true)), from(int64_t{-1}), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// The output of a backward pass, and the launches that fill it.
template <typename T>
class FaceGradients {
 public:
  FaceGradients(const RasterMeshTensors& in, bool deterministic, cudaStream_t stream)
      : faces_(in.faces),
        grad_verts_(torch::stable::new_empty(in.verts_px, {in.verts_px.size(0), in.verts_px.size(1), 3})),
        batch_(in.verts_px.size(0)),
        is_wide_(in.height + in.width > kMaxSmallExtent),
        deterministic_(deterministic),
        stream_(stream),
        mesh_(in.mesh<T>()) {
    zero_async(grad_verts_.mutable_data_ptr<T>(), grad_verts_.numel() * static_cast<int64_t>(sizeof(T)), stream_);
  }

  const Tensor& grad_verts() const { return grad_verts_; }
  T* verts() { return grad_verts_.mutable_data_ptr<T>(); }
  bool is_empty() const { return batch_ == 0 || mesh_.n_verts == 0 || mesh_.n_faces == 0; }

  // Requires that !is_empty().
  template <typename Body>
  void add_up(const Body& body) {
    const int64_t n_tasks = batch_ * mesh_.n_faces;
    Tensor stored = torch::stable::new_empty(grad_verts_, {deterministic_ ? n_tasks * kFaceValues : 0});
    zero_async(stored.mutable_data_ptr<T>(), stored.numel() * static_cast<int64_t>(sizeof(T)), stream_);
    const FaceSums<T> sums = {mesh_, deterministic_ ? stored.mutable_data_ptr<T>() : nullptr, verts()};
    Tensor listed = torch::stable::new_empty(grad_verts_, {is_wide_ ? n_tasks + 1 : 0}, ScalarType::Long);
    LargeFaces large = {};
    if (is_wide_) {
      large.tasks = listed.mutable_data_ptr<int64_t>() + 1;
      large.count = reinterpret_cast<unsigned long long*>(large.tasks - 1);
      zero_async(large.count, sizeof(*large.count), stream_);
    }
    small_face_gradients<T, Body><<<warp_blocks(n_tasks), kTaskThreads, 0, stream_>>>(body, batch_, sums, large);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    if (is_wide_) {
      large_face_gradients<T, Body><<<kLargeBlocks, kLargeThreads, 0, stream_>>>(body, sums, large);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    if (deterministic_) gather(sums);
  }

 private:
  void gather(const FaceSums<T>& sums) {
    const int64_t V = mesh_.n_verts, n_corners = 3 * mesh_.n_faces;
    if (static_cast<double>(batch_) * V * n_corners <= kMaxCornerTests) {
      gather_by_reading_all<T><<<warp_blocks(batch_ * V), kTaskThreads, 0, stream_>>>(sums, batch_);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
      return;
    }
    const auto [vertices, corners] = stable_sort(torch::stable::view(faces_, {n_corners}));
    Tensor begin = torch::stable::new_empty(grad_verts_, {V + 1}, ScalarType::Long);
    const SortedCorners sorted = {vertices.template const_data_ptr<int32_t>(),
                                  corners.template const_data_ptr<int64_t>(), begin.mutable_data_ptr<int64_t>(),
                                  n_corners};
    find_vertices<<<warp_blocks((V + kWarp) / kWarp), kTaskThreads, 0, stream_>>>(sorted, V);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    gather_sorted<T><<<warp_blocks(batch_ * V), kTaskThreads, 0, stream_>>>(sums, batch_, sorted);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  Tensor faces_, grad_verts_;
  int64_t batch_;
  bool is_wide_, deterministic_;
  cudaStream_t stream_;
  RasterMesh<T> mesh_;
};

}  // namespace
}  // namespace dhpe
