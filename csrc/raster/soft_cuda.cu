// The "soft" silhouette on the GPU. Forward: a block owns a tile of 16 x 16 pixels, a thread one of them, and the block
// walks through the faces that reach the tile in ascending order. Backward: a warp a face, over the pixels in its
// reach.
#include "raster/face_gradients.h"
#include "raster/raster_tensors.h"
#include "raster/soft_math.h"

namespace dhpe {
namespace {

constexpr int kTile = 16;
constexpr int kTileThreads = kTile * kTile;
constexpr int kTileWarps = kTileThreads / kWarp;
constexpr int64_t kMaxImagesInGrid = 65535;  // gridDim.y; larger batches loop
constexpr unsigned kAllLanes = 0xffffffffu;

// Faces set up at a time: 22 KiB of shared memory.
template <typename T>
constexpr int kChunk = 1024 / static_cast<int>(sizeof(T));

template <typename T>
struct SharedFaces {
  SoftFace<T> face[kChunk<T>];
  int warp_counts[kTileWarps];
};

// Keeps those of the faces begin, begin + 1, ... that reach the tile, in this order; returns their number.
template <typename T>
__device__ int collect_faces(const SoftForward<T>& p, const T* verts, int64_t begin, int x0, int y0,
                             SharedFaces<T>& shared) {
  const int64_t id = begin + threadIdx.x;
  const int lane = lane_of(), warp = threadIdx.x / kWarp;
  SoftFace<T> f;
  bool reaches =
      threadIdx.x < kChunk<T> && id < p.mesh.n_faces && setup_soft_face(p.mesh, p.options, p.sigma, verts, id, f);
  reaches = reaches && f.x0 < x0 + kTile && f.x1 >= x0 && f.y0 < y0 + kTile && f.y1 >= y0;
  const unsigned votes = __ballot_sync(kAllLanes, reaches);
  if (lane == 0) shared.warp_counts[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1)), found = 0;
  for (int w = 0; w < kTileWarps; ++w) {
    if (w < warp) before += shared.warp_counts[w];
    found += shared.warp_counts[w];
  }
  if (reaches) shared.face[before] = f;
  __syncthreads();
  return found;
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads) soft_forward_kernel(SoftForward<T> p, int64_t batch, int tiles_x) {
  __shared__ alignas(16) unsigned char shared_bytes[sizeof(SharedFaces<T>)];
  SharedFaces<T>& shared = *reinterpret_cast<SharedFaces<T>*>(shared_bytes);
  const RasterMesh<T>& m = p.mesh;
  const int x0 = static_cast<int>(blockIdx.x) % tiles_x * kTile, y0 = static_cast<int>(blockIdx.x) / tiles_x * kTile;
  const int x = x0 + threadIdx.x % kTile, y = y0 + threadIdx.x / kTile;
  const T px = static_cast<T>(x) + T(0.5), py = static_cast<T>(y) + T(0.5);
  for (int64_t image = blockIdx.y; image < batch; image += gridDim.y) {
    const T* verts = m.verts_px + image * m.n_verts * 3;
    T missed = 1;
    for (int64_t begin = 0; begin < m.n_faces; begin += kChunk<T>) {
      const int found = collect_faces(p, verts, begin, x0, y0, shared);
      for (int i = 0; i < found; ++i) {
        const SoftFace<T>& f = shared.face[i];
        if (x < f.x0 || x > f.x1 || y < f.y0 || y > f.y1) continue;
        const SoftPixel<T> q = soft_pixel(f, px, py);
        if (!soft_reaches(f, q)) continue;
        missed /= std::exp(soft_z(f, q)) + T(1);
        if (missed < kSoftNothing<T>) missed = 0;
      }
      __syncthreads();  // the next chunk overwrites the shared faces
    }
    if (x >= m.width || y >= m.height) continue;
    const int64_t pixel = (image * m.height + y) * m.width + x;
    p.missed[pixel] = missed;
    p.mask[pixel] = T(1) - missed;
  }
}

template <typename T>
__global__ void soft_backward_kernel(SoftBackward<T> p, int64_t batch, T* grad_faces) {
  const RasterMesh<T>& m = p.mesh;
  for (int64_t task = first_task(); task < batch * m.n_faces; task += task_step()) {
    const int64_t image = task / m.n_faces, face = task % m.n_faces;
    SoftFace<T> f;
    if (!setup_soft_face(m, p.options, p.sigma, m.verts_px + image * m.n_verts * 3, face, f)) continue;
    T part[9] = {};
    const int64_t columns = f.x1 - f.x0 + 1, pixels = columns * (f.y1 - f.y0 + 1);
    for (int64_t i = lane_of(); i < pixels; i += kWarp) {
      const int x = f.x0 + static_cast<int>(i % columns), y = f.y0 + static_cast<int>(i / columns);
      const int64_t pixel = (image * m.height + y) * m.width + x;
      const T weight = p.missed[pixel] * p.grad_mask[pixel];
      if (weight == 0) continue;
      const SoftPixel<T> q = soft_pixel(f, static_cast<T>(x) + T(0.5), static_cast<T>(y) + T(0.5));
      if (!soft_reaches(f, q)) continue;
      const T e = std::exp(soft_z(f, q));
      const T g = weight * (e / (e + T(1))) * q.sign * (2 * f.inv_sigma);  // see face_gradient in soft_simd.cpp
      const int k = q.edge[0].square == q.square ? 0 : q.edge[1].square == q.square ? 1 : 2;
      const int next = k == 2 ? 0 : k + 1;
      const T gx = g * q.edge[k].qx, gy = g * q.edge[k].qy, t = q.edge[k].t;
      part[3 * k] -= gx * (T(1) - t);
      part[3 * k + 1] -= gy * (T(1) - t);
      part[3 * next] -= gx * t;
      part[3 * next + 1] -= gy * t;
    }
    put_face_gradient(m, image, face, part, grad_faces, p.grad_verts);
  }
}

std::tuple<Tensor, Tensor> silhouette_soft_cuda(Tensor verts_px, Tensor faces, int64_t height, int64_t width,
                                                std::optional<double> z_near, bool fill_back, double sigma) {
  const RasterMeshTensors mesh("silhouette_soft", verts_px, faces, height, width);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  const int64_t B = verts_px.size(0);
  const cudaStream_t stream = current_stream(verts_px);
  Tensor mask = new_image(verts_px, B, height, width), missed = new_image(verts_px, B, height, width);
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const SoftForward<scalar_t> p = {
        mesh.mesh<scalar_t>(), raster_options<scalar_t>("silhouette_soft", z_near.has_value(), z_near, !fill_back),
        soft_sigma<scalar_t>("silhouette_soft", sigma), mask.mutable_data_ptr<scalar_t>(),
        missed.mutable_data_ptr<scalar_t>()};
    if (B == 0) return;
    const int tiles_x = (p.mesh.width + kTile - 1) / kTile, tiles_y = (p.mesh.height + kTile - 1) / kTile;
    const dim3 grid(static_cast<unsigned>(tiles_x) * tiles_y,
                    static_cast<unsigned>(B < kMaxImagesInGrid ? B : kMaxImagesInGrid));
    soft_forward_kernel<scalar_t><<<grid, kTileThreads, 0, stream>>>(p, B, tiles_x);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {mask, missed};
}

Tensor silhouette_soft_backward_cuda(Tensor grad_mask, Tensor missed, Tensor verts_px, Tensor faces,
                                     std::optional<double> z_near, bool fill_back, double sigma, bool deterministic) {
  const char* op = "_silhouette_soft_backward";
  const RasterMeshTensors mesh(op, verts_px, faces, grad_mask.size(1), grad_mask.size(2));
  const int64_t B = verts_px.size(0), F = mesh.faces.size(0);
  check_tensor(op, "grad_mask", grad_mask, {B, mesh.height, mesh.width}, verts_px.scalar_type(), verts_px);
  check_tensor(op, "missed", missed, {B, mesh.height, mesh.width}, verts_px.scalar_type(), verts_px);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  grad_mask = torch::stable::contiguous(grad_mask);
  missed = torch::stable::contiguous(missed);
  const cudaStream_t stream = current_stream(verts_px);
  Tensor grad_verts;
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    FaceGradients<scalar_t> out(verts_px, F, deterministic, stream);
    grad_verts = out.grad_verts;
    const SoftBackward<scalar_t> p = {mesh.mesh<scalar_t>(),
                                      raster_options<scalar_t>(op, z_near.has_value(), z_near, !fill_back),
                                      soft_sigma<scalar_t>(op, sigma),
                                      missed.const_data_ptr<scalar_t>(),
                                      grad_mask.const_data_ptr<scalar_t>(),
                                      out.verts()};
    if (grad_verts.numel() == 0 || F == 0) return;
    soft_backward_kernel<scalar_t><<<warp_blocks(B * F), kWarp * kWarpsPerBlock, 0, stream>>>(p, B, out.faces());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    out.finish(p.mesh, B, stream);
  });
  return grad_verts;
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CUDA, m) {
  m.impl("silhouette_soft", TORCH_BOX(&dhpe::silhouette_soft_cuda));
  m.impl("_silhouette_soft_backward", TORCH_BOX(&dhpe::silhouette_soft_backward_cuda));
}
