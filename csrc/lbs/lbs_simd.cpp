// The CPU's inner loops of linear blend skinning, compiled once per instruction set (see common/simd.h).
//
// Cost: nearly all of it is the blend shapes, V * 3 * (S + P) multiply-adds over a 1.3 MB basis that fits no L2.
//  - A hand or two: the basis is read once, at the speed of the L3.
//  - More: a matrix product. Forward, a block of hands by a panel of columns stays in registers over all rows;
//  backward,
//    a block of hands by a block of rows does, over a tile of columns. Each basis value loaded serves a block of hands.
#include <algorithm>

#include "common/vector.h"
#include "lbs/lbs_math.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {
namespace {

constexpr int64_t kGroup = 24;       // hands that share one pass over the basis
constexpr int64_t kStreamHands = 2;  // up to so many hands the time is that of reading the basis
constexpr int64_t kRows = 4;         // basis rows taken together
constexpr int kPanel = 4;            // forward: vectors of columns in registers ...
#if defined(__AVX512F__)
constexpr int kHands = 6;       // ... for so many hands: 24 of 32 registers accumulate
constexpr int kWidePanel = 16;  // for a single hand
constexpr int kDotHands = 4;    // backward: 4 rows by 4 hands
#else
constexpr int kHands = 2;  // 8 of 16 registers
constexpr int kWidePanel = 8;
constexpr int kDotHands = 2;
#endif
constexpr int64_t kDotTile = 1168;  // columns of a backward pass: half a hand, so that sums across lanes stay rare

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

template <typename T>
void blend_tail(const LbsModel<T>& m, const T* coeffs, int64_t column, T* out) {  // what no panel covers, one hand
  const int64_t n = m.n_verts * 3, rows = m.n_shape + m.n_pose, width = n - column;
  std::copy_n(m.v_template + column, width, out + column);
  for (int64_t k = 0; k < rows; ++k) {
    const T* __restrict row = basis_row(m, k) + column;
    const T w = coeffs[k];
    T* __restrict o = out + column;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) o[i] += w * row[i];
  }
}

