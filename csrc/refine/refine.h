// The refinement of hand parameters h (Baek, Kim and Kim, CVPR 2019, Eq. 11): the arguments of its kernels, on every
// device. B hands, V vertices, F faces, masks of S x S pixels. All arrays are dense and row-major.
//
// h = pose 45 | shape 10 | quat 4 | scale 1 | trans 3 (conventions.py); the mesh is v' = scale R(quat) v(pose, shape) +
// trans, in the crop frame: x and y in [-1, 1] across the crop.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "lbs/lbs.h"
#include "refine/mesh_terms.h"

namespace dhpe {

constexpr int kPoseSize = 45, kShapeSize = 10, kHandJoints = 16;
constexpr int kShapeAt = 45, kQuatAt = 55, kScaleAt = 59, kTransAt = 60, kHandSize = 63;
constexpr int kSkeletonJoints = 21;
constexpr double kNmrEps = 1e-4;  // the default of ops.silhouette

enum class SilhouetteMode : int64_t { nmr, edge };
enum class Optimizer : int64_t { gd, adam };

// The columns of a row of energies: each term before its weight, and their weighted sum.
enum Term : int { kJoints, kFeature, kLaplacian, kSilhouette, kPose, kShape, kLimits, kTotal, kTerms };

// Natural poses and ranges of motion (hand/pose_prior.py); all null where there is none.
template <typename T>
struct PosePriorView {
  const T* axes;       // (15, 3, 3) anatomical coordinates of a joint = axes @ its axis-angle
  const T* mean;       // (45,) axis-angle
  const T* precision;  // (45, 45)
  const T* low;        // (45,) anatomical coordinates
  const T* high;       // (45,)
};

template <typename T>
struct RefineModel {
  LbsModel<T> lbs;
  const int32_t* faces;  // (F, 3)
  int64_t n_faces;
  SparseRows<T> joint_regressor;  // 21 rows
  SparseRows<T> laplacian;        // V rows, symmetric
  PosePriorView<T> prior;
};

// What the hands are to agree with.
template <typename T>
struct RefineTargets {
  const T* joints2d_px;  // (B, 21, 2), joints that are not finite do not count
  const T* mask;         // (B, S, S) of the silhouette term, or null
  const T* slope;        // (B, S, S) derivative of the feature term by the mask, or null
  const T* slope_at;     // (B, S, S) the mask at which the feature term has ...
  const T* slope_value;  // (B,) ... this value
};

struct RefineOptions {
  double weights[kTotal];
  double feature_tau_px;  // the feature term acts on hands whose joints are nearer on average; infinite: on all
  SilhouetteMode mode;
  int image_size;  // S

  DHPE_HD bool draws_feature() const { return weights[kFeature] != 0; }
  DHPE_HD bool draws_silhouette() const { return weights[kSilhouette] != 0; }
  DHPE_HD bool draws() const { return draws_feature() || draws_silhouette(); }
};

// ---- Descent --------------------------------------------------------------------------------------------------------

// A hand's memory between calls, numbers of T: Adam's moments, the best h so far, and these.
constexpr int kFirstMoment = 0, kSecondMoment = kHandSize, kBestHand = 2 * kHandSize;
enum DescentNumber : int {
  kSteps = 3 * kHandSize,  // taken
  kIdle,                   // iterates running that hardly changed the energy
  kStatus,                 // a DescentStatus
  kFirstEnergy,            // these three without the feature term where a gate switches it
  kLastEnergy,
  kBestEnergy,
  kDescentSize
};
enum class DescentStatus : int { fresh, moving, converged, not_finite };

constexpr int kIdleToConverge = 3;

struct DescentOptions {
  int64_t iterations;
  Optimizer optimizer;
  double tolerance;   // a hand rests after kIdleToConverge changes of its energy below this share; 0: never
  bool evaluate_end;  // one more row of energies, at the last h
};

// Rows of energies are those of iterates 0 .. iterations - 1, and with evaluate_end of the last.
inline int64_t energy_rows(const DescentOptions& o) { return o.iterations + (o.evaluate_end ? 1 : 0); }

}  // namespace dhpe
