// One hand's energy (Eq. 11 with priors and a silhouette term) and its derivative by h, on the calling thread of a CPU:
// skinning, camera, terms, and all of it backwards. Memory is made once, for many iterates of many hands.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "lbs/lbs_kernels.h"
#include "raster/raster_kernels.h"
#include "refine/edge_terms.h"
#include "refine/refine_math.h"

namespace dhpe {

template <typename T>
class HandRefiner {
 public:
  HandRefiner(const RefineModel<T>& model, const RefineOptions& options, const MeshEdges& edges)
      : model_(model),
        options_(options),
        edges_(edges),
        scratch_(std::make_unique_for_overwrite<HandScratch<T>>()),
        verts_m_(3 * model.lbs.n_verts),
        bent_(verts_m_.size()),
        verts_(verts_m_.size()),
        verts_px_(verts_m_.size()),
        directions_(verts_m_.size()),
        grad_verts_(verts_m_.size()),
        grad_bent_(verts_m_.size()) {}

  // What the iterates of hand `hand` have in common.
  void start(const RefineTargets<T>& targets, int64_t hand) {
    const int64_t size = options_.image_size, first = hand * size * size;
    joints2d_px_ = targets.joints2d_px + hand * 2 * kSkeletonJoints;
    mask_ = options_.draws_silhouette() ? targets.mask + first : nullptr;
    slope_ = options_.draws_feature() ? targets.slope + first : nullptr;
    sums_ = {};
    if (mask_)
      for (int64_t i = 0; i < size * size; ++i) sums_.given += static_cast<double>(mask_[i]);
    if (slope_) {
      slope_offset_ = static_cast<double>(targets.slope_value[hand]);
      const T* at = targets.slope_at + first;
      for (int64_t i = 0; i < size * size; ++i)
        slope_offset_ -= static_cast<double>(slope_[i]) * static_cast<double>(at[i]);
    }
    if ((mask_ || slope_) && options_.mode == SilhouetteMode::edge) start_edge();
  }

  // The energies of h in terms[kTerms] and, unless grad_h is null, the derivative of the total in grad_h[63]. Returns
  // the energy by which iterates are compared: without a feature term that a gate switches.
  T evaluate(const T* h, T* terms, T* grad_h) {
    pose(h);
    std::fill(grad_verts_.begin(), grad_verts_.end(), T(0));
    std::fill_n(terms, static_cast<int>(kTerms), T(0));
    terms[kLaplacian] = laplacian_energy(model_.laplacian, verts_.data(), directions_.data());
    if (grad_h && options_.weights[kLaplacian] != 0)
      add_laplacian_gradient(model_.laplacian, directions_.data(), weight(kLaplacian), grad_verts_.data());
    const bool is_near = add_joints(terms);
    const T feature_weight = is_near ? weight(kFeature) : T(0);
    if (mask_ || slope_) {
      if (options_.mode == SilhouetteMode::edge)
        add_edge(terms, feature_weight, grad_h != nullptr);
      else
        add_nmr(terms, feature_weight, grad_h != nullptr);
    }
    if (grad_h) backward(h, grad_h);
    add_priors(h, terms, grad_h);
    T rank = 0;
    for (int i = 0; i < kTotal; ++i)
      if (i != kFeature && options_.weights[i] != 0) rank += weight(i) * terms[i];
    terms[kTotal] = feature_weight != 0 ? rank + feature_weight * terms[kFeature] : rank;
    return std::isinf(options_.feature_tau_px) ? terms[kTotal] : rank;
  }

  // The mask (S, S) of h.
  void draw(const T* h, T* mask) {
    pose(h);
    set_pixels();
    if (options_.mode == SilhouetteMode::edge) {
      EdgeImage<T> image(mesh(), raster_view(), edges_);
      image.find(0);
      image.draw(mask);
    } else {
      draw_faces(mask);
    }
  }

 private:
  T weight(int term) const { return static_cast<T>(options_.weights[term]); }

  RasterMesh<T> mesh() const {
    return {verts_px_.data(), model_.faces,        model_.lbs.n_verts,
            model_.n_faces,   options_.image_size, options_.image_size};
  }
  static RasterOptions<T> raster_view() { return {false, false, -std::numeric_limits<T>::infinity()}; }

  void start_edge() {
    edge_terms_.emplace(mesh(), raster_view(), edges_);
    if (mask_) {  // the first two images
      edge_terms_->add_ones();
      edge_terms_->add_image(mask_);
    }
    if (slope_) edge_terms_->add_image(slope_);
  }

