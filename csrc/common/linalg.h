// Vectors of 3 and row-major 3x3 matrices, just what the kernels need.
#pragma once

#include "common/host_device.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

template <typename T>
struct Vec3 {
  T x, y, z;
};

template <typename T>
struct Mat3 {
  T m[9];  // row-major
};

template <typename T>
DHPE_HD Vec3<T> load3(const T* p) {
  return {p[0], p[1], p[2]};
}

template <typename T>
DHPE_HD Vec3<T> operator+(const Vec3<T>& a, const Vec3<T>& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z};
}

template <typename T>
DHPE_HD Vec3<T> operator-(const Vec3<T>& a, const Vec3<T>& b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z};
}

template <typename T>
DHPE_HD void add_to(T* p, const Vec3<T>& a) {
  p[0] += a.x;
  p[1] += a.y;
  p[2] += a.z;
}

template <typename T>
DHPE_HD T dot(const Vec3<T>& a, const Vec3<T>& b) {
  return a.x * b.x + a.y * b.y + a.z * b.z;
}

template <typename T>
DHPE_HD Mat3<T> load9(const T* p) {
  Mat3<T> a;
  for (int i = 0; i < 9; ++i) a.m[i] = p[i];
  return a;
}

template <typename T>
DHPE_HD Vec3<T> mul(const Mat3<T>& a, const Vec3<T>& v) {
  return {a.m[0] * v.x + a.m[1] * v.y + a.m[2] * v.z, a.m[3] * v.x + a.m[4] * v.y + a.m[5] * v.z,
          a.m[6] * v.x + a.m[7] * v.y + a.m[8] * v.z};
}

template <typename T>
DHPE_HD Vec3<T> mul_transposed(const Mat3<T>& a, const Vec3<T>& v) {  // a^T v
  return {a.m[0] * v.x + a.m[3] * v.y + a.m[6] * v.z, a.m[1] * v.x + a.m[4] * v.y + a.m[7] * v.z,
          a.m[2] * v.x + a.m[5] * v.y + a.m[8] * v.z};
}

template <typename T>
DHPE_HD Mat3<T> mul(const Mat3<T>& a, const Mat3<T>& b) {
  Mat3<T> c;
  for (int r = 0; r < 3; ++r)
    for (int k = 0; k < 3; ++k)
      c.m[3 * r + k] = a.m[3 * r] * b.m[k] + a.m[3 * r + 1] * b.m[3 + k] + a.m[3 * r + 2] * b.m[6 + k];
  return c;
}

template <typename T>
DHPE_HD Mat3<T> transposed(const Mat3<T>& a) {
  return {{a.m[0], a.m[3], a.m[6], a.m[1], a.m[4], a.m[7], a.m[2], a.m[5], a.m[8]}};
}

// a += u v^T
template <typename T>
DHPE_HD void add_outer(T* a, const Vec3<T>& u, const Vec3<T>& v) {
  a[0] += u.x * v.x;
  a[1] += u.x * v.y;
  a[2] += u.x * v.z;
  a[3] += u.y * v.x;
  a[4] += u.y * v.y;
  a[5] += u.y * v.z;
  a[6] += u.z * v.x;
  a[7] += u.z * v.y;
  a[8] += u.z * v.z;
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
