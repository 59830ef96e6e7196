// The CPU's backward pass of the "nmr" silhouette, compiled once per instruction set (see common/simd.h).
//
// Only two kinds of pixels pull on an edge: uncovered ones that should be covered (grad < 0), from any distance, and
// covered ones that should not be (grad > 0), next to the border. The former are gathered once per image into a list
// per row and per column; an edge then visits a handful of numbers, and a line without either kind is skipped.
#include <algorithm>

#include "common/vector.h"
#include "raster/nmr_math.h"
#include "raster/raster_scratch.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {
namespace {

// The pixels that pull, by row or by column.
template <typename T>
struct Lines {
  int count, size;          // lines; pixels of a line
  int64_t line_step, step;  // from one line to the next, from one pixel of a line to the next
  int32_t* start;           // (count + 1,) into position and weight
  uint8_t* has_excess;      // (count,) the line holds covered pixels with grad > 0
  T* position;              // missing pixels in ascending order; padded by a vector
  T* weight;                // -grad there
};

template <typename T>
struct Work {
  Lines<T> rows, columns;
  uint8_t* visible;  // (F,)
};

template <typename T>
Work<T> make_work(const NmrBackward<T>& p, void* scratch, int64_t missing) {
  const int H = p.mesh.height, W = p.mesh.width;
  Work<T> w;
  T* values = static_cast<T*>(scratch);
  T* blocks[4];
  for (T*& block : blocks) {
    block = values;
    values += missing + kNmrPadding;
    std::fill_n(block + missing, kNmrPadding, T(0));
  }
  int32_t* starts = reinterpret_cast<int32_t*>(values);
  uint8_t* flags = reinterpret_cast<uint8_t*>(starts + H + W + 2);
  w.rows = {H, W, W, 1, starts, flags, blocks[0], blocks[1]};
  w.columns = {W, H, 1, W, starts + H + 1, flags + H, blocks[2], blocks[3]};
  w.visible = flags + H + W;
  std::fill_n(starts, H + W + 2, 0);
  std::fill_n(flags, H + W + p.mesh.n_faces, uint8_t(0));
  return w;
}

// One pass over the image fills the rows; the columns follow by a counting sort.
template <typename T>
void find_pulling_pixels(const NmrBackward<T>& p, const int32_t* index, const T* grad, Work<T>& w) {
  const int H = p.mesh.height, W = p.mesh.width;
  int32_t found = 0;
  for (int y = 0; y < H; ++y) {
    w.rows.start[y] = found;
    for (int x = 0; x < W; ++x) {
      const int64_t pixel = static_cast<int64_t>(y) * W + x;
      const int32_t face = index[pixel];
      const T g = grad[pixel];
      if (face >= 0) {
        if (face < p.mesh.n_faces) w.visible[face] = 1;
        if (g > 0) w.rows.has_excess[y] = w.columns.has_excess[x] = 1;
      } else if (g < 0) {
        w.rows.position[found] = static_cast<T>(x);
        w.rows.weight[found] = -g;
        ++w.columns.start[x + 1];
        ++found;
      }
    }
  }
  w.rows.start[H] = found;
  for (int x = 0; x < W; ++x) w.columns.start[x + 1] += w.columns.start[x];
  for (int y = 0; y < H; ++y)
    for (int32_t i = w.rows.start[y]; i < w.rows.start[y + 1]; ++i) {
      const int32_t to = w.columns.start[static_cast<int>(w.rows.position[i])]++;
      w.columns.position[to] = static_cast<T>(y);
      w.columns.weight[to] = w.rows.weight[i];
    }
  for (int x = W; x > 0; --x) w.columns.start[x] = w.columns.start[x - 1];
  w.columns.start[0] = 0;
}

// What the missing pixels beyond `x.out` pull, added lane by lane.
template <typename T>
void pull_outwards(const Lines<T>& lines, int line, int outward, const NmrCrossing<T>& x, T eps_px, T* sum0, T* sum1) {
  constexpr int L = kLanes<T>;
  const T margin0 = nmr_margin(eps_px, x.t0), margin1 = nmr_margin(eps_px, x.t1);
  const T in = static_cast<T>(x.in), sign = static_cast<T>(outward), at = x.at, t0 = x.t0, t1 = x.t1;
  const int end = lines.start[line + 1];
  for (int i = lines.start[line]; i < end; i += L) {
    const T* __restrict position = lines.position + i;
    const T* __restrict weight = lines.weight + i;
    const int left = end - i;
#pragma omp simd
    for (int l = 0; l < L; ++l) {
      const T w = (l < left) & ((position[l] - in) * sign > 0) ? weight[l] : T(0);
      const T distance = std::fabs(position[l] - at);
      sum0[l] += nmr_pull(w, distance, t0, margin0);
      sum1[l] += nmr_pull(w, distance, t1, margin1);
    }
  }
}

// What the pixels of this face that should be empty pull, from `x.in` inwards.
template <typename T>
void pull_inwards(const Lines<T>& lines, const int32_t* index, const T* grad, const NmrScan<T>& s,
                  const NmrCrossing<T>& x, int32_t face, T* sum) {
  const T margin0 = nmr_margin(s.eps_px, x.t0), margin1 = nmr_margin(s.eps_px, x.t1);
  for (int d = x.in; d >= s.low && d <= s.high; d -= s.edge.outward) {
    const int64_t pixel = d * lines.step;
    if (index[pixel] != face || !(grad[pixel] > 0)) continue;
    const T distance = std::fabs(static_cast<T>(d) - x.at);
    sum[0] += nmr_pull(grad[pixel], distance, x.t0, margin0);
    sum[1] += nmr_pull(grad[pixel], distance, x.t1, margin1);
  }
}

// dL/dm of the edge's two end points, negated.
template <typename T>
void scan_edge(const Lines<T>& lines, const int32_t* index, const T* grad, const NmrScan<T>& s, int32_t face, T* pull) {
  constexpr int L = kLanes<T>;
  const NmrEdge<T>& e = s.edge;
  alignas(64) T outwards0[L] = {}, outwards1[L] = {};
  T inwards[2] = {};
  for (int line = e.first; line <= e.last; ++line) {
    const int begin = lines.start[line], end = lines.start[line + 1];
    const bool has_excess = lines.has_excess[line];
    if (begin == end && !has_excess) continue;
    NmrCrossing<T> x;
    if (!nmr_crossing(e, line, lines.size, x)) continue;
    const int32_t* line_index = index + line * lines.line_step;
    const bool reaches = begin < end && (e.outward > 0 ? lines.position[end - 1] >= static_cast<T>(x.out)
                                                       : lines.position[begin] <= static_cast<T>(x.out));
    if (reaches && line_index[x.in * lines.step] == face)
      pull_outwards(lines, line, e.outward, x, s.eps_px, outwards0, outwards1);
    if (has_excess && line_index[x.out * lines.step] < 0)
      pull_inwards(lines, line_index, grad + line * lines.line_step, s, x, face, inwards);
  }
  pull[0] = -inwards[0];
  pull[1] = -inwards[1];
  for (int l = 0; l < L; ++l) {
    pull[0] += outwards0[l];
    pull[1] += outwards1[l];
  }
  pull[0] *= static_cast<T>(e.outward);
  pull[1] *= static_cast<T>(e.outward);
}

// Adds one face's gradient to that of its vertices.
template <typename T>
void add_face_gradient(const NmrBackward<T>& p, const Work<T>& w, const int32_t* index, const T* grad_mask,
                       const T* verts, int32_t face, T* grad_verts) {
  const NmrFace<T> f = nmr_face(p.mesh, verts, face);
  const int32_t* ids = p.mesh.faces + 3 * static_cast<int64_t>(face);
  for (int scan = 0; scan < kNmrScans; ++scan) {
    NmrScan<T> s;
    if (!nmr_scan(f, p.mesh, p.eps, scan, s)) continue;
    T pull[2];
    scan_edge(s.by_columns ? w.columns : w.rows, index, grad_mask, s, face, pull);
    const int axis = s.by_columns ? 1 : 0;
    grad_verts[3 * static_cast<int64_t>(ids[s.begin]) + axis] -= pull[0];
    grad_verts[3 * static_cast<int64_t>(ids[s.end]) + axis] -= pull[1];
  }
}

}  // namespace

