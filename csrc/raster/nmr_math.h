// The silhouette gradient of Kato et al., "Neural 3D Mesh Renderer" (CVPR 2018), as its public code computes it: the
// geometry of one edge on one scan line.
//
// An edge p0 -> p1 of a visible face is scanned along columns (it then moves in y) and along rows (in x). Coordinates
// are (s, m), scan and moving, counted from the centre of pixel 0. On scan line d0 the edge crosses at
//   c = m0 + (m1 - m0) (d0 - s0) / (s1 - s0).
// Moving p_k alone by D_k = (d - c) / t_k, t_0 = (s1 - d0) / (s1 - s0), t_1 = (d0 - s0) / (s1 - s0), moves the crossing
// to pixel d and flips it. Where that lowers the loss by w > 0, the end point receives
//   dL/dm_k -= w / (D_k +- eps) = +- w t_k / (|d - c| + eps t_k)     (the sign of d - c)
// The right-hand form needs no division by the distance to an end point and is 0 where t_k = 0. Pixels outside are
// reached by moving outwards and pixels inside by moving inwards, so the sign is the direction's, also where d = c.
#pragma once

#include <cmath>

#include "common/host_device.h"
#include "raster/raster.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

template <typename T>
struct NmrEdge {
  T s0, s1, m0, slope, inv_length;
  int outward;      // +1 or -1 along m
  int first, last;  // scan lines, inclusive
};

// `outward_if_rising` is the outward direction along m of an edge with s1 > s0. False if no scan line crosses the edge,
// as for an edge parallel to the moving axis, where the public code divides by zero.
template <typename T>
DHPE_HD bool nmr_edge(T s0, T m0, T s1, T m1, int outward_if_rising, int lines, NmrEdge<T>& e) {
  const T low = std::ceil(s0 < s1 ? s0 : s1), high = std::floor(s0 < s1 ? s1 : s0);
  if (s0 == s1 || !(low <= high) || low > T(lines - 1) || high < 0) return false;
  e.s0 = s0;
  e.s1 = s1;
  e.m0 = m0;
  e.inv_length = T(1) / (s1 - s0);
  e.slope = (m1 - m0) / (s1 - s0);
  e.outward = s0 < s1 ? outward_if_rising : -outward_if_rising;
  e.first = low > 0 ? static_cast<int>(low) : 0;
  e.last = high < T(lines - 1) ? static_cast<int>(high) : lines - 1;
  return true;
}

template <typename T>
struct NmrCrossing {
  T at;  // c
  T t0, t1;
  int in, out;  // the pixels on either side of the edge
};

// False if one of the two pixels lies outside the image. A crossing exactly on a pixel centre counts as inside for left
// and top edges only: the rasterizer's rule.
template <typename T>
DHPE_HD bool nmr_crossing(const NmrEdge<T>& e, int line, int size, NmrCrossing<T>& x) {
  x.at = e.m0 + e.slope * (static_cast<T>(line) - e.s0);
  const T up = std::ceil(x.at);
  if (!(up >= 0 && up <= T(size))) return false;
  x.in = static_cast<int>(up) - (e.outward > 0 ? 1 : 0);
  x.out = x.in + e.outward;
  x.t0 = (e.s1 - static_cast<T>(line)) * e.inv_length;
  x.t1 = (static_cast<T>(line) - e.s0) * e.inv_length;
  return x.in >= 0 && x.in < size && x.out >= 0 && x.out < size;
}

// eps t_k, kept off zero: an end point on the scan line (t_k = 0) then receives 0 and never 0 / 0.
template <typename T>
DHPE_HD T nmr_margin(T eps_px, T t) {
  const T margin = eps_px * t;
  return margin > T(1e-20) ? margin : T(1e-20);
}

// w t_k / (|d - c| + eps t_k)
template <typename T>
DHPE_HD T nmr_pull(T weight, T distance, T t, T margin) {
  return weight * t / (distance + margin);
}

// A face in coordinates counted from the centre of pixel 0, and the pixels it may cover, inclusive.
template <typename T>
struct NmrFace {
  T x[3], y[3];
  int below;  // which way is outwards, in y, from an edge that runs to the right
  int x_low, x_high, y_low, y_high;
};

template <typename T>
DHPE_HD int nmr_clamp(T value, int size) {
  return value > 0 ? (value < T(size - 1) ? static_cast<int>(value) : size - 1) : 0;
}

template <typename T>
DHPE_HD NmrFace<T> nmr_face(const RasterMesh<T>& m, const T* verts, int64_t face) {
  NmrFace<T> f;
  for (int k = 0; k < 3; ++k) {
    const T* v = verts + 3 * static_cast<int64_t>(m.faces[3 * face + k]);
    f.x[k] = v[0] - T(0.5);
    f.y[k] = v[1] - T(0.5);
  }
  const T area = (f.x[1] - f.x[0]) * (f.y[2] - f.y[0]) - (f.y[1] - f.y[0]) * (f.x[2] - f.x[0]);
  // A front face runs counter-clockwise on the screen: an edge to the right has the outside below it (+y), an edge
  // downwards has it on the left (-x). A back face acts as its reversed copy.
  f.below = area < 0 ? 1 : -1;
  f.x_low = nmr_clamp(std::fmin(std::fmin(f.x[0], f.x[1]), f.x[2]), m.width);
  f.x_high = nmr_clamp(std::fmax(std::fmax(f.x[0], f.x[1]), f.x[2]), m.width);
  f.y_low = nmr_clamp(std::fmin(std::fmin(f.y[0], f.y[1]), f.y[2]), m.height);
  f.y_high = nmr_clamp(std::fmax(std::fmax(f.y[0], f.y[1]), f.y[2]), m.height);
  return f;
}

// One of a face's six scans: edge `begin` -> `end` over columns (moving in y) or over rows (moving in x).
template <typename T>
struct NmrScan {
  NmrEdge<T> edge;
  bool by_columns;
  int begin, end;
  int low, high;  // the face's extent along m
  T eps_px;
};

constexpr int kNmrScans = 6;

template <typename T>
DHPE_HD bool nmr_scan(const NmrFace<T>& f, const RasterMesh<T>& m, T eps, int scan, NmrScan<T>& s) {
  s.begin = scan / 2;
  s.end = s.begin == 2 ? 0 : s.begin + 1;
  s.by_columns = scan % 2 == 0;
  s.low = s.by_columns ? f.y_low : f.x_low;
  s.high = s.by_columns ? f.y_high : f.x_high;
  s.eps_px = eps * static_cast<T>(s.by_columns ? m.height : m.width) / 2;
  return s.by_columns ? nmr_edge(f.x[s.begin], f.y[s.begin], f.x[s.end], f.y[s.end], f.below, m.width, s.edge)
                      : nmr_edge(f.y[s.begin], f.x[s.begin], f.y[s.end], f.x[s.end], -f.below, m.height, s.edge);
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
