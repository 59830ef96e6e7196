// From tensors to the kernels' arguments: the checks and allocations that the CPU and CUDA host functions share.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "common/tensor_checks.h"
#include "refine/newton.h"

namespace dhpe {

// A new dense tensor with the numbers of `t`.
inline Tensor copied(const Tensor& t) { return torch::stable::clone(dense(t)); }

// The arguments that do not belong to the mesh, and the results.
struct NewtonTensors {
  Tensor pose, betas, rotation, cam, energy, steps, status;  // the results
  Tensor joints, confidence;
  std::optional<Tensor> intrinsics;
  std::vector<Tensor> hand;  // bones_m, bone_dirs, mean, precision, axes, low, high
  NewtonProblem problem;

  NewtonTensors(const char* op, const Tensor& pose_, const Tensor& betas_, const Tensor& rotation_, const Tensor& cam_,
                const Tensor& joints_, const Tensor& confidence_, const std::optional<Tensor>& intrinsics_,
                std::vector<Tensor> hand_, const std::vector<double>& weights, int64_t iterations, double tolerance,
                bool race)
      : hand(std::move(hand_)) {
    const auto check = [&](const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
      check_tensor(op, name, t, shape, ScalarType::Double, pose_);
    };
    const int64_t B = pose_.size(0), E = joints_.size(0);
    check("pose", pose_, {B, kNewtonPose});
    check("betas", betas_, {B, kNewtonShape});
    check("rotation", rotation_, {B, 3, 3});
    check("cam", cam_, {B, 3});
    check("joints", joints_, {E, kNodes, 2});
    check("confidence", confidence_, {E, kNodes});
    STD_TORCH_CHECK(E >= 1 && B % E == 0, op, ": ", B, " hypotheses cannot be shared evenly by ", E, " images");
    STD_TORCH_CHECK(hand.size() == 7, op, ": hand has ", hand.size(), " tensors, expected 7");
    check("bones_m", hand[0], {kNodes, 3});
    check("bone_dirs", hand[1], {kNodes, 3, kNewtonShape});
    check("mean", hand[2], {kNewtonPose});
    check("precision", hand[3], {kNewtonPose, kNewtonPose});
    check("axes", hand[4], {kFingers * kFingerJoints, 3, 3});
    check("low", hand[5], {kNewtonPose});
    check("high", hand[6], {kNewtonPose});
    STD_TORCH_CHECK(weights.size() == 9, op, ": ", weights.size(), " weights given, expected 9");
    STD_TORCH_CHECK(iterations >= 0 && iterations <= INT32_MAX, op, ": ", iterations, " iterations");
    if (intrinsics_) {
      check("intrinsics", *intrinsics_, {E, 4});
      intrinsics = dense(*intrinsics_);
    }
    for (Tensor& t : hand) t = dense(t);
    joints = dense(joints_);
    confidence = dense(confidence_);
    pose = copied(pose_);
    betas = copied(betas_);
    rotation = copied(rotation_);
    cam = copied(cam_);
    energy = new_dense(pose, {B});
    steps = torch::stable::new_empty(pose, {B}, ScalarType::Int);
    status = torch::stable::new_empty(pose, {B}, ScalarType::Int);
    const auto at = [](const Tensor& t) { return t.const_data_ptr<double>(); };
    problem = {{at(hand[0]), at(hand[1]), at(hand[2]), at(hand[3]), at(hand[4]), at(hand[5]), at(hand[6])},
               {weights[0], weights[1], weights[2], weights[3], weights[4], weights[5], weights[6]},
               at(joints),
               at(confidence),
               intrinsics ? at(*intrinsics) : nullptr,
               E,
               B,
               static_cast<int32_t>(iterations),
               tolerance,
               race};
  }

  NewtonStates states() const {
    return {pose.mutable_data_ptr<double>(),   betas.mutable_data_ptr<double>(),  rotation.mutable_data_ptr<double>(),
            cam.mutable_data_ptr<double>(),    energy.mutable_data_ptr<double>(), steps.mutable_data_ptr<int32_t>(),
            status.mutable_data_ptr<int32_t>()};
  }
};

}  // namespace dhpe
