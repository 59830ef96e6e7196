// Vectors of the width of the instruction set a source is compiled for: the compiler's vector extension, whose
// operators work lane by lane and whose comparisons give masks for `mask ? a : b`. For sources compiled once per
// instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
inline Vector<T> load(const T* from) {  // from any address
  Vector<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
inline void store(T* to, const Vector<T>& v) {
  std::memcpy(to, &v, sizeof(v));
}

// Pairwise: short chains of additions.
template <typename T, int kSize = kLanes<T>, typename V>
inline T sum_of(const V& v) {
  if constexpr (kSize == 2) {
    return v[0] + v[1];
  } else {
    typedef T Half __attribute__((vector_size(kSize / 2 * sizeof(T))));
    Half low, high;
    std::memcpy(&low, &v, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
    return sum_of<T, kSize / 2>(low + high);
  }
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
