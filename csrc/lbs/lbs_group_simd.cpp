// Linear blend skinning of many hands on the CPU, compiled once per instruction set (see common/simd.h). A lane is a
// hand: a group of one or two vectors of hands goes through all steps together, and what belongs to the model, a basis
// value, a skinning weight, is one scalar that serves the whole group.
//
// Blend shapes are a matrix product: a tile of kTile columns by the group stays in registers over all directions,
// forward, and a tile of kTile directions by the group over the columns of a block of vertices, backward. All other
// steps of that block happen in between, in L1.
#include <algorithm>
#include <memory>

#include "common/transpose.h"
#include "lbs/lbs_math.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {
namespace {

constexpr int kMaxVectors = 2;  // of hands in a group
#if defined(__AVX512F__)
constexpr int kTile = 12;  // 24 of 32 registers accumulate
#else
constexpr int kTile = 6;  // 12 of 16
#endif
constexpr int64_t kBlockVerts = 16;
constexpr int64_t kBlock = 3 * kBlockVerts;  // columns

// A group on its way. Arrays of columns hold the `Vectors` vectors of a column side by side.
template <typename T>
struct Group {
  Chain<Vector<T>> chain[kMaxVectors];
  ChainGrad<Vector<T>> chain_grad;
  Vector<T> parameters[kMaxCoeffs > 9 * kMaxJoints ? kMaxCoeffs
                                                   : 9 * kMaxJoints];  // pose, betas or their gradients, on their way
  Vector<T> coeffs[kMaxVectors * kMaxCoeffs];           // the betas, then R - I of joints 1..J-1, or their gradient
  Vector<T> transforms[kMaxVectors * kMaxJoints * 12];  // [W | o] of each joint, 3x4
  Vector<T> transform_grads[kMaxVectors * kMaxJoints * 12];
  Vector<T> bent[kMaxVectors * kBlock], verts[kMaxVectors * kBlock], bent_grads[kMaxVectors * kBlock];
};

// Kept by each thread: too large for the small stacks of some, and slow to ask the system for.
template <typename T>
Group<T>& group_of_thread() {
  static thread_local const std::unique_ptr<Group<T>> group(new Group<T>);
  return *group;
}

template <typename T>
RodriguesTerms<Vector<T>> rodrigues_terms_of_lanes(const Vector<T>& q) {
  RodriguesTerms<Vector<T>> terms;
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    const RodriguesTerms<T> r = rodrigues_terms<T>(q[lane]);
    terms.a[lane] = r.a;
    terms.b[lane] = r.b;
    terms.da[lane] = r.da;
    terms.db[lane] = r.db;
  }
  return terms;
}

// The kinematics of one vector of hands: the hands [hand, hand + count), count > 0.
template <typename T>
void pose_lanes(const LbsModel<T>& m, const T* pose, bool is_matrix, const T* betas, int64_t hand, int64_t count,
                Vector<T>* parameters, Chain<Vector<T>>& c) {
  const int64_t width = m.n_joints * (is_matrix ? 9 : 3);
  load_columns(betas + hand * m.n_shape, m.n_shape, count, m.n_shape, parameters, 1);
  for (int64_t i = 0; i < 3 * m.n_joints; ++i) {
    c.rest[i] = Vector<T>{} + m.joint_template[i];
    for (int64_t s = 0; s < m.n_shape; ++s) c.rest[i] += m.joint_shapedirs[s * m.n_joints * 3 + i] * parameters[s];
  }
  if (is_matrix) {
    load_columns(pose + hand * width, width, count, width, c.local, 1);
  } else {
    load_columns(pose + hand * width, width, count, width, parameters, 1);
    for (int64_t j = 0; j < m.n_joints; ++j) {
      const Vec3<Vector<T>> v = load3(parameters + 3 * j);
      const Vector<T> q = dot(v, v);
      const Mat3<Vector<T>> r = rodrigues(v, q, rodrigues_terms_of_lanes<T>(q));
      for (int i = 0; i < 9; ++i) c.local[9 * j + i] = r.m[i];
    }
  }
  chain_forward_root(c);
  for (int64_t j = 1; j < m.n_joints; ++j) chain_forward_joint(c, j, m.parents[j]);
}