  void pose(const T* h) {
    std::fill_n(pose_, 3, T(0));
    std::copy_n(h, kPoseSize, pose_ + 3);
    const LbsForward<T> p = {model_.lbs, pose_, false, h + kShapeAt, verts_m_.data(), joints_m_, bent_.data()};
    lbs_forward_hand(p, 0, *scratch_);
    camera_ = hand_camera(h);
    for (int64_t v = 0; v < model_.lbs.n_verts; ++v) {
      const Vec3<T> at = to_crop(camera_, verts_m_.data() + 3 * v);
      verts_[3 * v] = at.x;
      verts_[3 * v + 1] = at.y;
      verts_[3 * v + 2] = at.z;
    }
  }

  void set_pixels() {
    const T half = static_cast<T>(options_.image_size) / 2;
    for (int64_t v = 0; v < model_.lbs.n_verts; ++v) {
      verts_px_[3 * v] = (verts_[3 * v] + 1) * half;
      verts_px_[3 * v + 1] = (verts_[3 * v + 1] + 1) * half;
      verts_px_[3 * v + 2] = verts_[3 * v + 2];
    }
  }

  // Returns whether the hand is near enough to its joints for the feature term.
  bool add_joints(T* terms) {
    T energy = 0, distance_px = 0;
    int count = 0;
    for (int j = 0; j < kSkeletonJoints; ++j) {
      const Vec3<T> at = sparse_sum(model_.joint_regressor, j, verts_.data());
      const JointTerm<T> term = joint_term(at, joints2d_px_ + 2 * j, options_.image_size);
      if (!term.counts) continue;
      ++count;
      energy += term.energy;
      distance_px += term.distance_px;
      const SparseRows<T>& r = model_.joint_regressor;
      if (options_.weights[kJoints] != 0)
        for (int32_t i = r.start[j]; i < r.start[j + 1]; ++i) {
          T* g = grad_verts_.data() + 3 * static_cast<int64_t>(r.column[i]);
          g[0] += weight(kJoints) * r.value[i] * term.gx;
          g[1] += weight(kJoints) * r.value[i] * term.gy;
        }
    }
    terms[kJoints] = energy;
    return std::isinf(options_.feature_tau_px) || is_near(distance_px, count, options_.feature_tau_px);
  }

  // The two terms of the mask from its sums; the derivative by sums.both, sums.drawn and the sum under the slope.
  struct MaskSlopes {
    double both, drawn, slope;
  };

  MaskSlopes take_sums(double under_slope, T feature_weight, T* terms) const {
    if (mask_) terms[kSilhouette] = static_cast<T>(iou_loss(sums_));
    if (slope_) terms[kFeature] = static_cast<T>(slope_offset_ + under_slope);
    const IouSlope by = mask_ ? iou_slope(sums_) : IouSlope{0, 0};
    return {options_.weights[kSilhouette] * by.by_given, options_.weights[kSilhouette] * by.constant,
            static_cast<double>(feature_weight)};
  }

  void add_edge(T* terms, T feature_weight, bool with_gradient) {
    set_pixels();
    const double* found = with_gradient ? edge_terms_->sums_and_gradients(0) : edge_terms_->sums(0);
    if (mask_) {
      sums_.drawn = found[0];
      sums_.both = found[1];
    }
    const MaskSlopes by = take_sums(slope_ ? found[mask_ ? 2 : 0] : 0, feature_weight, terms);
    if (!with_gradient) return;
    const double weights[kMaxEdgeImages] = {mask_ ? by.drawn : by.slope, by.both, by.slope};
    // A closed gate lets nothing through, not even what is not a number.
    const int images = (mask_ ? 2 : 0) + (slope_ && feature_weight != 0 ? 1 : 0);
    edge_terms_->add_gradient(weights, images, 0.5 * options_.image_size, grad_verts_.data());
  }

  void draw_faces(T* mask) {
    const int64_t size = options_.image_size;
    canvas_.resize(canvas_elements(size, size));
    face_index_.resize(size * size);
    const RasterForward<T> p = {mesh(), raster_view(), face_index_.data(), nullptr, nullptr, mask};
    draw_image(p, 0, canvas_.data());
  }

