// From tensors to the kernels' arguments: the checks that the CPU and CUDA host functions of refine_* share.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "lbs/lbs_tensors.h"
#include "raster/raster_tensors.h"
#include "refine/refine.h"

namespace dhpe {

// The places in the list of a model's tensors (reference/refine.py, RefineModel.tensors). The prior may be missing.
enum ModelTensor : std::size_t {
  kBasis,  // eight
  kFaces = 8,
  kRegressor,  // start, column, value
  kMeshLaplacian = kRegressor + 3,
  kPriorAxes = kMeshLaplacian + 3,
  kPriorMean,
  kPriorPrecision,
  kPriorLow,
  kPriorHigh,
  kModelTensors
};

inline Tensor checked_dense(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape,
                            ScalarType dtype, const Tensor& like) {
  check_tensor(op, name, t, shape, dtype, like);
  return dense(t);
}

struct SparseTensors {
  Tensor start, column, value;

  SparseTensors(const char* op, const Tensor* t, int64_t rows, int64_t columns, const Tensor& like)
      : start(checked_dense(op, "start of a sparse matrix", t[0], {rows + 1}, ScalarType::Int, like)),
        column(checked_dense(op, "column of a sparse matrix", t[1], {t[2].size(0)}, ScalarType::Int, like)),
        value(checked_dense(op, "value of a sparse matrix", t[2], {-1}, like.scalar_type(), like)) {
    if (!like.is_cuda())
      check_indices(op, columns);  // a CUDA kernel skips such entries instead of making the host wait
  }

  template <typename T>
  SparseRows<T> rows(int64_t columns) const {
    return {start.const_data_ptr<int32_t>(),
            column.const_data_ptr<int32_t>(),
            value.const_data_ptr<T>(),
            start.size(0) - 1,
            columns,
            value.size(0)};
  }

 private:
  // The kernels index by these values: a wrong one would read out of bounds.
  void check_indices(const char* op, int64_t columns) const {
    const int32_t *starts = start.const_data_ptr<int32_t>(), *ids = column.const_data_ptr<int32_t>();
    const int64_t rows = start.size(0) - 1, entries = value.size(0);
    bool ascends = starts[0] == 0 && starts[rows] == entries;
    for (int64_t r = 0; r < rows; ++r) ascends = ascends && starts[r] <= starts[r + 1];
    STD_TORCH_CHECK(ascends, op, ": the starts of a sparse matrix' rows do not ascend from 0 to ", entries);
    for (int64_t i = 0; i < entries; ++i)
      STD_TORCH_CHECK(ids[i] >= 0 && ids[i] < columns, op, ": a sparse matrix names vertex ", ids[i],
                      ", expected 0 to ", columns - 1);
  }
};

// A model's tensors, checked, for hands h (B, 63).
struct RefineModelTensors {
  Tensor h;
  std::vector<Tensor> given;
  std::optional<LbsModelTensors> basis;
  std::optional<RasterMeshTensors> mesh;
  std::optional<SparseTensors> regressor, laplacian;
  std::vector<Tensor> prior;  // five, or none

  RefineModelTensors(const char* op, const Tensor& h_, std::vector<Tensor> given_, int64_t image_size)
      : given(std::move(given_)) {
    check_floating(op, "h", h_);
    check_tensor(op, "h", h_, {-1, kHandSize}, h_.scalar_type(), h_);
    h = dense(h_);
    STD_TORCH_CHECK(given.size() == kPriorAxes || given.size() == kModelTensors, op, ": model has ", given.size(),
                    " tensors, expected ", static_cast<int64_t>(kPriorAxes), " or ",
                    static_cast<int64_t>(kModelTensors));
    const int64_t B = h.size(0), V = given[kBasis].size(0);
    const Tensor pose = new_dense(h, {B, kHandJoints, 3}), betas = new_dense(h, {B, kShapeSize});
    basis.emplace(op, pose, betas, given[0], given[1], given[2], given[3], given[4], given[5], given[6], given[7]);
    mesh.emplace(op, new_dense(h, {B, V, 3}), given[kFaces], image_size, image_size);
    regressor.emplace(op, &given[kRegressor], kSkeletonJoints, V, h);
    laplacian.emplace(op, &given[kMeshLaplacian], V, V, h);
    if (given.size() == kPriorAxes) return;
    const ScalarType dtype = h.scalar_type();
    prior = {checked_dense(op, "axes of the prior", given[kPriorAxes], {kHandJoints - 1, 3, 3}, dtype, h),
             checked_dense(op, "mean of the prior", given[kPriorMean], {kPoseSize}, dtype, h),
             checked_dense(op, "precision of the prior", given[kPriorPrecision], {kPoseSize, kPoseSize}, dtype, h),
             checked_dense(op, "low of the prior", given[kPriorLow], {kPoseSize}, dtype, h),
             checked_dense(op, "high of the prior", given[kPriorHigh], {kPoseSize}, dtype, h)};
  }