template <typename T, int Vectors>
void store_transforms(const LbsModel<T>& m, Group<T>& group) {
  for (int n = 0; n < Vectors; ++n)
    for (int64_t j = 0; j < m.n_joints; ++j) {
      const Chain<Vector<T>>& c = group.chain[n];
      const Vec3<Vector<T>> o = skin_offset(c, j);
      Vector<T>* to = group.transforms + 12 * (Vectors * j + n);
      for (int r = 0; r < 3; ++r) {
        for (int k = 0; k < 3; ++k) to[4 * r + k] = c.world[9 * j + 3 * r + k];
        to[4 * r + 3] = r == 0 ? o.x : r == 1 ? o.y : o.z;
      }
    }
}

template <typename T, int Vectors>
void store_coeffs(const LbsModel<T>& m, const T* betas, int64_t hand, int64_t n, int64_t count, Group<T>& group) {
  Vector<T>* to = group.coeffs + n;
  load_columns(betas + hand * m.n_shape, m.n_shape, count, m.n_shape, to, Vectors);
  for (int64_t i = 0; i < m.n_pose; ++i) {
    const bool diagonal = i % 9 == 0 || i % 9 == 4 || i % 9 == 8;
    to[Vectors * (m.n_shape + i)] = group.chain[n].local[9 + i] - (diagonal ? T(1) : T(0));
  }
}

// bent = v_template + sum_k coeffs[k] row_k over `Columns` columns from `column` on.
template <typename T, int Vectors, int Columns>
void blend_tile(const LbsModel<T>& m, const Vector<T>* coeffs, int64_t column, Vector<T>* bent) {
  const int64_t n_columns = m.n_verts * 3;
  Vector<T> sum[Columns][Vectors];
  for (int c = 0; c < Columns; ++c)
    for (int n = 0; n < Vectors; ++n) sum[c][n] = Vector<T>{} + m.v_template[column + c];
  for (int part = 0; part < 2; ++part) {
    const T* row = (part ? m.posedirs : m.shapedirs) + column;
    for (int64_t k = part ? m.n_pose : m.n_shape; k > 0; --k, row += n_columns, coeffs += Vectors) {
      __builtin_prefetch(row + 2 * Columns - 1);  // the next tile's
#pragma GCC unroll 16
      for (int c = 0; c < Columns; ++c)
#pragma GCC unroll 2
        for (int n = 0; n < Vectors; ++n) sum[c][n] += row[c] * coeffs[n];
    }
  }
  for (int c = 0; c < Columns; ++c)
    for (int n = 0; n < Vectors; ++n) bent[Vectors * c + n] = sum[c][n];
}

template <typename T, int Vectors>
void blend_block(const LbsModel<T>& m, const Vector<T>* coeffs, int64_t column, int64_t count, Vector<T>* bent) {
  int64_t c = 0;
  for (; c + kTile <= count; c += kTile) blend_tile<T, Vectors, kTile>(m, coeffs, column + c, bent + Vectors * c);
  for (; c < count; c += 3) blend_tile<T, Vectors, 3>(m, coeffs, column + c, bent + Vectors * c);
}

// The `Count` first numbers of vertex v's transform [W | o].
template <typename T, int Vectors, int Count>
void blended_transform(const LbsModel<T>& m, const Vector<T>* transforms, int64_t v, Vector<T> (&t)[Count]) {
  for (int i = 0; i < Count; ++i) t[i] = Vector<T>{};
  for (int64_t k = v * m.n_slots; k < (v + 1) * m.n_slots; ++k) {
    const T w = m.skin_weights[k];
    if (w == 0) continue;  // an unused slot
    const Vector<T>* a = transforms + 12 * Vectors * m.skin_joints[k];
#pragma GCC unroll 12
    for (int i = 0; i < Count; ++i) t[i] += w * a[i];
  }
}

