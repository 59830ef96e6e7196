// From tensors to the kernels' arguments: the checks and allocations that the CPU and CUDA host functions share.
#pragma once

#include <tuple>
#include <utility>

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
    check_tensor(op, "parents", parents_, {-1}, ScalarType::Int, pose);
    const int64_t V = extent(v_template_, 0), J = parents_.size(0), S = extent(shapedirs_, 0);
    const int64_t K = extent(skin_joints_, 1);
    STD_TORCH_CHECK(J >= 1 && J <= kMaxJoints, op, ": ", J, " joints given, 1 to ", kMaxJoints, " accepted");
    STD_TORCH_CHECK(S + 9 * (J - 1) <= kMaxCoeffs, op, ": ", S, " shape directions are too many");
    const int64_t B = extent(pose, 0);
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
    v_template = dense(v_template_);
    shapedirs = dense(shapedirs_);
    posedirs = dense(posedirs_);
    joint_template = dense(joint_template_);
    joint_shapedirs = dense(joint_shapedirs_);
    skin_joints = dense(skin_joints_);
    skin_weights = dense(skin_weights_);
    parents = dense(parents_);
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

// Inputs and freshly allocated outputs of a forward pass.
struct LbsForwardTensors {
  LbsModelTensors model;
  Tensor pose, betas, verts, joints, bent;

  LbsForwardTensors(LbsModelTensors model_, const Tensor& pose_, const Tensor& betas_, bool keep_bent = true)
      : model(std::move(model_)) {
    const int64_t B = pose_.size(0), V = model.v_template.size(0);
    pose = dense(pose_);
    betas = dense(betas_);
    verts = new_dense(pose, {B, V, 3});
    joints = new_dense(pose, {B, model.parents.size(0), 3});
    bent = new_dense(pose, {keep_bent ? B : 0, V, 3});
  }

  template <typename T>
  LbsForward<T> params() const {
    return {model.model<T>(),
            pose.const_data_ptr<T>(),
            pose.dim() == 4,
            betas.const_data_ptr<T>(),
            verts.mutable_data_ptr<T>(),
            joints.mutable_data_ptr<T>(),
            bent.size(0) ? bent.mutable_data_ptr<T>() : nullptr};
  }
};

// Checked inputs and freshly allocated outputs of a backward pass.
struct LbsBackwardTensors {
  LbsModelTensors model;
  Tensor grad_verts, grad_joints, bent, pose, betas, grad_pose, grad_betas, grad_bent;

  LbsBackwardTensors(LbsModelTensors model_, const Tensor& grad_verts_, const Tensor& grad_joints_, const Tensor& bent_,
                     const Tensor& pose_, const Tensor& betas_)
      : model(std::move(model_)) {
    const char* op = "_lbs_backward";
    const int64_t B = pose_.size(0), V = model.v_template.size(0), J = model.parents.size(0);
    check_tensor(op, "grad_verts", grad_verts_, {B, V, 3}, pose_.scalar_type(), pose_);
    check_tensor(op, "grad_joints", grad_joints_, {B, J, 3}, pose_.scalar_type(), pose_);
    check_tensor(op, "bent", bent_, {B, V, 3}, pose_.scalar_type(), pose_);
    grad_verts = dense(grad_verts_);
    grad_joints = dense(grad_joints_);
    bent = dense(bent_);
    pose = dense(pose_);
    betas = dense(betas_);
    grad_pose = pose.dim() == 4 ? new_dense(pose, {B, J, 3, 3}) : new_dense(pose, {B, J, 3});
    grad_betas = new_dense(betas, {B, model.shapedirs.size(0)});
    grad_bent = new_dense(bent, {B, V, 3});
  }

  template <typename T>
  LbsBackward<T> params() const {
    return {model.model<T>(),
            pose.const_data_ptr<T>(),
            pose.dim() == 4,
            betas.const_data_ptr<T>(),
            bent.const_data_ptr<T>(),
            grad_verts.const_data_ptr<T>(),
            grad_joints.const_data_ptr<T>(),
            grad_pose.mutable_data_ptr<T>(),
            grad_betas.mutable_data_ptr<T>(),
            grad_bent.mutable_data_ptr<T>()};
  }
};

}  // namespace dhpe
