// The CPU's backward pass of visibility_gradient, compiled once per instruction set (see common/simd.h).
//
// For pixel d, what the loss would fall by if it took the colour of pixel r is
//   delta(d, r) = sum_k (I_k(d) - I_k(r)) g_k(d).
// The I_k and the g_k are laid out plane by plane, first by rows, then by columns: every scan runs along memory. Half
// of it would do with P = sum_k I_k g_k in place of the I_k, but P(d) - sum_k I_k(r) g_k(d) leaves what rounding makes
// of it where the colours are alike and no pixel may pull. Which pixels pull depends on the colour beyond each
// crossing, so no sum can be prepared: the cost is bounded as that of the "nmr" silhouette (nmr_simd.cpp), times the
// channels, with every pixel that has a gradient in place of the missing ones.
#include <algorithm>

#include "raster/nmr_sum.h"
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
  T* planes;                // (C, 2, count, size) I_k and g_k; padded by a vector
  int32_t* first;           // (count,) the first pixel of a line with a gradient
  int32_t* last;            // (count,) and the last; first > last where there is none
};

template <typename T>
struct VisibilityWork {
  ScanLines<T> rows, columns;  // share the memory of their planes
  uint8_t* visible;            // (F,)
};

template <typename T>
VisibilityWork<T> make_visibility_work(const VisibilityBackward<T>& p, void* scratch) {
  const int H = p.mesh.height, W = p.mesh.width;
  const int64_t pixels = static_cast<int64_t>(H) * W;
  T* planes = static_cast<T*>(scratch);
  T* planes_end = planes + pixels * 2 * p.channels + kNmrPadding;
  std::fill(planes_end - kNmrPadding, planes_end, T(0));
  int32_t* ends = reinterpret_cast<int32_t*>(planes_end);
  VisibilityWork<T> w;
  w.rows = {H, W, W, 1, pixels, planes, ends, ends + H};
  w.columns = {W, H, 1, W, pixels, planes, ends + 2 * H, ends + 2 * H + W};
  w.visible = reinterpret_cast<uint8_t*>(ends + 2 * (H + W));
  for (const ScanLines<T>* lines : {&w.rows, &w.columns}) {
    std::fill_n(lines->first, lines->count, lines->size);
    std::fill_n(lines->last, lines->count, -1);
  }
  std::fill_n(w.visible, p.mesh.n_faces, uint8_t(0));
  return w;
}

// Also finds which faces are visible and where each line has gradients. `colors` and `grad` are those of the image.
template <typename T>
void fill_rows(const VisibilityBackward<T>& p, const int32_t* index, const T* colors, const T* grad,
               VisibilityWork<T>& w) {
  const int H = p.mesh.height, W = p.mesh.width, C = p.channels;
  const int64_t pixels = w.rows.plane;
  for (int y = 0; y < H; ++y)
    for (int x = 0; x < W; ++x) {
      const int64_t i = static_cast<int64_t>(y) * W + x;
      const int32_t face = index[i];
      if (face >= 0 && face < p.mesh.n_faces) w.visible[face] = 1;
      bool any = false;
      for (int k = 0; k < C; ++k) {
        const T g = grad[i * C + k];
        any |= g != T(0);
        w.rows.planes[2 * k * pixels + i] = colors[i * C + k];
        w.rows.planes[(2 * k + 1) * pixels + i] = g;
      }
      if (!any) continue;
      w.rows.first[y] = std::min(w.rows.first[y], x);
      w.rows.last[y] = x;
      w.columns.first[x] = std::min(w.columns.first[x], y);
      w.columns.last[x] = y;
    }
}

// In tiles that stay in the cache, each a few cache lines of a column high.
template <typename T>
void fill_columns(const VisibilityBackward<T>& p, const T* colors, const T* grad, const VisibilityWork<T>& w) {
  constexpr int kRows = 16, kColumns = 64;
  const int H = p.mesh.height, W = p.mesh.width, C = p.channels;
  const int64_t pixels = w.columns.plane;
  for (int y0 = 0; y0 < H; y0 += kRows)
    for (int x0 = 0; x0 < W; x0 += kColumns) {
      const int y1 = std::min(y0 + kRows, H), x1 = std::min(x0 + kColumns, W);
      for (int x = x0; x < x1; ++x) {
        for (int k = 0; k < C; ++k) {
          T* __restrict color = w.columns.planes + 2 * k * pixels + static_cast<int64_t>(x) * H;
          T* __restrict g = color + pixels;
          for (int y = y0; y < y1; ++y) {
            const int64_t from = (static_cast<int64_t>(y) * W + x) * C + k;
            color[y] = colors[from];
            g[y] = grad[from];
          }
        }
      }
    }
}

// Adds, lane by lane, what the pixels begin .. end - 1 of a line pull. kChannels is 0 for any number.
template <int kChannels, typename T>
void pull_outwards(const ScanLines<T>& lines, int line, int channels, const T* reference, int begin, int end,
                   const NmrCrossing<T>& x, T eps_px, Vector<T>* pull) {
  const int C = kChannels ? kChannels : channels;
  const T* planes = lines.planes + static_cast<int64_t>(line) * lines.size;
  const Vector<T> lane = lane_numbers<T>();
  NmrSum<T> sum(x, eps_px);
  for (int d = begin; d < end; d += kLanes<T>) {
    const T* color = planes + d;
    Vector<T> delta = (load(color) - reference[0]) * load(color + lines.plane);
    for (int k = 1; k < C; ++k) {
      color += 2 * lines.plane;
      delta += (load(color) - reference[k]) * load(color + lines.plane);
    }
    // Zero outright: the difference of an infinite value, perhaps of the next line, and itself is none.
    sum.add((delta > T(0)) & (lane < static_cast<T>(end - d)) ? delta : Vector<T>{}, lane + static_cast<T>(d));
  }
  sum.give(pull);
}