template <typename T>
void nmr_count_missing(const NmrBackward<T>& p, int64_t image, int64_t& missing) {
  const int64_t pixels = static_cast<int64_t>(p.mesh.height) * p.mesh.width;
  const int32_t* __restrict index = p.face_index + image * pixels;
  const T* __restrict grad = p.grad_mask + image * pixels;
  int64_t total = 0;
  for (int64_t i = 0; i < pixels; ++i) total += (index[i] < 0) & (grad[i] < 0);
  missing = total;
}

template <typename T>
void nmr_backward(const NmrBackward<T>& p, void* scratch, int64_t missing, int64_t image) {
  const RasterMesh<T>& m = p.mesh;
  const int64_t pixels = static_cast<int64_t>(m.height) * m.width;
  const int32_t* index = p.face_index + image * pixels;
  const T* grad_mask = p.grad_mask + image * pixels;
  const T* verts = m.verts_px + image * m.n_verts * 3;
  T* grad_verts = p.grad_verts + image * m.n_verts * 3;
  std::fill_n(grad_verts, m.n_verts * 3, T(0));
  Work<T> w = make_work(p, scratch, missing);
  find_pulling_pixels(p, index, grad_mask, w);
  for (int64_t face = 0; face < m.n_faces; ++face)
    if (w.visible[face]) add_face_gradient(p, w, index, grad_mask, verts, static_cast<int32_t>(face), grad_verts);
}

#define DHPE_INSTANTIATE(T)                                                     \
  template void nmr_count_missing<T>(const NmrBackward<T>&, int64_t, int64_t&); \
  template void nmr_backward<T>(const NmrBackward<T>&, void*, int64_t, int64_t);
DHPE_INSTANTIATE(float)
DHPE_INSTANTIATE(double)
#undef DHPE_INSTANTIATE

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
