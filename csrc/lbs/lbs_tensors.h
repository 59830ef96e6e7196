// From tensors to the kernels' arguments: the checks and allocations that the CPU and CUDA host functions share.
#pragma once

#include <tuple>

#include "common/tensor_checks.h"
#include "lbs/lbs.h"

namespace dhpe {

struct LbsModelTensors {
  Tensor v_template, shapedirs, posedirs, joint_template, joint_shapedirs, skin_joints, skin_weights, parents;

  LbsModelTensors(const char* op, const Tensor& pose, const Tensor& betas, Tensor v_template_, Tensor shapedirs_,
                  Tensor posedirs_, Tensor joint_template_, Tensor joint_shapedirs_, Tensor skin_joints_,
                  Tensor skin_weights_, Tensor parents_) {
    check_floating(op, "pose", pose);
    const ScalarType dtype = pose.scalar_type();
    const int64_t V = v_template_.size(0), J = parents_.size(0), S = shapedirs_.size(0), K = skin_joints_.size(-1);
    STD_TORCH_CHECK(J >= 1 && J <= kMaxJoints, op, ": ", J, " joints given, 1 to ", kMaxJoints, " accepted");
    STD_TORCH_CHECK(S + 9 * (J - 1) <= kMaxCoeffs, op, ": ", S, " shape directions are too many");
    const int64_t B = pose.size(0);
    if (pose.dim() == 4)
      check_tensor(op, "pose", pose, {B, J, 3, 3}, dtype, pose);
    else
      check_tensor(op, "pose", pose, {B, J, 3}, dtype, pose);
    check_tensor(op, "betas", betas, {B, S}, dtype, pose);
    check_tensor(op, "v_template", v_template_, {V, 3}, dtype, pose);
    check_tensor(op, "shapedirs", shapedirs_, {S, V, 3}, dtype, pose);
    check_tensor(op, "posedirs", posedirs_, {9 * (J - 1), V, 3}, dtype, pose);
    check_tensor(op, "joint_template", joint_template_, {J, 3}, dtype, pose);
    check_tensor(op, "joint_shapedirs", joint_shapedirs_, {S, J, 3}, dtype, pose);
    check_tensor(op, "skin_joints", skin_joints_, {V, K}, ScalarType::Int, pose);
    check_tensor(op, "skin_weights", skin_weights_, {V, K}, dtype, pose);
    check_tensor(op, "parents", parents_, {J}, ScalarType::Int, pose);
    v_template = torch::stable::contiguous(v_template_);
    shapedirs = torch::stable::contiguous(shapedirs_);
    posedirs = torch::stable::contiguous(posedirs_);
    joint_template = torch::stable::contiguous(joint_template_);
    joint_shapedirs = torch::stable::contiguous(joint_shapedirs_);
    skin_joints = torch::stable::contiguous(skin_joints_);
    skin_weights = torch::stable::contiguous(skin_weights_);
    parents = torch::stable::contiguous(parents_);
  }

  template <typename T>
  LbsModel<T> model() const {
    return {v_template.const_data_ptr<T>(),
            shapedirs.const_data_ptr<T>(),
            posedirs.const_data_ptr<T>(),
            joint_template.const_data_ptr<T>(),
            joint_shapedirs.const_data_ptr<T>(),
            skin_joints.const_data_ptr<int32_t>(),
            skin_weights.const_data_ptr<T>(),
            parents.const_data_ptr<int32_t>(),
            v_template.size(0),
            parents.size(0),
            shapedirs.size(0),
            posedirs.size(0),
            skin_joints.size(1)};
  }
};

}  // namespace dhpe
