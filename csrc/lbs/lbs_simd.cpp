// The CPU's inner loops of linear blend skinning, compiled once per instruction set (see common/simd.h).
//
// Cost: nearly all of it is the blend shapes, V * 3 * (S + P) multiply-adds over a 1.3 MB basis that fits no L2.
//  - A hand or two: the basis is read once. Shared between two threads, each half of it stays in a core's own L2.
//  - More: a matrix product. Forward, a block of hands by a panel of columns stays in registers over all rows;
//  backward,
//    a block of hands by a block of rows does, over half of the columns. Each basis value loaded serves many hands.
#include <algorithm>

#include "common/vector.h"
#include "lbs/lbs_math.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {
namespace {

constexpr int64_t kRows = 4;  // basis rows taken together
constexpr int kPanel = 4;     // forward: vectors of columns in registers ...
#if defined(__AVX512F__)
constexpr int kHands = 6;       // ... for so many hands: 24 of 32 registers accumulate
constexpr int kWidePanel = 16;  // for a single hand
constexpr int kDotHands = 4;    // backward: 4 rows by 4 hands
#else
constexpr int kHands = 2;  // 8 of 16 registers
constexpr int kWidePanel = 8;
constexpr int kDotHands = 2;
#endif

template <typename T>
const T* basis_row(const LbsModel<T>& m, int64_t k) {
  const int64_t n = m.n_verts * 3;
  return k < m.n_shape ? m.shapedirs + k * n : m.posedirs + (k - m.n_shape) * n;
}

// coeffs (S + P): the betas, then R - I of joints 1..J-1.
template <typename T>
void pose_hand(const LbsModel<T>& m, const T* pose, bool is_matrix, const T* betas, Chain<T>& c, T* coeffs) {
  for (int64_t j = 0; j < m.n_joints; ++j) local_rotation(pose, is_matrix, j, c.local + 9 * j);
  for (int64_t i = 0; i < 3 * m.n_joints; ++i) c.rest[i] = rest_coordinate(m, betas, i);
  chain_forward(m, c);
  for (int64_t s = 0; s < m.n_shape; ++s) coeffs[s] = betas[s];
  for (int64_t i = 0; i < m.n_pose; ++i) {
    const bool diagonal = i % 9 == 0 || i % 9 == 4 || i % 9 == 8;
    coeffs[m.n_shape + i] = c.local[9 + i] - (diagonal ? T(1) : T(0));
  }
}

// out = v_template + sum_k coeffs[k] row_k: the panel of `Hands` hands by `Width` vectors of columns from `column` on.
template <typename T, int Hands, int Width>
void blend_panel(const LbsModel<T>& m, const T* coeffs, int64_t column, T* out) {
  const int64_t n = m.n_verts * 3, rows = m.n_shape + m.n_pose;
  Vector<T> sum[Hands][Width];
  for (int v = 0; v < Width; ++v) {
    const Vector<T> start = load(m.v_template + column + v * kLanes<T>);
    for (int h = 0; h < Hands; ++h) sum[h][v] = start;
  }
  for (int64_t k = 0; k < rows; ++k) {
    const T* row = basis_row(m, k) + column;
    Vector<T> r[Width];
    for (int v = 0; v < Width; ++v) r[v] = load(row + v * kLanes<T>);
    for (int h = 0; h < Hands; ++h)
      for (int v = 0; v < Width; ++v) sum[h][v] += coeffs[h * rows + k] * r[v];
  }
  for (int h = 0; h < Hands; ++h)
    for (int v = 0; v < Width; ++v) store(out + h * n + column + v * kLanes<T>, sum[h][v]);
}

// out = v_template + sum_k coeffs[k] row_k over the columns [column, end), for each hand of a group.
template <typename T>
void blend(const LbsModel<T>& m, const T* coeffs, int64_t hands, int64_t column, int64_t end, T* out) {
  const int64_t n = m.n_verts * 3, rows = m.n_shape + m.n_pose;
  for (; hands == 1 && column + kWidePanel * kLanes<T> <= end; column += kWidePanel * kLanes<T>)
    blend_panel<T, 1, kWidePanel>(m, coeffs, column, out);
  for (; column + kPanel * kLanes<T> <= end; column += kPanel * kLanes<T>) {  // its rows stay in L1 for the whole group
    int64_t h = 0;
    for (; h + kHands <= hands; h += kHands) blend_panel<T, kHands, kPanel>(m, coeffs + h * rows, column, out + h * n);
    for (; h + 2 <= hands; h += 2) blend_panel<T, 2, kPanel>(m, coeffs + h * rows, column, out + h * n);
    for (; h < hands; ++h) blend_panel<T, 1, kPanel>(m, coeffs + h * rows, column, out + h * n);
  }
  for (int64_t h = 0; h < hands; ++h) {  // what no panel covers
    T* __restrict o = out + h * n;
    std::copy(m.v_template + column, m.v_template + end, o + column);
    for (int64_t k = 0; k < rows; ++k) {
      const T* __restrict row = basis_row(m, k);
      const T w = coeffs[h * rows + k];
#pragma omp simd
      for (int64_t i = column; i < end; ++i) o[i] += w * row[i];
    }
  }
}

template <typename T>
T lane_sum(const Vector<T>& v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// grad_coeffs[h][k] += row_k . grad_h over the columns [begin, end), for `Hands` hands and kRows rows.
template <typename T, int Hands>
void dot_block(const LbsModel<T>& m, const T* grad, int64_t k, int64_t begin, int64_t end, T* grad_coeffs) {
  const int64_t n = m.n_verts * 3, rows = m.n_shape + m.n_pose;
  const int64_t count = std::min(kRows, rows - k);
  const T* row[kRows];
  for (int64_t r = 0; r < kRows; ++r) row[r] = basis_row(m, k + std::min(r, count - 1));
  Vector<T> sum[Hands][kRows] = {};
  int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) {
    Vector<T> d[kRows];
    for (int64_t r = 0; r < kRows; ++r) d[r] = load(row[r] + i);
    for (int h = 0; h < Hands; ++h) {
      const Vector<T> g = load(grad + h * n + i);
      for (int64_t r = 0; r < kRows; ++r) sum[h][r] += g * d[r];
    }
  }
  for (int h = 0; h < Hands; ++h)
    for (int64_t r = 0; r < count; ++r) {
      T total = lane_sum<T>(sum[h][r]);
      for (int64_t rest = i; rest < end; ++rest) total += grad[h * n + rest] * row[r][rest];
      grad_coeffs[h * rows + k + r] += total;
    }
}

// grad_coeffs_h[k] += row_k . grad_h over the columns [begin, end), for each hand of a group.
template <typename T>
void blend_backward(const LbsModel<T>& m, const T* grad, int64_t hands, int64_t begin, int64_t end, T* grad_coeffs) {
  const int64_t n = m.n_verts * 3, rows = m.n_shape + m.n_pose;
  for (int64_t k = 0; k < rows; k += kRows) {
    int64_t h = 0;
    for (; h + kDotHands <= hands; h += kDotHands)
      dot_block<T, kDotHands>(m, grad + h * n, k, begin, end, grad_coeffs + h * rows);
    for (; h < hands; ++h) dot_block<T, 1>(m, grad + h * n, k, begin, end, grad_coeffs + h * rows);
  }
}

// Each joint's 3x4 transform [W | o] in 16 lanes, so that blending a vertex's transform is one vector operation a slot.
template <typename T>
void pack_transforms(const LbsModel<T>& m, const Chain<T>& c, T* packed) {
  for (int64_t j = 0; j < m.n_joints; ++j) {
    const Vec3<T> o = skin_offset(c, j);
    const T offset[3] = {o.x, o.y, o.z};
    for (int r = 0; r < 4; ++r)
      for (int k = 0; k < 4; ++k)
        packed[16 * j + 4 * r + k] = r == 3 ? T(0) : k == 3 ? offset[r] : c.world[9 * j + 3 * r + k];
  }
}

template <typename T>
void blended_transform(const LbsModel<T>& m, const T* packed, int64_t v, T* t) {
  for (int i = 0; i < 16; ++i) t[i] = 0;
  for (int64_t k = 0; k < m.n_slots; ++k) {
    const T w = m.skin_weights[v * m.n_slots + k];
    const T* a = packed + 16 * m.skin_joints[v * m.n_slots + k];
#pragma omp simd
    for (int i = 0; i < 16; ++i) t[i] += w * a[i];
  }
}

template <typename T>
void skin(const LbsModel<T>& m, const T* packed, const T* bent, int64_t begin, int64_t end, T* verts) {
  for (int64_t v = begin; v < end; ++v) {
    alignas(64) T t[16];
    blended_transform(m, packed, v, t);
    const T x = bent[3 * v], y = bent[3 * v + 1], z = bent[3 * v + 2];
    for (int r = 0; r < 3; ++r) verts[3 * v + r] = t[4 * r] * x + t[4 * r + 1] * y + t[4 * r + 2] * z + t[4 * r + 3];
  }
}

// grad_bent of the vertices [begin, end), and their dL/d[W | o] added to 16 lanes a joint.
template <typename T>
void skin_backward(const LbsBackward<T>& p, int64_t hand, const T* packed, int64_t begin, int64_t end, T* grad_packed) {
  const LbsModel<T>& m = p.model;
  alignas(64) T sum[16 * kMaxJoints];
  std::fill_n(sum, 16 * m.n_joints, T(0));
  for (int64_t v = begin; v < end; ++v) {
    alignas(64) T t[16];
    blended_transform(m, packed, v, t);
    const int64_t at = (hand * m.n_verts + v) * 3;
    const T* g = p.grad_verts + at;
    const T* u = p.bent + at;
    for (int k = 0; k < 3; ++k) p.grad_bent[at + k] = t[k] * g[0] + t[4 + k] * g[1] + t[8 + k] * g[2];
    alignas(64) T outer[16];
    for (int r = 0; r < 3; ++r)
      for (int k = 0; k < 4; ++k) outer[4 * r + k] = g[r] * (k == 3 ? T(1) : u[k]);
    for (int k = 12; k < 16; ++k) outer[k] = 0;
    for (int64_t k = 0; k < m.n_slots; ++k) {
      const T w = m.skin_weights[v * m.n_slots + k];
      T* o = sum + 16 * m.skin_joints[v * m.n_slots + k];
#pragma omp simd
      for (int i = 0; i < 16; ++i) o[i] += w * outer[i];
    }
  }
  for (int64_t i = 0; i < 16 * m.n_joints; ++i) grad_packed[i] += sum[i];
}

template <typename T>
int64_t half_begin(const LbsModel<T>& m, int half) {
  return half * m.n_verts / kHalves;
}

// From the sums over vertices to the parameters of one hand.
template <typename T>
void finish_backward(const LbsBackward<T>& p, int64_t hand, const Chain<T>& chain, const T* grad_coeffs,
                     const T* grad_packed) {
  const LbsModel<T>& m = p.model;
  const int64_t width = m.n_joints * (p.pose_is_matrix ? 9 : 3);
  ChainGrad<T> g = {};
  for (int64_t j = 0; j < m.n_joints; ++j)
    for (int r = 0; r < 3; ++r) {
      for (int k = 0; k < 3; ++k) g.world[9 * j + 3 * r + k] = grad_packed[16 * j + 4 * r + k];
      g.offset[3 * j + r] = grad_packed[16 * j + 4 * r + 3];
    }
  std::copy_n(p.grad_joints + hand * 3 * m.n_joints, 3 * m.n_joints, g.position);
  chain_backward(m, chain, g);
  for (int64_t i = 0; i < m.n_pose; ++i) g.local[9 + i] += grad_coeffs[m.n_shape + i];
  for (int64_t j = 0; j < m.n_joints; ++j)
    store_pose_grad(p.pose + hand * width, p.pose_is_matrix, j, g.local, p.grad_pose + hand * width);
  for (int64_t s = 0; s < m.n_shape; ++s) {
    T sum = grad_coeffs[s];
    for (int64_t i = 0; i < 3 * m.n_joints; ++i) sum += g.rest[i] * m.joint_shapedirs[s * 3 * m.n_joints + i];
    p.grad_betas[hand * m.n_shape + s] = sum;
  }
}

}  // namespace

