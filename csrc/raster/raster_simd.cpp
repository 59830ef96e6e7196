// The CPU's inner loops of rasterization, compiled once per instruction set (see common/simd.h) and without fused
// multiply-adds, so that every copy draws the same pixels.
//
// A face of a hand covers some 7 x 7 pixels of a 224 crop: a row of it is one vector. Rows are therefore processed in
// whole vectors of kLanes pixels on a canvas padded to the right, where lanes beyond the face are switched off.
#include <algorithm>
#include <limits>

#include "raster/raster_math.h"
#include "raster/raster_scratch.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

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
  using Id = typename IntegerOf<sizeof(T)>::type;   // as wide as T, so that one mask serves both
  int row_begin, row_end, stride;
  T* centre;      // (stride,) x of the pixel centres
  T* depth;       // (rows, stride) the z-buffer
  Id* id;         // (rows, stride), valid where depth is finite
  T* bary[3];     // (rows, stride) each, likewise; null if nobody asks
};

template <typename T>
Canvas<T> make_canvas(const RasterForward<T>& p, void* scratch, int row_begin, int row_end) {
  Canvas<T> c;
  c.row_begin = row_begin;
  c.row_end = row_end;
  c.stride = static_cast<int>(canvas_stride(p.mesh.width));
  const int64_t pixels = static_cast<int64_t>(row_end - row_begin) * c.stride;
  T* at = static_cast<T*>(scratch);
  c.centre = at;
  c.depth = c.centre + c.stride;
  c.id = reinterpret_cast<typename Canvas<T>::Id*>(c.depth + pixels);
  at = reinterpret_cast<T*>(c.id + pixels);
  for (int k = 0; k < 3; ++k) c.bary[k] = p.bary ? at + k * pixels : nullptr;
  for (int j = 0; j < c.stride; ++j) c.centre[j] = static_cast<T>(j) + T(0.5);
  std::fill_n(c.depth, pixels, std::numeric_limits<T>::infinity());
  return c;
}

template <typename T, bool kBary>
void draw_face(const Face<T>& f, int64_t face, const Canvas<T>& c) {
  using Id = typename Canvas<T>::Id;
  constexpr int L = kLanes<T>;
  const T ax0 = f.ax[0], ax1 = f.ax[1], ax2 = f.ax[2], dy0 = f.dy[0], dy1 = f.dy[1], dy2 = f.dy[2];
  const T tie0 = f.tie[0], tie1 = f.tie[1], tie2 = f.tie[2];
  const T last = static_cast<T>(f.x1) + T(0.5);
  const Id id = static_cast<Id>(face);
  const int y0 = std::max(f.y0, c.row_begin), y1 = std::min(f.y1, c.row_end - 1);
  for (int y = y0; y <= y1; ++y) {
    const T py = static_cast<T>(y) + T(0.5);
    const T row0 = edge_row(f, 0, py), row1 = edge_row(f, 1, py), row2 = edge_row(f, 2, py);
    const int64_t row = static_cast<int64_t>(y - c.row_begin) * c.stride;
    for (int x = f.x0; x <= f.x1; x += L) {
      const T* __restrict centre = c.centre + x;
      T* __restrict depth = c.depth + row + x;
      Id* __restrict ids = c.id + row + x;
      T* __restrict bary0 = kBary ? c.bary[0] + row + x : nullptr;
      T* __restrict bary1 = kBary ? c.bary[1] + row + x : nullptr;
      T* __restrict bary2 = kBary ? c.bary[2] + row + x : nullptr;
#pragma omp simd
      for (int l = 0; l < L; ++l) {
        const T px = centre[l];
        const T e0 = edge_value(row0, dy0, ax0, px), e1 = edge_value(row1, dy1, ax1, px),
                e2 = edge_value(row2, dy2, ax2, px);
        const Pixel<T> q = interpolate(e0, e1, e2, f.inv_z, f.z);
        // Faces come in ascending order: a tie in depth stays with the lower index.
        const bool nearer = is_inside(e0, e1, e2, tie0, tie1, tie2) & (px <= last) & (q.depth < depth[l]);
        depth[l] = nearer ? q.depth : depth[l];
        ids[l] = nearer ? id : ids[l];
        if constexpr (kBary) {
          bary0[l] = nearer ? q.bary[0] : bary0[l];
          bary1[l] = nearer ? q.bary[1] : bary1[l];
          bary2[l] = nearer ? q.bary[2] : bary2[l];
        }
      }
    }
  }
}