  template <typename T>
  RefineModel<T> model() const {
    const LbsModel<T> lbs = basis->model<T>();
    PosePriorView<T> view = {};
    if (!prior.empty())
      view = {prior[0].const_data_ptr<T>(), prior[1].const_data_ptr<T>(), prior[2].const_data_ptr<T>(),
              prior[3].const_data_ptr<T>(), prior[4].const_data_ptr<T>()};
    return {lbs,
            mesh->faces.const_data_ptr<int32_t>(),
            mesh->faces.size(0),
            regressor->rows<T>(lbs.n_verts),
            laplacian->rows<T>(lbs.n_verts),
            view};
  }
};

inline SilhouetteMode checked_mode(const char* op, int64_t mode) {
  STD_TORCH_CHECK(mode == 0 || mode == 1, op, ": mode is ", mode, ", expected 0 (nmr) or 1 (edge)");
  return static_cast<SilhouetteMode>(mode);
}

// The energy that refine_gradient and refine_descend are about: a model, what the hands are to agree with, and weights.
struct EnergyTensors {
  RefineModelTensors model;
  RefineOptions options;
  Tensor joints2d_px;
  std::optional<Tensor> mask;
  std::vector<Tensor> slope;  // the derivative, the mask where it was taken, the value there; or none

  EnergyTensors(const char* op, RefineModelTensors model_, Tensor joints2d_px_, std::optional<Tensor> mask_,
                std::vector<Tensor> slope_, const std::vector<double>& weights, double feature_tau_px, int64_t mode)
      : model(std::move(model_)),
        options{{}, feature_tau_px, checked_mode(op, mode), static_cast<int>(model.mesh->height)},
        joints2d_px(std::move(joints2d_px_)),
        mask(std::move(mask_)),
        slope(std::move(slope_)) {
    check_targets(op);
    STD_TORCH_CHECK(weights.size() == kTotal, op, ": ", weights.size(), " weights given, expected ",
                    static_cast<int64_t>(kTotal));
    for (int i = 0; i < kTotal; ++i) {
      STD_TORCH_CHECK(std::isfinite(weights[i]) && weights[i] >= 0, op, ": a weight is ", weights[i],
                      ", expected >= 0");
      options.weights[i] = weights[i];
    }
    STD_TORCH_CHECK(feature_tau_px > 0, op, ": feature_tau_px is ", feature_tau_px, ", expected > 0");
    STD_TORCH_CHECK(!options.draws_feature() || !slope.empty(), op, ": the feature term needs slope");
    STD_TORCH_CHECK(!options.draws_silhouette() || mask, op, ": the silhouette term needs mask");
    STD_TORCH_CHECK((options.weights[kPose] == 0 && options.weights[kLimits] == 0) || !model.prior.empty(), op,
                    ": the terms pose and limits need a model with a prior");
  }

  template <typename T>
  RefineTargets<T> targets() const {
    const auto at = [this](std::size_t i) { return slope.empty() ? nullptr : slope[i].const_data_ptr<T>(); };
    return {joints2d_px.const_data_ptr<T>(), mask ? mask->const_data_ptr<T>() : nullptr, at(0), at(1), at(2)};
  }

 private:
  void check_targets(const char* op) {
    const Tensor& h = model.h;
    const ScalarType dtype = h.scalar_type();
    const int64_t B = h.size(0), size = options.image_size;
    joints2d_px = checked_dense(op, "joints2d_px", joints2d_px, {B, kSkeletonJoints, 2}, dtype, h);
    if (mask) mask = checked_dense(op, "mask", *mask, {B, size, size}, dtype, h);
    STD_TORCH_CHECK(slope.empty() || slope.size() == 3, op, ": slope has ", slope.size(), " tensors, expected 0 or 3");
    if (slope.empty()) return;
    slope = {checked_dense(op, "slope", slope[0], {B, size, size}, dtype, h),
             checked_dense(op, "mask of the slope", slope[1], {B, size, size}, dtype, h),
             checked_dense(op, "value of the slope", slope[2], {B}, dtype, h)};
  }
};

inline DescentOptions checked_descent(const char* op, int64_t iterations, int64_t optimizer, double tolerance,
                                      bool evaluate_end) {
  STD_TORCH_CHECK(iterations >= 0, op, ": iterations is ", iterations, ", expected >= 0");
  STD_TORCH_CHECK(optimizer == 0 || optimizer == 1, op, ": optimizer is ", optimizer, ", expected 0 (gd) or 1 (adam)");
  STD_TORCH_CHECK(tolerance >= 0 && std::isfinite(tolerance), op, ": tolerance is ", tolerance, ", expected >= 0");
  return {iterations, static_cast<Optimizer>(optimizer), tolerance, evaluate_end};
}

template <typename T>
struct DescentArrays {
  const T* rates;  // (63,)
  T* h;            // (B, 63)
  T* memory;       // (B, kDescentSize)
  T* energies;     // (B, energy_rows, kTerms)
};

// Where a descent starts and what it remembers, in copies that it may change, and room for its energies.
struct DescentTensors {
  Tensor rates, h, memory, energies;

  DescentTensors(const char* op, const Tensor& h_, const Tensor& memory_, const Tensor& rates_,
                 const DescentOptions& options)
      : rates(checked_dense(op, "rates", rates_, {kHandSize}, h_.scalar_type(), h_)),
        h(torch::stable::clone(h_)),
        memory(torch::stable::clone(
            checked_dense(op, "memory", memory_, {h_.size(0), kDescentSize}, h_.scalar_type(), h_))),
        energies(new_dense(h_, {h_.size(0), energy_rows(options), kTerms})) {}

  template <typename T>
  DescentArrays<T> arrays() const {
    return {rates.const_data_ptr<T>(), h.mutable_data_ptr<T>(), memory.mutable_data_ptr<T>(),
            energies.mutable_data_ptr<T>()};
  }
};

}  // namespace dhpe