  void add_nmr(T* terms, T feature_weight, bool with_gradient) {
    set_pixels();
    draw_faces(nullptr);
    const int64_t pixels = static_cast<int64_t>(options_.image_size) * options_.image_size;
    double under_slope = 0;
    sums_.drawn = sums_.both = 0;
    for (int64_t i = 0; i < pixels; ++i) {
      if (face_index_[i] < 0) continue;
      sums_.drawn += 1;
      if (mask_) sums_.both += static_cast<double>(mask_[i]);
      if (slope_) under_slope += static_cast<double>(slope_[i]);
    }
    const MaskSlopes by = take_sums(under_slope, feature_weight, terms);
    if (!with_gradient || (!mask_ && feature_weight == 0)) return;
    grad_mask_.resize(pixels);
    for (int64_t i = 0; i < pixels; ++i) {
      double g = mask_ ? by.both * static_cast<double>(mask_[i]) + by.drawn : 0;
      if (feature_weight != 0) g += by.slope * static_cast<double>(slope_[i]);
      grad_mask_[i] = static_cast<T>(g);
    }
    grad_px_.resize(verts_px_.size());
    const NmrBackward<T> p = {mesh(), T(kNmrEps), face_index_.data(), grad_mask_.data(), grad_px_.data()};
    nmr_backward_image(p, 0, nmr_scratch_);
    const T half = static_cast<T>(options_.image_size) / 2;
    for (size_t i = 0; i < grad_px_.size(); i += 3) {
      grad_verts_[i] += half * grad_px_[i];
      grad_verts_[i + 1] += half * grad_px_[i + 1];
    }
  }

  // From grad_verts_ to the parameters.
  void backward(const T* h, T* grad_h) {
    CameraSums<T> sums = {};
    for (int64_t v = 0; v < model_.lbs.n_verts; ++v) {
      T* g = grad_verts_.data() + 3 * v;
      const Vec3<T> by_vert = from_crop(camera_, verts_m_.data() + 3 * v, load3(g), sums);
      g[0] = by_vert.x;
      g[1] = by_vert.y;
      g[2] = by_vert.z;
    }
    T grad_pose[3 * kHandJoints];
    const LbsBackward<T> p = {model_.lbs,         pose_,        false,     h + kShapeAt,      bent_.data(),
                              grad_verts_.data(), no_gradient_, grad_pose, grad_h + kShapeAt, grad_bent_.data()};
    lbs_backward_hand(p, 0, *scratch_);
    std::copy_n(grad_pose + 3, kPoseSize, grad_h);
    camera_backward(camera_, sums, grad_h);
  }

  void add_priors(const T* h, T* terms, T* grad_h) const {
    const PosePriorView<T>& prior = model_.prior;
    if (options_.weights[kPose] != 0)
      for (int i = 0; i < kPoseSize; ++i) {
        const T precise = precise_offset(prior, h, i);
        terms[kPose] += precise * (h[i] - prior.mean[i]);
        if (grad_h) grad_h[i] += 2 * weight(kPose) * precise;
      }
    if (options_.weights[kShape] != 0)
      for (int i = kShapeAt; i < kShapeAt + kShapeSize; ++i) {
        terms[kShape] += h[i] * h[i];
        if (grad_h) grad_h[i] += 2 * weight(kShape) * h[i];
      }
    if (options_.weights[kLimits] != 0)
      for (int j = 0; j < kHandJoints - 1; ++j) {
        const Vec3<T> beyond = limit_violation(prior, h, j);
        terms[kLimits] += dot(beyond, beyond);
        const Vec3<T> g = mul_transposed(load9(prior.axes + 9 * j), beyond);
        const T by = 2 * weight(kLimits);
        if (grad_h) add_to(grad_h + 3 * j, Vec3<T>{by * g.x, by * g.y, by * g.z});
      }
  }

  const RefineModel<T> model_;
  const RefineOptions options_;
  const MeshEdges& edges_;
  std::unique_ptr<HandScratch<T>> scratch_;
  std::vector<T> verts_m_, bent_, verts_, verts_px_, directions_, grad_verts_, grad_bent_;  // (V, 3)
  T pose_[3 * kHandJoints], joints_m_[3 * kHandJoints], no_gradient_[3 * kHandJoints] = {};
  HandCamera<T> camera_;
  // Of the hand at work:
  const T *joints2d_px_ = nullptr, *mask_ = nullptr, *slope_ = nullptr;
  double slope_offset_ = 0;  // the feature term where the mask is empty
  MaskSums sums_ = {};
  std::optional<EdgeTerms<T>> edge_terms_;
  std::vector<T> canvas_, grad_mask_, grad_px_;
  std::vector<int32_t> face_index_;
  NmrScratch nmr_scratch_;
};

}  // namespace dhpe
