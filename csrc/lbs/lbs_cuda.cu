// Linear blend skinning on the GPU: the ops, and which of two paths serves a batch.
#include "lbs/lbs_cuda.h"
#include "lbs/lbs_tensors.h"

namespace dhpe {
namespace {

// From so many hands on, tiles of many hands share what they read of the basis. Predicted for MANO on an H100: a small
// batch takes one launch of about 3 us and 0.25 us a hand, to read 1.35 MB of basis at the L2 cache's 5.5 TB/s; a large
// one takes two launches of about 3 and 7 us as long as its tiles find free SMs, to 64 hands and beyond. They meet near
// 30 hands; backward, where both paths have further launches, again near 30.
constexpr int64_t kTiledBatch = 32;

}  // namespace

template <typename T>
void launch_forward(const LbsForward<T>& p, int64_t B, const Tensor& like, cudaStream_t stream) {
  if (B < kTiledBatch) {
    launch_fused_forward(p, B, stream);
  } else {
    const Tensor scratch = new_dense(like, {tiled_forward_scratch(p.model, B)});
    launch_tiled_forward(p, B, scratch.mutable_data_ptr<T>(), stream);
  }
}

template <typename T>
void launch_backward(const LbsBackward<T>& p, int64_t B, const Tensor& like, cudaStream_t stream) {
  const bool is_tiled = B >= kTiledBatch;
  const Tensor scratch =
      new_dense(like, {is_tiled ? tiled_backward_scratch(p.model, B) : fused_backward_scratch(p.model, B)});
  T* at = scratch.mutable_data_ptr<T>();
  is_tiled ? launch_tiled_backward(p, B, at, stream) : launch_fused_backward(p, B, at, stream);
}

#define DHPE_INSTANTIATE(T)                                                                    \
  template void launch_forward<T>(const LbsForward<T>&, int64_t, const Tensor&, cudaStream_t); \
  template void launch_backward<T>(const LbsBackward<T>&, int64_t, const Tensor&, cudaStream_t);
DHPE_INSTANTIATE(float)
DHPE_INSTANTIATE(double)
#undef DHPE_INSTANTIATE

namespace {

LbsForwardTensors forward(LbsModelTensors model, const Tensor& pose, const Tensor& betas, bool keep_bent) {
  const torch::stable::accelerator::DeviceGuard guard(pose.get_device_index());
  LbsForwardTensors tensors(std::move(model), pose, betas, keep_bent);
  const int64_t B = pose.size(0);
  if (B == 0) return tensors;
  const cudaStream_t stream = current_stream(pose);
  DHPE_DISPATCH_FLOATING(pose, [&] { launch_forward(tensors.params<scalar_t>(), B, tensors.verts, stream); });
  return tensors;
}

std::tuple<Tensor, Tensor, Tensor> lbs_cuda(Tensor pose, Tensor betas, Tensor v_template, Tensor shapedirs,
                                            Tensor posedirs, Tensor joint_template, Tensor joint_shapedirs,
                                            Tensor skin_joints, Tensor skin_weights, Tensor parents) {
  const LbsForwardTensors tensors = forward({"lbs", pose, betas, v_template, shapedirs, posedirs, joint_template,
                                             joint_shapedirs, skin_joints, skin_weights, parents},
                                            pose, betas, true);
  return {tensors.verts, tensors.joints, tensors.bent};
}

std::tuple<Tensor, Tensor> lbs_values_cuda(Tensor pose, Tensor betas, Tensor v_template, Tensor shapedirs,
                                           Tensor posedirs, Tensor joint_template, Tensor joint_shapedirs,
                                           Tensor skin_joints, Tensor skin_weights, Tensor parents) {
  const LbsForwardTensors tensors = forward({"lbs", pose, betas, v_template, shapedirs, posedirs, joint_template,
                                             joint_shapedirs, skin_joints, skin_weights, parents},
                                            pose, betas, false);
  return {tensors.verts, tensors.joints};
}

std::tuple<Tensor, Tensor> lbs_backward_cuda(Tensor grad_verts, Tensor grad_joints, Tensor bent, Tensor pose,
                                             Tensor betas, Tensor v_template, Tensor shapedirs, Tensor posedirs,
                                             Tensor joint_template, Tensor joint_shapedirs, Tensor skin_joints,
                                             Tensor skin_weights, Tensor parents) {
  const torch::stable::accelerator::DeviceGuard guard(pose.get_device_index());
  const LbsBackwardTensors tensors({"_lbs_backward", pose, betas, v_template, shapedirs, posedirs, joint_template,
                                    joint_shapedirs, skin_joints, skin_weights, parents},
                                   grad_verts, grad_joints, bent, pose, betas);
  const int64_t B = pose.size(0);
  if (B == 0) return {tensors.grad_pose, tensors.grad_betas};
  const cudaStream_t stream = current_stream(pose);
  DHPE_DISPATCH_FLOATING(pose, [&] { launch_backward(tensors.params<scalar_t>(), B, tensors.bent, stream); });
  return {tensors.grad_pose, tensors.grad_betas};
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CUDA, m) {
  m.impl("lbs", TORCH_BOX(&dhpe::lbs_cuda));
  m.impl("_lbs_values", TORCH_BOX(&dhpe::lbs_values_cuda));
  m.impl("_lbs_backward", TORCH_BOX(&dhpe::lbs_backward_cuda));
}
