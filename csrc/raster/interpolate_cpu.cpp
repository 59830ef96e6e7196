// Attribute interpolation on the CPU: a few loads and multiplications a covered pixel, bound by memory.
#include <algorithm>

#include "raster/interpolate_math.h"
#include "raster/interpolate_tensors.h"

namespace dhpe {
namespace {

constexpr int64_t kPixelsPerTask = 1 << 14;

// kChannels is the number of channels, or 0 for any: the compiler unrolls the common ones.
template <int kChannels, typename T>
void interpolate_pixels(const Interpolation<T>& p, int64_t begin, int64_t end, T* out) {
  const int64_t C = kChannels ? kChannels : p.n_channels;
  for (int64_t i = begin; i < end; ++i) {
    T* pixel = out + i * C;
    int64_t offset[3];
    if (!corner_offsets(p, i, offset)) {
      for (int64_t c = 0; c < C; ++c) pixel[c] = T(0);
      continue;
    }
    const T* attributes = p.attributes + i / p.pixels * p.attribute_stride;
    for (int64_t c = 0; c < C; ++c) pixel[c] = blend(attributes, offset, p.bary + 3 * i, c);
  }
}

template <int kChannels, typename T>
void interpolate_backward_image(const InterpolationBackward<T>& b, int64_t image) {
  const Interpolation<T>& p = b.forward;
  const int64_t C = kChannels ? kChannels : p.n_channels;
  const T* attributes = p.attributes + image * p.attribute_stride;
  T* grad_attributes = b.grad_attributes ? b.grad_attributes + image * p.n_verts * C : nullptr;
  if (grad_attributes) std::fill_n(grad_attributes, p.n_verts * C, T(0));
  T nobody_asks[3];
  for (int64_t i = image * p.pixels; i < (image + 1) * p.pixels; ++i) {
    T* grad_bary = b.grad_bary ? b.grad_bary + 3 * i : nobody_asks;
    grad_bary[0] = grad_bary[1] = grad_bary[2] = T(0);
    int64_t offset[3];
    if (!corner_offsets(p, i, offset)) continue;
    const T* grad = b.grad + i * C;
    const T* bary = p.bary + 3 * i;
    for (int k = 0; k < 3; ++k) {
      T dot = T(0);
      for (int64_t c = 0; c < C; ++c) {
        dot += grad[c] * attributes[offset[k] + c];
        if (grad_attributes) grad_attributes[offset[k] + c] += grad[c] * bary[k];
      }
      grad_bary[k] = dot;
    }
  }
}

template <typename Function>
void with_channels(int64_t channels, const Function& function) {
  switch (channels) {
    case 1: return function.template operator()<1>();
    case 2: return function.template operator()<2>();
    case 3: return function.template operator()<3>();
    case 4: return function.template operator()<4>();
    default: return function.template operator()<0>();
  }
}

Tensor interpolate_cpu(Tensor attributes, Tensor faces, Tensor face_index, Tensor bary) {
  const InterpolationTensors in("interpolate", attributes, faces, face_index, bary);
  Tensor out = torch::stable::new_empty(in.attributes, {in.batch(), in.height(), in.width(), in.channels()});
  DHPE_DISPATCH_FLOATING(in.attributes, [&] {
    const auto p = in.arguments<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    with_channels(p.n_channels, [&]<int kChannels>() {
      torch::stable::parallel_for(0, p.batch * p.pixels, kPixelsPerTask, [&](int64_t begin, int64_t end) {
        interpolate_pixels<kChannels>(p, begin, end, to);
      });
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> interpolate_backward_cpu(Tensor grad, Tensor attributes, Tensor faces, Tensor face_index,
                                                    Tensor bary, bool of_attributes, bool of_bary) {
  const InterpolationTensors in("_interpolate_backward", attributes, faces, face_index, bary);
  const int64_t B = in.batch(), H = in.height(), W = in.width(), C = in.channels();
  check_tensor("_interpolate_backward", "grad", grad, {B, H, W, C}, in.attributes.scalar_type(), in.attributes);
  grad = torch::stable::contiguous(grad);
  Tensor grad_attributes = in.new_attribute_gradient(of_attributes), grad_bary = in.new_bary_gradient(of_bary);
  DHPE_DISPATCH_FLOATING(in.attributes, [&] {
    const InterpolationBackward<scalar_t> b = {in.arguments<scalar_t>(), grad.const_data_ptr<scalar_t>(),
                                               of_attributes ? grad_attributes.mutable_data_ptr<scalar_t>() : nullptr,
                                               of_bary ? grad_bary.mutable_data_ptr<scalar_t>() : nullptr};
    with_channels(C, [&]<int kChannels>() {
      torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
        for (int64_t image = begin; image < end; ++image) interpolate_backward_image<kChannels>(b, image);
      });
    });
  });
  return {grad_attributes, grad_bary};
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CPU, m) {
  m.impl("interpolate", TORCH_BOX(&dhpe::interpolate_cpu));
  m.impl("_interpolate_backward", TORCH_BOX(&dhpe::interpolate_backward_cpu));
}
