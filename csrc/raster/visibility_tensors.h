// From tensors to the kernels' arguments: the checks that the CPU and CUDA host functions of visibility_gradient share.
#pragma once

#include "raster/raster_tensors.h"
#include "raster/visibility.h"

namespace dhpe {

// Holds the contiguous tensors behind a VisibilityBackward.
struct VisibilityTensors {
  RasterMeshTensors mesh;
  Tensor grad, image, face_index;

  VisibilityTensors(const char* op, const Tensor& grad_, const Tensor& image_, const Tensor& face_index_,
                    const Tensor& verts_px, const Tensor& faces)
      : mesh(op, verts_px, faces, extent(image_, 1), extent(image_, 2)),
        grad(grad_),
        image(image_),
        face_index(face_index_) {
    const int64_t B = verts_px.size(0), C = extent(image_, 3);
    check_tensor(op, "image", image, {B, mesh.height, mesh.width, C}, verts_px.scalar_type(), verts_px);
    check_tensor(op, "grad", grad, {B, mesh.height, mesh.width, C}, verts_px.scalar_type(), verts_px);
    check_tensor(op, "face_index", face_index, {B, mesh.height, mesh.width}, ScalarType::Int, verts_px);
    STD_TORCH_CHECK(C <= kMaxVisibilityChannels, op, ": image has ", C, " channels, expected up to ",
                    kMaxVisibilityChannels);
    grad = torch::stable::contiguous(grad);
    image = torch::stable::contiguous(image);
    face_index = torch::stable::contiguous(face_index);
  }

  int64_t batch() const { return mesh.verts_px.size(0); }
  int64_t channels() const { return image.size(3); }

  template <typename T>
  VisibilityBackward<T> arguments(double eps, T* grad_verts) const {
    return {mesh.mesh<T>(),
            static_cast<int>(channels()),
            static_cast<T>(eps),
            face_index.const_data_ptr<int32_t>(),
            image.const_data_ptr<T>(),
            grad.const_data_ptr<T>(),
            grad_verts};
  }
};

}  // namespace dhpe
