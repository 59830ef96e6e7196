// Linear blend skinning of one hand on the CPU, compiled once per instruction set (see common/simd.h). A lane is a
// column of the basis, or one of the 12 numbers of a transform. Batches are in lbs_group_simd.cpp.
//
// Cost: nearly all of it is to read the basis, 1.3 MB for MANO, once. Shared between two threads, each half of it stays
// in a core's own L2.
#include <algorithm>

#include "common/transpose.h"
#include "lbs/lbs_math.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kPanel = 24;  // vectors of columns in registers, of 32
#else
constexpr int kPanel = 8;  // of 16
#endif
constexpr int kNarrowPanel = 4;  // for the columns that remain

template <typename T>
const T* basis_row(const LbsModel<T>& m, int64_t k) {
  const int64_t n = m.n_verts * 3;
  return k < m.n_shape ? m.shapedirs + k * n : m.posedirs + (k - m.n_shape) * n;
}

template <typename T>
void pose_hand(const LbsModel<T>& m, const T* pose, bool is_matrix, const T* betas, Chain<T>& c) {
  for (int64_t j = 0; j < m.n_joints; ++j) local_rotation(pose, is_matrix, j, c.local + 9 * j);
  for (int64_t i = 0; i < 3 * m.n_joints; ++i) c.rest[i] = rest_coordinate(m, betas, i);
  chain_forward(m, c);
}

template <typename T>
void collect_coeffs(const LbsModel<T>& m, const T* betas, PosedHand<T>& posed) {
  int64_t used = 0;
  const auto take = [&](int64_t k, T coeff) {
    posed.coeffs[used] = coeff;
    posed.rows[used] = basis_row(m, k);
    used += coeff != 0;
  };
  for (int64_t s = 0; s < m.n_shape; ++s) take(s, betas[s]);
  for (int64_t i = 0; i < m.n_pose; ++i) {
    const bool diagonal = i % 9 == 0 || i % 9 == 4 || i % 9 == 8;
    take(m.n_shape + i, posed.chain.local[9 + i] - (diagonal ? T(1) : T(0)));
  }
  posed.n_coeffs = used;
}

// bent = v_template + sum_k coeffs[k] row_k: `Width` vectors of columns from `column` on.
template <typename T, int Width>
void blend_panel(const LbsModel<T>& m, const PosedHand<T>& posed, int64_t column, T* bent) {
  Vector<T> sum[Width];
#pragma GCC unroll 24
  for (int v = 0; v < Width; ++v) sum[v] = load(m.v_template + column + v * kLanes<T>);
  for (int64_t k = 0; k < posed.n_coeffs; ++k) {
    const T* row = posed.rows[k] + column;
    const T coeff = posed.coeffs[k];
#pragma GCC unroll 24
    for (int v = 0; v < Width; ++v) sum[v] += coeff * load(row + v * kLanes<T>);
  }
#pragma GCC unroll 24
  for (int v = 0; v < Width; ++v) store<T>(bent + column + v * kLanes<T>, sum[v]);
}

// The same for panels up to `end` from `column` on, which it returns. The last panel overlaps those before, down to
// `begin`; without room for one, nothing is done.
template <typename T, int Width>
int64_t blend_rest(const LbsModel<T>& m, const PosedHand<T>& posed, int64_t begin, int64_t column, int64_t end,
                   T* bent) {
  constexpr int64_t width = Width * kLanes<T>;
  if (end - begin < width) return column;
  for (; column < end; column += width) blend_panel<T, Width>(m, posed, std::min(column, end - width), bent);
  return end;
}

// The same for the columns [begin, end).
template <typename T>
void blend(const LbsModel<T>& m, const PosedHand<T>& posed, int64_t begin, int64_t end, T* bent) {
  int64_t column = begin;
  for (; column + kPanel * kLanes<T> <= end; column += kPanel * kLanes<T>)
    blend_panel<T, kPanel>(m, posed, column, bent);
  column = blend_rest<T, kNarrowPanel>(m, posed, begin, column, end, bent);
  column = blend_rest<T, 1>(m, posed, begin, column, end, bent);
  for (; column < end; ++column) {
    T sum = m.v_template[column];
    for (int64_t k = 0; k < posed.n_coeffs; ++k) sum += posed.coeffs[k] * posed.rows[k][column];
    bent[column] = sum;
  }
}

