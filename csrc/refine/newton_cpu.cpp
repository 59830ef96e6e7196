// Levenberg-Marquardt on the CPU: all steps of all hypotheses in one call, threads over hypotheses. What a hypothesis
// does depends on no thread: alone it sees no other, and in a race all of a group take a step before they are compared.
#include <algorithm>
#include <tuple>

#include "common/simd.h"
#include "refine/newton_mesh.h"
#include "refine/newton_tensors.h"

namespace dhpe {

#define DHPE_NEWTON_KERNELS                                                                                    \
  void newton_begin(const NewtonProblem& problem, const NewtonStates& states, int64_t hypothesis,              \
                    NewtonMeshTerms* terms, NewtonHypothesis& h, NewtonProgress& progress);                    \
  void newton_advance(const NewtonProblem& problem, int64_t hypothesis, NewtonMeshTerms* terms, int32_t count, \
                      NewtonHypothesis& h, NewtonProgress& progress);                                          \
  void newton_end(const NewtonStates& states, int64_t hypothesis, const NewtonHypothesis& h,                   \
                  const NewtonProgress& progress)
DHPE_DECLARE_SIMD(DHPE_NEWTON_KERNELS)
#undef DHPE_NEWTON_KERNELS

namespace {

const char* const kOp = "newton_minimize";

// A hypothesis on its way, and the mesh that it moves, if any.
template <typename T>
struct Runner {
  NewtonHypothesis hypothesis;
  NewtonProgress progress;
  std::unique_ptr<MeshTerms<T>> mesh;

  void begin(const NewtonProblem& problem, const NewtonStates& states, int64_t number) {
    DHPE_CALL_SIMD(newton_begin, problem, states, number, mesh.get(), hypothesis, progress);
  }
  void advance(const NewtonProblem& problem, int64_t number, int32_t count) {
    DHPE_CALL_SIMD(newton_advance, problem, number, mesh.get(), count, hypothesis, progress);
  }
  void end(const NewtonStates& states, int64_t number) const {
    DHPE_CALL_SIMD(newton_end, states, number, hypothesis, progress);
  }
};

template <typename T>
class Solver {
 public:
  Solver(const NewtonProblem& problem, const NewtonStates& states, const NewtonMesh<T>* mesh)
      : problem_(problem), states_(states), mesh_(mesh) {
    if (mesh && mesh->masks) edges_ = find_edges(mesh->faces, mesh->n_faces);
  }

  // Each hypothesis until it is done.
  void run() const {
    torch::stable::parallel_for(0, problem_.n_hypotheses, 1, [&](int64_t begin, int64_t end) {
      const auto runner = std::make_unique<Runner<T>>();
      for (int64_t number = begin; number < end; ++number) {
        take(number, *runner);
        runner->begin(problem_, states_, number);
        runner->advance(problem_, number, problem_.iterations);
        runner->end(states_, number);
      }
    });
  }

  // A step of each hypothesis of a group; then those rest that the best will beat.
  void race(int64_t group) const {
    const int64_t size = problem_.n_hypotheses / problem_.n_groups, first = group * size;
    std::vector<Runner<T>> runners(size);
    const auto for_each = [&](const auto& visit) {
      torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) visit(first + i, runners[i]);
      });
    };
    for_each([&](int64_t number, Runner<T>& runner) {
      take(number, runner);
      runner.begin(problem_, states_, number);
    });
    for (int32_t taken = 1; taken <= problem_.iterations; ++taken) {
      const auto runs = [](const Runner<T>& r) { return !r.progress.resting && r.progress.idle < kIdleSteps; };
      if (std::none_of(runners.begin(), runners.end(), runs)) break;
      for_each([&](int64_t number, Runner<T>& runner) { runner.advance(problem_, number, 1); });
      drop_beaten(runners, problem_.iterations - taken);
    }
    for_each([&](int64_t number, Runner<T>& runner) { runner.end(states_, number); });
  }

 private:
  void take(int64_t number, Runner<T>& runner) const {
    const int64_t group = number / (problem_.n_hypotheses / problem_.n_groups);
    const double* intrinsics = problem_.intrinsics ? problem_.intrinsics + 4 * group : nullptr;
    if (mesh_ && (!runner.mesh || problem_.n_groups > 1))
      runner.mesh = std::make_unique<MeshTerms<T>>(*mesh_, edges_, intrinsics, group);
  }

  // Those that would not overtake the best in all the steps left, at the rate of their last one that was kept.
  static void drop_beaten(std::vector<Runner<T>>& runners, int32_t left) {
    double best = HUGE_VAL;
    for (const Runner<T>& runner : runners) best = std::min(best, runner.progress.energy);
    for (Runner<T>& runner : runners) {
      NewtonProgress& progress = runner.progress;
      if (progress.energy - best > progress.last_gain * left) progress.resting = true;
    }
  }

  const NewtonProblem& problem_;
  const NewtonStates& states_;
  const NewtonMesh<T>* mesh_;
  MeshEdges edges_;
};