template <typename T>
void lbs_pose(const LbsModel<T>& m, const T* pose, bool is_matrix, const T* betas, PosedHand<T>& posed) {
  pose_hand(m, pose, is_matrix, betas, posed.chain, posed.coeffs);
  pack_transforms(m, posed.chain, posed.packed);
}

template <typename T>
void lbs_verts(const LbsForward<T>& p, int64_t hand, const PosedHand<T>& posed, int64_t begin, int64_t end) {
  const int64_t n = p.model.n_verts * 3;
  blend(p.model, posed.coeffs, 1, 3 * begin, 3 * end, p.bent + hand * n);
  skin(p.model, posed.packed, p.bent + hand * n, begin, end, p.verts + hand * n);
}

template <typename T>
void lbs_backward_half(const LbsBackward<T>& p, int64_t hand, const PosedHand<T>& posed, int half,
                       VertexSums<T>& sums) {
  const LbsModel<T>& m = p.model;
  const int64_t n = m.n_verts * 3, begin = half_begin(m, half), end = half_begin(m, half + 1);
  std::fill_n(sums.packed, 16 * m.n_joints, T(0));
  std::fill_n(sums.coeffs, m.n_shape + m.n_pose, T(0));
  skin_backward(p, hand, posed.packed, begin, end, sums.packed);
  blend_backward(m, p.grad_bent + hand * n, 1, 3 * begin, 3 * end, sums.coeffs);
}

