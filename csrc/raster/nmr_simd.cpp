// The CPU's backward pass of the "nmr" silhouette, compiled once per instruction set (see common/simd.h).
//
// Only two kinds of pixels pull on an edge: uncovered ones that should be covered (grad < 0), from any distance, and
// covered ones that should not be (grad > 0), next to the border. The former are gathered once per image into a list
// per row and per column, with an index of where each block of kNmrBlock pixels starts; an edge then visits those on
// its outer side only. That sum of w / distance has no shortcut that is exact, so the cost is bounded by the scan lines
// which the edges of visible faces cross times the missing pixels of a line: for a surface, perimeters of faces times
// the side of the image.
#include <algorithm>

#include "raster/nmr_sum.h"
#include "raster/raster_scratch.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {
namespace {

// The pixels that pull, by row or by column.
template <typename T>
struct Lines {
  int count, size;          // lines; pixels of a line
  int64_t line_step, step;  // from one line to the next, from one pixel of a line to the next
  int64_t blocks;           // of a line
  int32_t* first;           // (blocks + 1, count) the first missing pixel of a line at or after the start of a block
  uint8_t* has_excess;      // (count,) the line holds covered pixels with grad > 0
  T* position;              // missing pixels in ascending order, line after line; padded by a vector
  T* weight;                // -grad there
};

template <typename T>
struct Work {
  Lines<T> rows, columns;
  int32_t* column_end;  // (W,) while the columns are filled
  uint8_t* visible;     // (F,)
};

template <typename T>
Work<T> make_work(const NmrBackward<T>& p, void* scratch, int64_t missing) {
  const int H = p.mesh.height, W = p.mesh.width;
  const int64_t row_blocks = nmr_blocks(W), column_blocks = nmr_blocks(H);
  Work<T> w;
  T* values = static_cast<T*>(scratch);
  T* lists[4];
  for (T*& list : lists) {
    list = values;
    values += missing + kNmrPadding;
    std::fill_n(list + missing, kNmrPadding, T(0));
  }
  int32_t* first = reinterpret_cast<int32_t*>(values);
  int32_t* column_first = first + (row_blocks + 1) * H;
  w.column_end = column_first + (column_blocks + 1) * W;
  uint8_t* flags = reinterpret_cast<uint8_t*>(w.column_end + W);
  w.rows = {H, W, W, 1, row_blocks, first, flags, lists[0], lists[1]};
  w.columns = {W, H, 1, W, column_blocks, column_first, flags + H, lists[2], lists[3]};
  w.visible = flags + H + W;
  std::fill_n(w.column_end, W, 0);
  std::fill_n(flags, H + W + p.mesh.n_faces, uint8_t(0));
  return w;
}

// As many pixels of a row as there are ids in a vector.
constexpr int kGroup = kLanes<int32_t>;
using GroupIds = Vector<int32_t>;

template <typename T>
struct Group {
  typedef T Values __attribute__((vector_size(kGroup * sizeof(T))));
  GroupIds id;
  Values grad;

