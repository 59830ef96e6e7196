#include <algorithm>
#include <memory>

#include "lbs/lbs_kernels.h"

namespace dhpe {
namespace {

// Up to so many hands go one by one, threads sharing the vertices of each. More go in groups, whatever the number of
// threads: the two ways may differ in the last bit.
constexpr int64_t kSharedHands = 2;
constexpr int64_t kVertsPerTask = 192;
constexpr int64_t kHandsPerTask = 16;  // fills the widest vectors

// Kept by each thread: asking the system for so much memory takes longer than posing a hand.
template <typename T>
HandScratch<T>& hand_scratch() {
  static thread_local const std::unique_ptr<HandScratch<T>> scratch(new HandScratch<T>);
  return *scratch;
}

// Calls pose_group(begin, end) for ranges of hands, all of them whole groups but the last.
template <typename Function>
void for_each_group(int64_t B, Function&& pose_group) {
  torch::stable::parallel_for(0, (B + kHandsPerTask - 1) / kHandsPerTask, 1, [&](int64_t begin, int64_t end) {
    pose_group(begin * kHandsPerTask, std::min(end * kHandsPerTask, B));
  });
}

template <typename T>
void forward(const LbsForward<T>& p, int64_t B) {
  if (B > kSharedHands) {
    for_each_group(B, [&](int64_t begin, int64_t end) { DHPE_CALL_SIMD(lbs_group_forward, p, begin, end); });
    return;
  }
  const LbsModel<T>& m = p.model;
  const int64_t width = m.n_joints * (p.pose_is_matrix ? 9 : 3);
  PosedHand<T>& posed = hand_scratch<T>().posed;
  for (int64_t hand = 0; hand < B; ++hand) {
    DHPE_CALL_SIMD(lbs_pose, m, p.pose + hand * width, p.pose_is_matrix, p.betas + hand * m.n_shape, posed);
    torch::stable::parallel_for(0, m.n_verts, kVertsPerTask, [&](int64_t begin, int64_t end) {
      DHPE_CALL_SIMD(lbs_verts, p, hand, posed, begin, end);
    });
    std::copy_n(posed.chain.position, 3 * m.n_joints, p.joints + hand * 3 * m.n_joints);
  }
}

template <typename T>
void backward(const LbsBackward<T>& p, int64_t B) {
  if (B > kSharedHands) {
    for_each_group(B, [&](int64_t begin, int64_t end) { DHPE_CALL_SIMD(lbs_group_backward, p, begin, end); });
    return;
  }
  const LbsModel<T>& m = p.model;
  const int64_t width = m.n_joints * (p.pose_is_matrix ? 9 : 3);
  PosedHand<T>& posed = hand_scratch<T>().posed;
  VertexSums<T>* halves = hand_scratch<T>().halves;
  for (int64_t hand = 0; hand < B; ++hand) {
    DHPE_CALL_SIMD(lbs_backward_pose, m, p.pose + hand * width, p.pose_is_matrix, p.betas + hand * m.n_shape, posed);
    torch::stable::parallel_for(0, kHalves, 1, [&](int64_t begin, int64_t end) {
      for (int64_t half = begin; half < end; ++half)
        DHPE_CALL_SIMD(lbs_backward_half, p, hand, posed, static_cast<int>(half), halves[half]);
    });
    DHPE_CALL_SIMD(lbs_backward_finish, p, hand, posed, halves);
  }
}

LbsForwardTensors forward(LbsModelTensors model, const Tensor& pose, const Tensor& betas, bool keep_bent) {
  check_lbs_indices("lbs", model);
  // One by one, hands need a place for it anyway.
  LbsForwardTensors tensors(std::move(model), pose, betas, keep_bent || pose.size(0) <= kSharedHands);
  DHPE_DISPATCH_FLOATING(pose, [&] { forward(tensors.params<scalar_t>(), pose.size(0)); });
  return tensors;
}

std::tuple<Tensor, Tensor, Tensor> lbs_cpu(Tensor pose, Tensor betas, Tensor v_template, Tensor shapedirs,
                                           Tensor posedirs, Tensor joint_template, Tensor joint_shapedirs,
                                           Tensor skin_joints, Tensor skin_weights, Tensor parents) {
  const LbsForwardTensors tensors = forward({"lbs", pose, betas, v_template, shapedirs, posedirs, joint_template,
                                             joint_shapedirs, skin_joints, skin_weights, parents},
                                            pose, betas, true);
  return {tensors.verts, tensors.joints, tensors.bent};
}

std::tuple<Tensor, Tensor> lbs_values_cpu(Tensor pose, Tensor betas, Tensor v_template, Tensor shapedirs,
                                          Tensor posedirs, Tensor joint_template, Tensor joint_shapedirs,
                                          Tensor skin_joints, Tensor skin_weights, Tensor parents) {
  const LbsForwardTensors tensors = forward({"lbs", pose, betas, v_template, shapedirs, posedirs, joint_template,
                                             joint_shapedirs, skin_joints, skin_weights, parents},
                                            pose, betas, false);
  return {tensors.verts, tensors.joints};
}

std::tuple<Tensor, Tensor> lbs_backward_cpu(Tensor grad_verts, Tensor grad_joints, Tensor bent, Tensor pose,
                                            Tensor betas, Tensor v_template, Tensor shapedirs, Tensor posedirs,
                                            Tensor joint_template, Tensor joint_shapedirs, Tensor skin_joints,
                                            Tensor skin_weights, Tensor parents) {
  LbsModelTensors model("_lbs_backward", pose, betas, v_template, shapedirs, posedirs, joint_template, joint_shapedirs,
                        skin_joints, skin_weights, parents);
  check_lbs_indices("_lbs_backward", model);
  const LbsBackwardTensors tensors(std::move(model), grad_verts, grad_joints, bent, pose, betas);
  DHPE_DISPATCH_FLOATING(pose, [&] { backward(tensors.params<scalar_t>(), pose.size(0)); });
  return {tensors.grad_pose, tensors.grad_betas};
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CPU, m) {
  m.impl("lbs", TORCH_BOX(&dhpe::lbs_cpu));
  m.impl("_lbs_values", TORCH_BOX(&dhpe::lbs_values_cpu));
  m.impl("_lbs_backward", TORCH_BOX(&dhpe::lbs_backward_cpu));
}
