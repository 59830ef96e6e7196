#include <algorithm>
#include <memory>

#include "raster/raster_bands.h"
#include "raster/raster_tensors.h"
#include "raster/soft_math.h"

namespace dhpe {

#define DHPE_SOFT_KERNELS                                                                                 \
  template <typename T>                                                                                   \
  void soft_rows(const SoftForward<T>& p, const FaceRows* rows, T* scratch, int64_t image, int row_begin, \
                 int row_end);                                                                            \
  template <typename T>                                                                                   \
  void soft_backward(const SoftBackward<T>& p, T* scratch, int64_t image)
DHPE_DECLARE_SIMD(DHPE_SOFT_KERNELS)
#undef DHPE_SOFT_KERNELS

namespace {

// The centres of a row and `rows` padded rows.
int64_t soft_scratch(int64_t rows, int64_t width) { return (rows + 1) * canvas_stride(width); }

template <typename T>
void draw(const SoftForward<T>& p, int64_t batch) {
  const T reach = std::sqrt(kSoftReach<T> * p.sigma);
  draw_in_bands(
      p.mesh, batch, p.options.z_near, reach, [&p](int64_t rows) { return soft_scratch(rows, p.mesh.width); },
      [&p](T* scratch, int64_t image, const FaceRows* rows, int row_begin, int row_end) {
        DHPE_CALL_SIMD(soft_rows, p, rows, scratch, image, row_begin, row_end);
      });
}

std::tuple<Tensor, Tensor> silhouette_soft_cpu(Tensor verts_px, Tensor faces, int64_t height, int64_t width,
                                               std::optional<double> z_near, bool fill_back, double sigma) {
  const RasterMeshTensors mesh("silhouette_soft", verts_px, faces, height, width);
  const int64_t B = verts_px.size(0);
  Tensor mask = new_image(verts_px, B, height, width), missed = new_image(verts_px, B, height, width);
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const SoftForward<scalar_t> p = {
        mesh.mesh<scalar_t>(), raster_options<scalar_t>("silhouette_soft", z_near.has_value(), z_near, !fill_back),
        soft_sigma<scalar_t>("silhouette_soft", sigma), mask.mutable_data_ptr<scalar_t>(),
        missed.mutable_data_ptr<scalar_t>()};
    draw(p, B);
  });
  return {mask, missed};
}

Tensor silhouette_soft_backward_cpu(Tensor grad_mask, Tensor missed, Tensor verts_px, Tensor faces,
                                    std::optional<double> z_near, bool fill_back, double sigma, bool deterministic) {
  (void)deterministic;  // one thread per image adds up in a fixed order
  const char* op = "_silhouette_soft_backward";
  const RasterMeshTensors mesh(op, verts_px, faces, extent(grad_mask, 1), extent(grad_mask, 2));
  const int64_t B = verts_px.size(0), H = mesh.height, W = mesh.width;
  check_tensor(op, "grad_mask", grad_mask, {B, H, W}, verts_px.scalar_type(), verts_px);
  check_tensor(op, "missed", missed, {B, H, W}, verts_px.scalar_type(), verts_px);
  grad_mask = torch::stable::contiguous(grad_mask);
  missed = torch::stable::contiguous(missed);
  Tensor grad_verts = torch::stable::new_empty(verts_px, {B, verts_px.size(1), 3});
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const SoftBackward<scalar_t> p = {mesh.mesh<scalar_t>(),
                                      raster_options<scalar_t>(op, z_near.has_value(), z_near, !fill_back),
                                      soft_sigma<scalar_t>(op, sigma),
                                      missed.const_data_ptr<scalar_t>(),
                                      grad_mask.const_data_ptr<scalar_t>(),
                                      grad_verts.mutable_data_ptr<scalar_t>()};
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
      const auto scratch = std::make_unique_for_overwrite<scalar_t[]>(soft_scratch(H, W));
      for (int64_t image = begin; image < end; ++image) DHPE_CALL_SIMD(soft_backward, p, scratch.get(), image);
    });
  });
  return grad_verts;
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CPU, m) {
  m.impl("silhouette_soft", TORCH_BOX(&dhpe::silhouette_soft_cpu));
  m.impl("_silhouette_soft_backward", TORCH_BOX(&dhpe::silhouette_soft_backward_cpu));
}
