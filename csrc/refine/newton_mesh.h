// The mesh terms of Levenberg-Marquardt on the CPU, in the precision of the hand model: the mean length of the
// Laplacian coordinates, 1 - IoU of the anti-aliased silhouette and a mask, and the joints of the mesh in place of the
// skeleton's.
#pragma once

#include <memory>
#include <vector>

#include "lbs/lbs_kernels.h"
#include "refine/edge_terms.h"
#include "refine/mesh_terms.h"
#include "refine/newton_math.h"

namespace dhpe {

// Constants of the model, and the image's mask.
template <typename T>
struct NewtonMesh {
  LbsModel<T> model;
  const int32_t* tips;  // (5,) vertices, in the order of the chains
  const int32_t* faces;
  int64_t n_faces;
  SparseRows<T> laplacian;  // symmetric, divided by the template's own energy
  const T* masks;           // (E, S, S) in [0, 1] over the crop, or null
  int mask_size;            // S
  double laplacian_weight, silhouette_weight;
};

template <typename T>
class MeshTerms final : public NewtonMeshTerms {
 public:
  // `edges` are those of the faces; all arguments must live as long.
  MeshTerms(const NewtonMesh<T>& mesh, const MeshEdges& edges, const double* intrinsics, int64_t group)
      : mesh_(mesh),
        intrinsics_(intrinsics),
        pose_(3 * mesh.model.n_joints),
        betas_(kNewtonShape),
        verts_(3 * mesh.model.n_verts),
        joints_(3 * mesh.model.n_joints),
        bent_(verts_.size()),
        directions_(verts_.size()),
        grad_verts_(verts_.size()),
        grad_joints_(joints_.size()),
        grad_pose_(pose_.size()),
        grad_betas_(kNewtonShape),
        grad_bent_(verts_.size()),
        scratch_(new HandScratch<T>) {
    if (!mesh.masks) return;
    const int64_t pixels = int64_t{mesh.mask_size} * mesh.mask_size;
    const T* mask = mesh.masks + group * pixels;
    for (int64_t i = 0; i < pixels; ++i) sums_.given += mask[i];
    verts_px_.resize(verts_.size());
    grad_image_.resize(verts_.size());
    const RasterMesh<T> raster = {verts_px_.data(), mesh.faces,     mesh.model.n_verts,
                                  mesh.n_faces,     mesh.mask_size, mesh.mask_size};
    const RasterOptions<T> options = {false, false, -std::numeric_limits<T>::infinity()};
    silhouette_ = std::make_unique<EdgeTerms<T>>(raster, options, edges);
    silhouette_->add_image(mask);
    silhouette_->add_ones();
  }

  double energy(NewtonPoint& p) override {
    pose_mesh(p);
    const T lengths = laplacian_energy(mesh_.laplacian, verts_.data(), directions_.data());
    const double energy = mesh_.laplacian_weight * lengths;
    return silhouette_ ? energy + mesh_.silhouette_weight * silhouette_loss(p) : energy;
  }

  const double* gradient(const NewtonPoint& p) override {
    std::fill(grad_verts_.begin(), grad_verts_.end(), T(0));
    std::fill_n(gradient_, kLocal, 0);
    add_laplacian_gradient(mesh_.laplacian, directions_.data(), static_cast<T>(mesh_.laplacian_weight),
                           grad_verts_.data());
    if (silhouette_) add_silhouette_gradient(p);
    const LbsBackward<T> backward = {mesh_.model,         pose_.data(),      false,
                                     betas_.data(),       bent_.data(),      grad_verts_.data(),
                                     grad_joints_.data(), grad_pose_.data(), grad_betas_.data(),
                                     grad_bent_.data()};
    lbs_backward_hand(backward, 0, *scratch_);
    for (int i = 0; i < kNewtonPose; ++i) gradient_[i] = grad_pose_[3 + i];  // behind the root, which stays
    for (int s = 0; s < kNewtonShape; ++s) gradient_[kNewtonPose + s] = grad_betas_[s];
    return gradient_;
  }

