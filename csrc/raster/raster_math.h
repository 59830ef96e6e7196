// The geometry of one face and one pixel: the only edge rule and the only interpolation of the package, forward beside
// backward. Sources that include this compile without fused multiply-adds, so that every copy agrees bit for bit.
#pragma once

#include <cmath>

#include "common/host_device.h"
#include "raster/raster.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

// Edge k lies opposite vertex k. Its edge function
//   e_k(p) = dx (p.y - ay) - dy (p.x - ax)
// is twice the signed area of (edge, p), positive inside. It starts from the edge's vertex with the lower id, whichever
// face asks: two faces that share an edge compute the same number up to its sign, so no rounding can open a gap
// between them or draw a pixel twice. A pixel centre exactly on an edge belongs to the face for which that edge is a
// top or a left one: `tie` is 0 there and infinite otherwise, see `is_inside`.
template <typename T>
struct Face {
  T ax[3], ay[3], dx[3], dy[3], tie[3];
  T z[3], inv_z[3];    // inv_z is 1 where interpolation is linear in the image
  T orientation;       // -1: front face, its vertices run counter-clockwise on the screen; +1: back face
  int x0, x1, y0, y1;  // the pixels that may be covered, inclusive; clamped to the image
};

template <typename T>
DHPE_HD bool is_drawable(const T* v, T z_near) {
  // Written so that NaN fails.
  return std::fabs(v[0]) <= T(kMaxCoordinatePx) && std::fabs(v[1]) <= T(kMaxCoordinatePx) &&
         std::fabs(v[2]) <= T(kMaxDepth) && v[2] >= z_near;
}

template <typename T>
DHPE_HD T min3(T a, T b, T c) {
  return a < b ? (a < c ? a : c) : (b < c ? b : c);
}

template <typename T>
DHPE_HD T max3(T a, T b, T c) {
  return a > b ? (a > c ? a : c) : (b > c ? b : c);
}

// The first and last of the pixels 0..size-1 whose centres lie in [low, high]. The margin of 1/64 pixel outweighs the
// rounding of the edge functions, whose word on the border pixels counts.
template <typename T>
DHPE_HD void pixel_range(T low, T high, int size, int& first, int& last) {
  const T margin = T(0.5) + T(1) / 64;
  const T begin = std::ceil(low - margin), end = std::floor(high - T(1) + margin);
  first = begin > T(0) ? (begin < T(size) ? static_cast<int>(begin) : size) : 0;
  last = end < T(size - 1) ? (end > T(-1) ? static_cast<int>(end) : -1) : size - 1;
}

// First and last pixels, inclusive.
struct PixelBox {
  int x0, x1, y0, y1;
};

// A first look at face `id`, cheap enough to be taken in vain: the pixels that setup_face (margin 0) finds, but faces
// of no area or with their back to the camera are not told apart.
template <typename T>
DHPE_HD bool face_pixels(const RasterMesh<T>& m, T z_near, T margin, const T* verts, int64_t id, PixelBox& box) {
  const T* v[3];
  for (int k = 0; k < 3; ++k) {
    const int32_t vertex = m.faces[3 * id + k];
    if (vertex < 0 || vertex >= m.n_verts) return false;
    v[k] = verts + 3 * static_cast<int64_t>(vertex);
    if (!is_drawable(v[k], z_near)) return false;
  }
  pixel_range(min3(v[0][1], v[1][1], v[2][1]) - margin, max3(v[0][1], v[1][1], v[2][1]) + margin, m.height, box.y0,
              box.y1);
  pixel_range(min3(v[0][0], v[1][0], v[2][0]) - margin, max3(v[0][0], v[1][0], v[2][0]) + margin, m.width, box.x0,
              box.x1);
  return box.x0 <= box.x1 && box.y0 <= box.y1;
}

// Fills `f` and returns true if face `id` can draw a pixel. An id out of range draws nothing.
template <typename T>
DHPE_HD bool setup_face(const RasterMesh<T>& m, const RasterOptions<T>& o, const T* verts, int64_t id, Face<T>& f) {
  const int32_t ids[3] = {m.faces[3 * id], m.faces[3 * id + 1], m.faces[3 * id + 2]};
  const T* v[3];
  for (int k = 0; k < 3; ++k) {
    if (ids[k] < 0 || ids[k] >= m.n_verts) return false;
    v[k] = verts + 3 * static_cast<int64_t>(ids[k]);
    if (!is_drawable(v[k], o.z_near)) return false;
  }
  pixel_range(min3(v[0][1], v[1][1], v[2][1]), max3(v[0][1], v[1][1], v[2][1]), m.height, f.y0, f.y1);
  pixel_range(min3(v[0][0], v[1][0], v[2][0]), max3(v[0][0], v[1][0], v[2][0]), m.width, f.x0, f.x1);
  if (f.y0 > f.y1 || f.x0 > f.x1) return false;
  // In double, where the area of a float32 sliver keeps its sign. With y down, counter-clockwise on the screen is
  // negative; outward normals n = (v1 - v0) x (v2 - v0) then point to the camera, n.z < 0.
  const double ux = static_cast<double>(v[1][0]) - v[0][0], uy = static_cast<double>(v[1][1]) - v[0][1];
  const double wx = static_cast<double>(v[2][0]) - v[0][0], wy = static_cast<double>(v[2][1]) - v[0][1];
  const double area = ux * wy - uy * wx;
  if (!(area != 0) || (area > 0 && o.cull_backfaces)) return false;
  f.orientation = area > 0 ? T(1) : T(-1);
  for (int k = 0; k < 3; ++k) {
    const int b = k == 2 ? 0 : k + 1, c = k == 0 ? 2 : k - 1;
    const bool in_order = ids[b] < ids[c];
    const T* low = in_order ? v[b] : v[c];
    const T* high = in_order ? v[c] : v[b];
    const T sign = in_order ? f.orientation : -f.orientation;
    f.ax[k] = low[0];
    f.ay[k] = low[1];
    f.dx[k] = sign * (high[0] - low[0]);
    f.dy[k] = sign * (high[1] - low[1]);
    // The inside lies in the direction (-dy, dx): to the right of a left edge, below a top edge.
    const bool top_left = f.dy[k] < 0 || (f.dy[k] == 0 && f.dx[k] > 0);
    f.tie[k] = top_left ? T(0) : T(HUGE_VAL);
    f.z[k] = v[k][2];
    f.inv_z[k] = o.perspective ? T(1) / v[k][2] : T(1);
  }
  return true;
}

