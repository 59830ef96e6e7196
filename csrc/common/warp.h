// The threads of a warp among themselves. CUDA only.
#pragma once

#include "common/cuda_launch.h"

namespace dhpe {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Sums over `kLanes` neighbouring lanes, in a fixed order; every lane of them gets the sum.
template <int kLanes, typename T>
__device__ __forceinline__ T sum_over_lanes(T value) {
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

}  // namespace dhpe
