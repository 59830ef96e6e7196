// Rasterization on the GPU. Forward: a thread a pixel, see tile_faces.h. Nothing is written but results, each by one
// thread: deterministic without atomics on them. Backward: see face_gradients.h.
#include "raster/face_gradients.h"
#include "raster/raster_math.h"
#include "raster/raster_tensors.h"
#include "raster/silhouette_cuda.h"
#include "raster/tile_faces.h"

namespace dhpe {
namespace {

// Faces set up at a time: 27 KiB of shared memory for float, 25 for double.
template <typename T>
constexpr int kChunk = 1024 / static_cast<int>(sizeof(T));

// What TileWalk asks for.
template <typename T>
struct RasterFaces {
  using Face = dhpe::Face<T>;
  RasterMesh<T> mesh;
  RasterOptions<T> options;

  __device__ const T* verts(int64_t image) const { return mesh.verts_px + image * mesh.n_verts * 3; }
  __device__ bool box(int64_t image, int64_t id, PixelBox& box) const {
    return face_pixels(mesh, options.z_near, T(0), verts(image), id, box);
  }
  __device__ bool set_up(int64_t image, int64_t id, Face& f) const {
    return setup_face(mesh, options, verts(image), id, f);
  }
};

template <typename T>
struct Nearest {
  T depth, bary[3];
  int32_t id;
};

// Faces come in ascending order: a tie in depth stays with the lower index.
template <typename T>
__device__ void take_nearer(const Face<T>& f, int32_t id, int x, int y, Nearest<T>& best) {
  if (x < f.x0 || x > f.x1 || y < f.y0 || y > f.y1) return;
  const T px = static_cast<T>(x) + T(0.5), py = static_cast<T>(y) + T(0.5);
  const T e0 = edge_value(edge_row(f, 0, py), f.dy[0], f.ax[0], px);
  const T e1 = edge_value(edge_row(f, 1, py), f.dy[1], f.ax[1], px);
  const T e2 = edge_value(edge_row(f, 2, py), f.dy[2], f.ax[2], px);
  if (!is_inside(e0, e1, e2, f.tie[0], f.tie[1], f.tie[2])) return;
  const Pixel<T> q = interpolate(e0, e1, e2, f.inv_z, f.z);
  if (!(q.depth < best.depth)) return;
  best.depth = q.depth;
  best.id = id;
  for (int k = 0; k < 3; ++k) best.bary[k] = q.bary[k];
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

template <typename T, bool kBinned>
__global__ void __launch_bounds__(kTileThreads)
    rasterize_kernel(RasterForward<T> p, Bins bins, int64_t first_image, int64_t end_image) {
  using Walk = TileWalk<RasterFaces<T>, kChunk<T>>;
  using Shared = typename Walk::Shared;
  __shared__ Shared shared;
  const RasterFaces<T> faces = {p.mesh, p.options};
  Walk walk(faces, shared);
  for (int64_t image = first_image + blockIdx.y; image < end_image; image += gridDim.y) {
    Nearest<T> best = {T(HUGE_VAL), {}, -1};
    walk.template visit<kBinned>(image, bins, image - first_image, [&walk, &best](const Face<T>& f, int32_t id) {
      take_nearer(f, id, walk.x, walk.y, best);
    });
    if (walk.is_in_image()) write_pixel(p, (image * p.mesh.height + walk.y) * p.mesh.width + walk.x, best);
  }
}

// What FaceGradients asks for.
template <typename T>
struct RasterGradient {
  RasterBackward<T> p;

  struct Prepared {
    Face<T> face;
    __device__ PixelBox pixels() const { return {face.x0, face.x1, face.y0, face.y1}; }
  };

  __device__ const T* verts(int64_t image) const { return p.mesh.verts_px + image * p.mesh.n_verts * 3; }
  __device__ bool prepare(int64_t image, int64_t face, Prepared& prepared) const {
    return setup_face(p.mesh, p.options, verts(image), face, prepared.face);
  }

  __device__ void add(int64_t image, int64_t face, const Prepared& prepared, Team team, T* part) const {
    const RasterMesh<T>& m = p.mesh;
    const Face<T>& f = prepared.face;
    const T* v[3];
    for (int k = 0; k < 3; ++k) v[k] = verts(image) + 3 * static_cast<int64_t>(m.faces[3 * face + k]);
    const int columns = f.x1 - f.x0 + 1, n_pixels = columns * (f.y1 - f.y0 + 1);
    for (int i = team.thread(); i < n_pixels; i += team.threads()) {
      const int x = f.x0 + i % columns, y = f.y0 + i / columns;
      const int64_t pixel = (image * m.height + y) * m.width + x;
      if (p.face_index[pixel] != face) continue;
      interpolate_backward(f, p.options.perspective, v[0], v[1], v[2], static_cast<T>(x) + T(0.5),
                           static_cast<T>(y) + T(0.5), p.grad_bary + 3 * pixel, p.grad_depth[pixel], part);
    }
  }
};

template <typename T>
void draw(const RasterForward<T>& p, const Tensor& like, int64_t batch, cudaStream_t stream) {
  const auto launch = [&](auto is_binned, dim3 grid, const Bins& bins, int64_t first_image, int64_t end_image) {
    rasterize_kernel<T, is_binned()><<<grid, kTileThreads, 0, stream>>>(p, bins, first_image, end_image);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  };
  for_tiles(RasterFaces<T>{p.mesh, p.options}, like, batch, stream, launch);
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
    draw(p, verts_px, B, current_stream(verts_px));
  });
  return {bary, depth, face_index};
}

}  // namespace

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
    draw(p, verts_px, B, current_stream(verts_px));
  });
  return {mask, face_index};
}

namespace {

Tensor rasterize_backward_cuda(Tensor grad_bary, Tensor grad_depth, Tensor face_index, Tensor verts_px, Tensor faces,
                               bool perspective, std::optional<double> z_near, bool cull_backfaces,
                               bool deterministic) {
  const RasterMeshTensors mesh("_rasterize_backward", verts_px, faces, extent(face_index, 1), extent(face_index, 2));
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
    FaceGradients<scalar_t> out(mesh, deterministic, stream);
    grad_verts = out.grad_verts();
    const RasterBackward<scalar_t> p = {
        mesh.mesh<scalar_t>(),
        raster_options<scalar_t>("_rasterize_backward", perspective, z_near, cull_backfaces),
        face_index.const_data_ptr<int32_t>(),
        grad_bary.const_data_ptr<scalar_t>(),
        grad_depth.const_data_ptr<scalar_t>(),
        out.verts()};
    if (!out.is_empty()) out.add_up(RasterGradient<scalar_t>{p});
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
