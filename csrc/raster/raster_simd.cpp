// The CPU's inner loops of rasterization, compiled once per instruction set (see common/simd.h) and without fused
// multiply-adds, so that every copy draws the same pixels.
//
// A face of a hand covers some 7 x 7 pixels of a 224 crop: a row of it is one vector. Rows are therefore processed in
// whole vectors of kLanes pixels on a canvas padded to the right, where lanes beyond the face are switched off.
#include <algorithm>
#include <limits>

#include "common/vector.h"
#include "raster/raster_math.h"
#include "raster/raster_scratch.h"
#include "raster/row_span.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {
namespace {

template <int kBytes>
struct IntegerOf;
template <>
struct IntegerOf<4> {
  using type = int32_t;
};
template <>
struct IntegerOf<8> {
  using type = int64_t;
};

// A band of rows; `stride` leaves room for a vector that starts at the last column.
template <typename T>
struct Canvas {
  using Id = typename IntegerOf<sizeof(T)>::type;  // as wide as T, so that one mask serves both
  int row_begin, row_end, stride;
  T* centre;  // (stride,) x of the pixel centres
  T* depth;   // (rows, stride) the z-buffer, infinite where no face is
  Id* id;     // (rows, stride), -1 where no face is
};

template <typename T>
Canvas<T> make_canvas(int width, void* scratch, int row_begin, int row_end) {
  Canvas<T> c;
  c.row_begin = row_begin;
  c.row_end = row_end;
  c.stride = static_cast<int>(canvas_stride(width));
  const int64_t pixels = static_cast<int64_t>(row_end - row_begin) * c.stride;
  c.centre = static_cast<T*>(scratch);
  c.depth = c.centre + c.stride;
  c.id = reinterpret_cast<typename Canvas<T>::Id*>(c.depth + pixels);
  for (int j = 0; j < c.stride; ++j) c.centre[j] = static_cast<T>(j) + T(0.5);
  std::fill_n(c.depth, pixels, std::numeric_limits<T>::infinity());
  std::fill_n(c.id, pixels, typename Canvas<T>::Id(-1));
  return c;
}

template <typename T>
struct VectorPixels {
  Vector<T> e0, e1, e2;
  Pixel<Vector<T>> pixel;
};

template <typename T>
VectorPixels<T> pixels_at(const Face<T>& f, const T* row, const Vector<T>& px) {
  VectorPixels<T> q;
  q.e0 = edge_value(row[0], f.dy[0], f.ax[0], px);
  q.e1 = edge_value(row[1], f.dy[1], f.ax[1], px);
  q.e2 = edge_value(row[2], f.dy[2], f.ax[2], px);
  q.pixel = interpolate(q.e0, q.e1, q.e2, f.inv_z, f.z);
  return q;
}

// Wider bounding boxes are worth finding, row by row, which part of them a face may cover.
template <typename T>
constexpr int kWideFace = 2 * kLanes<T> > 24 ? 2 * kLanes<T> : 24;

template <typename T>
[[gnu::always_inline]] inline void draw_row(const Face<T>& f, int64_t face, const Canvas<T>& c, int y, int x0, int x1) {
  using Id = typename Canvas<T>::Id;
  const Vector<Id> id = Vector<Id>{} + static_cast<Id>(face);
  const T last = static_cast<T>(f.x1) + T(0.5), py = static_cast<T>(y) + T(0.5);
  const T row[3] = {edge_row(f, 0, py), edge_row(f, 1, py), edge_row(f, 2, py)};
  const int64_t from = static_cast<int64_t>(y - c.row_begin) * c.stride;
  for (int x = x0; x <= x1; x += kLanes<T>) {
    const Vector<T> px = load(c.centre + x), depth = load(c.depth + from + x);
    const VectorPixels<T> q = pixels_at(f, row, px);
    // Faces come in ascending order: a tie in depth stays with the lower index.
    const auto nearer =
        is_inside(q.e0, q.e1, q.e2, f.tie[0], f.tie[1], f.tie[2]) & (px <= last) & (q.pixel.depth < depth);
    store<T>(c.depth + from + x, nearer ? q.pixel.depth : depth);
    store<Id>(c.id + from + x, nearer ? id : load(c.id + from + x));
  }
}

template <typename T>
[[gnu::noinline]] void draw_wide_face(const Face<T>& f, int64_t face, const Canvas<T>& c, int y0, int y1) {
  RowSpans spans(f.x0, f.x1);
  spans.add_edges(f.ax, f.ay, f.dx, f.dy, T(1), 0);
  int first, last;
  for (int y = y0; y <= y1; ++y)
    if (spans.find(y + 0.5, first, last)) draw_row(f, face, c, y, first, last);
}

template <typename T>
void draw_face(const Face<T>& f, int64_t face, const Canvas<T>& c) {
  const int y0 = std::max(f.y0, c.row_begin), y1 = std::min(f.y1, c.row_end - 1);
  if (f.x1 - f.x0 >= kWideFace<T>) [[unlikely]]
    return draw_wide_face(f, face, c, y0, y1);
  for (int y = y0; y <= y1; ++y) draw_row(f, face, c, y, f.x0, f.x1);
}

// Rows revisit the faces of the row above: the geometry of a few hundred is kept at hand.
template <typename T>
class FaceCache {
 public:
  FaceCache(const RasterMesh<T>& mesh, const RasterOptions<T>& options, const T* verts)
      : mesh_(mesh), options_(options), verts_(verts) {
    std::fill_n(id_, kSlots, int64_t(-1));
  }