template <typename T, int Vectors>
void skin_block(const LbsModel<T>& m, const Vector<T>* transforms, int64_t begin, int64_t end, const Vector<T>* bent,
                Vector<T>* verts) {
  for (int64_t v = begin; v < end; ++v)
    for (int n = 0; n < Vectors; ++n) {
      Vector<T> t[12];
      blended_transform<T, Vectors>(m, transforms + 12 * n, v, t);
      const int64_t at = 3 * (v - begin) * Vectors + n;
      for (int r = 0; r < 3; ++r) {
        Vector<T> sum = t[4 * r + 3];
        for (int k = 0; k < 3; ++k) sum += t[4 * r + k] * bent[at + k * Vectors];
        verts[at + r * Vectors] = sum;
      }
    }
}

// From dL/dverts to dL/dbent and, added to those of the joints, dL/d[W | o].
template <typename T, int Vectors>
void skin_backward_block(const LbsModel<T>& m, Group<T>& group, int64_t begin, int64_t end) {
  for (int64_t v = begin; v < end; ++v)
    for (int n = 0; n < Vectors; ++n) {
      Vector<T> t[12];
      blended_transform<T, Vectors>(m, group.transforms + 12 * n, v, t);
      const int64_t at = 3 * (v - begin) * Vectors + n;
      const Vector<T>*u = group.bent + at, *g = group.verts + at;
      Vector<T> outer[12];
      for (int k = 0; k < 3; ++k) {
        group.bent_grads[at + k * Vectors] = t[k] * g[0] + t[4 + k] * g[Vectors] + t[8 + k] * g[2 * Vectors];
        for (int r = 0; r < 3; ++r) outer[4 * r + k] = g[r * Vectors] * u[k * Vectors];
      }
      for (int r = 0; r < 3; ++r) outer[4 * r + 3] = g[r * Vectors];
      for (int64_t k = v * m.n_slots; k < (v + 1) * m.n_slots; ++k) {
        const T w = m.skin_weights[k];
        if (w == 0) continue;
        Vector<T>* sum = group.transform_grads + 12 * (Vectors * m.skin_joints[k] + n);
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) sum[i] += w * outer[i];
      }
    }
}

// sums[k] += row_k . grads for `Rows` rows, the first of which is `row`, over `count` columns.
template <typename T, int Vectors, int Rows>
void dot_tile(const T* row, int64_t stride, int64_t count, const Vector<T>* grads, Vector<T>* sums) {
  Vector<T> sum[Rows][Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int n = 0; n < Vectors; ++n) sum[r][n] = sums[Vectors * r + n];
    for (int64_t c = 0; c < kBlock; c += 64 / sizeof(T)) __builtin_prefetch(row + (r + Rows) * stride + c);  // the next
  }
  for (int64_t c = 0; c < count; ++c, ++row, grads += Vectors)
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
      for (int n = 0; n < Vectors; ++n) sum[r][n] += row[r * stride] * grads[n];
  for (int r = 0; r < Rows; ++r)
    for (int n = 0; n < Vectors; ++n) sums[Vectors * r + n] = sum[r][n];
}

template <typename T, int Vectors>
void blend_backward_block(const LbsModel<T>& m, int64_t column, int64_t count, const Vector<T>* grads,
                          Vector<T>* sums) {
  const int64_t stride = m.n_verts * 3;
  for (int part = 0; part < 2; ++part) {
    const T* row = (part ? m.posedirs : m.shapedirs) + column;
    int64_t left = part ? m.n_pose : m.n_shape;
    for (; left >= kTile; left -= kTile, row += kTile * stride, sums += Vectors * kTile)
      dot_tile<T, Vectors, kTile>(row, stride, count, grads, sums);
    for (; left >= 3; left -= 3, row += 3 * stride, sums += Vectors * 3)
      dot_tile<T, Vectors, 3>(row, stride, count, grads, sums);
    for (; left > 0; --left, row += stride, sums += Vectors) dot_tile<T, Vectors, 1>(row, stride, count, grads, sums);
  }
}

