// Rasterization on the GPU. Forward: a block owns a tile of 16 x 16 pixels, a thread one of them. The block walks
// through all faces in chunks, keeps those whose bounding box meets the tile in shared memory, and every thread takes
// the nearest. Nothing is written but results, each by one thread: deterministic without atomics on them.
#include "raster/face_gradients.h"
#include "raster/raster_math.h"
#include "raster/raster_tensors.h"

namespace dhpe {
namespace {

constexpr int kTile = 16;
constexpr int kTileThreads = kTile * kTile;
constexpr int64_t kMaxImagesInGrid = 65535;  // gridDim.y; larger batches loop

// Faces set up at a time: 27 KiB of shared memory for float, 25 for double.
template <typename T>
constexpr int kChunk = 1024 / static_cast<int>(sizeof(T));

template <typename T>
struct SharedFaces {
  Face<T> face[kChunk<T>];
  int32_t id[kChunk<T>];
  int count;
};

template <typename T>
struct Nearest {
  T depth, bary[3];
  int32_t id;
};

// Collects the faces begin, begin + 1, ... of a chunk that may touch the tile. The order in which they arrive differs
// from run to run, which the comparison by depth and id does not see.
template <typename T>
__device__ void collect_faces(const RasterForward<T>& p, const T* verts, int64_t begin, int x0, int y0,
                              SharedFaces<T>& shared) {
  if (threadIdx.x == 0) shared.count = 0;
  __syncthreads();
  const int64_t id = begin + threadIdx.x;
  if (threadIdx.x < kChunk<T> && id < p.mesh.n_faces) {
    Face<T> f;
    if (setup_face(p.mesh, p.options, verts, id, f) && f.x0 < x0 + kTile && f.x1 >= x0 && f.y0 < y0 + kTile &&
        f.y1 >= y0) {
      const int slot = atomicAdd(&shared.count, 1);
      shared.face[slot] = f;
      shared.id[slot] = static_cast<int32_t>(id);
    }
  }
  __syncthreads();
}

template <typename T>
__device__ void take_nearest(const SharedFaces<T>& shared, int x, int y, Nearest<T>& best) {
  const T px = static_cast<T>(x) + T(0.5), py = static_cast<T>(y) + T(0.5);
  for (int i = 0; i < shared.count; ++i) {
    const Face<T>& f = shared.face[i];
    if (x < f.x0 || x > f.x1 || y < f.y0 || y > f.y1) continue;
    const T e0 = edge_value(edge_row(f, 0, py), f.dy[0], f.ax[0], px);
    const T e1 = edge_value(edge_row(f, 1, py), f.dy[1], f.ax[1], px);
    const T e2 = edge_value(edge_row(f, 2, py), f.dy[2], f.ax[2], px);
    if (!is_inside(e0, e1, e2, f.tie[0], f.tie[1], f.tie[2])) continue;
    const Pixel<T> q = interpolate(e0, e1, e2, f.inv_z, f.z);
    const int32_t id = shared.id[i];
    if (q.depth < best.depth || (q.depth == best.depth && id < best.id)) {
      best.depth = q.depth;
      best.id = id;
      for (int k = 0; k < 3; ++k) best.bary[k] = q.bary[k];
    }
  }
}

template <typename T>
__device__ void write_pixel(const RasterForward<T>& p, int64_t pixel, const Nearest<T>& best) {
  const bool covered = best.id >= 0;
  p.face_index[pixel] = best.id;
  if (p.mask) p.mask[pixel] = covered ? T(1) : T(0);
  if (p.depth) p.depth[pixel] = covered ? best.depth : T(0);
  if (p.bary)
    for (int k = 0; k < 3; ++k) p.bary[3 * pixel + k] = covered ? best.bary[k] : T(0);
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads) rasterize_kernel(RasterForward<T> p, int64_t batch, int tiles_x) {
  __shared__ alignas(16) unsigned char shared_bytes[sizeof(SharedFaces<T>)];
  SharedFaces<T>& shared = *reinterpret_cast<SharedFaces<T>*>(shared_bytes);
  const RasterMesh<T>& m = p.mesh;
  const int x0 = static_cast<int>(blockIdx.x) % tiles_x * kTile, y0 = static_cast<int>(blockIdx.x) / tiles_x * kTile;
  const int x = x0 + threadIdx.x % kTile, y = y0 + threadIdx.x / kTile;
  for (int64_t image = blockIdx.y; image < batch; image += gridDim.y) {
    const T* verts = m.verts_px + image * m.n_verts * 3;
    Nearest<T> best = {T(HUGE_VAL), {}, -1};
    for (int64_t begin = 0; begin < m.n_faces; begin += kChunk<T>) {
      collect_faces(p, verts, begin, x0, y0, shared);
      take_nearest(shared, x, y, best);
      __syncthreads();  // the next chunk overwrites the shared faces
    }
    if (x < m.width && y < m.height) write_pixel(p, (image * m.height + y) * m.width + x, best);
  }
}

// One warp a face, over the pixels of its bounding box.
template <typename T>
__global__ void rasterize_backward_kernel(RasterBackward<T> p, int64_t batch, T* grad_faces) {
  const RasterMesh<T>& m = p.mesh;
  for (int64_t task = first_task(); task < batch * m.n_faces; task += task_step()) {
    const int64_t image = task / m.n_faces, face = task % m.n_faces;
    const T* verts = m.verts_px + image * m.n_verts * 3;
    Face<T> f;
    if (!setup_face(m, p.options, verts, face, f)) continue;
    const T* v[3];
    for (int k = 0; k < 3; ++k) v[k] = verts + 3 * static_cast<int64_t>(m.faces[3 * face + k]);
    T part[9] = {};
    const int64_t columns = f.x1 - f.x0 + 1, pixels = columns * (f.y1 - f.y0 + 1);
    for (int64_t i = lane_of(); i < pixels; i += kWarp) {
      const int x = f.x0 + static_cast<int>(i % columns), y = f.y0 + static_cast<int>(i / columns);
      const int64_t pixel = (image * m.height + y) * m.width + x;
      if (p.face_index[pixel] != face) continue;
      interpolate_backward(f, p.options.perspective, v[0], v[1], v[2], static_cast<T>(x) + T(0.5),
                           static_cast<T>(y) + T(0.5), p.grad_bary + 3 * pixel, p.grad_depth[pixel], part);
    }
    put_face_gradient(m, image, face, part, grad_faces, p.grad_verts);
  }
}

template <typename T>
void draw(const RasterForward<T>& p, int64_t batch, cudaStream_t stream) {
  if (batch == 0) return;
  const int tiles_x = (p.mesh.width + kTile - 1) / kTile, tiles_y = (p.mesh.height + kTile - 1) / kTile;
  const dim3 grid(static_cast<unsigned>(tiles_x) * tiles_y,
                  static_cast<unsigned>(batch < kMaxImagesInGrid ? batch : kMaxImagesInGrid));
  rasterize_kernel<T><<<grid, kTileThreads, 0, stream>>>(p, batch, tiles_x);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<Tensor, Tensor, Tensor> rasterize_cuda(Tensor verts_px, Tensor faces, int64_t height, int64_t width,
                                                  bool perspective, std::optional<double> z_near, bool cull_backfaces) {
  const RasterMeshTensors mesh("rasterize", verts_px, faces, height, width);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  const int64_t B = verts_px.size(0);
  Tensor face_index = new_index_image(verts_px, B, height, width);
  Tensor bary = torch::stable::new_empty(verts_px, {B, height, width, 3});
  Tensor depth = new_image(verts_px, B, height, width);
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const RasterForward<scalar_t> p = {mesh.mesh<scalar_t>(),
                                       raster_options<scalar_t>("rasterize", perspective, z_near, cull_backfaces),
                                       face_index.mutable_data_ptr<int32_t>(),
                                       bary.mutable_data_ptr<scalar_t>(),
                                       depth.mutable_data_ptr<scalar_t>(),
                                       nullptr};
    draw(p, B, current_stream(verts_px));
  });
  return {bary, depth, face_index};
}

std::tuple<Tensor, Tensor> silhouette_nmr_cuda(Tensor verts_px, Tensor faces, int64_t height, int64_t width,
                                               std::optional<double> z_near, bool fill_back, double eps) {
  (void)eps;  // acts in the backward pass
  const RasterMeshTensors mesh("silhouette_nmr", verts_px, faces, height, width);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  const int64_t B = verts_px.size(0);
  Tensor mask = new_image(verts_px, B, height, width);
  Tensor face_index = new_index_image(verts_px, B, height, width);
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const RasterForward<scalar_t> p = {
        mesh.mesh<scalar_t>(),
        raster_options<scalar_t>("silhouette_nmr", z_near.has_value(), z_near, !fill_back),
        face_index.mutable_data_ptr<int32_t>(),
        nullptr,
        nullptr,
        mask.mutable_data_ptr<scalar_t>()};
    draw(p, B, current_stream(verts_px));
  });
  return {mask, face_index};
}