// lanes[k] += row_k * grad, lane by lane: `Width` vectors of columns from `column` on.
template <typename T, int Width>
void dot_panel(const LbsModel<T>& m, const Vector<T> (&grad)[Width], int64_t column, Vector<T>* lanes) {
  constexpr int chains = std::min(Width, 4);
  const int64_t n = m.n_verts * 3;
  for (int part = 0; part < 2; ++part) {
    const T* row = (part ? m.posedirs : m.shapedirs) + column;
    for (int64_t k = part ? m.n_pose : m.n_shape; k > 0; --k, ++lanes, row += n) {
      Vector<T> sum[chains] = {*lanes};
#pragma GCC unroll 24
      for (int v = 0; v < Width; ++v) sum[v % chains] += grad[v] * load(row + v * kLanes<T>);
      for (int v = 1; v < chains; ++v) sum[0] += sum[v];
      *lanes = sum[0];
    }
  }
}

template <typename T, int Width>
int64_t dot_panels(const LbsModel<T>& m, const T* grad, int64_t column, int64_t end, Vector<T>* lanes) {
  for (; column + Width * kLanes<T> <= end; column += Width * kLanes<T>) {
    Vector<T> g[Width];
    for (int v = 0; v < Width; ++v) g[v] = load(grad + column + v * kLanes<T>);
    dot_panel<T, Width>(m, g, column, lanes);
  }
  return column;
}

// grad_coeffs[k] = row_k . grad over the columns [begin, end).
template <typename T>
void blend_backward(const LbsModel<T>& m, const T* grad, int64_t begin, int64_t end, VertexSums<T>& sums) {
  constexpr int64_t L = kLanes<T>;
  const int64_t rows = m.n_shape + m.n_pose;
  Vector<T>* lanes = reinterpret_cast<Vector<T>*>(sums.lanes);
  std::fill_n(lanes, (rows + L - 1) / L * L, Vector<T>{});
  int64_t column = dot_panels<T, kPanel>(m, grad, begin, end, lanes);
  column = dot_panels<T, kNarrowPanel>(m, grad, column, end, lanes);
  column = dot_panels<T, 1>(m, grad, column, end, lanes);
  if (column < end && begin + L <= end) {  // the last ones, behind zeros for those that are done
    Vector<T> g[1] = {load(grad + end - L)};
    for (int64_t lane = 0; lane < L - (end - column); ++lane) g[0][lane] = 0;
    dot_panel<T, 1>(m, g, end - L, lanes);
    column = end;
  }
  for (int64_t k = 0; k < rows; k += L) {
    Vector<T> v[L];
    std::copy_n(lanes + k, L, v);
    transpose<T>(v);
    for (int64_t i = 1; i < L; ++i) v[0] += v[i];
    store<T>(sums.coeffs + k, v[0]);
  }
  for (int64_t k = 0; column < end && k < rows; ++k)  // a model smaller than a vector
    for (int64_t i = column; i < end; ++i) sums.coeffs[k] += basis_row(m, k)[i] * grad[i];
}

template <typename T>
struct QuadOf {
  typedef T type __attribute__((vector_size(4 * sizeof(T))));
};
template <typename T>
using Quad = typename QuadOf<T>::type;  // x, y, z and something else

template <typename T>
void load_quad(const T* from, Quad<T>& q) {
  std::memcpy(&q, from, sizeof(q));
}

// Unless the vertex is the last one, the number behind it is written, too: the next vertex overwrites it.
template <typename T>
void store_vertex(T* to, const Quad<T>& q, bool is_last) {
  if (is_last)
    std::memcpy(to, &q, 3 * sizeof(T));
  else
    std::memcpy(to, &q, sizeof(q));
}

