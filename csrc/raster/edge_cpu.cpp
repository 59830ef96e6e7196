// The "edge" silhouette on the CPU. One thread an image: results do not depend on the number of threads.
#include "raster/edge_image.h"
#include "raster/raster_tensors.h"

namespace dhpe {
namespace {

template <typename T>
void draw(const EdgeForward<T>& p, const MeshEdges& edges, int64_t begin, int64_t end) {
  EdgeImage<T> drawing(p.mesh, p.options, edges);
  for (int64_t image = begin; image < end; ++image) {
    drawing.find(image);
    drawing.draw(p.mask + image * p.mesh.height * p.mesh.width);
  }
}

template <typename T>
void draw_backward(const EdgeBackward<T>& p, const MeshEdges& edges, int64_t begin, int64_t end) {
  EdgeImage<T> drawing(p.mesh, p.options, edges);
  for (int64_t image = begin; image < end; ++image) {
    drawing.find(image);
    const double* grad_xy = drawing.backward(p.grad_mask + image * p.mesh.height * p.mesh.width);
    T* grad_verts = p.grad_verts + image * p.mesh.n_verts * 3;
    for (int64_t v = 0; v < p.mesh.n_verts; ++v) {
      grad_verts[3 * v] = static_cast<T>(grad_xy[2 * v]);
      grad_verts[3 * v + 1] = static_cast<T>(grad_xy[2 * v + 1]);
      grad_verts[3 * v + 2] = T(0);
    }
  }
}

Tensor silhouette_edge_cpu(Tensor verts_px, Tensor faces, int64_t height, int64_t width, std::optional<double> z_near,
                           bool fill_back) {
  const RasterMeshTensors mesh("silhouette_edge", verts_px, faces, height, width);
  const int64_t B = verts_px.size(0);
  Tensor mask = new_image(verts_px, B, height, width);
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const EdgeForward<scalar_t> p = {
        mesh.mesh<scalar_t>(), raster_options<scalar_t>("silhouette_edge", z_near.has_value(), z_near, !fill_back),
        mask.mutable_data_ptr<scalar_t>()};
    const MeshEdges edges = find_edges(p.mesh.faces, p.mesh.n_faces);
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) { draw(p, edges, begin, end); });
  });
  return mask;
}

Tensor silhouette_edge_backward_cpu(Tensor grad_mask, Tensor verts_px, Tensor faces, std::optional<double> z_near,
                                    bool fill_back, bool deterministic) {
  (void)deterministic;  // one thread per image adds up in a fixed order
  const char* op = "_silhouette_edge_backward";
  const RasterMeshTensors mesh(op, verts_px, faces, extent(grad_mask, 1), extent(grad_mask, 2));
  const int64_t B = verts_px.size(0);
  check_tensor(op, "grad_mask", grad_mask, {B, mesh.height, mesh.width}, verts_px.scalar_type(), verts_px);
  grad_mask = torch::stable::contiguous(grad_mask);
  Tensor grad_verts = torch::stable::new_empty(verts_px, {B, verts_px.size(1), 3});
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const EdgeBackward<scalar_t> p = {mesh.mesh<scalar_t>(),
                                      raster_options<scalar_t>(op, z_near.has_value(), z_near, !fill_back),
                                      grad_mask.const_data_ptr<scalar_t>(), grad_verts.mutable_data_ptr<scalar_t>()};
    const MeshEdges edges = find_edges(p.mesh.faces, p.mesh.n_faces);
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) { draw_backward(p, edges, begin, end); });
  });
  return grad_verts;
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CPU, m) {
  m.impl("silhouette_edge", TORCH_BOX(&dhpe::silhouette_edge_cpu));
  m.impl("_silhouette_edge_backward", TORCH_BOX(&dhpe::silhouette_edge_backward_cpu));
}
