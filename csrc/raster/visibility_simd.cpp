// The CPU's backward pass of visibility_gradient, compiled once per instruction set (see common/simd.h).
//
// For pixel d, what the loss would fall by if it took the colour of pixel r is
//   delta(d, r) = sum_k (I_k(d) - I_k(r)) g_k(d) = P(d) - sum_k I_k(r) g_k(d),   P = sum_k I_k g_k.
// P and the g_k are laid out plane by plane, by rows and once more by columns: every scan then runs along memory.
#include <algorithm>

#include "raster/nmr_math.h"
#include "raster/raster_scratch.h"
#include "raster/visibility.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {
namespace {

// One image by rows or by columns.
template <typename T>
struct ScanLines {
  int count, size;          // lines; pixels of a line
  int64_t line_step, step;  // in the image: from one line to the next, from one pixel of a line to the next
  int64_t plane;            // from one plane to the next
  const T* product;         // (count, size) P, and behind it the g_k
  int32_t* first;           // (count,) the first pixel of a line with a gradient
  int32_t* last;            // (count,) and the last; first > last where there is none
};

template <typename T>
struct VisibilityWork {
  ScanLines<T> rows, columns;
  T* delta;          // (max(H, W),)
  uint8_t* visible;  // (F,)
};

template <typename T>
VisibilityWork<T> make_visibility_work(const VisibilityBackward<T>& p, void* scratch) {
  const int H = p.mesh.height, W = p.mesh.width;
  const int64_t pixels = static_cast<int64_t>(H) * W;
  T* by_rows = static_cast<T*>(scratch);
  T* by_columns = by_rows + pixels * (1 + p.channels);
  T* delta = by_columns + pixels * (1 + p.channels);
  int32_t* ends = reinterpret_cast<int32_t*>(delta + std::max(H, W));
  VisibilityWork<T> w;
  w.rows = {H, W, W, 1, pixels, by_rows, ends, ends + H};
  w.columns = {W, H, 1, W, pixels, by_columns, ends + 2 * H, ends + 2 * H + W};
  w.delta = delta;
  w.visible = reinterpret_cast<uint8_t*>(ends + 2 * (H + W));
  for (const ScanLines<T>* lines : {&w.rows, &w.columns}) {
    std::fill_n(lines->first, lines->count, lines->size);
    std::fill_n(lines->last, lines->count, -1);
  }
  std::fill_n(w.visible, p.mesh.n_faces, uint8_t(0));
  return w;
}

template <typename T>
void fill_planes(const VisibilityBackward<T>& p, int64_t image, VisibilityWork<T>& w) {
  const int H = p.mesh.height, W = p.mesh.width, C = p.channels;
  const int64_t pixels = static_cast<int64_t>(H) * W;
  T* by_rows = const_cast<T*>(w.rows.product);
  T* by_columns = const_cast<T*>(w.columns.product);
  for (int y = 0; y < H; ++y)
    for (int x = 0; x < W; ++x) {
      const int64_t i = static_cast<int64_t>(y) * W + x, transposed = static_cast<int64_t>(x) * H + y;
      const int64_t from = (image * pixels + i) * C;
      const int32_t face = p.face_index[image * pixels + i];
      if (face >= 0 && face < p.mesh.n_faces) w.visible[face] = 1;
      T product = T(0);
      bool any = false;
      for (int k = 0; k < C; ++k) {
        const T g = p.grad[from + k];
        product += p.image[from + k] * g;
        any |= g != T(0);
        by_rows[(1 + k) * pixels + i] = by_columns[(1 + k) * pixels + transposed] = g;
      }
      by_rows[i] = by_columns[transposed] = product;
      if (!any) continue;
      w.rows.first[y] = std::min(w.rows.first[y], x);
      w.rows.last[y] = x;
      w.columns.first[x] = std::min(w.columns.first[x], y);
      w.columns.last[x] = y;
    }
}

// delta(d, r) for d = begin .. end - 1 of a line.
template <typename T>
void fill_delta(const ScanLines<T>& lines, int line, int channels, const T* reference, int begin, int end,
                T* __restrict delta) {
  const T* __restrict product = lines.product + static_cast<int64_t>(line) * lines.size;
  for (int d = begin; d < end; ++d) delta[d] = product[d];
  for (int k = 0; k < channels; ++k) {
    const T* __restrict g = product + (1 + k) * lines.plane;
    const T value = reference[k];
    for (int d = begin; d < end; ++d) delta[d] -= value * g[d];
  }
}

// Adds what the pixels begin .. end - 1 pull; of one face only, unless `index` is null.
template <typename T>
void pull_line(const T* __restrict delta, const int32_t* index, int64_t step, int32_t face, int begin, int end,
               const NmrCrossing<T>& x, T eps_px, T* sum) {
  const T margin0 = nmr_margin(eps_px, x.t0), margin1 = nmr_margin(eps_px, x.t1);
  const T at = x.at, t0 = x.t0, t1 = x.t1;
  T sum0 = T(0), sum1 = T(0);
  if (index) {
    for (int d = begin; d < end; ++d) {
      if (index[d * step] != face || !(delta[d] > 0)) continue;
      const T distance = std::fabs(static_cast<T>(d) - at);
      sum0 += nmr_pull(delta[d], distance, t0, margin0);
      sum1 += nmr_pull(delta[d], distance, t1, margin1);
    }
  } else {
#pragma omp simd reduction(+ : sum0, sum1)
    for (int d = begin; d < end; ++d) {
      const T weight = delta[d] > 0 ? delta[d] : T(0);
      const T distance = std::fabs(static_cast<T>(d) - at);
      sum0 += nmr_pull(weight, distance, t0, margin0);
      sum1 += nmr_pull(weight, distance, t1, margin1);
    }
  }
  sum[0] += sum0;
  sum[1] += sum1;
}

// dL/dm of the edge's two end points, negated. `index` and `colors` are those of the image.
template <typename T>
void scan_visibility(const ScanLines<T>& lines, const NmrScan<T>& s, const int32_t* index, const T* colors,
                     int channels, int32_t face, T* delta, T* pull) {
  const NmrEdge<T>& e = s.edge;
  T outwards[2] = {}, inwards[2] = {};
  for (int line = e.first; line <= e.last; ++line) {
    const int first = lines.first[line], last = lines.last[line];
    NmrCrossing<T> x;
    if (first > last || !nmr_crossing(e, line, lines.size, x)) continue;
    const int64_t from = line * lines.line_step;
    const int32_t* line_index = index + from;
    const bool rising = e.outward > 0;
    const int out_begin = rising ? std::max(x.out, first) : first;
    const int out_end = (rising ? last : std::min(x.out, last)) + 1;
    if (out_begin < out_end && line_index[x.in * lines.step] == face) {
      const T* reference = colors + (from + x.in * lines.step) * channels;
      fill_delta(lines, line, channels, reference, out_begin, out_end, delta);
      pull_line(delta, static_cast<const int32_t*>(nullptr), 0, face, out_begin, out_end, x, s.eps_px, outwards);
    }
    const int in_begin = std::max(rising ? s.low : std::max(x.in, s.low), first);
    const int in_end = std::min(rising ? std::min(x.in, s.high) : s.high, last) + 1;
    if (in_begin < in_end) {
      const T* reference = colors + (from + x.out * lines.step) * channels;
      fill_delta(lines, line, channels, reference, in_begin, in_end, delta);
      pull_line(delta, line_index, lines.step, face, in_begin, in_end, x, s.eps_px, inwards);
    }
  }
  for (int k = 0; k < 2; ++k) pull[k] = static_cast<T>(e.outward) * (outwards[k] - inwards[k]);
}

}  // namespace

