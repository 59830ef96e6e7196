// The kinematic chain of one hand, forward beside backward.
#pragma once

#include "common/rotation.h"
#include "lbs/lbs.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

template <typename T>
DHPE_HD void local_rotation(const T* pose, bool is_matrix, int64_t joint, T* out) {
  const Mat3<T> r = is_matrix ? load9(pose + 9 * joint) : rodrigues(load3(pose + 3 * joint));
  for (int i = 0; i < 9; ++i) out[i] = r.m[i];
}

template <typename T>
DHPE_HD T rest_coordinate(const LbsModel<T>& m, const T* betas, int64_t index) {
  T value = m.joint_template[index];
  for (int64_t s = 0; s < m.n_shape; ++s) value += betas[s] * m.joint_shapedirs[s * m.n_joints * 3 + index];
  return value;
}

// On the GPU nobody has looked at the table's values before: an impossible parent becomes the root.
template <typename T>
DHPE_HD int64_t parent_of(const LbsModel<T>& m, int64_t joint) {
  const int64_t p = m.parents[joint];
  return p < 0 || p >= joint ? 0 : p;
}

// The root turns about its own joint.
template <typename T>
DHPE_HD void chain_forward_root(Chain<T>& c) {
  for (int i = 0; i < 9; ++i) c.world[i] = c.local[i];
  for (int i = 0; i < 3; ++i) c.position[i] = c.rest[i];
}

// Joint j from its parent p.
template <typename T>
DHPE_HD void chain_forward_joint(Chain<T>& c, int64_t j, int64_t p) {
  const Mat3<T> parent = load9(c.world + 9 * p);
  const Mat3<T> world = mul(parent, load9(c.local + 9 * j));
  const Vec3<T> at = load3(c.position + 3 * p) + mul(parent, load3(c.rest + 3 * j) - load3(c.rest + 3 * p));
  for (int i = 0; i < 9; ++i) c.world[9 * j + i] = world.m[i];
  c.position[3 * j] = at.x;
  c.position[3 * j + 1] = at.y;
  c.position[3 * j + 2] = at.z;
}

// Needs `local` and `rest`; fills `world` and `position`.
template <typename T>
DHPE_HD void chain_forward(const LbsModel<T>& m, Chain<T>& c) {
  chain_forward_root(c);
  for (int64_t j = 1; j < m.n_joints; ++j) chain_forward_joint(c, j, parent_of(m, j));
}

// A joint moves a bent vertex u to W u + o with o = position - W rest.
template <typename T>
DHPE_HD Vec3<T> skin_offset(const Chain<T>& c, int64_t j) {
  return load3(c.position + 3 * j) - mul(load9(c.world + 9 * j), load3(c.rest + 3 * j));
}

template <typename T>
struct ChainGrad {
  T world[kMaxJoints * 9];     // in: dL/dW from skinning; the sweep adds the chain's own share
  T offset[kMaxJoints * 3];    // in: dL/do from skinning
  T position[kMaxJoints * 3];  // in: dL/dposition from the caller
  T local[kMaxJoints * 9];     // out
  T rest[kMaxJoints * 3];      // out
};

// Through o = position - W rest; starts dL/drest.
template <typename T>
DHPE_HD void chain_backward_offset(const Chain<T>& c, ChainGrad<T>& g, int64_t j) {
  const Vec3<T> go = load3(g.offset + 3 * j), rest = load3(c.rest + 3 * j);
  add_to(g.position + 3 * j, go);
  add_outer(g.world + 9 * j, Vec3<T>{-go.x, -go.y, -go.z}, rest);
  const Vec3<T> gr = mul_transposed(load9(c.world + 9 * j), go);
  g.rest[3 * j] = -gr.x;
  g.rest[3 * j + 1] = -gr.y;
  g.rest[3 * j + 2] = -gr.z;
}

// From joint j, whose children are done, to itself and its parent p.
template <typename T>
DHPE_HD void chain_backward_joint(const Chain<T>& c, ChainGrad<T>& g, int64_t j, int64_t p) {
  const Mat3<T> parent = load9(c.world + 9 * p), gw = load9(g.world + 9 * j);
  const Vec3<T> gp = load3(g.position + 3 * j);
  const Vec3<T> bone = load3(c.rest + 3 * j) - load3(c.rest + 3 * p);
  // position_j = position_p + W_p bone
  add_to(g.position + 3 * p, gp);
  add_outer(g.world + 9 * p, gp, bone);
  const Vec3<T> gb = mul_transposed(parent, gp);
  add_to(g.rest + 3 * j, gb);
  add_to(g.rest + 3 * p, Vec3<T>{-gb.x, -gb.y, -gb.z});
  // W_j = W_p R_j
  const Mat3<T> gl = mul(transposed(parent), gw);
  const Mat3<T> gwp = mul(gw, transposed(load9(c.local + 9 * j)));
  for (int i = 0; i < 9; ++i) {
    g.local[9 * j + i] = gl.m[i];
    g.world[9 * p + i] += gwp.m[i];
  }
}

template <typename T>
DHPE_HD void chain_backward_root(ChainGrad<T>& g) {
  for (int i = 0; i < 9; ++i) g.local[i] = g.world[i];
  for (int i = 0; i < 3; ++i) g.rest[i] += g.position[i];
}

template <typename T>
DHPE_HD void chain_backward(const LbsModel<T>& m, const Chain<T>& c, ChainGrad<T>& g) {
  for (int64_t j = 0; j < m.n_joints; ++j) chain_backward_offset(c, g, j);
  for (int64_t j = m.n_joints - 1; j > 0; --j) chain_backward_joint(c, g, j, parent_of(m, j));
  chain_backward_root(g);
}

// dL/dpose of one joint from the chain's dL/dR.
template <typename T>
DHPE_HD void store_pose_grad(const T* pose, bool is_matrix, int64_t joint, const T* grad_local, T* grad_pose) {
  if (is_matrix) {
    for (int i = 0; i < 9; ++i) grad_pose[9 * joint + i] = grad_local[9 * joint + i];
  } else {
    const Vec3<T> g = rodrigues_backward(load3(pose + 3 * joint), load9(grad_local + 9 * joint));
    grad_pose[3 * joint] = g.x;
    grad_pose[3 * joint + 1] = g.y;
    grad_pose[3 * joint + 2] = g.z;
  }
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
