// Between rows in memory, one for each lane, and vectors of one column each. For sources compiled once per instruction
// set.
#pragma once

#include <algorithm>
#include <utility>

#include "common/vector.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

// Swaps the lanes of a that have bit `Distance` set with those of b that have not.
template <typename T, std::size_t Distance, std::size_t... Lane>
inline void exchange(Vector<T>& a, Vector<T>& b, std::index_sequence<Lane...>) {
  const Vector<T> low = __builtin_shufflevector(a, b, ((Lane & Distance) ? Lane - Distance + kLanes<T> : Lane)...);
  b = __builtin_shufflevector(a, b, ((Lane & Distance) ? Lane + kLanes<T> : Lane + Distance)...);
  a = low;
}

template <typename T, int Distance = kLanes<T> / 2>
inline void transpose(Vector<T> (&v)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (!(i & Distance)) exchange<T, Distance>(v[i], v[i + Distance], std::make_index_sequence<kLanes<T>>());
  if constexpr (Distance > 1) transpose<T, Distance / 2>(v);
}

// Lane r of columns[i * step] = from[r * stride + i] for i < count. Lanes beyond `rows` repeat the last row.
template <typename T>
void load_columns(const T* from, int64_t stride, int64_t rows, int64_t count, Vector<T>* columns, int64_t step) {
  for (int64_t i = 0; count >= kLanes<T> && i < count; i += kLanes<T>) {
    const int64_t at = std::min(i, count - kLanes<T>);  // the last ones overlap those before
    Vector<T> v[kLanes<T>];
    for (int64_t r = 0; r < kLanes<T>; ++r) v[r] = load(from + std::min(r, rows - 1) * stride + at);
    transpose<T>(v);
    for (int64_t c = 0; c < kLanes<T>; ++c) columns[(at + c) * step] = v[c];
  }
  for (int64_t i = 0; count < kLanes<T> && i < count; ++i)
    for (int64_t r = 0; r < kLanes<T>; ++r) columns[i * step][r] = from[std::min(r, rows - 1) * stride + i];
}

// to[r * stride + i] = lane r of columns[i * step] for r < rows, i < count.
template <typename T>
void store_columns(T* to, int64_t stride, int64_t rows, int64_t count, const Vector<T>* columns, int64_t step) {
  for (int64_t i = 0; count >= kLanes<T> && i < count; i += kLanes<T>) {
    const int64_t at = std::min(i, count - kLanes<T>);
    Vector<T> v[kLanes<T>];
    for (int64_t c = 0; c < kLanes<T>; ++c) v[c] = columns[(at + c) * step];
    transpose<T>(v);
    for (int64_t r = 0; r < kLanes<T>; ++r)
      if (r < rows) store<T>(to + r * stride + at, v[r]);
  }
  for (int64_t i = 0; count < kLanes<T> && i < count; ++i)
    for (int64_t r = 0; r < rows; ++r) to[r * stride + i] = columns[i * step][r];
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
