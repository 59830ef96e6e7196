#include <cstddef>
#include <memory>

#include "common/simd.h"
#include "raster/raster_scratch.h"
#include "raster/visibility_tensors.h"

namespace dhpe {

#define DHPE_VISIBILITY_KERNELS \
  template <typename T>         \
  void visibility_backward(const VisibilityBackward<T>& p, void* scratch, int64_t image)
DHPE_DECLARE_SIMD(DHPE_VISIBILITY_KERNELS)
#undef DHPE_VISIBILITY_KERNELS

namespace {

Tensor visibility_backward_cpu(Tensor grad, Tensor image, Tensor face_index, Tensor verts_px, Tensor faces, double eps,
                               bool deterministic) {
  (void)deterministic;  // one thread per image adds up in a fixed order
  const VisibilityTensors in("_visibility_gradient_backward", grad, image, face_index, verts_px, faces);
  const int64_t B = in.batch();
  Tensor grad_verts = torch::stable::new_empty(verts_px, {B, verts_px.size(1), 3});
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const auto p = in.arguments<scalar_t>(eps, grad_verts.mutable_data_ptr<scalar_t>());
    const int64_t bytes = visibility_scratch_bytes<scalar_t>(p.channels, p.mesh.height, p.mesh.width, p.mesh.n_faces);
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
      const auto scratch = std::make_unique_for_overwrite<std::byte[]>(bytes);
      for (int64_t image = begin; image < end; ++image) DHPE_CALL_SIMD(visibility_backward, p, scratch.get(), image);
    });
  });
  return grad_verts;
}

Tensor visibility_cpu(Tensor image, Tensor face_index, Tensor verts_px, Tensor faces, double eps) {
  (void)eps;  // acts in the backward pass
  const VisibilityTensors in("visibility_gradient", image, image, face_index, verts_px, faces);
  return torch::stable::clone(image);
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CPU, m) {
  m.impl("visibility_gradient", TORCH_BOX(&dhpe::visibility_cpu));
  m.impl("_visibility_gradient_backward", TORCH_BOX(&dhpe::visibility_backward_cpu));
}
