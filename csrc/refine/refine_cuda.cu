// refine_* on the GPU: the host queues the launches of all iterations and never waits for one, so that a stream which
// is captured into a graph will do. Skinning and silhouettes are those of their ops. Between them a block takes a hand:
//
//   skinning -> mesh_kernel: camera, Laplacian, joints -> [mask -> its sums -> its gradient -> back to the vertices]
//   -> camera_kernel (without a mask, part of mesh_kernel) -> skinning backwards -> finish_kernel: priors, energies,
//   step
//
// Without a mask an iteration is five launches. Hands at rest are computed on and do not move.
#include "raster/silhouette_cuda.h"
#include "refine/refine_cuda.h"
#include "refine/refine_tensors.h"

namespace dhpe {
namespace {

// The memory of a batch at work, and the launches of one evaluation.
template <typename T>
class HandsRefiner {
 public:
  HandsRefiner(const RefineModelTensors& tensors, const RefineOptions& options, const RefineTargets<T>& targets,
               bool deterministic)
      : tensors_(tensors),
        model_(tensors.model<T>()),
        options_(options),
        targets_(targets),
        deterministic_(deterministic),
        B_(tensors.h.size(0)),
        stream_(current_stream(tensors.h)) {
    const int64_t V = model_.lbs.n_verts, n = B_ * V * 3, joints = B_ * 3 * kHandJoints, betas = B_ * kShapeSize;
    numbers_ = new_dense(tensors.h, {6 * n + 4 * joints + 2 * betas + B_ * (kCameraSums + kFoundTerms + 1)});
    sums_ = torch::stable::new_empty(tensors.h, {B_ * kMaskParts * kMaskSums}, ScalarType::Double);
    T* at = numbers_.template mutable_data_ptr<T>();
    const auto take = [&at](int64_t count) {
      T* begin = at;
      at += count;
      return begin;
    };
    work_.verts_m = take(n);
    work_.verts = take(n);
    work_.directions = take(n);
    work_.grad_verts = take(n);
    bent_ = take(n);
    grad_bent_ = take(n);
    work_.pose = take(joints);
    joints_m_ = take(joints);
    no_gradient_ = take(joints);
    grad_pose_ = take(joints);
    work_.betas = take(betas);
    grad_betas_ = take(betas);
    work_.camera = take(B_ * kCameraSums);
    work_.found = take(B_ * kFoundTerms);
    work_.feature_weight = take(B_);
    work_.mask_sums = sums_.template mutable_data_ptr<double>();
    work_.verts_px = options.draws() ? tensors.mesh->verts_px.template mutable_data_ptr<T>() : nullptr;
    work_.grad_pose = grad_pose_;
    work_.grad_betas = grad_betas_;
    zero_async(no_gradient_, joints * static_cast<int64_t>(sizeof(T)), stream_);
  }

