// Axis-angle to rotation matrix, forward beside backward.
#pragma once

#include "common/linalg.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif
#include <cmath>

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

// a = sin(t)/t and b = (1 - cos t)/t^2 as functions of q = t^2, with their derivatives in q.
// R = (1 - b q) I + a [v]_x + b v v^T for the axis-angle v with |v| = t.
template <typename T>
struct RodriguesTerms {
  T a, b, da, db;
};

template <typename T>
DHPE_HD RodriguesTerms<T> rodrigues_terms(T q) {
  RodriguesTerms<T> r;
  if (q < T(0.25)) {
    // Taylor series: at q = 1/4 the first term left out is below 1e-16, and nothing divides by a small t.
    // clang-format off
    r.a = 1 + q * (T(-1) / 6 + q * (T(1) / 120 + q * (T(-1) / 5040 + q * (T(1) / 362880 + q * (T(-1) / 39916800 +
          q * (T(1) / 6227020800))))));
    r.b = T(1) / 2 + q * (T(-1) / 24 + q * (T(1) / 720 + q * (T(-1) / 40320 + q * (T(1) / 3628800 +
          q * (T(-1) / 479001600 + q * (T(1) / 87178291200))))));
    r.da = T(-1) / 6 + q * (T(2) / 120 + q * (T(-3) / 5040 + q * (T(4) / 362880 + q * (T(-5) / 39916800 +
           q * (T(6) / 6227020800)))));
    r.db = T(-1) / 24 + q * (T(2) / 720 + q * (T(-3) / 40320 + q * (T(4) / 3628800 + q * (T(-5) / 479001600 +
           q * (T(6) / 87178291200)))));
    // clang-format on
  } else {
    const T t = std::sqrt(q);
    const T s = std::sin(t), c = std::cos(t), half = std::sin(t / 2);
    r.a = s / t;
    r.b = 2 * half * half / q;
    r.da = (c - r.a) / (2 * q);
    r.db = (r.a - 2 * r.b) / (2 * q);
  }
  return r;
}

// R from the terms at q = v.v. T may be a vector, too, here and in the backward pass.
template <typename T>
DHPE_HD Mat3<T> rodrigues(const Vec3<T>& v, const T& q, const RodriguesTerms<T>& r) {
  const T d = 1 - r.b * q;
  // clang-format off
  return {{d + r.b * v.x * v.x, r.b * v.x * v.y - r.a * v.z, r.b * v.x * v.z + r.a * v.y,
           r.b * v.x * v.y + r.a * v.z, d + r.b * v.y * v.y, r.b * v.y * v.z - r.a * v.x,
           r.b * v.x * v.z - r.a * v.y, r.b * v.y * v.z + r.a * v.x, d + r.b * v.z * v.z}};
  // clang-format on
}

template <typename T>
DHPE_HD Mat3<T> rodrigues(const Vec3<T>& v) {
  const T q = dot(v, v);
  return rodrigues(v, q, rodrigues_terms(q));
}

// dL/dv from g = dL/dR. With s = vee(g - g^T):
//   dL = -(b + q b') dq tr(g) + (a' dq) s.v + a s.dv + b v^T(g + g^T) dv + (b' dq) v^T g v,   dq = 2 v.dv
template <typename T>
DHPE_HD Vec3<T> rodrigues_backward(const Vec3<T>& v, const Mat3<T>& g, const T& q, const RodriguesTerms<T>& r) {
  const Vec3<T> s = {g.m[7] - g.m[5], g.m[2] - g.m[6], g.m[3] - g.m[1]};
  const Vec3<T> gv = mul(g, v), gtv = mul_transposed(g, v);
  const T along = 2 * (-(r.b + q * r.db) * (g.m[0] + g.m[4] + g.m[8]) + r.da * dot(s, v) + r.db * dot(v, gv));
  return {r.a * s.x + r.b * (gv.x + gtv.x) + along * v.x, r.a * s.y + r.b * (gv.y + gtv.y) + along * v.y,
          r.a * s.z + r.b * (gv.z + gtv.z) + along * v.z};
}

template <typename T>
DHPE_HD Vec3<T> rodrigues_backward(const Vec3<T>& v, const Mat3<T>& g) {
  const T q = dot(v, v);
  return rodrigues_backward(v, g, q, rodrigues_terms(q));
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
