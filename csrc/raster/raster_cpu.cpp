#include "raster/raster_bands.h"
#include "raster/raster_kernels.h"
#include "raster/raster_tensors.h"

namespace dhpe {
namespace {

template <typename T>
void draw(const RasterForward<T>& p, int64_t batch) {
  draw_in_bands(
      p.mesh, batch, p.options.z_near, T(0), [&p](int64_t rows) { return canvas_elements(rows, p.mesh.width); },
      [&p](T* scratch, int64_t image, const FaceRows* rows, int row_begin, int row_end) {
        DHPE_CALL_SIMD(rasterize_rows, p, rows, scratch, image, row_begin, row_end);
      });
}

std::tuple<Tensor, Tensor, Tensor> rasterize_cpu(Tensor verts_px, Tensor faces, int64_t height, int64_t width,
                                                 bool perspective, std::optional<double> z_near, bool cull_backfaces) {
  const RasterMeshTensors mesh("rasterize", verts_px, faces, height, width);
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
    draw(p, B);
  });
  return {bary, depth, face_index};
}

Tensor rasterize_backward_cpu(Tensor grad_bary, Tensor grad_depth, Tensor face_index, Tensor verts_px, Tensor faces,
                              bool perspective, std::optional<double> z_near, bool cull_backfaces, bool deterministic) {
  (void)deterministic;  // one thread per image adds up in a fixed order
  const RasterMeshTensors mesh("_rasterize_backward", verts_px, faces, extent(face_index, 1), extent(face_index, 2));
  const int64_t B = verts_px.size(0), H = mesh.height, W = mesh.width;
  check_tensor("_rasterize_backward", "grad_bary", grad_bary, {B, H, W, 3}, verts_px.scalar_type(), verts_px);
  check_tensor("_rasterize_backward", "grad_depth", grad_depth, {B, H, W}, verts_px.scalar_type(), verts_px);
  check_tensor("_rasterize_backward", "face_index", face_index, {B, H, W}, ScalarType::Int, verts_px);
  grad_bary = torch::stable::contiguous(grad_bary);
  grad_depth = torch::stable::contiguous(grad_depth);
  face_index = torch::stable::contiguous(face_index);
  Tensor grad_verts = torch::stable::new_empty(verts_px, {B, verts_px.size(1), 3});
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const RasterBackward<scalar_t> p = {
        mesh.mesh<scalar_t>(),
        raster_options<scalar_t>("_rasterize_backward", perspective, z_near, cull_backfaces),
        face_index.const_data_ptr<int32_t>(),
        grad_bary.const_data_ptr<scalar_t>(),
        grad_depth.const_data_ptr<scalar_t>(),
        grad_verts.mutable_data_ptr<scalar_t>()};
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) DHPE_CALL_SIMD(rasterize_backward, p, image);
    });
  });
  return grad_verts;
}

std::tuple<Tensor, Tensor> silhouette_nmr_cpu(Tensor verts_px, Tensor faces, int64_t height, int64_t width,
                                              std::optional<double> z_near, bool fill_back, double eps) {
  (void)eps;  // acts in the backward pass
  const RasterMeshTensors mesh("silhouette_nmr", verts_px, faces, height, width);
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
    draw(p, B);
  });
  return {mask, face_index};
}

Tensor silhouette_nmr_backward_cpu(Tensor grad_mask, Tensor face_index, Tensor verts_px, Tensor faces, double eps,
                                   bool deterministic) {
  (void)deterministic;  // one thread per image adds up in a fixed order
  const RasterMeshTensors mesh("_silhouette_nmr_backward", verts_px, faces, extent(face_index, 1),
                               extent(face_index, 2));
  const int64_t B = verts_px.size(0), H = mesh.height, W = mesh.width;
  check_tensor("_silhouette_nmr_backward", "grad_mask", grad_mask, {B, H, W}, verts_px.scalar_type(), verts_px);
  check_tensor("_silhouette_nmr_backward", "face_index", face_index, {B, H, W}, ScalarType::Int, verts_px);
  grad_mask = torch::stable::contiguous(grad_mask);
  face_index = torch::stable::contiguous(face_index);
  Tensor grad_verts = torch::stable::new_empty(verts_px, {B, verts_px.size(1), 3});
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const NmrBackward<scalar_t> p = {mesh.mesh<scalar_t>(), static_cast<scalar_t>(eps),
                                     face_index.const_data_ptr<int32_t>(), grad_mask.const_data_ptr<scalar_t>(),
                                     grad_verts.mutable_data_ptr<scalar_t>()};
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
      NmrScratch scratch;
      for (int64_t image = begin; image < end; ++image) nmr_backward_image(p, image, scratch);
    });
  });
  return grad_verts;
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CPU, m) {
  m.impl("rasterize", TORCH_BOX(&dhpe::rasterize_cpu));
  m.impl("_rasterize_backward", TORCH_BOX(&dhpe::rasterize_backward_cpu));
  m.impl("silhouette_nmr", TORCH_BOX(&dhpe::silhouette_nmr_cpu));
  m.impl("_silhouette_nmr_backward", TORCH_BOX(&dhpe::silhouette_nmr_backward_cpu));
}