  // Null for a face that cannot have drawn a pixel, which only a caller's own face_index can name.
  const Face<T>* find(int64_t id) {
    const int64_t slot = id % kSlots;
    if (id_[slot] != id) {
      is_drawn_[slot] = setup_face(mesh_, options_, verts_, id, face_[slot]);
      id_[slot] = id;
    }
    return is_drawn_[slot] ? &face_[slot] : nullptr;
  }

 private:
  static constexpr int64_t kSlots = 256;
  const RasterMesh<T>& mesh_;
  const RasterOptions<T>& options_;
  const T* verts_;
  int64_t id_[kSlots];
  bool is_drawn_[kSlots];
  Face<T> face_[kSlots];
};

// Barycentrics of one row, run by run of pixels that show the same face.
template <typename T>
void write_bary(const Canvas<T>& c, FaceCache<T>& faces, const typename Canvas<T>::Id* ids, int y, int width, T* out) {
  std::fill_n(out, 3 * static_cast<int64_t>(width), T(0));
  const T py = static_cast<T>(y) + T(0.5);
  for (int x = 0; x < width;) {
    const auto id = ids[x];
    if (id < 0) {
      ++x;
      continue;
    }
    int end = x + 1;
    while (end < width && ids[end] == id) ++end;
    const Face<T>& f = *faces.find(id);
    const T row[3] = {edge_row(f, 0, py), edge_row(f, 1, py), edge_row(f, 2, py)};
    for (; x < end; x += kLanes<T>) {
      const VectorPixels<T> q = pixels_at(f, row, load(c.centre + x));
      const int count = std::min(end - x, kLanes<T>);
      for (int k = 0; k < 3; ++k) {
        T lane[kLanes<T>];
        store<T>(lane, q.pixel.bary[k]);
        for (int l = 0; l < count; ++l) out[3 * (x + l) + k] = lane[l];
      }
    }
    x = end;
  }
}

template <typename T>
void write_rows(const RasterForward<T>& p, const Canvas<T>& c, int64_t image) {
  const int width = p.mesh.width;
  FaceCache<T> faces(p.mesh, p.options, p.mesh.verts_px + image * p.mesh.n_verts * 3);
  for (int y = c.row_begin; y < c.row_end; ++y) {
    const int64_t from = static_cast<int64_t>(y - c.row_begin) * c.stride;
    const int64_t to = (image * p.mesh.height + y) * width;
    const auto* __restrict ids = c.id + from;
    int32_t* __restrict face_index = p.face_index + to;
    for (int x = 0; x < width; ++x) face_index[x] = static_cast<int32_t>(ids[x]);
    if (p.mask) {
      T* __restrict mask = p.mask + to;
      for (int x = 0; x < width; ++x) mask[x] = ids[x] < 0 ? T(0) : T(1);
    }
    if (p.depth) {
      const T* __restrict depth = c.depth + from;
      T* __restrict out = p.depth + to;
      for (int x = 0; x < width; ++x) out[x] = ids[x] < 0 ? T(0) : depth[x];
    }
    if (p.bary) write_bary(c, faces, ids, y, width, p.bary + 3 * to);
  }
}

}  // namespace

