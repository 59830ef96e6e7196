// Vertex ids of faces, int64 for the caller, int32 for the kernels.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/tensor_checks.h"
#if defined(__CUDACC__)
#include "common/cuda_launch.h"
#endif

namespace dhpe {

// An id that int32 cannot hold must not wrap into range: it becomes -1, which no mesh has.
DHPE_HD int32_t narrow_id(int64_t id) { return id < 0 || id > INT32_MAX ? -1 : static_cast<int32_t>(id); }

#if defined(__CUDACC__)
template <typename Id>
__global__ void narrow_ids_kernel(const Id* ids, int64_t n, int32_t* out) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
    out[i] = narrow_id(ids[i]);
}
#endif

// Contiguous int32 ids (F, 3) from int32 or int64 ones.
inline Tensor narrow_ids(const Tensor& faces) {
  const Tensor ids = torch::stable::contiguous(faces);
  if (ids.scalar_type() == ScalarType::Int) return ids;
  Tensor out = torch::stable::new_empty(ids, {ids.size(0), ids.size(1)}, ScalarType::Int);
  const int64_t n = ids.numel();
  const int64_t* from = ids.const_data_ptr<int64_t>();
  int32_t* to = out.mutable_data_ptr<int32_t>();
#if defined(__CUDACC__)
  constexpr int kThreads = 256;
  if (n == 0) return out;
  const torch::stable::accelerator::DeviceGuard guard(ids.get_device_index());
  narrow_ids_kernel<<<capped_grid(n, kThreads), kThreads, 0, current_stream(ids)>>>(from, n, to);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
#else
  for (int64_t i = 0; i < n; ++i) to[i] = narrow_id(from[i]);
#endif
  return out;
}

}  // namespace dhpe
