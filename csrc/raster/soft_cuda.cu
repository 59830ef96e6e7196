// The "soft" silhouette on the GPU. Forward: a thread a pixel, which multiplies up what the faces within reach leave of
// it, in ascending order; see tile_faces.h. Backward: see face_gradients.h.
#include "raster/face_gradients.h"
#include "raster/raster_tensors.h"
#include "raster/soft_math.h"
#include "raster/tile_faces.h"

namespace dhpe {
namespace {

// Faces set up at a time: 22 KiB of shared memory.
template <typename T>
constexpr int kChunk = 1024 / static_cast<int>(sizeof(T));

// What TileWalk asks for.
template <typename T>
struct SoftFaces {
  using Face = SoftFace<T>;
  RasterMesh<T> mesh;
  RasterOptions<T> options;
  T sigma;

  __device__ const T* verts(int64_t image) const { return mesh.verts_px + image * mesh.n_verts * 3; }
  __device__ bool box(int64_t image, int64_t id, PixelBox& box) const {
    return face_pixels(mesh, options.z_near, std::sqrt(kSoftReach<T> * sigma), verts(image), id, box);
  }
  __device__ bool set_up(int64_t image, int64_t id, Face& f) const {
    return setup_soft_face(mesh, options, sigma, verts(image), id, f);
  }
};

template <typename T>
__device__ void miss_face(const SoftFace<T>& f, int x, int y, T& missed) {
  if (x < f.x0 || x > f.x1 || y < f.y0 || y > f.y1) return;
  const SoftPixel<T> q = soft_pixel(f, static_cast<T>(x) + T(0.5), static_cast<T>(y) + T(0.5));
  if (!soft_reaches(f, q)) return;
  missed /= std::exp(soft_z(f, q)) + T(1);
  if (missed < kSoftNothing<T>) missed = 0;
}

template <typename T, bool kBinned>
__global__ void __launch_bounds__(kTileThreads)
    soft_forward_kernel(SoftForward<T> p, Bins bins, int64_t first_image, int64_t end_image) {
  using Walk = TileWalk<SoftFaces<T>, kChunk<T>>;
  using Shared = typename Walk::Shared;
  __shared__ Shared shared;
  const SoftFaces<T> faces = {p.mesh, p.options, p.sigma};
  Walk walk(faces, shared);
  for (int64_t image = first_image + blockIdx.y; image < end_image; image += gridDim.y) {
    T missed = 1;
    walk.template visit<kBinned>(image, bins, image - first_image, [&walk, &missed](const SoftFace<T>& f, int32_t) {
      miss_face(f, walk.x, walk.y, missed);
    });
    if (!walk.is_in_image()) continue;
    const int64_t pixel = (image * p.mesh.height + walk.y) * p.mesh.width + walk.x;
    p.missed[pixel] = missed;
    p.mask[pixel] = T(1) - missed;
  }
}

// What FaceGradients asks for.
template <typename T>
struct SoftGradient {
  SoftBackward<T> p;

  struct Prepared {
    SoftFace<T> face;
    __device__ PixelBox pixels() const { return {face.x0, face.x1, face.y0, face.y1}; }
  };

  __device__ bool prepare(int64_t image, int64_t face, Prepared& prepared) const {
    const T* verts = p.mesh.verts_px + image * p.mesh.n_verts * 3;
    return setup_soft_face(p.mesh, p.options, p.sigma, verts, face, prepared.face);
  }

  __device__ void add(int64_t image, int64_t, const Prepared& prepared, Team team, T* part) const {
    const SoftFace<T>& f = prepared.face;
    const int columns = f.x1 - f.x0 + 1, n_pixels = columns * (f.y1 - f.y0 + 1);
    for (int i = team.thread(); i < n_pixels; i += team.threads()) {
      const int x = f.x0 + i % columns, y = f.y0 + i / columns;
      const int64_t pixel = (image * p.mesh.height + y) * p.mesh.width + x;
      const T weight = p.missed[pixel] * p.grad_mask[pixel];
      if (weight == 0) continue;
      const SoftPixel<T> q = soft_pixel(f, static_cast<T>(x) + T(0.5), static_cast<T>(y) + T(0.5));
      if (!soft_reaches(f, q)) continue;
      const T e = std::exp(soft_z(f, q));
      T g = weight * (e / (e + T(1))) * q.sign * (2 * f.inv_sigma);  // see face_gradient in soft_simd.cpp
#pragma unroll  // so that corners are addressed at compile time, in registers
      for (int k = 0; k < 3; ++k) {
        if (q.edge[k].square != q.square) continue;
        const int next = k == 2 ? 0 : k + 1;
        const T gx = g * q.edge[k].qx, gy = g * q.edge[k].qy, t = q.edge[k].t;
        part[3 * k] -= gx * (T(1) - t);
        part[3 * k + 1] -= gy * (T(1) - t);
        part[3 * next] -= gx * t;
        part[3 * next + 1] -= gy * t;
        g = 0;  // the first of the nearest edges has taken it
      }
    }
  }
};

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
    const auto launch = [&](auto is_binned, dim3 grid, const Bins& bins, int64_t first_image, int64_t end_image) {
      soft_forward_kernel<scalar_t, is_binned()><<<grid, kTileThreads, 0, stream>>>(p, bins, first_image, end_image);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    };
    for_tiles(SoftFaces<scalar_t>{p.mesh, p.options, p.sigma}, verts_px, B, stream, launch);
  });
  return {mask, missed};
}

Tensor silhouette_soft_backward_cuda(Tensor grad_mask, Tensor missed, Tensor verts_px, Tensor faces,
                                     std::optional<double> z_near, bool fill_back, double sigma, bool deterministic) {
  const char* op = "_silhouette_soft_backward";
  const RasterMeshTensors mesh(op, verts_px, faces, extent(grad_mask, 1), extent(grad_mask, 2));
  const int64_t B = verts_px.size(0);
  check_tensor(op, "grad_mask", grad_mask, {B, mesh.height, mesh.width}, verts_px.scalar_type(), verts_px);
  check_tensor(op, "missed", missed, {B, mesh.height, mesh.width}, verts_px.scalar_type(), verts_px);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  grad_mask = torch::stable::contiguous(grad_mask);
  missed = torch::stable::contiguous(missed);
  const cudaStream_t stream = current_stream(verts_px);
  Tensor grad_verts;
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    FaceGradients<scalar_t> out(mesh, deterministic, stream);
    grad_verts = out.grad_verts();
    const SoftBackward<scalar_t> p = {mesh.mesh<scalar_t>(),
                                      raster_options<scalar_t>(op, z_near.has_value(), z_near, !fill_back),
                                      soft_sigma<scalar_t>(op, sigma),
                                      missed.const_data_ptr<scalar_t>(),
                                      grad_mask.const_data_ptr<scalar_t>(),
                                      out.verts()};
    if (!out.is_empty()) out.add_up(SoftGradient<scalar_t>{p});
  });
  return grad_verts;
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CUDA, m) {
  m.impl("silhouette_soft", TORCH_BOX(&dhpe::silhouette_soft_cuda));
  m.impl("_silhouette_soft_backward", TORCH_BOX(&dhpe::silhouette_soft_backward_cuda));
}
