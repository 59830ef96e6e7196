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

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