template <typename T>
void write_rows(const RasterForward<T>& p, const Canvas<T>& c, int64_t image) {
  const int width = p.mesh.width;
  for (int y = c.row_begin; y < c.row_end; ++y) {
    const int64_t from = static_cast<int64_t>(y - c.row_begin) * c.stride;
    const int64_t to = (image * p.mesh.height + y) * width;
    const T* __restrict depth = c.depth + from;
    const auto* __restrict ids = c.id + from;
    constexpr T kEmpty = std::numeric_limits<T>::infinity();
    int32_t* __restrict face_index = p.face_index + to;
#pragma omp simd
    for (int x = 0; x < width; ++x) face_index[x] = depth[x] < kEmpty ? static_cast<int32_t>(ids[x]) : -1;
    if (p.mask) {
      T* __restrict mask = p.mask + to;
#pragma omp simd
      for (int x = 0; x < width; ++x) mask[x] = depth[x] < kEmpty ? T(1) : T(0);
    }
    if (p.depth) {
      T* __restrict out = p.depth + to;
#pragma omp simd
      for (int x = 0; x < width; ++x) out[x] = depth[x] < kEmpty ? depth[x] : T(0);
    }
    if (p.bary) {
      const T *__restrict b0 = c.bary[0] + from, *__restrict b1 = c.bary[1] + from, *__restrict b2 = c.bary[2] + from;
      T* __restrict out = p.bary + 3 * to;
#pragma omp simd
      for (int x = 0; x < width; ++x) {
        const bool covered = depth[x] < kEmpty;
        out[3 * x] = covered ? b0[x] : T(0);
        out[3 * x + 1] = covered ? b1[x] : T(0);
        out[3 * x + 2] = covered ? b2[x] : T(0);
      }
    }
  }
}

template <typename T, bool kBary>
void draw_mesh(const RasterForward<T>& p, const Canvas<T>& c, int64_t image) {
  const T* verts = p.mesh.verts_px + image * p.mesh.n_verts * 3;
  Face<T> f;
  for (int64_t face = 0; face < p.mesh.n_faces; ++face)
    if (setup_face(p.mesh, p.options, verts, face, f)) draw_face<T, kBary>(f, face, c);
}

}  // namespace

template <typename T>
void rasterize_rows(const RasterForward<T>& p, void* scratch, int64_t image, int row_begin, int row_end) {
  const Canvas<T> c = make_canvas(p, scratch, row_begin, row_end);
  if (p.bary)
    draw_mesh<T, true>(p, c, image);
  else
    draw_mesh<T, false>(p, c, image);
  write_rows(p, c, image);
}

template <typename T>
void rasterize_backward(const RasterBackward<T>& p, int64_t image) {
  const RasterMesh<T>& m = p.mesh;
  const T* verts = m.verts_px + image * m.n_verts * 3;
  T* grad_verts = p.grad_verts + image * m.n_verts * 3;
  std::fill_n(grad_verts, m.n_verts * 3, T(0));
  // Neighbours in a row mostly show the same face: its geometry and its gradient stay at hand until another comes.
  int32_t current = -1;
  const int32_t* ids = nullptr;
  Face<T> f{};
  T grad[9] = {};
  const auto flush = [&] {
    for (int k = 0; ids && k < 9; ++k) {
      grad_verts[3 * static_cast<int64_t>(ids[k / 3]) + k % 3] += grad[k];
      grad[k] = 0;
    }
  };
  for (int y = 0; y < m.height; ++y)
    for (int x = 0; x < m.width; ++x) {
      const int64_t pixel = (image * m.height + y) * m.width + x;
      const int32_t face = p.face_index[pixel];
      if (face < 0 || face >= m.n_faces) continue;
      const T* g = p.grad_bary + 3 * pixel;
      const T gd = p.grad_depth[pixel];
      if (g[0] == 0 && g[1] == 0 && g[2] == 0 && gd == 0) continue;
      if (face != current) {
        flush();
        ids = nullptr;
        current = face;
        if (setup_face(m, p.options, verts, face, f)) ids = m.faces + 3 * static_cast<int64_t>(face);
      }
      if (!ids) continue;
      interpolate_backward(f, p.options.perspective, verts + 3 * static_cast<int64_t>(ids[0]),
                           verts + 3 * static_cast<int64_t>(ids[1]), verts + 3 * static_cast<int64_t>(ids[2]),
                           static_cast<T>(x) + T(0.5), static_cast<T>(y) + T(0.5), g, gd, grad);
    }
  flush();
}

#define DHPE_INSTANTIATE(T)                                                             \
  template void rasterize_rows<T>(const RasterForward<T>&, void*, int64_t, int, int); \
  template void rasterize_backward<T>(const RasterBackward<T>&, int64_t);
DHPE_INSTANTIATE(float)
DHPE_INSTANTIATE(double)
#undef DHPE_INSTANTIATE

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
