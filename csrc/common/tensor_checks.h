// Checks shared by every op's host function. Python has already checked names and shapes for the user; these protect
// the kernels from direct callers of torch.ops.dhpe_fast.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

namespace dhpe {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_string(const Tensor& t) {
  std::string s = "(";
  for (int64_t d = 0; d < t.dim(); ++d) s += (d ? ", " : "") + std::to_string(t.size(d));
  return s + ")";
}

// -1 in `shape` accepts any extent. Throws unless `t` lies on the device and has the dtype of `like`.
inline void check_tensor(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape,
                         ScalarType dtype, const Tensor& like) {
  bool ok = t.dim() == static_cast<int64_t>(shape.size());
  int64_t d = 0;
  std::string expected = "(";
  for (int64_t extent : shape) {
    ok = ok && (extent < 0 || t.size(d) == extent);
    expected += (d ? ", " : "") + (extent < 0 ? std::string("*") : std::to_string(extent));
    ++d;
  }
  STD_TORCH_CHECK(ok, op, ": ", name, " has shape ", shape_string(t), ", expected ", expected, ")");
  STD_TORCH_CHECK(t.scalar_type() == dtype, op, ": ", name, " has dtype ", torch::headeronly::toString(t.scalar_type()),
                  ", expected ", torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index(), op, ": ", name,
                  " lies on another device than the first argument");
}

inline void check_floating(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, op, ": ", name,
                  " has dtype ", torch::headeronly::toString(t.scalar_type()), ", expected Float or Double");
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