template <typename T, int Vectors>
void forward_group(const LbsForward<T>& p, int64_t hand, int64_t hands, Group<T>& group) {
  const LbsModel<T>& m = p.model;
  const int64_t n_columns = m.n_verts * 3;
  const auto count = [&](int n) { return std::clamp<int64_t>(hands - n * kLanes<T>, 1, kLanes<T>); };
  for (int n = 0; n < Vectors; ++n) {
    const int64_t first = hand + n * kLanes<T>;
    pose_lanes(m, p.pose, p.pose_is_matrix, p.betas, first, count(n), group.parameters, group.chain[n]);
    store_coeffs<T, Vectors>(m, p.betas, first, n, count(n), group);
    store_columns(p.joints + first * 3 * m.n_joints, 3 * m.n_joints, count(n), 3 * m.n_joints, group.chain[n].position,
                  1);
  }
  store_transforms<T, Vectors>(m, group);
  for (int64_t v = 0; v < m.n_verts; v += kBlockVerts) {
    const int64_t end = std::min(v + kBlockVerts, m.n_verts), columns = 3 * (end - v);
    blend_block<T, Vectors>(m, group.coeffs, 3 * v, columns, group.bent);
    skin_block<T, Vectors>(m, group.transforms, v, end, group.bent, group.verts);
    for (int n = 0; n < Vectors; ++n) {
      const int64_t at = (hand + n * kLanes<T>)*n_columns + 3 * v;
      if (p.bent) store_columns(p.bent + at, n_columns, count(n), columns, group.bent + n, Vectors);
      store_columns(p.verts + at, n_columns, count(n), columns, group.verts + n, Vectors);
    }
  }
}

// From the sums over vertices to the parameters of the hands of vector n.
template <typename T, int Vectors>
void finish_lanes(const LbsBackward<T>& p, int64_t hand, int n, int64_t count, Group<T>& group) {
  const LbsModel<T>& m = p.model;
  const int64_t width = m.n_joints * (p.pose_is_matrix ? 9 : 3), n_rest = 3 * m.n_joints;
  const Chain<Vector<T>>& chain = group.chain[n];
  ChainGrad<Vector<T>>& g = group.chain_grad;
  for (int64_t j = 0; j < m.n_joints; ++j)
    for (int r = 0; r < 3; ++r) {
      const Vector<T>* from = group.transform_grads + 12 * (Vectors * j + n) + 4 * r;
      for (int k = 0; k < 3; ++k) g.world[9 * j + 3 * r + k] = from[k];
      g.offset[3 * j + r] = from[3];
    }
  load_columns(p.grad_joints + hand * n_rest, n_rest, count, n_rest, g.position, 1);
  for (int64_t j = 0; j < m.n_joints; ++j) chain_backward_offset(chain, g, j);
  for (int64_t j = m.n_joints - 1; j > 0; --j) chain_backward_joint(chain, g, j, m.parents[j]);
  chain_backward_root(g);
  for (int64_t i = 0; i < m.n_pose; ++i) g.local[9 + i] += group.coeffs[Vectors * (m.n_shape + i) + n];
  if (p.pose_is_matrix) {
    store_columns(p.grad_pose + hand * width, width, count, width, g.local, 1);
  } else {
    load_columns(p.pose + hand * width, width, count, width, group.parameters, 1);
    for (int64_t j = 0; j < m.n_joints; ++j) {
      const Vec3<Vector<T>> v = load3(group.parameters + 3 * j);
      const Vector<T> q = dot(v, v);
      const auto gv = rodrigues_backward(v, load9(g.local + 9 * j), q, rodrigues_terms_of_lanes<T>(q));
      group.parameters[3 * j] = gv.x;
      group.parameters[3 * j + 1] = gv.y;
      group.parameters[3 * j + 2] = gv.z;
    }
    store_columns(p.grad_pose + hand * width, width, count, width, group.parameters, 1);
  }
  for (int64_t s = 0; s < m.n_shape; ++s) {
    Vector<T> sum = group.coeffs[Vectors * s + n];
    for (int64_t i = 0; i < n_rest; ++i) sum += m.joint_shapedirs[s * n_rest + i] * g.rest[i];
    group.coeffs[Vectors * s + n] = sum;
  }
  store_columns(p.grad_betas + hand * m.n_shape, m.n_shape, count, m.n_shape, group.coeffs + n, Vectors);
}