 private:
  void pose_mesh(NewtonPoint& p) {
    for (int i = 0; i < kNewtonPose; ++i) pose_[3 + i] = static_cast<T>(p.state[i]);
    for (int s = 0; s < kNewtonShape; ++s) betas_[s] = static_cast<T>(p.state[kNewtonPose + s]);
    const LbsForward<T> forward = {mesh_.model,   pose_.data(),   false,       betas_.data(),
                                   verts_.data(), joints_.data(), bent_.data()};
    lbs_forward_hand(forward, 0, *scratch_);
    for (int n = 0; n < kNodes; ++n) {
      const int finger = (n - 1) / kFingerNodes, place = n == 0 ? 0 : n - first_node(finger);
      const int joint = n == 0 ? 0 : 1 + kFingerJoints * finger + place;
      const T* from = place == kFingerJoints ? &verts_[3 * mesh_.tips[finger]] : &joints_[3 * joint];
      for (int c = 0; c < 3; ++c) p.joints[3 * n + c] = from[c];
    }
  }

  // Not a number if a vertex is behind the camera.
  double silhouette_loss(const NewtonPoint& p) {
    const Mat3<double> rotation = load9(p.state + kRotationAt);
    const NewtonCamera camera(intrinsics_, p.state + kCamAt);
    const double half = 0.5 * mesh_.mask_size;
    bool visible = true;
    for (int64_t v = 0; v < mesh_.model.n_verts; ++v) {
      double turned[3], image[2];
      store3(turned, mul(rotation, vertex(v)));
      camera.project(turned, image);
      visible = visible && is_finite(image[0] + image[1]);
      for (int i = 0; i < 2; ++i) verts_px_[3 * v + i] = static_cast<T>((image[i] + 1) * half);
    }
    if (!visible) return NAN;
    const double* sums = silhouette_->sums(0);
    sums_.both = sums[0];
    sums_.drawn = sums[1];
    return iou_loss(sums_);
  }

  // Of the rotation and the camera to `gradient_`, of the vertices to `grad_verts_`.
  void add_silhouette_gradient(const NewtonPoint& p) {
    const IouSlope slope = iou_slope(sums_);
    const double weights[2] = {mesh_.silhouette_weight * slope.by_given, mesh_.silhouette_weight * slope.constant};
    std::fill(grad_image_.begin(), grad_image_.end(), T(0));
    silhouette_->sums_and_gradients(0);
    silhouette_->add_gradient(weights, 0.5 * mesh_.mask_size, grad_image_.data());
    const Mat3<double> rotation = load9(p.state + kRotationAt);
    const NewtonCamera camera(intrinsics_, p.state + kCamAt);
    double* by_rotation = gradient_ + kRotationAt;
    double* by_cam = by_rotation + 3;
    for (int64_t v = 0; v < mesh_.model.n_verts; ++v) {
      if (grad_image_[3 * v] == 0 && grad_image_[3 * v + 1] == 0) continue;
      double turned[3];
      store3(turned, mul(rotation, vertex(v)));
      for (int axis = 0; axis < 2; ++axis) {
        const double by_image = grad_image_[3 * v + axis];
        const Vec3<double> row = camera.by_point(turned, axis);
        const Vec3<double> by_turned = {by_image * row.x, by_image * row.y, by_image * row.z};
        const Vec3<double> by_vertex = mul_transposed(rotation, by_turned);
        add_to(&grad_verts_[3 * v],
               Vec3<T>{static_cast<T>(by_vertex.x), static_cast<T>(by_vertex.y), static_cast<T>(by_vertex.z)});
        add_to(by_rotation, cross(load3(turned), by_turned));
        double by_parameters[3];
        camera.by_parameters(turned, axis, by_parameters);
        for (int i = 0; i < 3; ++i) by_cam[i] += by_image * by_parameters[i];
      }
    }
  }

  Vec3<double> vertex(int64_t v) const {
    return {static_cast<double>(verts_[3 * v]), static_cast<double>(verts_[3 * v + 1]),
            static_cast<double>(verts_[3 * v + 2])};
  }

  const NewtonMesh<T> mesh_;
  const double* intrinsics_;
  std::vector<T> pose_, betas_, verts_, joints_, bent_, directions_;
  std::vector<T> grad_verts_, grad_joints_, grad_pose_, grad_betas_, grad_bent_;  // joints have none of the mesh
  std::unique_ptr<HandScratch<T>> scratch_;
  std::vector<T> verts_px_, grad_image_;  // of the silhouette; the gradient by crop units
  std::unique_ptr<EdgeTerms<T>> silhouette_;
  MaskSums sums_ = {0, 0, 0};
  double gradient_[kLocal];
};

}  // namespace dhpe
