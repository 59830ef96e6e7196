// refine_* on the CPU: one thread a hand, from the first iterate to the last. Results depend neither on the number of
// threads nor on the other hands of a batch.
#include "refine/hand_refiner.h"
#include "refine/refine_tensors.h"

namespace dhpe {
namespace {

// Calls visit(refiner, hand) for every hand of a batch.
template <typename T, typename Visit>
void for_hands(const RefineModel<T>& model, const RefineOptions& options, int64_t B, const Visit& visit) {
  const bool needs_edges = options.mode == SilhouetteMode::edge && options.draws();
  const MeshEdges edges = needs_edges ? find_edges(model.faces, model.n_faces) : MeshEdges{};
  torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    HandRefiner<T> refiner(model, options, edges);
    for (int64_t hand = begin; hand < end; ++hand) visit(refiner, hand);
  });
}

// One step of a hand that moves on; false, and h and memory as they were, where the step is not finite.
template <typename T>
bool take_step(const DescentOptions& o, const T* rates, const T* gradient, T* h, T* memory) {
  MovedEntry<T> moved[kHandSize];
  const AdamBias bias = adam_bias(static_cast<double>(memory[kSteps]) + 1);
  bool is_finite = true;
  for (int i = 0; i < kHandSize; ++i) {
    moved[i] = moved_entry(o.optimizer, bias, h[i], rates[i], gradient[i], i, memory);
    is_finite = is_finite && std::isfinite(moved[i].h);
  }
  if (!is_finite) return false;
  for (int i = 0; i < kHandSize; ++i) take_entry(moved[i], i, h, memory);
  memory[kSteps] += 1;
  return true;
}

// All iterations of one hand.
template <typename T>
void descend(HandRefiner<T>& refiner, const DescentOptions& o, const T* rates, bool is_linear, T* h, T* memory,
             T* energies) {
  const auto evaluate = [&](T* row, T* gradient, bool is_exact) {
    const T last = memory[kLastEnergy];
    const bool was_fresh = status_of(memory) == DescentStatus::fresh;
    const T rank = refiner.evaluate(h, row, gradient);
    if (note_iterate<T>({row[kTotal], rank, is_exact}, memory)) std::copy_n(h, kHandSize, memory + kBestHand);
    if (gradient && !was_fresh) note_change(o.tolerance, rank, last, memory);
  };
  T gradient[kHandSize];
  bool has_moved = false;
  for (int64_t t = 0; t < energy_rows(o); ++t) {
    T* row = energies + t * kTerms;
    const bool is_exact = t == 0 || !is_linear, is_end = t == o.iterations;
    if (t > 0 && !has_moved)
      std::copy_n(row - kTerms, static_cast<int>(kTerms), row);
    else
      evaluate(row, is_end || is_at_rest(memory) ? nullptr : gradient, is_exact);
    has_moved = !is_end && !is_at_rest(memory);
    if (has_moved && !take_step(o, rates, gradient, h, memory)) {
      set_status(memory, DescentStatus::not_finite);
      has_moved = false;
    }
  }
}

Tensor refine_mask_cpu(Tensor h, std::vector<Tensor> model, int64_t image_size, int64_t mode) {
  const char* op = "refine_mask";
  const RefineModelTensors in(op, h, std::move(model), image_size);
  check_lbs_indices(op, *in.basis);
  RefineOptions options = {{}, HUGE_VAL, checked_mode(op, mode), static_cast<int>(image_size)};
  options.weights[kSilhouette] = 1;
  const int64_t B = in.h.size(0);
  Tensor mask = new_dense(in.h, {B, image_size, image_size});
  DHPE_DISPATCH_FLOATING(in.h, [&] {
    const scalar_t* from = in.h.const_data_ptr<scalar_t>();
    scalar_t* to = mask.mutable_data_ptr<scalar_t>();
    for_hands(in.model<scalar_t>(), options, B, [&](HandRefiner<scalar_t>& refiner, int64_t hand) {
      refiner.draw(from + hand * kHandSize, to + hand * image_size * image_size);
    });
  });
  return mask;
}

std::tuple<Tensor, Tensor> refine_gradient_cpu(Tensor h, Tensor joints2d_px, std::optional<Tensor> mask,
                                               std::vector<Tensor> slope, std::vector<Tensor> model,
                                               std::vector<double> weights, double feature_tau_px, int64_t image_size,
                                               int64_t mode, bool deterministic) {
  (void)deterministic;  // one thread per hand adds up in a fixed order
  const char* op = "refine_gradient";
  const EnergyTensors in(op, {op, h, std::move(model), image_size}, joints2d_px, mask, std::move(slope), weights,
                         feature_tau_px, mode);
  check_lbs_indices(op, *in.model.basis);
  const int64_t B = h.size(0);
  Tensor grad_h = new_dense(in.model.h, {B, kHandSize}), terms = new_dense(in.model.h, {B, kTerms});
  DHPE_DISPATCH_FLOATING(h, [&] {
    const RefineTargets<scalar_t> targets = in.targets<scalar_t>();
    const scalar_t* from = in.model.h.const_data_ptr<scalar_t>();
    scalar_t* grad = grad_h.mutable_data_ptr<scalar_t>();
    scalar_t* row = terms.mutable_data_ptr<scalar_t>();
    for_hands(in.model.model<scalar_t>(), in.options, B, [&](HandRefiner<scalar_t>& refiner, int64_t hand) {
      refiner.start(targets, hand);
      refiner.evaluate(from + hand * kHandSize, row + hand * kTerms, grad + hand * kHandSize);
    });
  });
  return {grad_h, terms};
}

std::tuple<Tensor, Tensor, Tensor> refine_descend_cpu(Tensor h, Tensor memory, Tensor rates, Tensor joints2d_px,
                                                      std::optional<Tensor> mask, std::vector<Tensor> slope,
                                                      std::vector<Tensor> model, std::vector<double> weights,
                                                      double feature_tau_px, int64_t image_size, int64_t mode,
                                                      int64_t iterations, int64_t optimizer, double tolerance,
                                                      bool evaluate_end, bool deterministic) {
  (void)deterministic;  // one thread per hand adds up in a fixed order
  const char* op = "refine_descend";
  const EnergyTensors in(op, {op, h, std::move(model), image_size}, joints2d_px, mask, std::move(slope), weights,
                         feature_tau_px, mode);
  check_lbs_indices(op, *in.model.basis);
  const DescentOptions descent = checked_descent(op, iterations, optimizer, tolerance, evaluate_end);
  const DescentTensors out(op, in.model.h, memory, rates, descent);
  DHPE_DISPATCH_FLOATING(h, [&] {
    const RefineTargets<scalar_t> targets = in.targets<scalar_t>();
    const DescentArrays<scalar_t> a = out.arrays<scalar_t>();
    for_hands(in.model.model<scalar_t>(), in.options, h.size(0), [&](HandRefiner<scalar_t>& refiner, int64_t hand) {
      refiner.start(targets, hand);
      descend(refiner, descent, a.rates, in.options.draws_feature(), a.h + hand * kHandSize,
              a.memory + hand * kDescentSize, a.energies + hand * energy_rows(descent) * kTerms);
    });
  });
  return {out.h, out.memory, out.energies};
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CPU, m) {
  m.impl("refine_mask", TORCH_BOX(&dhpe::refine_mask_cpu));
  m.impl("refine_gradient", TORCH_BOX(&dhpe::refine_gradient_cpu));
  m.impl("refine_descend", TORCH_BOX(&dhpe::refine_descend_cpu));
}