// Each joint's transform [W | o] in 16 lanes, so that blending a vertex's transform is one vector operation a slot:
// its four columns with a zero below each, or, `by_rows`, its three rows and one of zeros.
template <typename T>
void pack_transforms(const LbsModel<T>& m, const Chain<T>& c, bool by_rows, T* packed) {
  for (int64_t j = 0; j < m.n_joints; ++j) {
    const Vec3<T> o = skin_offset(c, j);
    const T offset[3] = {o.x, o.y, o.z};
    T* to = packed + 16 * j;
    for (int i = 12; i < 16; ++i) to[i] = 0;
    for (int r = 0; r < 3; ++r) {
      for (int k = 0; k < 4; ++k) to[by_rows ? 4 * r + k : 4 * k + r] = k == 3 ? offset[r] : c.world[9 * j + 3 * r + k];
      if (!by_rows) to[4 * r + 3] = 0;
    }
    if (!by_rows) to[15] = 0;
  }
}

template <typename T>
constexpr int kParts = 16 / kLanes<T>;  // vectors of a packed transform

template <typename T>
void blended_transform(const LbsModel<T>& m, const T* packed, int64_t v, T* transform) {
  Vector<T> sum[kParts<T>] = {};
  for (int64_t k = v * m.n_slots; k < (v + 1) * m.n_slots; ++k) {
    const T w = m.skin_weights[k];
    if (w == 0) continue;  // an unused slot: what it names may be infinite
    const T* a = packed + 16 * int64_t{m.skin_joints[k]};
    for (int part = 0; part < kParts<T>; ++part) sum[part] += w * load(a + part * kLanes<T>);
  }
  for (int part = 0; part < kParts<T>; ++part) store<T>(transform + part * kLanes<T>, sum[part]);
}

// to = transform x: the sum of the first `Count` quads of the packed transform by as many numbers, the fourth being 1.
template <typename T, int Count>
void apply(const T* transform, const T* x, T* to, bool is_last) {
  Quad<T> sum, term;
  load_quad(transform + (Count == 4 ? 12 : 0), sum);
  if (Count == 3) sum *= x[0];
  for (int k = Count == 3; k < 3; ++k) {
    load_quad(transform + 4 * k, term);
    sum += x[k] * term;
  }
  store_vertex(to, sum, is_last);
}

template <typename T>
void skin(const LbsModel<T>& model, const T* packed, const T* bent, int64_t begin, int64_t end, T* verts) {
  const LbsModel<T> m = model;  // which no store can change
  for (int64_t v = begin; v < end; ++v) {
    alignas(64) T t[16];
    blended_transform(m, packed, v, t);
    apply<T, 4>(t, bent + 3 * v, verts + 3 * v, v + 1 == end);
  }
}

// The packed outer product of (a, 0) and (b, 1), by rows.
template <typename T>
struct OuterProduct {
  Vector<T> row[3][kParts<T>], column[4][kParts<T>];  // ones in the lanes of a row or column

  OuterProduct() : row{}, column{} {
    for (int i = 0; i < 16; ++i) {
      const int part = i / kLanes<T>, lane = i % kLanes<T>;
      column[i % 4][part][lane] = 1;
      if (i < 12) row[i / 4][part][lane] = 1;
    }
  }

  Vector<T> operator()(const T* a, const T* b, int part) const {
    const Vector<T> x = a[0] * row[0][part] + a[1] * row[1][part] + a[2] * row[2][part];
    const Vector<T> y = column[3][part] + b[0] * column[0][part] + b[1] * column[1][part] + b[2] * column[2][part];
    return x * y;
  }
};