template <typename T, int Vectors>
void backward_group(const LbsBackward<T>& p, int64_t hand, int64_t hands, Group<T>& group) {
  const LbsModel<T>& m = p.model;
  const int64_t n_columns = m.n_verts * 3;
  const auto count = [&](int n) { return std::clamp<int64_t>(hands - n * kLanes<T>, 1, kLanes<T>); };
  for (int n = 0; n < Vectors; ++n)
    pose_lanes(m, p.pose, p.pose_is_matrix, p.betas, hand + n * kLanes<T>, count(n), group.parameters, group.chain[n]);
  store_transforms<T, Vectors>(m, group);
  std::fill_n(group.coeffs, Vectors * (m.n_shape + m.n_pose), Vector<T>{});
  std::fill_n(group.transform_grads, Vectors * 12 * m.n_joints, Vector<T>{});
  for (int64_t v = 0; v < m.n_verts; v += kBlockVerts) {
    const int64_t end = std::min(v + kBlockVerts, m.n_verts), columns = 3 * (end - v);
    for (int n = 0; n < Vectors; ++n) {
      const int64_t at = (hand + n * kLanes<T>)*n_columns + 3 * v;
      load_columns(p.bent + at, n_columns, count(n), columns, group.bent + n, Vectors);
      load_columns(p.grad_verts + at, n_columns, count(n), columns, group.verts + n, Vectors);
    }
    skin_backward_block<T, Vectors>(m, group, v, end);
    blend_backward_block<T, Vectors>(m, 3 * v, columns, group.bent_grads, group.coeffs);
  }
  for (int n = 0; n < Vectors; ++n) finish_lanes<T, Vectors>(p, hand + n * kLanes<T>, n, count(n), group);
}

}  // namespace

template <typename T>
void lbs_group_forward(const LbsForward<T>& p, int64_t begin, int64_t end) {
  for (int64_t hand = begin; hand < end;) {
    const int64_t hands = std::min<int64_t>(kMaxVectors * kLanes<T>, end - hand);
    if (hands > kLanes<T>)
      forward_group<T, 2>(p, hand, hands, group_of_thread<T>());
    else
      forward_group<T, 1>(p, hand, hands, group_of_thread<T>());
    hand += hands;
  }
}

template <typename T>
void lbs_group_backward(const LbsBackward<T>& p, int64_t begin, int64_t end) {
  for (int64_t hand = begin; hand < end;) {
    const int64_t hands = std::min<int64_t>(kMaxVectors * kLanes<T>, end - hand);
    if (hands > kLanes<T>)
      backward_group<T, 2>(p, hand, hands, group_of_thread<T>());
    else
      backward_group<T, 1>(p, hand, hands, group_of_thread<T>());
    hand += hands;
  }
}

#define DHPE_INSTANTIATE(T)                                                   \
  template void lbs_group_forward<T>(const LbsForward<T>&, int64_t, int64_t); \
  template void lbs_group_backward<T>(const LbsBackward<T>&, int64_t, int64_t);
DHPE_INSTANTIATE(float)
DHPE_INSTANTIATE(double)
#undef DHPE_INSTANTIATE

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
