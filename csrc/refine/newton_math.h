// Levenberg-Marquardt of one hypothesis, as dhpe_fast/refinement/gauss_newton.py has it (the readable version), for a
// team of workers (see newton_energy.h).
#pragma once

#include "refine/newton_energy.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

constexpr double kMaxDamping = 1e3;     // steps still rejected at this damping: it is a minimum
constexpr double kMaxCameraStep = 0.5;  // of a rotation or camera parameter: radians, log scale, crop units, metres
constexpr double kFirstDamping = 1e-2;
constexpr int kIdleSteps = 3;  // that running, little gained: converged

// ---- normal equations ---------------------------------------------------------------------------------------------

// One row of a node's Jacobian: how its image moves along `axis`.
DHPE_HD void jacobian_row(const NewtonHand& hand, const NewtonPoint& p, const NewtonSystem& sys,
                          const NewtonCamera& camera, int node, int axis, double* row) {
  const double *rotation = p.state + kRotationAt, *turned = p.turned + 3 * node;
  const Vec3<double> by_point = camera.by_point(turned, axis);
  const Vec3<double> by_model = mul_transposed(load9(rotation), by_point);  // by the node in the model's axes
  const int finger = (node - 1) / kFingerNodes, place = node == 0 ? 0 : node - first_node(finger);
  const int first = node - place;
  // Joint i moves a node beyond it by (turn_i dpose) x (node - joint).
  for (int i = 0; i < kFingerJoints; ++i) {
    Vec3<double> by_pose = {0, 0, 0};
    if (i < place) {
      const Vec3<double> lever = load3(p.chain + 3 * node) - load3(p.chain + 3 * (first + i));
      by_pose = mul_transposed(load9(sys.turn + 9 * (kFingerJoints * finger + i)), cross(lever, by_model));
    }
    store3(row + 3 * i, by_pose);
  }
  double* by_betas = row + kFingerPose;
  for (int s = 0; s < kNewtonShape; ++s) by_betas[s] = 0;
  for (int k = 0; k <= place; ++k) {  // a node is the sum of its bones, each turned by the joint before it
    const Vec3<double> by_bone =
        k == 0 ? by_model : mul_transposed(load9(p.world + 9 * (kFingerJoints * finger + k - 1)), by_model);
    const double* dirs = hand.bone_dirs + 3 * kNewtonShape * (first + k);
    for (int s = 0; s < kNewtonShape; ++s)
      by_betas[s] += by_bone.x * dirs[s] + by_bone.y * dirs[kNewtonShape + s] + by_bone.z * dirs[2 * kNewtonShape + s];
  }
  store3(row + kFingerPose + kNewtonShape, cross(load3(turned), by_point));
  camera.by_parameters(turned, axis, row + kFingerPose + kNewtonShape + 3);
}

// Adds what one node says about parameter `i`, `column` of the node's Jacobian, to the system.
template <typename Team>
DHPE_HD void add_node(const Team& team, const NewtonPoint& p, int node, int column, int i, NewtonSystem& sys) {
  const int finger = (node - 1) / kFingerNodes;
  const int first_pose = kFingerPose * finger, first_shared = kNewtonPose - kFingerPose;  // less their columns
  const int pose_end = node == 0 ? 0 : first_pose + (column < kFingerPose ? column : kFingerPose);
  double* to = sys.matrix + i * kRowStride;
  for (int axis = 0; axis < 2; ++axis) {
    const double* row = sys.jacobian + (2 * node + axis) * kNodeColumns;
    const double weighted = sys.node_weight[node] * row[column];
    for (int j = first_of(first_pose, team.lane(), team.lanes()); j < pose_end; j += team.lanes())
      to[j] += weighted * row[j - first_pose];
    for (int j = first_of(kNewtonPose, team.lane(), team.lanes()); j < first_shared + column; j += team.lanes())
      to[j] += weighted * row[j - first_shared];
    if (team.lane() == 0) {
      sys.diagonal[i] += weighted * row[column];
      sys.gradient[i] += weighted * p.residual[2 * node + axis];
    }
  }
}