Tensor rasterize_backward_cuda(Tensor grad_bary, Tensor grad_depth, Tensor face_index, Tensor verts_px, Tensor faces,
                               bool perspective, std::optional<double> z_near, bool cull_backfaces,
                               bool deterministic) {
  const RasterMeshTensors mesh("_rasterize_backward", verts_px, faces, face_index.size(1), face_index.size(2));
  const int64_t B = verts_px.size(0), H = mesh.height, W = mesh.width;
  check_tensor("_rasterize_backward", "grad_bary", grad_bary, {B, H, W, 3}, verts_px.scalar_type(), verts_px);
  check_tensor("_rasterize_backward", "grad_depth", grad_depth, {B, H, W}, verts_px.scalar_type(), verts_px);
  check_tensor("_rasterize_backward", "face_index", face_index, {B, H, W}, ScalarType::Int, verts_px);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  grad_bary = torch::stable::contiguous(grad_bary);
  grad_depth = torch::stable::contiguous(grad_depth);
  face_index = torch::stable::contiguous(face_index);
  const cudaStream_t stream = current_stream(verts_px);
  Tensor grad_verts;
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    FaceGradients<scalar_t> out(verts_px, mesh.faces.size(0), deterministic, stream);
    grad_verts = out.grad_verts;
    const RasterBackward<scalar_t> p = {
        mesh.mesh<scalar_t>(),
        raster_options<scalar_t>("_rasterize_backward", perspective, z_near, cull_backfaces),
        face_index.const_data_ptr<int32_t>(),
        grad_bary.const_data_ptr<scalar_t>(),
        grad_depth.const_data_ptr<scalar_t>(),
        out.verts()};
    if (grad_verts.numel() == 0 || p.mesh.n_faces == 0) return;
    rasterize_backward_kernel<scalar_t>
        <<<warp_blocks(B * p.mesh.n_faces), kWarp * kWarpsPerBlock, 0, stream>>>(p, B, out.faces());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    out.finish(p.mesh, B, stream);
  });
  return grad_verts;
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CUDA, m) {
  m.impl("rasterize", TORCH_BOX(&dhpe::rasterize_cuda));
  m.impl("_rasterize_backward", TORCH_BOX(&dhpe::rasterize_backward_cuda));
  m.impl("silhouette_nmr", TORCH_BOX(&dhpe::silhouette_nmr_cuda));
}