template <typename T>
void lbs_backward_finish(const LbsBackward<T>& p, int64_t hand, const PosedHand<T>& posed, VertexSums<T>* halves) {
  const LbsModel<T>& m = p.model;
  for (int half = 1; half < kHalves; ++half) {
    for (int64_t i = 0; i < 16 * m.n_joints; ++i) halves[0].packed[i] += halves[half].packed[i];
    for (int64_t k = 0; k < m.n_shape + m.n_pose; ++k) halves[0].coeffs[k] += halves[half].coeffs[k];
  }
  finish_backward(p, hand, posed.chain, halves[0].coeffs, halves[0].packed);
}

#define DHPE_INSTANTIATE(T)                                                                                     \
  template void lbs_pose<T>(const LbsModel<T>&, const T*, bool, const T*, PosedHand<T>&);                       \
  template void lbs_verts<T>(const LbsForward<T>&, int64_t, const PosedHand<T>&, int64_t, int64_t);             \
  template void lbs_backward_half<T>(const LbsBackward<T>&, int64_t, const PosedHand<T>&, int, VertexSums<T>&); \
  template void lbs_backward_finish<T>(const LbsBackward<T>&, int64_t, const PosedHand<T>&, VertexSums<T>*);
DHPE_INSTANTIATE(float)
DHPE_INSTANTIATE(double)
#undef DHPE_INSTANTIATE

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