// Starts row `i` of the system with the priors of its parameter.
template <typename Team>
DHPE_HD void start_row(const Team& team, const NewtonHand& hand, const NewtonWeights& weights, NewtonPoint& p, int i,
                       NewtonSystem& sys) {
  double* to = sys.matrix + i * kRowStride;
  double diagonal = 0, gradient = 0;
  if (i < kNewtonPose) {
    const double stiffness = 1 / (weights.limit_sigma_rad * weights.limit_sigma_rad);
    const double* precision = hand.precision + i * kNewtonPose;
    for (int j = team.lane(); j < i; j += team.lanes()) to[j] = weights.pose * precision[j];
    diagonal = weights.pose * precision[i];
    gradient = weights.pose * p.pull[i];
    const int first = i / 3 * 3;
    for (int a = first; a < first + 3; ++a) {  // anatomical axes of this joint: axes^T (outside) axes
      const double along = hand.axes[3 * a + i - first];
      const double outside = p.violation[a] != 0 ? stiffness * along : 0;
      diagonal += outside * along;
      gradient += stiffness * p.violation[a] * along;
      for (int j = first_of(first, team.lane(), team.lanes()); j < i; j += team.lanes())
        to[j] += outside * hand.axes[3 * a + j - first];
    }
  } else {
    for (int j = team.lane(); j < i; j += team.lanes()) to[j] = 0;
    if (i < kRotationAt) {
      const double beta = betas_of(p)[i - kNewtonPose], over = beta_excess(beta, weights.beta_limit);
      const double stiffness = 1 / (weights.beta_limit_sigma * weights.beta_limit_sigma);
      diagonal = weights.shape + (over != 0 ? stiffness : 0);
      gradient = weights.shape * beta + over * stiffness;
    }
  }
  if (team.lane() == 0) {
    sys.diagonal[i] = diagonal;
    sys.gradient[i] = gradient;
  }
}

// Gauss-Newton matrix and gradient at a point. `mesh_gradient` (61,) or null is that of the mesh terms, whose energy is
// taken for r^2 / 2 of one residual r: its Gauss-Newton matrix is g g^T / (2 energy).
template <typename Team>
DHPE_HD void normal_equations(const Team& team, const NewtonHand& hand, const NewtonEvidence& evidence,
                              const NewtonWeights& weights, const double* mesh_gradient, double mesh_energy,
                              NewtonPoint& p, NewtonSystem& sys) {
  const double* pose = pose_of(p);
  const NewtonCamera camera(evidence.intrinsics, cam_of(p));
  for (int j = team.rank(); j < kFingers * kFingerJoints; j += team.size()) {
    const Mat3<double> turn = left_jacobian(load3(pose + 3 * j));
    store9(sys.turn + 9 * j, j % kFingerJoints == 0 ? turn : mul(load9(p.world + 9 * (j - 1)), turn));
  }
  team.sync();
  for (int i = team.rank(); i < 2 * kNodes; i += team.size()) {
    const int node = i / 2;
    jacobian_row(hand, p, sys, camera, node, i % 2, sys.jacobian + i * kNodeColumns);
    if (i % 2 == 1) continue;
    const double variance = weights.joint_sigma * weights.joint_sigma;
    const double *r = p.residual + 2 * node, distance_sq = (r[0] * r[0] + r[1] * r[1]) / variance;
    const double say = 1 / (1 + distance_sq / (weights.outlier_sigmas * weights.outlier_sigmas));
    sys.node_weight[node] = evidence.confidence[std_joint(node)] * say * say / variance;
  }
  team.sync();
  for (int i = team.row(); i < kLocal; i += team.rows()) {
    start_row(team, hand, weights, p, i, sys);
    if (i < kNewtonPose) {
      const int finger = i / kFingerPose, column = i % kFingerPose;
      for (int k = 1; k < kFingerNodes; ++k) add_node(team, p, first_node(finger) + k, column, i, sys);
    } else {
      for (int node = 0; node < kNodes; ++node) add_node(team, p, node, kFingerPose + i - kNewtonPose, i, sys);
    }
    if (!mesh_gradient) continue;
    const double scaled = mesh_gradient[i] / (2 * mesh_energy > 1e-6 ? 2 * mesh_energy : 1e-6);
    for (int j = team.lane(); j < i; j += team.lanes()) sys.matrix[i * kRowStride + j] += scaled * mesh_gradient[j];
    if (team.lane() == 0) {
      sys.diagonal[i] += scaled * mesh_gradient[i];
      sys.gradient[i] += mesh_gradient[i];
    }
  }
  team.sync();
}

