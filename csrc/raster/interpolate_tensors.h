// From tensors to the kernels' arguments: the checks that the CPU and CUDA host functions of interpolate share.
#pragma once

#include <cstdint>
#include <limits>

#include "common/face_ids.h"
#include "common/tensor_checks.h"
#include "raster/interpolate.h"

namespace dhpe {

// Holds the contiguous tensors behind an Interpolation.
struct InterpolationTensors {
  Tensor attributes, faces, face_index, bary;

  InterpolationTensors(const char* op, const Tensor& attributes_, const Tensor& faces_, const Tensor& face_index_,
                       const Tensor& bary_)
      : attributes(attributes_), faces(faces_), face_index(face_index_), bary(bary_) {
    check_floating(op, "attributes", attributes);
    check_tensor(op, "face_index", face_index, {-1, -1, -1}, ScalarType::Int, attributes);
    const int64_t B = face_index.size(0), H = face_index.size(1), W = face_index.size(2);
    check_tensor(op, "attributes", attributes, {extent(attributes, 0) == 1 ? 1 : B, -1, -1}, attributes.scalar_type(),
                 attributes);
    check_tensor(op, "bary", bary, {B, H, W, 3}, attributes.scalar_type(), attributes);
    const bool is_long = faces.scalar_type() == ScalarType::Long;
    check_tensor(op, "faces", faces, {-1, 3}, is_long ? ScalarType::Long : ScalarType::Int, attributes);
    STD_TORCH_CHECK(faces.size(0) <= std::numeric_limits<int32_t>::max(), op, ": faces has too many rows");
    attributes = torch::stable::contiguous(attributes);
    faces = narrow_ids(faces);
    face_index = torch::stable::contiguous(face_index);
    bary = torch::stable::contiguous(bary);
  }

  int64_t batch() const { return face_index.size(0); }
  int64_t height() const { return face_index.size(1); }
  int64_t width() const { return face_index.size(2); }
  int64_t channels() const { return attributes.size(2); }

  // Those of the backward pass, uninitialised; without an image where nobody asks for them.
  Tensor new_attribute_gradient(bool is_wanted) const {
    return torch::stable::new_empty(attributes, {is_wanted ? batch() : 0, attributes.size(1), channels()});
  }
  Tensor new_bary_gradient(bool is_wanted) const {
    return torch::stable::new_empty(attributes, {is_wanted ? batch() : 0, height(), width(), 3});
  }

  template <typename T>
  Interpolation<T> arguments() const {
    const int64_t V = attributes.size(1), C = attributes.size(2);
    return {attributes.const_data_ptr<T>(),
            faces.const_data_ptr<int32_t>(),
            face_index.const_data_ptr<int32_t>(),
            bary.const_data_ptr<T>(),
            batch(),
            V,
            faces.size(0),
            C,
            height() * width(),
            attributes.size(0) == 1 ? 0 : V * C};
  }
};

}  // namespace dhpe
