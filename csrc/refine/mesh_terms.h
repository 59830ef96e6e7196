// Terms of an energy that look at a posed mesh: points that are sparse sums of vertices, the mean length of the mesh's
// Laplacian coordinates, and 1 - IoU of two masks. Value beside derivative, for host and device.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/linalg.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

// A sparse matrix of as many columns as there are vertices, by rows (CSR).
template <typename T>
struct SparseRows {
  const int32_t* start;   // (rows + 1,) ascending from 0
  const int32_t* column;  // (start[rows],)
  const T* value;         // (start[rows],)
  int64_t rows;
  int64_t columns = INT64_MAX, entries = INT64_MAX;  // what the GPU holds ids against
};

// Row r of m @ points (V, 3).
template <typename T>
DHPE_HD Vec3<T> sparse_sum(const SparseRows<T>& m, int64_t r, const T* points) {
  Vec3<T> sum = {0, 0, 0};
  for (int32_t i = m.start[r]; i < m.start[r + 1]; ++i) {
#if defined(__CUDA_ARCH__)  // where nobody has looked at the ids before
    if (i < 0 || i >= m.entries || m.column[i] < 0 || m.column[i] >= m.columns) continue;
#endif
    const T* p = points + 3 * static_cast<int64_t>(m.column[i]);
    const T w = m.value[i];
    sum.x += w * p[0];
    sum.y += w * p[1];
    sum.z += w * p[2];
  }
  return sum;
}

// The length of a vector, and its direction: the derivative of the length, 0 for the zero vector.
template <typename T>
DHPE_HD T length_and_direction(const Vec3<T>& v, T* direction) {
  const T length = std::sqrt(dot(v, v));
  const T inverse = length != 0 ? 1 / length : T(0);
  direction[0] = v.x * inverse;
  direction[1] = v.y * inverse;
  direction[2] = v.z * inverse;
  return length;
}

// Mean length of the Laplacian coordinates L v, `laplacian_loss` of losses.py, and their directions (V, 3).
template <typename T>
T laplacian_energy(const SparseRows<T>& laplacian, const T* verts, T* directions) {
  T sum = 0;
  for (int64_t v = 0; v < laplacian.rows; ++v)
    sum += length_and_direction(sparse_sum(laplacian, v, verts), directions + 3 * v);
  return laplacian.rows > 0 ? sum / static_cast<T>(laplacian.rows) : T(0);
}

// Adds weight times its derivative to grad_verts (V, 3). L must be symmetric, as the cotangent Laplacian is: its rows
// are then its columns.
template <typename T>
void add_laplacian_gradient(const SparseRows<T>& laplacian, const T* directions, T weight, T* grad_verts) {
  const T share = weight / static_cast<T>(laplacian.rows);
  for (int64_t v = 0; v < laplacian.rows; ++v) {
    const Vec3<T> g = sparse_sum(laplacian, v, directions);
    add_to(grad_verts + 3 * v, Vec3<T>{share * g.x, share * g.y, share * g.z});
  }
}

// Sums over the pixels of a drawn and a given mask.
struct MaskSums {
  double both, drawn, given;
};

// 1 - IoU, `mask_iou_loss` of losses.py: masks of less than a pixel count as if they had one.
DHPE_HD double iou_loss(const MaskSums& s) {
  const double either = s.drawn + s.given - s.both;
  return 1 - s.both / (either < 1 ? 1 : either);
}

// Its derivative by a pixel of the drawn mask is by_given * (that pixel of the given one) + constant.
struct IouSlope {
  double by_given, constant;
};

DHPE_HD IouSlope iou_slope(const MaskSums& s) {
  const double either = s.drawn + s.given - s.both;
  if (either < 1) return {-1, 0};
  const double share = s.both / (either * either);
  return {-1 / either - share, share};
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