// grad_bent of the vertices [begin, end), and dL/d[W | o] of each joint.
template <typename T>
void skin_backward(const LbsBackward<T>& p, int64_t hand, const T* packed, int64_t begin, int64_t end, T* sums) {
  const LbsModel<T> m = p.model;  // which no store can change
  const int64_t first = hand * m.n_verts * 3, copy_size = 16 * m.n_joints;
  const T *grad_verts = p.grad_verts + first, *bent = p.bent + first;
  T* grad_bent = p.grad_bent + first;
  const OuterProduct<T> outer_product;
  std::fill_n(sums, kCopies * copy_size, T(0));
  for (int64_t v = begin; v < end; ++v) {
    alignas(64) T t[16];
    blended_transform(m, packed, v, t);
    apply<T, 3>(t, grad_verts + 3 * v, grad_bent + 3 * v, v + 1 == end);
    Vector<T> outer[kParts<T>];
    for (int part = 0; part < kParts<T>; ++part) outer[part] = outer_product(grad_verts + 3 * v, bent + 3 * v, part);
    T* copy = sums + v % kCopies * copy_size;
    for (int64_t k = v * m.n_slots; k < (v + 1) * m.n_slots; ++k) {
      const T w = m.skin_weights[k];
      if (w == 0) continue;
      T* to = copy + 16 * int64_t{m.skin_joints[k]};
      for (int part = 0; part < kParts<T>; ++part, to += kLanes<T>) store<T>(to, load(to) + w * outer[part]);
    }
  }
  for (int64_t copy = 1; copy < kCopies; ++copy)
    for (int64_t i = 0; i < copy_size; ++i) sums[i] += sums[copy * copy_size + i];
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

// The least and the largest of the joints that vertices hang on, and of 0.
void lbs_joint_range(const int32_t* joints, int64_t count, int32_t& low, int32_t& high) {
  int32_t least = 0, largest = 0;
#pragma omp simd reduction(min : least) reduction(max : largest)
  for (int64_t i = 0; i < count; ++i) {
    least = std::min(least, joints[i]);
    largest = std::max(largest, joints[i]);
  }
  low = least;
  high = largest;
}

template <typename T>
void lbs_pose(const LbsModel<T>& m, const T* pose, bool is_matrix, const T* betas, PosedHand<T>& posed) {
  pose_hand(m, pose, is_matrix, betas, posed.chain);
  collect_coeffs(m, betas, posed);
  pack_transforms(m, posed.chain, false, posed.packed);
}

template <typename T>
void lbs_verts(const LbsForward<T>& p, int64_t hand, const PosedHand<T>& posed, int64_t begin, int64_t end) {
  const int64_t n = p.model.n_verts * 3;
  blend(p.model, posed, 3 * begin, 3 * end, p.bent + hand * n);
  skin(p.model, posed.packed, p.bent + hand * n, begin, end, p.verts + hand * n);
}

template <typename T>
void lbs_backward_pose(const LbsModel<T>& m, const T* pose, bool is_matrix, const T* betas, PosedHand<T>& posed) {
  pose_hand(m, pose, is_matrix, betas, posed.chain);
  pack_transforms(m, posed.chain, true, posed.packed);
}

template <typename T>
void lbs_backward_half(const LbsBackward<T>& p, int64_t hand, const PosedHand<T>& posed, int half,
                       VertexSums<T>& sums) {
  const LbsModel<T>& m = p.model;
  const int64_t n = m.n_verts * 3, begin = half_begin(m, half), end = half_begin(m, half + 1);
  skin_backward(p, hand, posed.packed, begin, end, sums.packed);
  blend_backward(m, p.grad_bent + hand * n, 3 * begin, 3 * end, sums);
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
  template void lbs_backward_pose<T>(const LbsModel<T>&, const T*, bool, const T*, PosedHand<T>&);              \
  template void lbs_verts<T>(const LbsForward<T>&, int64_t, const PosedHand<T>&, int64_t, int64_t);             \
  template void lbs_backward_half<T>(const LbsBackward<T>&, int64_t, const PosedHand<T>&, int, VertexSums<T>&); \
  template void lbs_backward_finish<T>(const LbsBackward<T>&, int64_t, const PosedHand<T>&, VertexSums<T>*);
DHPE_INSTANTIATE(float)
DHPE_INSTANTIATE(double)
#undef DHPE_INSTANTIATE

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
