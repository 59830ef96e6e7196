// One pixel of attribute interpolation, forward beside backward.
#pragma once

#include "common/host_device.h"
#include "raster/interpolate.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

// The attributes of the three corners of the face that pixel `i` of image `image` sees; false where it sees none. A
// face or a vertex out of range counts as none: the kernels index by these values.
template <typename T>
DHPE_HD bool corner_offsets(const Interpolation<T>& p, int64_t i, int64_t* offset) {
  const int64_t face = p.face_index[i];
  if (face < 0 || face >= p.n_faces) return false;
  for (int k = 0; k < 3; ++k) {
    const int64_t vertex = p.faces[3 * face + k];
    if (vertex < 0 || vertex >= p.n_verts) return false;
    offset[k] = vertex * p.n_channels;
  }
  return true;
}

template <typename T>
DHPE_HD T blend(const T* attributes, const int64_t* offset, const T* bary, int64_t channel) {
  return (bary[0] * attributes[offset[0] + channel] + bary[1] * attributes[offset[1] + channel]) +
         bary[2] * attributes[offset[2] + channel];
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