template <typename T>
void blend(const LbsModel<T>& m, const T* coeffs, int64_t hands, T* out) {
  const int64_t n = m.n_verts * 3, rows = m.n_shape + m.n_pose;
  int64_t column = 0;
  if (hands <= kStreamHands) {
    for (; column + kWidePanel * kLanes<T> <= n; column += kWidePanel * kLanes<T>)
      for (int64_t h = 0; h < hands; ++h) blend_panel<T, 1, kWidePanel>(m, coeffs + h * rows, column, out + h * n);
  }
  for (; column + kPanel * kLanes<T> <= n; column += kPanel * kLanes<T>) {  // its rows stay in L1 for the whole group
    int64_t h = 0;
    for (; h + kHands <= hands; h += kHands) blend_panel<T, kHands, kPanel>(m, coeffs + h * rows, column, out + h * n);
    for (; h + 2 <= hands; h += 2) blend_panel<T, 2, kPanel>(m, coeffs + h * rows, column, out + h * n);
    for (; h < hands; ++h) blend_panel<T, 1, kPanel>(m, coeffs + h * rows, column, out + h * n);
  }
  for (int64_t h = 0; h < hands; ++h) blend_tail(m, coeffs + h * rows, column, out + h * n);
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

template <typename T>
void blend_backward(const LbsModel<T>& m, const T* grad, int64_t hands, T* grad_coeffs) {
  const int64_t n = m.n_verts * 3, rows = m.n_shape + m.n_pose;
  std::fill_n(grad_coeffs, hands * rows, T(0));
  for (int64_t begin = 0; begin < n; begin += kDotTile) {
    const int64_t end = std::min(begin + kDotTile, n);
    for (int64_t k = 0; k < rows; k += kRows) {
      int64_t h = 0;
      for (; h + kDotHands <= hands; h += kDotHands)
        dot_block<T, kDotHands>(m, grad + h * n, k, begin, end, grad_coeffs + h * rows);
      for (; h < hands; ++h) dot_block<T, 1>(m, grad + h * n, k, begin, end, grad_coeffs + h * rows);
    }
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
void skin(const LbsModel<T>& m, const T* packed, const T* bent, T* verts) {
  for (int64_t v = 0; v < m.n_verts; ++v) {
    alignas(64) T t[16];
    blended_transform(m, packed, v, t);
    const T x = bent[3 * v], y = bent[3 * v + 1], z = bent[3 * v + 2];
    for (int r = 0; r < 3; ++r) verts[3 * v + r] = t[4 * r] * x + t[4 * r + 1] * y + t[4 * r + 2] * z + t[4 * r + 3];
  }
}

// grad_bent (V, 3), and dL/d[W | o] summed over vertices into 16 lanes a joint.
template <typename T>
void skin_backward(const LbsModel<T>& m, const T* packed, const T* bent, const T* grad, T* grad_bent, T* grad_packed) {
  std::fill_n(grad_packed, 16 * m.n_joints, T(0));
  for (int64_t v = 0; v < m.n_verts; ++v) {
    alignas(64) T t[16];
    blended_transform(m, packed, v, t);
    const T* g = grad + 3 * v;
    const T* u = bent + 3 * v;
    for (int k = 0; k < 3; ++k) grad_bent[3 * v + k] = t[k] * g[0] + t[4 + k] * g[1] + t[8 + k] * g[2];
    alignas(64) T outer[16];
    for (int r = 0; r < 3; ++r)
      for (int k = 0; k < 4; ++k) outer[4 * r + k] = g[r] * (k == 3 ? T(1) : u[k]);
    for (int k = 12; k < 16; ++k) outer[k] = 0;
    for (int64_t k = 0; k < m.n_slots; ++k) {
      const T w = m.skin_weights[v * m.n_slots + k];
      T* o = grad_packed + 16 * m.skin_joints[v * m.n_slots + k];
#pragma omp simd
      for (int i = 0; i < 16; ++i) o[i] += w * outer[i];
    }
  }
}

}  // namespace

template <typename T>
void lbs_forward(const LbsForward<T>& p, int64_t begin, int64_t end) {
  const LbsModel<T>& m = p.model;
  const int64_t n = m.n_verts * 3, rows = m.n_shape + m.n_pose, width = m.n_joints * (p.pose_is_matrix ? 9 : 3);
  T coeffs[kGroup * kMaxCoeffs];
  Chain<T> chain[kGroup];
  alignas(64) T packed[16 * kMaxJoints];
  for (int64_t b = begin; b < end; b += kGroup) {
    const int64_t hands = std::min(kGroup, end - b);
    for (int64_t h = 0; h < hands; ++h)
      pose_hand(m, p.pose + (b + h) * width, p.pose_is_matrix, p.betas + (b + h) * m.n_shape, chain[h],
                coeffs + h * rows);
    blend(m, coeffs, hands, p.bent + b * n);
    for (int64_t h = 0; h < hands; ++h) {
      pack_transforms(m, chain[h], packed);
      skin(m, packed, p.bent + (b + h) * n, p.verts + (b + h) * n);
      std::copy_n(chain[h].position, 3 * m.n_joints, p.joints + (b + h) * 3 * m.n_joints);
    }
  }
}

template <typename T>
void lbs_backward(const LbsBackward<T>& p, int64_t begin, int64_t end) {
  const LbsModel<T>& m = p.model;
  const int64_t n = m.n_verts * 3, rows = m.n_shape + m.n_pose, width = m.n_joints * (p.pose_is_matrix ? 9 : 3);
  T coeffs[kGroup * kMaxCoeffs];
  Chain<T> chain[kGroup];
  alignas(64) T packed[16 * kMaxJoints];
  alignas(64) T grad_packed[kGroup][16 * kMaxJoints];
  ChainGrad<T> g;
  for (int64_t b = begin; b < end; b += kGroup) {
    const int64_t hands = std::min(kGroup, end - b);
    for (int64_t h = 0; h < hands; ++h) {
      const int64_t hand = b + h;
      pose_hand(m, p.pose + hand * width, p.pose_is_matrix, p.betas + hand * m.n_shape, chain[h], coeffs);
      pack_transforms(m, chain[h], packed);
      skin_backward(m, packed, p.bent + hand * n, p.grad_verts + hand * n, p.grad_bent + hand * n, grad_packed[h]);
    }
    blend_backward(m, p.grad_bent + b * n, hands, coeffs);
    for (int64_t h = 0; h < hands; ++h) {
      const int64_t hand = b + h;
      for (int64_t j = 0; j < m.n_joints; ++j)
        for (int r = 0; r < 3; ++r) {
          for (int k = 0; k < 3; ++k) g.world[9 * j + 3 * r + k] = grad_packed[h][16 * j + 4 * r + k];
          g.offset[3 * j + r] = grad_packed[h][16 * j + 4 * r + 3];
        }
      std::copy_n(p.grad_joints + hand * 3 * m.n_joints, 3 * m.n_joints, g.position);
      chain_backward(m, chain[h], g);
      const T* grad_coeffs = coeffs + h * rows;
      for (int64_t i = 0; i < m.n_pose; ++i) g.local[9 + i] += grad_coeffs[m.n_shape + i];
      for (int64_t j = 0; j < m.n_joints; ++j)
        store_pose_grad(p.pose + hand * width, p.pose_is_matrix, j, g.local, p.grad_pose + hand * width);
      for (int64_t s = 0; s < m.n_shape; ++s) {
        T sum = grad_coeffs[s];
        for (int64_t i = 0; i < 3 * m.n_joints; ++i) sum += g.rest[i] * m.joint_shapedirs[s * 3 * m.n_joints + i];
        p.grad_betas[hand * m.n_shape + s] = sum;
      }
    }
  }
}

template void lbs_forward<float>(const LbsForward<float>&, int64_t, int64_t);
template void lbs_forward<double>(const LbsForward<double>&, int64_t, int64_t);
template void lbs_backward<float>(const LbsBackward<float>&, int64_t, int64_t);
template void lbs_backward<double>(const LbsBackward<double>&, int64_t, int64_t);

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