// ---- step ---------------------------------------------------------------------------------------------------------

// step = -(H + damping diag(H))^-1 gradient by H = U^T D^-1 U, the rows of U unscaled and D its diagonal; zero where
// the damped matrix is not positive definite, or anything is not finite.
template <typename Team>
DHPE_HD void damped_step(const Team& team, double damping, NewtonSystem& sys) {
  for (int i = team.row(); i < kLocal; i += team.rows()) {
    double* row = sys.matrix + i * kRowStride;
    for (int j = i + 1 + team.lane(); j < kLocal; j += team.lanes()) row[j] = sys.matrix[j * kRowStride + i];
    if (team.lane() == 0) {
      row[i] = sys.diagonal[i] + (sys.diagonal[i] * damping + 1e-9);
      row[kLocal] = -sys.gradient[i];
    }
  }
  team.sync();
  bool solvable = true;
  for (int k = 0; k < kLocal; ++k) {
    const double* pivot = sys.matrix + k * kRowStride;
    solvable = solvable && pivot[k] > 0;  // a NaN is not, either
    const double inverse = 1 / pivot[k];
    for (int i = k + 1 + team.row(); i < kLocal; i += team.rows()) {
      double* row = sys.matrix + i * kRowStride;
      const double factor = pivot[i] * inverse;
      for (int j = i + team.lane(); j < kColumns; j += team.lanes()) row[j] -= factor * pivot[j];
    }
    team.sync();
  }
  for (int k = kLocal - 1; k >= 0; --k) {
    const double* row = sys.matrix + k * kRowStride;
    const double value = row[kLocal] / row[k];
    if (team.rank() == 0) sys.step[k] = value;
    for (int i = team.rank(); i < k; i += team.size())
      sys.matrix[i * kRowStride + kLocal] -= value * sys.matrix[i * kRowStride + k];
    team.sync();
  }
  double longest = kMaxCameraStep, sum = 0;
  for (int i = 0; i < kLocal; ++i) {
    const double size = sys.step[i] < 0 ? -sys.step[i] : sys.step[i];
    sum += size;
    if (i >= kRotationAt && size > longest) longest = size;
  }
  // Far from the evidence a linear model may throw the hand out of the picture, from where nothing brings it back.
  const double scale = kMaxCameraStep / longest;
  team.sync();
  for (int i = team.rank(); i < kLocal; i += team.size())
    sys.step[i] = solvable && is_finite(sum) ? scale * sys.step[i] : 0;
  team.sync();
}

template <typename Team>
DHPE_HD void move(const Team& team, const NewtonPoint& from, const double* step, NewtonPoint& to) {
  for (int i = team.rank(); i < kRotationAt; i += team.size()) to.state[i] = from.state[i] + step[i];
  if (team.rank() == 0) {
    const Mat3<double> turn = rodrigues(load3(step + kRotationAt));
    store9(to.state + kRotationAt, mul(turn, load9(from.state + kRotationAt)));
    for (int i = 0; i < 3; ++i) to.state[kCamAt + i] = from.state[kCamAt + i] + step[kRotationAt + 3 + i];
  }
  team.sync();
}

// Keeps a step if it lowers the energy.
DHPE_HD void judge(double trial_energy, double tolerance, NewtonProgress& progress) {
  const bool better = trial_energy < progress.energy;
  const double damping = progress.damping * (better ? 0.2 : 6);
  progress.damping = damping < 1e-7 ? 1e-7 : damping > 1e7 ? 1e7 : damping;
  if (better) {
    progress.last_gain = progress.energy - trial_energy;
    progress.energy = trial_energy;
    progress.place = 1 - progress.place;
    progress.has_equations = false;
  }
  // A rejected step says nothing yet: the next one is shorter.
  const bool small = better ? progress.last_gain <= tolerance * (1 + trial_energy) : progress.damping > kMaxDamping;
  progress.idle = small ? progress.idle + 1 : better ? 0 : progress.idle;
  ++progress.steps;
}

// ---- a hypothesis from start to end -------------------------------------------------------------------------------

// The skeleton alone, in place of NewtonMeshTerms.
struct NoMesh {
  DHPE_HD double energy(NewtonPoint&) const { return 0; }
  DHPE_HD const double* gradient(const NewtonPoint&) const { return nullptr; }
};

