// Linear blend skinning: the arguments of its kernels, on every device. B hands, V vertices, J joints, S shape
// directions, P = 9 (J - 1) pose directions, K skinning slots per vertex. All arrays are dense and row-major.
#pragma once

#include <cstdint>

namespace dhpe {

constexpr int kMaxJoints = 64;    // kinematic state lives on the stack (CPU) and in shared memory (CUDA)
constexpr int kMaxCoeffs = 1024;  // S + P

template <typename T>
struct LbsModel {
  const T* v_template;                                  // (V, 3) metres
  const T* shapedirs;                                   // (S, V, 3)
  const T* posedirs;                                    // (P, V, 3)
  const T* joint_template;                              // (J, 3) metres
  const T* joint_shapedirs;                             // (S, J, 3)
  const int32_t* skin_joints;                           // (V, K)
  const T* skin_weights;                                // (V, K)
  const int32_t* parents;                               // (J,), parents[j] < j
  int64_t n_verts, n_joints, n_shape, n_pose, n_slots;  // V, J, S, P, K
};

template <typename T>
struct LbsForward {
  LbsModel<T> model;
  // inputs
  const T* pose;  // (B, J, 3) axis-angle, or (B, J, 3, 3) matrices
  bool pose_is_matrix;
  const T* betas;  // (B, S)
  // outputs
  T* verts;   // (B, V, 3) metres
  T* joints;  // (B, J, 3) metres
  T* bent;    // (B, V, 3) metres: after blend shapes, before skinning; kept for the backward pass, or null
};

template <typename T>
struct LbsBackward {
  LbsModel<T> model;
  // inputs
  const T* pose;
  bool pose_is_matrix;
  const T* betas;
  const T* bent;         // (B, V, 3) from the forward pass
  const T* grad_verts;   // (B, V, 3)
  const T* grad_joints;  // (B, J, 3)
  // outputs
  T* grad_pose;   // as pose
  T* grad_betas;  // (B, S)
  // scratch
  T* grad_bent;  // (B, V, 3)
};

// Everything the vertices need to know of one hand's pose.
template <typename T>
struct Chain {
  T local[kMaxJoints * 9];     // rotation relative to the parent
  T world[kMaxJoints * 9];     // rotation relative to the model
  T rest[kMaxJoints * 3];      // joint positions before posing
  T position[kMaxJoints * 3];  // and after
};

// CPU: a hand between the steps of a call that shares its vertices among threads.
template <typename T>
struct PosedHand {
  Chain<T> chain;
  T coeffs[kMaxCoeffs];       // the betas, then R - I of joints 1..J-1: those that are not zero, ...
  const T* rows[kMaxCoeffs];  // ... and their rows of the basis
  int64_t n_coeffs;
  alignas(64) T packed[16 * kMaxJoints];  // [W | o] of each joint in 16 lanes, see pack_transforms
};

constexpr int kCopies = 2;     // of a sum over vertices: an addition need not wait for the one before
constexpr int kMaxLanes = 16;  // of the widest vectors

// CPU: what the backward pass sums over vertices; a part of them, or all.
template <typename T>
struct VertexSums {
  T coeffs[kMaxCoeffs + kMaxLanes];
  alignas(64) T lanes[kMaxCoeffs * kMaxLanes];  // of the coefficients, before they are added up
  alignas(64) T packed[kCopies * 16 * kMaxJoints];
};

constexpr int kHalves = 2;  // CPU: sums over one hand's vertices are taken half by half, so threads do not change a bit

// CPU: working memory of one hand; too large for the small stacks of some threads.
template <typename T>
struct HandScratch {
  PosedHand<T> posed;
  VertexSums<T> halves[kHalves];
};

}  // namespace dhpe
