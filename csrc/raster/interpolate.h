// Interpolation of vertex attributes over what rasterize saw: the arguments of its kernels, on every device. B images
// of H x W pixels, V vertices with C attributes each, F faces. All arrays are dense and row-major.
#pragma once

#include <cstdint>

namespace dhpe {

template <typename T>
struct Interpolation {
  const T* attributes;        // (B, V, C), or (1, V, C) common to all images
  const int32_t* faces;       // (F, 3)
  const int32_t* face_index;  // (B, H, W), -1 where no face is
  const T* bary;              // (B, H, W, 3)
  int64_t batch, n_verts, n_faces, n_channels;
  int64_t pixels;            // H W
  int64_t attribute_stride;  // from one image's attributes to the next, 0 where they are common
};

template <typename T>
struct InterpolationBackward {
  Interpolation<T> forward;
  const T* grad;       // (B, H, W, C)
  T* grad_attributes;  // (B, V, C), also where the attributes are common; null where nobody asks
  T* grad_bary;        // (B, H, W, 3), or null
};

}  // namespace dhpe
