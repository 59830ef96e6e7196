// Levenberg-Marquardt on one hand's 2D evidence: the arguments of its kernels, on every device. B hypotheses stand in E
// groups of B / E, each group with an image of its own; all numbers are double, all arrays dense and row-major.
//
// The 61 local parameters of a hypothesis: pose 45 | betas 10 | rotation 3 (about the camera's axes) | camera 3.
// A node is one of the 21 joints, in the order of the kinematic chains: the wrist, then index, middle, little, ring and
// thumb, each with its three joints and its tip.
#pragma once

#include <cstdint>

namespace dhpe {

constexpr int kFingers = 5;
constexpr int kFingerJoints = 3;                     // that turn; the tip moves rigidly with the last one
constexpr int kFingerPose = 3 * kFingerJoints;       // parameters
constexpr int kFingerNodes = kFingerJoints + 1;      // ... of a finger
constexpr int kNodes = 1 + kFingers * kFingerNodes;  // 21
constexpr int kNewtonPose = kFingers * kFingerPose;  // 45
constexpr int kNewtonShape = 10;
constexpr int kShared = kNewtonShape + 6;                // parameters that move every node: betas, rotation, camera
constexpr int kLocal = kNewtonPose + kShared;            // 61
constexpr int kRotationAt = kNewtonPose + kNewtonShape;  // of a step or a state
constexpr int kNodeColumns = kFingerPose + kShared;      // of a node's Jacobian that can differ from zero
constexpr int kCamAt = kRotationAt + 9;                  // of a state, whose rotation is a matrix
constexpr int kStateSize = kCamAt + 3;

// Where a hypothesis stands after the call.
enum NewtonStatus : int32_t { kStopped = 0, kConverged = 1, kDiverged = 2 };

struct NewtonWeights {
  double joint_sigma, outlier_sigmas, pose, shape, limit_sigma_rad, beta_limit, beta_limit_sigma;
};

// What does not depend on the image: each node's bone (from the node before, at rest; of the wrist and of a finger's
// first joint: its position) as a function of the betas, and the prior on the pose.
struct NewtonHand {
  const double* bones_m;    // (21, 3)
  const double* bone_dirs;  // (21, 3, 10)
  const double* mean;       // (45,)
  const double* precision;  // (45, 45)
  const double* axes;       // (15, 3, 3) anatomical axes of each joint, in rows
  const double* low;        // (45,) ends of the ranges of motion, anatomical coordinates
  const double* high;       // (45,)
};

// One image: joints in STD order, and the camera.
struct NewtonEvidence {
  const double* joints;      // (21, 2) crop units; any value where the confidence is zero
  const double* confidence;  // (21,)
  const double* intrinsics;  // (4,) focal lengths and principal point in crop units; null: scaled orthographic
};

struct NewtonProblem {
  NewtonHand hand;
  NewtonWeights weights;
  const double* joints;      // (E, 21, 2)
  const double* confidence;  // (E, 21)
  const double* intrinsics;  // (E, 4), or null
  int64_t n_groups;          // E
  int64_t n_hypotheses;      // B
  int32_t iterations;        // the most steps
  double tolerance;          // see newton_math.h
  bool race;                 // of a group, only the best hypothesis matters
};

// In: where the hypotheses start. Out: where they ended.
struct NewtonStates {
  double* pose;      // (B, 45) axis-angle
  double* betas;     // (B, 10)
  double* rotation;  // (B, 3, 3) model axes to camera axes
  double* cam;       // (B, 3) log scale and translation, or position in metres
  double* energy;    // (B,)
  int32_t* steps;    // (B,)
  int32_t* status;   // (B,) NewtonStatus
};

// A state, and what its energy was made of; the normal equations need it again.
struct NewtonPoint {
  double state[kStateSize];                    // pose | betas | rotation | cam
  double world[kFingers * kFingerJoints * 9];  // rotation of each joint relative to the model
  double chain[kNodes * 3];                    // nodes of the skeleton, model frame, metres
  double joints[kNodes * 3];                   // the same, or nodes of the mesh
  double turned[kNodes * 3];                   // joints in the camera's axes
  double residual[kNodes * 2];                 // crop units
  double joint_energy[kNodes];
  double pull[kNewtonPose];       // precision (pose - mean)
  double violation[kNewtonPose];  // of the ranges of motion, signed, radians
};

constexpr int kColumns = kLocal + 1;  // of a row of the system: the parameters, and the right side
constexpr int kRowStride = 63;        // odd: down a column, a warp meets no bank of shared memory twice

// Normal equations at a point, and a step. Below the diagonal `matrix` holds the Gauss-Newton matrix; from the diagonal
// on, its damped factor and the right side.
struct NewtonSystem {
  double turn[kFingers * kFingerJoints * 9];   // of a joint: its parameters' motion to axes of rotation, model frame
  double jacobian[kNodes * 2 * kNodeColumns];  // a finger's pose 9 | shared 16, of each node's x and y
  double node_weight[kNodes];
  double matrix[kLocal * kRowStride];
  double diagonal[kLocal];
  double gradient[kLocal];
  double step[kLocal];
};

// What a hypothesis remembers between steps; the same in every worker.
struct NewtonProgress {
  double energy;
  double mesh_energy;  // of the point evaluated last
  double damping;
  double last_gain;  // of the last step that was kept
  int32_t place;     // the point where it stands
  int32_t idle;      // steps running that gained little
  int32_t steps;
  bool has_equations;  // the system is that of the point
  bool resting;        // it gave up a race
};

// All that is known of a hypothesis on its way.
struct NewtonHypothesis {
  NewtonPoint points[2];  // one of them where it stands, the other for the next trial
  NewtonSystem system;
};

// What the mesh adds to the energy of a hypothesis, on the CPU.
struct NewtonMeshTerms {
  // Poses the mesh, puts its joints in place of the skeleton's; returns its energy, not a number where it has none.
  virtual double energy(NewtonPoint& p) = 0;
  // The gradient (61,) of that energy, at the point evaluated last.
  virtual const double* gradient(const NewtonPoint& p) = 0;

 protected:
  ~NewtonMeshTerms() = default;
};

}  // namespace dhpe