  Group(const int32_t* ids, const T* grads) {
    std::memcpy(&id, ids, sizeof(id));
    std::memcpy(&grad, grads, sizeof(grad));
  }
};

bool any_of(const GroupIds& mask) {
  uint64_t words[kGroup / 2], any = 0;
  std::memcpy(words, &mask, sizeof(words));
  for (const uint64_t word : words) any |= word;
  return any != 0;
}

// What a group of pixels adds to the row's list, the columns' counts and the flags. Groups without any of the three
// kinds of pixels are passed over, and in the others none costs a branch that the sign of a gradient would lead astray.
template <typename T>
void find_in_group(const Group<T>& group, int x, int count, uint32_t n_faces, Work<T>& w, int32_t& found,
                   bool& row_has_excess) {
  const GroupIds covered = group.id >= 0;
  const GroupIds missing = ~covered & __builtin_convertvector(group.grad < T(0), GroupIds);
  const GroupIds excess = covered & __builtin_convertvector(group.grad > T(0), GroupIds);
  if (any_of(missing)) {
    for (int l = 0; l < count; ++l) {
      w.rows.position[found] = static_cast<T>(x + l);
      w.rows.weight[found] = -group.grad[l];
      found -= missing[l];
      w.column_end[x + l] -= missing[l];
    }
  }
  if (!any_of(covered)) return;
  for (int l = 0; l < count; ++l)
    if (static_cast<uint32_t>(group.id[l]) < n_faces) w.visible[group.id[l]] = 1;
  if (!any_of(excess)) return;
  row_has_excess = true;
  for (int l = 0; l < count; ++l) w.columns.has_excess[x + l] |= static_cast<uint8_t>(-excess[l]);
}

// Fills the lists of the rows and counts those of the columns.
template <typename T>
void find_in_rows(const NmrBackward<T>& p, const int32_t* index, const T* grad, Work<T>& w) {
  const int H = p.mesh.height, W = p.mesh.width, whole = W / kGroup * kGroup;
  const uint32_t n_faces = static_cast<uint32_t>(p.mesh.n_faces);
  int32_t found = 0;
  for (int y = 0; y < H; ++y) {
    const int32_t* ids = index + static_cast<int64_t>(y) * W;
    const T* g = grad + static_cast<int64_t>(y) * W;
    bool excess = false;
    for (int x = 0; x < whole; x += kGroup) {
      if (x % kNmrBlock == 0) w.rows.first[x / kNmrBlock * static_cast<int64_t>(H) + y] = found;
      find_in_group(Group<T>(ids + x, g + x), x, kGroup, n_faces, w, found, excess);
    }
    if (whole < W) {
      int32_t last_ids[kGroup] = {};
      T last_grad[kGroup] = {};
      std::copy(ids + whole, ids + W, last_ids);
      std::copy(g + whole, g + W, last_grad);
      if (whole % kNmrBlock == 0) w.rows.first[whole / kNmrBlock * static_cast<int64_t>(H) + y] = found;
      find_in_group(Group<T>(last_ids, last_grad), whole, W - whole, n_faces, w, found, excess);
    }
    w.rows.first[w.rows.blocks * H + y] = found;
    w.rows.has_excess[y] = excess;
  }
}

// The columns follow from the rows by a counting sort, so many columns at a time that their ends stay at hand.
template <typename T>
void find_in_columns(Work<T>& w) {
  constexpr int kTile = 32 * kNmrBlock;
  const Lines<T>& rows = w.rows;
  const Lines<T>& columns = w.columns;
  const int H = rows.count, W = columns.count;
  int32_t* end = w.column_end;
  for (int32_t x = 0, total = 0; x < W; ++x) {
    const int32_t count = end[x];
    end[x] = total;
    total += count;
  }
  for (int begin = 0; begin < W; begin += kTile) {
    const int width = std::min(kTile, W - begin);
    const int32_t* from = rows.first + begin / kNmrBlock * static_cast<int64_t>(H);
    const int32_t* to = rows.first + (begin + width + kNmrBlock - 1) / kNmrBlock * static_cast<int64_t>(H);
    for (int y = 0; y < H; ++y) {
      if (y % kNmrBlock == 0)
        std::copy_n(end + begin, width, columns.first + y / kNmrBlock * static_cast<int64_t>(W) + begin);
      for (int32_t i = from[y]; i < to[y]; ++i) {
        const int32_t at = end[static_cast<int>(rows.position[i])]++;
        columns.position[at] = static_cast<T>(y);
        columns.weight[at] = rows.weight[i];
      }
    }
    std::copy_n(end + begin, width, columns.first + columns.blocks * W + begin);
  }
}

// Adds, lane by lane, what the missing pixels begin .. end - 1 of a line's list pull if they lie beyond the edge.
template <typename T>
void pull_outwards(const Lines<T>& lines, int begin, int end, int outward, const NmrCrossing<T>& x, T eps_px,
                   Vector<T>* pull) {
  const Vector<T> lane = lane_numbers<T>();
  const T in = static_cast<T>(x.in), sign = static_cast<T>(outward);
  NmrSum<T> sum(x, eps_px);
  for (int i = begin; i < end; i += kLanes<T>) {
    const Vector<T> position = load(lines.position + i), weight = load(lines.weight + i);
    const auto pulls = (lane < static_cast<T>(end - i)) & ((position - in) * sign > T(0));
    sum.add(pulls ? weight : Vector<T>{}, position);  // not weight - weight: a neighbour's may be infinite
  }
  sum.give(pull);
}

// What the pixels of this face that should be empty pull, from `x.in` inwards; rounding may put that beyond the face.
template <typename T>
void pull_inwards(const Lines<T>& lines, const int32_t* index, const T* grad, const NmrScan<T>& s,
                  const NmrCrossing<T>& x, int32_t face, T* sum) {
  const T margin0 = nmr_margin(s.eps_px, x.t0), margin1 = nmr_margin(s.eps_px, x.t1);
  const int start = s.edge.outward > 0 ? std::min(x.in, s.high) : std::max(x.in, s.low);
  for (int d = start; d >= s.low && d <= s.high; d -= s.edge.outward) {
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
  const NmrEdge<T>& e = s.edge;
  const bool rising = e.outward > 0;
  Vector<T> outwards[2] = {};
  T inwards[2] = {};
  bool any = false;
  for (int line = e.first; line <= e.last; ++line) {
    const int32_t* first = lines.first + line;
    const int32_t list_end = first[lines.blocks * lines.count];
    const bool has_excess = lines.has_excess[line];
    if (first[0] == list_end && !has_excess) continue;
    NmrCrossing<T> x;
    if (!nmr_crossing(e, line, lines.size, x)) continue;
    const int32_t* line_index = index + line * lines.line_step;
    const int64_t block = x.out / kNmrBlock;
    const int32_t begin = rising ? first[block * lines.count] : first[0];
    const int32_t end = rising ? list_end : first[(block + 1) * lines.count];
    if (begin < end && line_index[x.in * lines.step] == face) {
      pull_outwards(lines, begin, end, e.outward, x, s.eps_px, outwards);
      any = true;
    }
    if (has_excess && line_index[x.out * lines.step] < 0)
      pull_inwards(lines, line_index, grad + line * lines.line_step, s, x, face, inwards);
  }
  for (int k = 0; k < 2; ++k)
    pull[k] = static_cast<T>(e.outward) * ((any ? sum_of<T>(outwards[k]) : T(0)) - inwards[k]);
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
  find_in_rows(p, index, grad_mask, w);
  find_in_columns(w);
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
