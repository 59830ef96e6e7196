#include <algorithm>
#include <memory>

#include "common/simd.h"
#include "raster/raster_scratch.h"
#include "raster/raster_tensors.h"

namespace dhpe {

#define DHPE_SOFT_KERNELS                                                                         \
  template <typename T>                                                                           \
  void soft_rows(const SoftForward<T>& p, T* scratch, int64_t image, int row_begin, int row_end); \
  template <typename T>                                                                           \
  void soft_backward(const SoftBackward<T>& p, T* scratch, int64_t image)
DHPE_DECLARE_SIMD(DHPE_SOFT_KERNELS)
#undef DHPE_SOFT_KERNELS

namespace {

constexpr int64_t kMinSoftRows = 32;

// The centres of a row and `rows` padded rows.
int64_t soft_scratch(int64_t rows, int64_t width) { return (rows + 1) * canvas_stride(width); }

// Bands of rows where there are fewer images than threads. A pixel's value does not depend on them.
template <typename T>
void draw(const SoftForward<T>& p, int64_t batch) {
  if (batch == 0) return;
  const int64_t height = p.mesh.height, threads = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  const int64_t wanted = (threads + batch - 1) / batch;
  const int64_t rows = std::min(height, std::max((height + wanted - 1) / wanted, kMinSoftRows));
  const int64_t bands = (height + rows - 1) / rows;
  torch::stable::parallel_for(0, batch * bands, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = std::make_unique_for_overwrite<T[]>(soft_scratch(rows, p.mesh.width));
    for (int64_t task = begin; task < end; ++task) {
      const int row = static_cast<int>(task % bands * rows);
      const int row_end = static_cast<int>(std::min(row + rows, height));
      DHPE_CALL_SIMD(soft_rows, p, scratch.get(), task / bands, row, row_end);
    }
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
  const RasterMeshTensors mesh(op, verts_px, faces, grad_mask.size(1), grad_mask.size(2));
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