template <typename T>
void visibility_backward(const VisibilityBackward<T>& p, void* scratch, int64_t image) {
  const RasterMesh<T>& m = p.mesh;
  const int64_t pixels = static_cast<int64_t>(m.height) * m.width;
  const int32_t* index = p.face_index + image * pixels;
  const T* colors = p.image + image * pixels * p.channels;
  const T* verts = m.verts_px + image * m.n_verts * 3;
  T* grad_verts = p.grad_verts + image * m.n_verts * 3;
  std::fill_n(grad_verts, m.n_verts * 3, T(0));
  VisibilityWork<T> w = make_visibility_work(p, scratch);
  fill_planes(p, image, w);
  for (int64_t face = 0; face < m.n_faces; ++face) {
    if (!w.visible[face]) continue;
    const NmrFace<T> f = nmr_face(m, verts, face);
    for (int scan = 0; scan < kNmrScans; ++scan) {
      NmrScan<T> s;
      if (!nmr_scan(f, m, p.eps, scan, s)) continue;
      T pull[2];
      scan_visibility(s.by_columns ? w.columns : w.rows, s, index, colors, p.channels, static_cast<int32_t>(face),
                      w.delta, pull);
      const int axis = s.by_columns ? 1 : 0;
      grad_verts[3 * static_cast<int64_t>(m.faces[3 * face + s.begin]) + axis] -= pull[0];
      grad_verts[3 * static_cast<int64_t>(m.faces[3 * face + s.end]) + axis] -= pull[1];
    }
  }
}

template void visibility_backward<float>(const VisibilityBackward<float>&, void*, int64_t);
template void visibility_backward<double>(const VisibilityBackward<double>&, void*, int64_t);

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
