// From tensors to the kernels' arguments: the checks that the CPU and CUDA host functions of rasterize and silhouette
// share.
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#include "common/face_ids.h"
#include "common/tensor_checks.h"
#include "raster/raster.h"

namespace dhpe {

inline Tensor new_image(const Tensor& like, int64_t batch, int64_t height, int64_t width) {
  return torch::stable::new_empty(like, {batch, height, width});
}

inline Tensor new_index_image(const Tensor& like, int64_t batch, int64_t height, int64_t width) {
  return torch::stable::new_empty(like, {batch, height, width}, ScalarType::Int);
}

// Holds the contiguous tensors behind a RasterMesh.
struct RasterMeshTensors {
  Tensor verts_px, faces;
  int64_t height, width;

  RasterMeshTensors(const char* op, const Tensor& verts_px_, const Tensor& faces_, int64_t height_, int64_t width_)
      : verts_px(verts_px_), faces(faces_), height(height_), width(width_) {
    check_floating(op, "verts_px", verts_px);
    check_tensor(op, "verts_px", verts_px, {-1, -1, 3}, verts_px.scalar_type(), verts_px);
    const bool is_long = faces.scalar_type() == ScalarType::Long;
    check_tensor(op, "faces", faces, {-1, 3}, is_long ? ScalarType::Long : ScalarType::Int, verts_px);
    STD_TORCH_CHECK(height >= 1 && height <= kMaxImageSize && width >= 1 && width <= kMaxImageSize, op, ": image_size ",
                    height, " x ", width, ", expected 1 to ", kMaxImageSize);
    STD_TORCH_CHECK(faces.size(0) <= std::numeric_limits<int32_t>::max(), op, ": faces has too many rows");
    verts_px = torch::stable::contiguous(verts_px);
    if (!faces.is_cuda()) check_face_range(op);  // a CUDA kernel skips such faces instead of making the host wait
    faces = narrow_ids(faces);
  }

  template <typename T>
  RasterMesh<T> mesh() const {
    return {verts_px.const_data_ptr<T>(), faces.const_data_ptr<int32_t>(), verts_px.size(1), faces.size(0),
            static_cast<int>(height),     static_cast<int>(width)};
  }

 private:
  // The kernels index by these values: a wrong one would read out of bounds.
  void check_face_range(const char* op) {
    faces = torch::stable::contiguous(faces);
    if (faces.scalar_type() == ScalarType::Long)
      check_range(op, faces.const_data_ptr<int64_t>());
    else
      check_range(op, faces.const_data_ptr<int32_t>());
  }

  template <typename Index>
  void check_range(const char* op, const Index* ids) const {
    Index low = 0, high = -1;
    for (int64_t i = 0, n = faces.numel(); i < n; ++i) {
      low = ids[i] < low ? ids[i] : low;
      high = ids[i] > high ? ids[i] : high;
    }
    STD_TORCH_CHECK(low >= 0 && high < verts_px.size(1), op, ": faces holds ", low < 0 ? low : high, ", expected 0 to ",
                    verts_px.size(1) - 1);
  }
};

template <typename T>
RasterOptions<T> raster_options(const char* op, bool perspective, std::optional<double> z_near, bool cull_backfaces) {
  const double near = z_near.value_or(-std::numeric_limits<double>::infinity());
  STD_TORCH_CHECK(!perspective || near >= kMinNear, op, ": perspective needs z_near of at least ", kMinNear);
  STD_TORCH_CHECK(!std::isnan(near), op, ": z_near is NaN");
  return {perspective, cull_backfaces, static_cast<T>(near)};
}

template <typename T>
T soft_sigma(const char* op, double sigma) {
  STD_TORCH_CHECK(sigma >= kMinSoftSigma && sigma <= kMaxSoftSigma, op, ": sigma ", sigma, ", expected ", kMinSoftSigma,
                  " to ", kMaxSoftSigma);
  return static_cast<T>(sigma);
}

}  // namespace dhpe
