// Levenberg-Marquardt on the GPU, for the energy of the skeleton alone: one block takes one hypothesis through all of
// its steps. The host launches once and waits for nothing, so that a CUDA graph can hold the launch.
#include "common/cuda_launch.h"
#include "refine/newton_math.h"
#include "refine/newton_tensors.h"

namespace dhpe {
namespace {

constexpr int kThreads = 128, kThreadRows = 16, kThreadLanes = 8;
static_assert(kThreadRows * kThreadLanes == kThreads);

struct BlockTeam {
  int thread;

  DHPE_HD int rank() const { return thread; }
  DHPE_HD int row() const { return thread / kThreadLanes; }
  DHPE_HD int lane() const { return thread % kThreadLanes; }
  DHPE_HD static constexpr int size() { return kThreads; }
  DHPE_HD static constexpr int rows() { return kThreadRows; }
  DHPE_HD static constexpr int lanes() { return kThreadLanes; }
  DHPE_HD void sync() const {
#if defined(__CUDA_ARCH__)
    __syncthreads();
#endif
  }
};

// Every thread keeps the hypothesis' progress: they all come to the same numbers from those in shared memory.
__global__ void __launch_bounds__(kThreads) newton_kernel(NewtonProblem problem, NewtonStates states) {
  extern __shared__ double memory[];
  NewtonHypothesis& h = *reinterpret_cast<NewtonHypothesis*>(memory);
  const BlockTeam team = {static_cast<int>(threadIdx.x)};
  const NoMesh mesh;
  for (int64_t number = blockIdx.x; number < problem.n_hypotheses; number += gridDim.x) {
    const NewtonEvidence evidence = evidence_of(problem, number);
    NewtonProgress progress;
    load_state(team, states, number, h.points[0].state);
    newton_start(team, problem, evidence, mesh, h, progress);
    while (!is_done(progress, problem)) newton_step(team, problem, evidence, mesh, h, progress);
    team.sync();
    store_state(team, h.points[progress.place].state, number, states);
    if (team.rank() == 0) {
      states.energy[number] = progress.energy;
      states.steps[number] = progress.steps;
      states.status[number] = status_of(progress);
    }
    team.sync();
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> newton_minimize_cuda(
    Tensor pose, Tensor betas, Tensor rotation, Tensor cam, Tensor joints, Tensor confidence,
    std::optional<Tensor> intrinsics, std::optional<Tensor> mask, std::vector<Tensor> hand, std::vector<Tensor> mesh,
    std::vector<double> weights, int64_t iterations, double tolerance, bool race) {
  const char* op = "newton_minimize";
  STD_TORCH_CHECK(mesh.empty() && !mask && !race, op, ": on CUDA there are no mesh terms and no races");
  const torch::stable::accelerator::DeviceGuard guard(pose.get_device_index());
  const NewtonTensors t(op, pose, betas, rotation, cam, joints, confidence, intrinsics, std::move(hand), weights,
                        iterations, tolerance, race);
  constexpr int kBytes = sizeof(NewtonHypothesis);
  constexpr int64_t kMaxBlocks = 1 << 16;
  if (t.problem.n_hypotheses > 0) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(newton_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    const auto n_blocks = static_cast<unsigned>(std::min(t.problem.n_hypotheses, kMaxBlocks));
    newton_kernel<<<n_blocks, kThreads, kBytes, current_stream(t.pose)>>>(t.problem, t.states());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {t.pose, t.betas, t.rotation, t.cam, t.energy, t.steps, t.status};
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CUDA, m) { m.impl("newton_minimize", TORCH_BOX(&dhpe::newton_minimize_cuda)); }
