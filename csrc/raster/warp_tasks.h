// Loops over tasks of one warp each, and what the lanes of a warp or the threads of a block find out together. CUDA
// only.
#pragma once

#include <cstdint>

#include "common/warp.h"

namespace dhpe {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kTaskThreads = kWarp * kWarpsPerBlock;

inline unsigned warp_blocks(int64_t warps) { return capped_grid(warps, kWarpsPerBlock); }

// This thread's warp among all of the grid, and their number: for loops over tasks of one warp each.
__device__ inline int64_t first_task() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
}
__device__ inline int64_t task_step() { return static_cast<int64_t>(gridDim.x) * kWarpsPerBlock; }
__device__ inline int lane_of() { return threadIdx.x % kWarp; }

// Of those lanes that have voted, how many come before this one.
__device__ inline int votes_before(unsigned votes) { return __popc(votes & ((1u << lane_of()) - 1)); }

__device__ inline int min_over_warp(int value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const int other = __shfl_xor_sync(kAllLanes, value, step);
    if (other < value) value = other;
  }
  return value;
}

__device__ inline int max_over_warp(int value) { return -min_over_warp(-value); }

struct BlockRank {
  int before, total;  // sums over the threads before this one, and over all
};

// The threads of a block add up `own`, in the order of their indices. Two calls in a row need different `warp_sums`,
// shared memory for one sum a warp: a thread may enter the second while another still reads the sums of the first. It
// cannot enter a third before all have entered the second.
template <int kWarps>
__device__ BlockRank rank_in_block(int own, int (&warp_sums)[kWarps]) {
  int sum = own;
  for (int step = 1; step < kWarp; step *= 2) {
    const int left = __shfl_up_sync(kAllLanes, sum, step);
    if (lane_of() >= step) sum += left;
  }
  const int warp = threadIdx.x / kWarp;
  if (lane_of() == kWarp - 1) warp_sums[warp] = sum;
  __syncthreads();
  BlockRank rank = {sum - own, 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) rank.before += warp_sums[w];
    rank.total += warp_sums[w];
  }
  return rank;
}

}  // namespace
}  // namespace dhpe