  // From h to the parameters for skinning; after a step they are there already.
  void start(const T* h) {
    work_.h = h;
    start_kernel<T><<<blocks(), kFinishThreads, 0, stream_>>>(work_);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  void evaluate(const FinishTask<T>& task) {
    const bool with_gradient = task.grad_h || task.moves;
    pose(with_gradient);
    work_.grad_px = nullptr;
    Tensor grad_px;
    if (options_.draws()) grad_px = take_mask(with_gradient);
    if (with_gradient) {
      if (options_.draws()) {
        work_.grad_px = grad_px.template const_data_ptr<T>();
        camera_kernel<T><<<blocks(), kMeshThreads, 0, stream_>>>(model_, options_, work_);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      }
      const LbsBackward<T> p = {model_.lbs,       work_.pose,   false,      work_.betas, bent_,
                                work_.grad_verts, no_gradient_, grad_pose_, grad_betas_, grad_bent_};
      launch_backward(p, B_, numbers_, stream_);
    }
    finish_kernel<T><<<blocks(), kFinishThreads, 0, stream_>>>(model_, options_, work_, task);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  Tensor draw() {
    pose(false);
    return draw_mask();
  }

 private:
  unsigned blocks() const { return static_cast<unsigned>(B_); }

  void pose(bool with_gradient) {
    const LbsForward<T> p = {model_.lbs, work_.pose, false, work_.betas, work_.verts_m, joints_m_, bent_};
    launch_forward(p, B_, numbers_, stream_);
    mesh_kernel<T><<<blocks(), kMeshThreads, 0, stream_>>>(model_, targets_, options_, work_, with_gradient);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  Tensor draw_mask() {
    const Tensor &verts_px = tensors_.mesh->verts_px, &faces = tensors_.mesh->faces;
    const int64_t size = options_.image_size;
    if (options_.mode == SilhouetteMode::edge)
      return silhouette_edge_cuda(verts_px, faces, size, size, std::nullopt, true);
    auto [mask, face_index] = silhouette_nmr_cuda(verts_px, faces, size, size, std::nullopt, true, kNmrEps);
    face_index_ = face_index;
    return mask;
  }

  // The terms of the mask, and their gradient by the vertices in pixels.
  Tensor take_mask(bool with_gradient) {
    const Tensor mask = draw_mask();
    const dim3 grid(blocks(), kMaskParts);  // along y there may be 65,535 blocks at most
    mask_sums_kernel<T>
        <<<grid, kMeshThreads, 0, stream_>>>(targets_, options_, work_, mask.template const_data_ptr<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    const int64_t size = options_.image_size;
    const Tensor grad_mask = new_dense(tensors_.h, {with_gradient ? B_ : 0, size, size});
    T* grad = with_gradient ? grad_mask.template mutable_data_ptr<T>() : nullptr;
    mask_gradient_kernel<T><<<grid, kMeshThreads, 0, stream_>>>(targets_, options_, work_, grad);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    if (!with_gradient) return grad_mask;
    const Tensor &verts_px = tensors_.mesh->verts_px, &faces = tensors_.mesh->faces;
    if (options_.mode == SilhouetteMode::edge)
      return silhouette_edge_backward_cuda(grad_mask, verts_px, faces, std::nullopt, true, deterministic_);
    return silhouette_nmr_backward_cuda(grad_mask, face_index_, verts_px, faces, kNmrEps, deterministic_);
  }

  const RefineModelTensors& tensors_;
  const RefineModel<T> model_;
  const RefineOptions options_;
  const RefineTargets<T> targets_;
  const bool deterministic_;
  const int64_t B_;
  const cudaStream_t stream_;
  Tensor numbers_, sums_, face_index_;
  T *bent_, *grad_bent_, *joints_m_, *no_gradient_, *grad_pose_, *grad_betas_;
  RefineWork<T> work_ = {};
};

Tensor refine_mask_cuda(Tensor h, std::vector<Tensor> model, int64_t image_size, int64_t mode) {
  const char* op = "refine_mask";
  const torch::stable::accelerator::DeviceGuard guard(h.get_device_index());
  const RefineModelTensors in(op, h, std::move(model), image_size);
  RefineOptions options = {{}, HUGE_VAL, checked_mode(op, mode), static_cast<int>(image_size)};
  options.weights[kSilhouette] = 1;
  const int64_t B = in.h.size(0);
  if (B == 0) return new_dense(in.h, {0, image_size, image_size});
  Tensor mask;
  DHPE_DISPATCH_FLOATING(in.h, [&] {
    // No joint counts.
    const Tensor nowhere = new_dense(in.h, {B, kSkeletonJoints, 2});
    STD_CUDA_CHECK(cudaMemsetAsync(nowhere.mutable_data_ptr<scalar_t>(), 0xff,
                                   static_cast<size_t>(nowhere.numel()) * sizeof(scalar_t), current_stream(in.h)));
    const RefineTargets<scalar_t> targets = {nowhere.const_data_ptr<scalar_t>(), nullptr, nullptr, nullptr, nullptr};
    HandsRefiner<scalar_t> refiner(in, options, targets, false);
    refiner.start(in.h.const_data_ptr<scalar_t>());
    mask = refiner.draw();
  });
  return mask;
}

std::tuple<Tensor, Tensor> refine_gradient_cuda(Tensor h, Tensor joints2d_px, std::optional<Tensor> mask,
                                                std::vector<Tensor> slope, std::vector<Tensor> model,
                                                std::vector<double> weights, double feature_tau_px, int64_t image_size,
                                                int64_t mode, bool deterministic) {
  const char* op = "refine_gradient";
  const torch::stable::accelerator::DeviceGuard guard(h.get_device_index());
  const EnergyTensors in(op, {op, h, std::move(model), image_size}, joints2d_px, mask, std::move(slope), weights,
                         feature_tau_px, mode);
  const int64_t B = h.size(0);
  Tensor grad_h = new_dense(in.model.h, {B, kHandSize}), terms = new_dense(in.model.h, {B, kTerms});
  if (B == 0) return {grad_h, terms};
  DHPE_DISPATCH_FLOATING(h, [&] {
    HandsRefiner<scalar_t> refiner(in.model, in.options, in.targets<scalar_t>(), deterministic);
    refiner.start(in.model.h.const_data_ptr<scalar_t>());
    FinishTask<scalar_t> task = {};
    task.terms = terms.mutable_data_ptr<scalar_t>();
    task.stride = kTerms;
    task.grad_h = grad_h.mutable_data_ptr<scalar_t>();
    refiner.evaluate(task);
  });
  return {grad_h, terms};
}

std::tuple<Tensor, Tensor, Tensor> refine_descend_cuda(Tensor h, Tensor memory, Tensor rates, Tensor joints2d_px,
                                                       std::optional<Tensor> mask, std::vector<Tensor> slope,
                                                       std::vector<Tensor> model, std::vector<double> weights,
                                                       double feature_tau_px, int64_t image_size, int64_t mode,
                                                       int64_t iterations, int64_t optimizer, double tolerance,
                                                       bool evaluate_end, bool deterministic) {
  const char* op = "refine_descend";
  const torch::stable::accelerator::DeviceGuard guard(h.get_device_index());
  const EnergyTensors in(op, {op, h, std::move(model), image_size}, joints2d_px, mask, std::move(slope), weights,
                         feature_tau_px, mode);
  const DescentOptions descent = checked_descent(op, iterations, optimizer, tolerance, evaluate_end);
  const DescentTensors out(op, in.model.h, memory, rates, descent);
  if (h.size(0) == 0) return {out.h, out.memory, out.energies};
  DHPE_DISPATCH_FLOATING(h, [&] {
    const DescentArrays<scalar_t> a = out.arrays<scalar_t>();
    HandsRefiner<scalar_t> refiner(in.model, in.options, in.targets<scalar_t>(), deterministic);
    refiner.start(a.h);
    for (int64_t t = 0; t < energy_rows(descent); ++t) {
      const bool is_exact = t == 0 || !in.options.draws_feature();
      refiner.evaluate({a.energies + t * kTerms, energy_rows(descent) * kTerms, nullptr, a.h, a.memory, a.rates,
                        descent, t == 0, is_exact, t < descent.iterations});
    }
  });
  return {out.h, out.memory, out.energies};
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CUDA, m) {
  m.impl("refine_mask", TORCH_BOX(&dhpe::refine_mask_cuda));
  m.impl("refine_gradient", TORCH_BOX(&dhpe::refine_gradient_cuda));
  m.impl("refine_descend", TORCH_BOX(&dhpe::refine_descend_cuda));
}
