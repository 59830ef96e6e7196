// What every CUDA host function needs beside its kernel; include after cuda_runtime.h.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "common/tensor_checks.h"

namespace dhpe {

inline unsigned ceil_div(int64_t n, int64_t d) { return static_cast<unsigned>((n + d - 1) / d); }

// Blocks for a kernel that loops over its tasks, of which each block takes `per_block` at a time.
constexpr int64_t kMaxGrid = 1 << 20;
inline unsigned capped_grid(int64_t tasks, int64_t per_block) {
  const int64_t blocks = (tasks + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < kMaxGrid ? blocks : kMaxGrid);
}

// The stream torch has chosen for the device of `t`.
inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Sets `n_bytes` to zero in the order of the stream. None are none: an empty tensor has no address to give.
inline void zero_async(void* at, int64_t n_bytes, cudaStream_t stream) {
  if (n_bytes > 0) STD_CUDA_CHECK(cudaMemsetAsync(at, 0, static_cast<size_t>(n_bytes), stream));
}

}  // namespace dhpe
