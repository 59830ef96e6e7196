// The silhouette of Liu et al., "Soft Rasterizer" (ICCV 2019): a pixel is missed by all faces with the probability
//   Q = prod_j (1 - sigmoid(z_j)) = prod_j 1 / (1 + exp(z_j)),   z_j = +- d_j^2 / sigma,   mask = 1 - Q,
// where d_j is the distance from its centre to the outline of face j, + inside. The derivative needs no division by a
// factor that may vanish: dmask/dz_j = Q sigmoid(z_j).
//
// Outside of a face, beyond d^2 = kSoftReach sigma, its factor is within the rounding unit of 1 and left out.
#pragma once

#include <cmath>

#include "raster/raster_math.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

template <typename T>
constexpr T kSoftReach = sizeof(T) == 4 ? T(16) : T(36);
// exp stays far from overflow; a Q below kSoftNothing is 0: products never become denormal, which is slow.
template <typename T>
constexpr T kSoftMaxZ = sizeof(T) == 4 ? T(60) : T(600);
template <typename T>
constexpr T kSoftNothing = sizeof(T) == 4 ? T(1e-10) : T(1e-40);

// Edge k leads from corner k to the next.
template <typename T>
struct SoftFace {
  T ax[3], ay[3], dx[3], dy[3];
  T inv_square[3];  // 1 / (dx^2 + dy^2)
  T side;           // the sign of the area
  T reach;          // square pixels
  T inv_sigma;
  int x0, x1, y0, y1;  // the pixels within reach, inclusive
};

// Fills `f` and returns true if face `id` reaches the image.
template <typename T>
DHPE_HD bool setup_soft_face(const RasterMesh<T>& m, const RasterOptions<T>& o, T sigma, const T* verts, int64_t id,
                             SoftFace<T>& f) {
  const T* v[3];
  for (int k = 0; k < 3; ++k) {
    const int32_t vertex = m.faces[3 * id + k];
    if (vertex < 0 || vertex >= m.n_verts) return false;
    v[k] = verts + 3 * static_cast<int64_t>(vertex);
    if (!is_drawable(v[k], o.z_near)) return false;
  }
  f.reach = kSoftReach<T> * sigma;
  f.inv_sigma = T(1) / sigma;
  const T margin = std::sqrt(f.reach);
  pixel_range(min3(v[0][1], v[1][1], v[2][1]) - margin, max3(v[0][1], v[1][1], v[2][1]) + margin, m.height, f.y0, f.y1);
  pixel_range(min3(v[0][0], v[1][0], v[2][0]) - margin, max3(v[0][0], v[1][0], v[2][0]) + margin, m.width, f.x0, f.x1);
  if (f.y0 > f.y1 || f.x0 > f.x1) return false;
  const double ux = static_cast<double>(v[1][0]) - v[0][0], uy = static_cast<double>(v[1][1]) - v[0][1];
  const double wx = static_cast<double>(v[2][0]) - v[0][0], wy = static_cast<double>(v[2][1]) - v[0][1];
  const double area = ux * wy - uy * wx;
  if (!(area != 0) || (area > 0 && o.cull_backfaces)) return false;
  f.side = area > 0 ? T(1) : T(-1);
  for (int k = 0; k < 3; ++k) {
    const T* a = v[k];
    const T* b = v[k == 2 ? 0 : k + 1];
    f.ax[k] = a[0];
    f.ay[k] = a[1];
    f.dx[k] = b[0] - a[0];
    f.dy[k] = b[1] - a[1];
    const T square = f.dx[k] * f.dx[k] + f.dy[k] * f.dy[k];
    f.inv_square[k] = square > T(1e-30) ? T(1) / square : T(0);  // a shorter edge is a point
  }
  return true;
}

// The nearest point of an edge: at t on it, q = pixel - point. V is a scalar or a vector of pixels.
template <typename V>
struct SoftEdge {
  V t, qx, qy, square, side;
};

template <typename V, typename T>
DHPE_HD SoftEdge<V> soft_edge(const SoftFace<T>& f, int k, V px, T py) {
  const V ux = px - f.ax[k];
  const T uy = py - f.ay[k];
  SoftEdge<V> e;
  V t = (ux * f.dx[k] + uy * f.dy[k]) * f.inv_square[k];
  t = t > T(0) ? t : t - t;
  e.t = t < T(1) ? t : t - t + T(1);
  e.qx = ux - e.t * f.dx[k];
  e.qy = uy - e.t * f.dy[k];
  e.square = e.qx * e.qx + e.qy * e.qy;
  e.side = (f.dx[k] * uy - f.dy[k] * ux) * f.side;
  return e;
}

template <typename V>
struct SoftPixel {
  SoftEdge<V> edge[3];
  V square;  // d^2
  V sign;    // of z
};

template <typename V, typename T>
DHPE_HD SoftPixel<V> soft_pixel(const SoftFace<T>& f, V px, T py) {
  SoftPixel<V> p;
  for (int k = 0; k < 3; ++k) p.edge[k] = soft_edge(f, k, px, py);
  p.square = p.edge[1].square < p.edge[0].square ? p.edge[1].square : p.edge[0].square;
  p.square = p.edge[2].square < p.square ? p.edge[2].square : p.square;
  const V one = px - px + T(1);
  p.sign = (p.edge[0].side > T(0)) & (p.edge[1].side > T(0)) & (p.edge[2].side > T(0)) ? one : -one;
  return p;
}

// z of a pixel within reach, no larger than kSoftMaxZ.
template <typename V, typename T>
DHPE_HD V soft_z(const SoftFace<T>& f, const SoftPixel<V>& p) {
  const V z = p.sign * p.square * f.inv_sigma;
  return z < kSoftMaxZ<T> ? z : z - z + kSoftMaxZ<T>;
}

template <typename V, typename T>
DHPE_HD auto soft_reaches(const SoftFace<T>& f, const SoftPixel<V>& p) {
  return (p.sign > T(0)) | (p.square <= f.reach);
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