DHPE_HD NewtonEvidence evidence_of(const NewtonProblem& problem, int64_t hypothesis) {
  const int64_t group = hypothesis / (problem.n_hypotheses / problem.n_groups);
  return {problem.joints + group * kNodes * 2, problem.confidence + group * kNodes,
          problem.intrinsics ? problem.intrinsics + group * 4 : nullptr};
}

DHPE_HD bool is_done(const NewtonProgress& progress, const NewtonProblem& problem) {
  return progress.resting || progress.idle >= kIdleSteps || progress.steps >= problem.iterations;
}

DHPE_HD int32_t status_of(const NewtonProgress& progress) {
  return !(progress.energy < kInfinity) ? kDiverged : progress.idle >= kIdleSteps ? kConverged : kStopped;
}

DHPE_HD double* state_entry(const NewtonStates& states, int64_t hypothesis, int i) {
  if (i < kNewtonPose) return states.pose + hypothesis * kNewtonPose + i;
  if (i < kRotationAt) return states.betas + hypothesis * kNewtonShape + i - kNewtonPose;
  if (i < kCamAt) return states.rotation + hypothesis * 9 + i - kRotationAt;
  return states.cam + hypothesis * 3 + i - kCamAt;
}

// Copies the state of a hypothesis from or to the caller.
template <typename Team>
DHPE_HD void load_state(const Team& team, const NewtonStates& states, int64_t hypothesis, double* state) {
  for (int i = team.rank(); i < kStateSize; i += team.size()) state[i] = *state_entry(states, hypothesis, i);
  team.sync();
}

template <typename Team>
DHPE_HD void store_state(const Team& team, const double* state, int64_t hypothesis, const NewtonStates& states) {
  for (int i = team.rank(); i < kStateSize; i += team.size()) *state_entry(states, hypothesis, i) = state[i];
}

template <typename Team, typename Mesh>
DHPE_HD double energy_at(const Team& team, const NewtonProblem& problem, const NewtonEvidence& evidence, Mesh& mesh,
                         NewtonHypothesis& h, int place, NewtonProgress& progress) {
  NewtonPoint& p = h.points[place];
  pose_nodes(team, problem.hand, p);
  progress.mesh_energy = mesh.energy(p);
  team.sync();
  return weigh(team, problem.hand, evidence, problem.weights, progress.mesh_energy, p);
}

// The state must be in points[0], which all workers see. One that is not finite becomes the mean hand, whose energy is
// not asked for.
template <typename Team, typename Mesh>
DHPE_HD void newton_start(const Team& team, const NewtonProblem& problem, const NewtonEvidence& evidence, Mesh& mesh,
                          NewtonHypothesis& h, NewtonProgress& progress) {
  progress = {kInfinity, 0, kFirstDamping, kInfinity, 0, 0, 0, false, false};
  double* state = h.points[0].state;
  double sum = 0;
  for (int i = 0; i < kStateSize; ++i) sum += state[i] - state[i];
  if (sum == 0) {
    progress.energy = energy_at(team, problem, evidence, mesh, h, 0, progress);
    return;
  }
  team.sync();
  for (int i = team.rank(); i < kStateSize; i += team.size()) {
    const int of_rotation = i - kRotationAt;
    const bool one = of_rotation == 0 || of_rotation == 4 || of_rotation == 8;
    state[i] = i < kNewtonPose ? problem.hand.mean[i] : one ? 1 : 0;
  }
  team.sync();
  progress.idle = kIdleSteps;
}

template <typename Team, typename Mesh>
DHPE_HD void newton_step(const Team& team, const NewtonProblem& problem, const NewtonEvidence& evidence, Mesh& mesh,
                         NewtonHypothesis& h, NewtonProgress& progress) {
  const int place = progress.place;
  if (!progress.has_equations)
    normal_equations(team, problem.hand, evidence, problem.weights, mesh.gradient(h.points[place]),
                     progress.mesh_energy, h.points[place], h.system);
  progress.has_equations = true;
  damped_step(team, progress.damping, h.system);
  move(team, h.points[place], h.system.step, h.points[1 - place]);
  const double trial_energy = energy_at(team, problem, evidence, mesh, h, 1 - place, progress);
  judge(trial_energy, problem.tolerance, progress);
  team.sync();
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
