// Attribute interpolation on the GPU: one thread a pixel and channel forward, one thread a pixel backward, where the
// vertices' gradients add up by atomics.
#include "common/cuda_launch.h"
#include "raster/interpolate_math.h"
#include "raster/interpolate_tensors.h"

namespace dhpe {
namespace {

constexpr int kThreads = 256;

inline unsigned blocks_for(int64_t threads) { return capped_grid(threads, kThreads); }

__device__ inline int64_t first_thread() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ inline int64_t thread_step() { return static_cast<int64_t>(gridDim.x) * kThreads; }

template <typename T>
__global__ void interpolate_kernel(Interpolation<T> p, T* out) {
  const int64_t C = p.n_channels;
  for (int64_t task = first_thread(); task < p.batch * p.pixels * C; task += thread_step()) {
    const int64_t i = task / C;
    int64_t offset[3];
    const bool covered = corner_offsets(p, i, offset);
    const T* attributes = p.attributes + i / p.pixels * p.attribute_stride;
    out[task] = covered ? blend(attributes, offset, p.bary + 3 * i, task - i * C) : T(0);
  }
}

template <typename T>
__global__ void interpolate_backward_kernel(InterpolationBackward<T> b) {
  const Interpolation<T>& p = b.forward;
  const int64_t C = p.n_channels;
  for (int64_t i = first_thread(); i < p.batch * p.pixels; i += thread_step()) {
    const int64_t image = i / p.pixels;
    int64_t offset[3];
    const bool covered = corner_offsets(p, i, offset);
    const T* attributes = p.attributes + image * p.attribute_stride;
    T* grad_attributes = b.grad_attributes ? b.grad_attributes + image * p.n_verts * C : nullptr;
    for (int k = 0; k < 3; ++k) {
      T dot = T(0);
      for (int64_t c = 0; covered && c < C; ++c) {
        const T g = b.grad[i * C + c];
        dot += g * attributes[offset[k] + c];
        if (grad_attributes) atomicAdd(grad_attributes + offset[k] + c, g * p.bary[3 * i + k]);
      }
      if (b.grad_bary) b.grad_bary[3 * i + k] = dot;
    }
  }
}

Tensor interpolate_cuda(Tensor attributes, Tensor faces, Tensor face_index, Tensor bary) {
  const InterpolationTensors in("interpolate", attributes, faces, face_index, bary);
  const torch::stable::accelerator::DeviceGuard guard(in.attributes.get_device_index());
  Tensor out = torch::stable::new_empty(in.attributes, {in.batch(), in.height(), in.width(), in.channels()});
  if (out.numel() == 0) return out;
  DHPE_DISPATCH_FLOATING(in.attributes, [&] {
    interpolate_kernel<scalar_t><<<blocks_for(out.numel()), kThreads, 0, current_stream(in.attributes)>>>(
        in.arguments<scalar_t>(), out.mutable_data_ptr<scalar_t>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

std::tuple<Tensor, Tensor> interpolate_backward_cuda(Tensor grad, Tensor attributes, Tensor faces, Tensor face_index,
                                                     Tensor bary, bool of_attributes, bool of_bary) {
  const InterpolationTensors in("_interpolate_backward", attributes, faces, face_index, bary);
  const int64_t B = in.batch(), H = in.height(), W = in.width(), C = in.channels();
  check_tensor("_interpolate_backward", "grad", grad, {B, H, W, C}, in.attributes.scalar_type(), in.attributes);
  const torch::stable::accelerator::DeviceGuard guard(in.attributes.get_device_index());
  const cudaStream_t stream = current_stream(in.attributes);
  grad = torch::stable::contiguous(grad);
  Tensor grad_attributes = in.new_attribute_gradient(of_attributes), grad_bary = in.new_bary_gradient(of_bary);
  DHPE_DISPATCH_FLOATING(in.attributes, [&] {
    const InterpolationBackward<scalar_t> b = {in.arguments<scalar_t>(), grad.const_data_ptr<scalar_t>(),
                                               of_attributes ? grad_attributes.mutable_data_ptr<scalar_t>() : nullptr,
                                               of_bary ? grad_bary.mutable_data_ptr<scalar_t>() : nullptr};
    if (of_attributes)
      STD_CUDA_CHECK(cudaMemsetAsync(b.grad_attributes, 0, grad_attributes.numel() * sizeof(scalar_t), stream));
    if (B * H * W == 0 || !(of_attributes || of_bary)) return;
    interpolate_backward_kernel<scalar_t><<<blocks_for(B * H * W), kThreads, 0, stream>>>(b);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {grad_attributes, grad_bary};
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CUDA, m) {
  m.impl("interpolate", TORCH_BOX(&dhpe::interpolate_cuda));
  m.impl("_interpolate_backward", TORCH_BOX(&dhpe::interpolate_backward_cuda));
}
