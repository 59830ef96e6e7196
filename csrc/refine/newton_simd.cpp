// Levenberg-Marquardt of one hypothesis on the CPU, compiled once per instruction set (see common/simd.h).
#include "refine/newton_math.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {
namespace {

struct MeshIfAny {
  NewtonMeshTerms* terms;

  double energy(NewtonPoint& p) const { return terms ? terms->energy(p) : 0; }
  const double* gradient(const NewtonPoint& p) const { return terms ? terms->gradient(p) : nullptr; }
};

}  // namespace

// Reads where a hypothesis starts.
void newton_begin(const NewtonProblem& problem, const NewtonStates& states, int64_t hypothesis, NewtonMeshTerms* terms,
                  NewtonHypothesis& h, NewtonProgress& progress) {
  MeshIfAny mesh = {terms};
  load_state(Solo(), states, hypothesis, h.points[0].state);
  newton_start(Solo(), problem, evidence_of(problem, hypothesis), mesh, h, progress);
}

// Takes steps until the hypothesis is done, or `count` of them.
void newton_advance(const NewtonProblem& problem, int64_t hypothesis, NewtonMeshTerms* terms, int32_t count,
                    NewtonHypothesis& h, NewtonProgress& progress) {
  MeshIfAny mesh = {terms};
  const NewtonEvidence evidence = evidence_of(problem, hypothesis);
  for (int32_t i = 0; i < count && !is_done(progress, problem); ++i)
    newton_step(Solo(), problem, evidence, mesh, h, progress);
}

// Writes where it ended.
void newton_end(const NewtonStates& states, int64_t hypothesis, const NewtonHypothesis& h,
                const NewtonProgress& progress) {
  store_state(Solo(), h.points[progress.place].state, hypothesis, states);
  states.energy[hypothesis] = progress.energy;
  states.steps[hypothesis] = progress.steps;
  states.status[hypothesis] = status_of(progress);
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