// What the pixels begin .. end - 1 of this face pull.
template <typename T>
void pull_inwards(const ScanLines<T>& lines, int line, int channels, const T* reference, const int32_t* index,
                  int32_t face, int begin, int end, const NmrCrossing<T>& x, T eps_px, T* pull) {
  const T margin0 = nmr_margin(eps_px, x.t0), margin1 = nmr_margin(eps_px, x.t1);
  const T* planes = lines.planes + static_cast<int64_t>(line) * lines.size;
  for (int d = begin; d < end; ++d) {
    if (index[d * lines.step] != face) continue;
    T delta = T(0);
    for (int k = 0; k < channels; ++k) {
      const T* color = planes + 2 * k * lines.plane + d;
      delta += (*color - reference[k]) * color[lines.plane];
    }
    if (!(delta > 0)) continue;
    const T distance = std::fabs(static_cast<T>(d) - x.at);
    pull[0] += nmr_pull(delta, distance, x.t0, margin0);
    pull[1] += nmr_pull(delta, distance, x.t1, margin1);
  }
}

// dL/dm of the edge's two end points, negated. `index` and `colors` are those of the image.
template <int kChannels, typename T>
void scan_visibility(const ScanLines<T>& lines, const NmrScan<T>& s, const int32_t* index, const T* colors,
                     int channels, int32_t face, T* pull) {
  const NmrEdge<T>& e = s.edge;
  const bool rising = e.outward > 0;
  Vector<T> outwards[2] = {};
  T inwards[2] = {};
  for (int line = e.first; line <= e.last; ++line) {
    const int first = lines.first[line], last = lines.last[line];
    NmrCrossing<T> x;
    if (first > last || !nmr_crossing(e, line, lines.size, x)) continue;
    const int64_t from = line * lines.line_step;
    const int32_t* line_index = index + from;
    const int out_begin = rising ? std::max(x.out, first) : first;
    const int out_end = (rising ? last : std::min(x.out, last)) + 1;
    if (out_begin < out_end && line_index[x.in * lines.step] == face) {
      const T* reference = colors + (from + x.in * lines.step) * channels;
      pull_outwards<kChannels>(lines, line, channels, reference, out_begin, out_end, x, s.eps_px, outwards);
    }
    const int in_begin = std::max(rising ? s.low : std::max(x.in, s.low), first);
    const int in_end = std::min(rising ? std::min(x.in, s.high) : s.high, last) + 1;
    if (in_begin < in_end) {
      const T* reference = colors + (from + x.out * lines.step) * channels;
      pull_inwards(lines, line, channels, reference, line_index, face, in_begin, in_end, x, s.eps_px, inwards);
    }
  }
  for (int k = 0; k < 2; ++k) pull[k] = static_cast<T>(e.outward) * (sum_of<T>(outwards[k]) - inwards[k]);
}

// Adds what the visible faces receive along one axis to the gradient of their vertices.
template <int kChannels, typename T>
void scan_faces(const VisibilityBackward<T>& p, const VisibilityWork<T>& w, bool by_columns, int64_t image) {
  const RasterMesh<T>& m = p.mesh;
  const int64_t pixels = static_cast<int64_t>(m.height) * m.width;
  const int32_t* index = p.face_index + image * pixels;
  const T* colors = p.image + image * pixels * p.channels;
  T* grad_verts = p.grad_verts + image * m.n_verts * 3;
  for (int64_t face = 0; face < m.n_faces; ++face) {
    if (!w.visible[face]) continue;
    const NmrFace<T> f = nmr_face(m, m.verts_px + image * m.n_verts * 3, face);
    const int32_t* ids = m.faces + 3 * face;
    for (int scan = 0; scan < kNmrScans; ++scan) {
      NmrScan<T> s;
      if (!nmr_scan(f, m, p.eps, scan, s) || s.by_columns != by_columns) continue;
      T pull[2];
      scan_visibility<kChannels>(by_columns ? w.columns : w.rows, s, index, colors, p.channels,
                                 static_cast<int32_t>(face), pull);
      const int axis = by_columns ? 1 : 0;
      grad_verts[3 * static_cast<int64_t>(ids[s.begin]) + axis] -= pull[0];
      grad_verts[3 * static_cast<int64_t>(ids[s.end]) + axis] -= pull[1];
    }
  }
}

}  // namespace

template <typename T>
void visibility_backward(const VisibilityBackward<T>& p, void* scratch, int64_t image) {
  const RasterMesh<T>& m = p.mesh;
  const int64_t pixels = static_cast<int64_t>(m.height) * m.width;
  const T* colors = p.image + image * pixels * p.channels;
  const T* grad = p.grad + image * pixels * p.channels;
  std::fill_n(p.grad_verts + image * m.n_verts * 3, m.n_verts * 3, T(0));
  VisibilityWork<T> w = make_visibility_work(p, scratch);
  const auto scan = p.channels == 3 ? scan_faces<3, T> : scan_faces<0, T>;
  fill_rows(p, p.face_index + image * pixels, colors, grad, w);
  scan(p, w, false, image);
  fill_columns(p, colors, grad, w);
  scan(p, w, true, image);
}

template void visibility_backward<float>(const VisibilityBackward<float>&, void*, int64_t);
template void visibility_backward<double>(const VisibilityBackward<double>&, void*, int64_t);

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