template <typename T>
void minimize(const NewtonTensors& tensors, const NewtonMesh<T>* mesh) {
  const NewtonProblem& problem = tensors.problem;
  const NewtonStates states = tensors.states();
  const Solver<T> solver(problem, states, mesh);
  if (!problem.race) return solver.run();
  // Threads share the groups, or the hypotheses of a single one.
  torch::stable::parallel_for(0, problem.n_groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) solver.race(group);
  });
}

void check_range(const Tensor& t, const char* name, int64_t end) {
  const int32_t* values = t.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < t.numel(); ++i)
    STD_TORCH_CHECK(values[i] >= 0 && values[i] < end, kOp, ": ", name, " holds ", values[i], ", expected 0 to ",
                    end - 1);
}

// What the mesh terms need: the basis of `lbs`, tips, faces, and the Laplacian by rows.
struct NewtonMeshTensors {
  LbsModelTensors model;
  Tensor tips, faces, start, column, value;
  std::optional<Tensor> mask;

  NewtonMeshTensors(const std::vector<Tensor>& mesh, const std::optional<Tensor>& mask_, int64_t n_groups)
      : model(basis(mesh)),
        tips(dense(mesh[8])),
        faces(dense(mesh[9])),
        start(dense(mesh[10])),
        column(dense(mesh[11])),
        value(dense(mesh[12])) {
    const Tensor& like = model.v_template;
    const int64_t V = like.size(0);
    check_lbs_indices(kOp, model);
    check_tensor(kOp, "tips", tips, {kFingers}, ScalarType::Int, like);
    check_tensor(kOp, "faces", faces, {-1, 3}, ScalarType::Int, like);
    check_tensor(kOp, "laplacian.start", start, {V + 1}, ScalarType::Int, like);
    check_tensor(kOp, "laplacian.column", column, {value.size(0)}, ScalarType::Int, like);
    check_tensor(kOp, "laplacian.value", value, {-1}, like.scalar_type(), like);
    check_range(tips, "tips", V);
    check_range(faces, "faces", V);
    check_range(column, "laplacian.column", V);
    const int32_t* rows = start.const_data_ptr<int32_t>();
    for (int64_t v = 0; v < V; ++v) STD_TORCH_CHECK(rows[v] <= rows[v + 1], kOp, ": laplacian.start does not ascend");
    STD_TORCH_CHECK(rows[0] == 0 && rows[V] == column.size(0), kOp, ": laplacian.start does not span the columns");
    if (!mask_) return;
    mask = dense(*mask_);
    check_tensor(kOp, "mask", *mask, {n_groups, -1, mask->size(-1)}, like.scalar_type(), like);
    STD_TORCH_CHECK(mask->size(1) == mask->size(2) && mask->size(1) >= 1 && mask->size(1) <= kMaxImageSize, kOp,
                    ": mask is ", mask->size(1), " x ", mask->size(2), ", expected a square of 1 to ", kMaxImageSize);
  }

  template <typename T>
  NewtonMesh<T> mesh(const std::vector<double>& weights) const {
    return {model.model<T>(),
            tips.const_data_ptr<int32_t>(),
            faces.const_data_ptr<int32_t>(),
            faces.size(0),
            {start.const_data_ptr<int32_t>(), column.const_data_ptr<int32_t>(), value.const_data_ptr<T>(),
             model.v_template.size(0)},
            mask ? mask->const_data_ptr<T>() : nullptr,
            mask ? static_cast<int>(mask->size(1)) : 0,
            weights[8],
            weights[7]};
  }

 private:
  static LbsModelTensors basis(const std::vector<Tensor>& mesh) {
    STD_TORCH_CHECK(mesh.size() == 13, kOp, ": mesh has ", mesh.size(), " tensors, expected 13 or none");
    const Tensor pose = new_dense(mesh[0], {0, kFingers * kFingerJoints + 1, 3});  // hands come one by one
    const Tensor betas = new_dense(mesh[0], {0, kNewtonShape});
    return {kOp, pose, betas, mesh[0], mesh[1], mesh[2], mesh[3], mesh[4], mesh[5], mesh[6], mesh[7]};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> newton_minimize_cpu(
    Tensor pose, Tensor betas, Tensor rotation, Tensor cam, Tensor joints, Tensor confidence,
    std::optional<Tensor> intrinsics, std::optional<Tensor> mask, std::vector<Tensor> hand, std::vector<Tensor> mesh,
    std::vector<double> weights, int64_t iterations, double tolerance, bool race) {
  const NewtonTensors t(kOp, pose, betas, rotation, cam, joints, confidence, intrinsics, std::move(hand), weights,
                        iterations, tolerance, race);
  if (mesh.empty()) {
    STD_TORCH_CHECK(!mask, kOp, ": a mask needs a mesh");
    minimize<double>(t, nullptr);
  } else {
    const NewtonMeshTensors terms(mesh, mask, joints.size(0));
    DHPE_DISPATCH_FLOATING(terms.model.v_template, [&] {
      const NewtonMesh<scalar_t> typed = terms.mesh<scalar_t>(weights);
      minimize(t, &typed);
    });
  }
  return {t.pose, t.betas, t.rotation, t.cam, t.energy, t.steps, t.status};
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CPU, m) { m.impl("newton_minimize", TORCH_BOX(&dhpe::newton_minimize_cpu)); }
