// The visibility gradient of a rendered image: the arguments of its kernels, on every device. B images of H x W pixels
// with C channels. All arrays are dense and row-major.
#pragma once

#include "raster/raster.h"

namespace dhpe {

constexpr int64_t kMaxVisibilityChannels = 64;

// After Kato et al., "Neural 3D Mesh Renderer" (CVPR 2018), with all channels summed before the question whether a
// pixel should change; see nmr_math.h.
template <typename T>
struct VisibilityBackward {
  RasterMesh<T> mesh;
  int channels;
  T eps;  // in normalised device coordinates, where the image spans [-1, 1]
  // inputs
  const int32_t* face_index;  // (B, H, W)
  const T* image;             // (B, H, W, C)
  const T* grad;              // (B, H, W, C)
  // outputs
  T* grad_verts;  // (B, V, 3), z is 0
};

}  // namespace dhpe