// The part of e_k that a row of pixels shares.
template <typename T>
DHPE_HD T edge_row(const Face<T>& f, int k, T py) {
  return f.dx[k] * (py - f.ay[k]);
}

// From here to `interpolate`, V is a scalar or a vector of pixels (common/vector.h), and so is the answer.
template <typename V, typename T>
DHPE_HD V edge_value(T row, T dy, T ax, V px) {
  return row - dy * (px - ax);
}

// The second condition keeps slivers whose three values all round to zero from dividing by it.
template <typename V, typename T>
DHPE_HD auto is_inside(V e0, V e1, V e2, T tie0, T tie1, T tie2) {
  return ((e0 > T(0)) | (e0 >= tie0)) & ((e1 > T(0)) | (e1 >= tie1)) & ((e2 > T(0)) | (e2 >= tie2)) &
         ((e0 + e1) + e2 > T(1e-20));
}

template <typename V>
struct Pixel {
  V bary[3], depth;
};

// b_k = w_k / sum(w) with w_k = e_k (linear in the image) or e_k / z_k (linear in space); depth = sum(b_k z_k).
// Both modes are convex combinations: rounding cannot push a depth out of its face's range.
template <typename V, typename T>
DHPE_HD Pixel<V> interpolate(V e0, V e1, V e2, const T* inv_z, const T* z) {
  const V w0 = e0 * inv_z[0], w1 = e1 * inv_z[1], w2 = e2 * inv_z[2];
  const V r = T(1) / ((w0 + w1) + w2);
  Pixel<V> p;
  p.bary[0] = w0 * r;
  p.bary[1] = w1 * r;
  p.bary[2] = w2 * r;
  p.depth = (p.bary[0] * z[0] + p.bary[1] * z[1]) + p.bary[2] * z[2];
  return p;
}

// grad (3 vertices x 3) += of one pixel at (px, py). With h_k = dL/db_k + dL/ddepth z_k:
//   dL/dw_k = (h_k - sum_j h_j b_j) / sum(w),  dL/de_k = dL/dw_k inv_z_k,
//   dL/dz_k = dL/ddepth b_k - dL/dw_k e_k / z_k^2 (the last term in perspective only),
// and for the edge from b to c, up to the face's orientation:
//   de/db = (c.y - p.y, p.x - c.x),  de/dc = (p.y - b.y, b.x - p.x).
template <typename T>
DHPE_HD void interpolate_backward(const Face<T>& f, bool perspective, const T* v0, const T* v1, const T* v2, T px, T py,
                                  const T* grad_bary, T grad_depth, T* grad) {
  const T* v[3] = {v0, v1, v2};
  T e[3], w[3], h[3];
  for (int k = 0; k < 3; ++k) {
    e[k] = edge_value(edge_row(f, k, py), f.dy[k], f.ax[k], px);
    w[k] = e[k] * f.inv_z[k];
    h[k] = grad_bary[k] + grad_depth * f.z[k];
  }
  const T r = T(1) / ((w[0] + w[1]) + w[2]);
  const T mean = ((h[0] * w[0] + h[1] * w[1]) + h[2] * w[2]) * r;
  for (int k = 0; k < 3; ++k) {
    const int b = k == 2 ? 0 : k + 1, c = k == 0 ? 2 : k - 1;
    const T gw = (h[k] - mean) * r;
    const T ge = gw * f.inv_z[k] * f.orientation;
    grad[3 * k + 2] += grad_depth * (w[k] * r);
    if (perspective) grad[3 * k + 2] -= gw * e[k] * f.inv_z[k] * f.inv_z[k];
    grad[3 * b] += ge * (v[c][1] - py);
    grad[3 * b + 1] += ge * (px - v[c][0]);
    grad[3 * c] += ge * (py - v[b][1]);
    grad[3 * c + 1] += ge * (v[b][0] - px);
  }
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