template <typename T>
void find_face_rows(const RasterMesh<T>& m, T z_near, T margin, int64_t image, int64_t begin, int64_t end,
                    FaceRows* rows) {
  const T* verts = m.verts_px + image * m.n_verts * 3;
  for (int64_t face = begin; face < end; ++face) {
    const int32_t* ids = m.faces + 3 * face;
    const T* v[3] = {verts + 3 * static_cast<int64_t>(ids[0]), verts + 3 * static_cast<int64_t>(ids[1]),
                     verts + 3 * static_cast<int64_t>(ids[2])};
    int first = 0, last = -1;
    if (is_drawable(v[0], z_near) && is_drawable(v[1], z_near) && is_drawable(v[2], z_near))
      pixel_range(min3(v[0][1], v[1][1], v[2][1]) - margin, max3(v[0][1], v[1][1], v[2][1]) + margin, m.height, first,
                  last);
    rows[face] = {static_cast<int16_t>(first), static_cast<int16_t>(last)};
  }
}

template <typename T>
void rasterize_rows(const RasterForward<T>& p, const FaceRows* rows, void* scratch, int64_t image, int row_begin,
                    int row_end) {
  const Canvas<T> c = make_canvas<T>(p.mesh.width, scratch, row_begin, row_end);
  const T* verts = p.mesh.verts_px + image * p.mesh.n_verts * 3;
  Face<T> f;
  for (int64_t face = 0; face < p.mesh.n_faces; ++face)
    if ((!rows || meets_band(rows[face], row_begin, row_end)) && setup_face(p.mesh, p.options, verts, face, f))
      draw_face(f, face, c);
  write_rows(p, c, image);
}

template <typename T>
void rasterize_backward(const RasterBackward<T>& p, int64_t image) {
  const RasterMesh<T>& m = p.mesh;
  const T* verts = m.verts_px + image * m.n_verts * 3;
  T* grad_verts = p.grad_verts + image * m.n_verts * 3;
  std::fill_n(grad_verts, m.n_verts * 3, T(0));
  FaceCache<T> faces(m, p.options, verts);
  for (int y = 0; y < m.height; ++y)
    for (int x = 0; x < m.width; ++x) {
      const int64_t pixel = (image * m.height + y) * m.width + x;
      const int32_t face = p.face_index[pixel];
      if (face < 0 || face >= m.n_faces) continue;
      const T* g = p.grad_bary + 3 * pixel;
      const T gd = p.grad_depth[pixel];
      if (g[0] == 0 && g[1] == 0 && g[2] == 0 && gd == 0) continue;
      const Face<T>* f = faces.find(face);
      if (!f) continue;
      const int32_t* ids = m.faces + 3 * static_cast<int64_t>(face);
      const int64_t at[3] = {3 * static_cast<int64_t>(ids[0]), 3 * static_cast<int64_t>(ids[1]),
                             3 * static_cast<int64_t>(ids[2])};
      T grad[9] = {};
      interpolate_backward(*f, p.options.perspective, verts + at[0], verts + at[1], verts + at[2],
                           static_cast<T>(x) + T(0.5), static_cast<T>(y) + T(0.5), g, gd, grad);
      for (int k = 0; k < 9; ++k) grad_verts[at[k / 3] + k % 3] += grad[k];
    }
}

#define DHPE_INSTANTIATE(T)                                                                            \
  template void find_face_rows<T>(const RasterMesh<T>&, T, T, int64_t, int64_t, int64_t, FaceRows*);   \
  template void rasterize_rows<T>(const RasterForward<T>&, const FaceRows*, void*, int64_t, int, int); \
  template void rasterize_backward<T>(const RasterBackward<T>&, int64_t);
DHPE_INSTANTIATE(float)
DHPE_INSTANTIATE(double)
#undef DHPE_INSTANTIATE

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
