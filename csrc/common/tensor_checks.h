// Checks shared by every op's host function. Python has already checked names and shapes for the user; these protect
// the kernels from direct callers of torch.ops.dhpe_fast.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

namespace dhpe {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_string(torch::headeronly::IntHeaderOnlyArrayRef shape) {  // -1 is any extent
  std::string s = "(";
  for (std::size_t d = 0; d < shape.size(); ++d)
    s += (d ? ", " : "") + (shape[d] < 0 ? std::string("*") : std::to_string(shape[d]));
  return s + ")";
}

inline bool has_shape(const Tensor& t, std::initializer_list<int64_t> shape) {
  const torch::headeronly::IntHeaderOnlyArrayRef found = t.sizes();
  return std::equal(found.begin(), found.end(), shape.begin(), shape.end(),
                    [](int64_t is, int64_t wanted) { return wanted < 0 || is == wanted; });
}

// The extent of an axis, and 0 where the tensor has no such axis: for checks to compare with before one of them refuses
// the number of axes. Tensor::size would throw there, and name nothing.
inline int64_t extent(const Tensor& t, int64_t axis) { return axis < t.dim() ? t.size(axis) : 0; }

// -1 in `shape` accepts any extent. Throws unless `t` lies on the device and has the dtype of `like`.
inline void check_tensor(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape,
                         ScalarType dtype, const Tensor& like) {
  STD_TORCH_CHECK(has_shape(t, shape), op, ": ", name, " has shape ", shape_string(t.sizes()), ", expected ",
                  shape_string(shape));
  STD_TORCH_CHECK(t.scalar_type() == dtype, op, ": ", name, " has dtype ", torch::headeronly::toString(t.scalar_type()),
                  ", expected ", torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index(), op, ": ", name,
                  " lies on another device than the first argument");
}

inline void check_floating(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, op, ": ", name,
                  " has dtype ", torch::headeronly::toString(t.scalar_type()), ", expected Float or Double");
}

// torch::stable::contiguous, without a trip through torch's dispatcher for a tensor that is.
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// An uninitialised dense tensor with the dtype and the device of `like`: torch::stable::new_empty, without the
// dispatcher.
inline Tensor new_dense(const Tensor& like, std::initializer_list<int64_t> shape) {
  constexpr std::size_t kMaxDims = 8;
  STD_TORCH_CHECK(shape.size() <= kMaxDims, "new_dense: ", shape.size(), " dimensions");
  int64_t strides[kMaxDims];
  int64_t stride = 1;
  for (std::size_t d = shape.size(); d-- > 0; stride *= std::max<int64_t>(shape.begin()[d], 1)) strides[d] = stride;
  int32_t dtype, device_type;
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.begin(), strides,
                                                         dtype, device_type, like.get_device_index(), &made));
  return Tensor(made);
}

}  // namespace dhpe

// Runs the body with scalar_t = float or double; check_floating has excluded every other dtype.
#define DHPE_DISPATCH_FLOATING(tensor, ...)                  \
  do {                                                       \
    if ((tensor).scalar_type() == dhpe::ScalarType::Float) { \
      using scalar_t = float;                                \
      __VA_ARGS__();                                         \
    } else {                                                 \
      using scalar_t = double;                               \
      __VA_ARGS__();                                         \
    }                                                        \
  } while (0)
