// The CPU's inner loops of the "soft" silhouette, compiled once per instruction set (see common/simd.h): every face
// visits the pixels within its reach, whole vectors at a time, on a canvas padded to the right.
#include <algorithm>

#include "common/vector.h"
#include "raster/raster_scratch.h"
#include "raster/row_span.h"
#include "raster/soft_math.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {
namespace {

template <typename T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  using Bits = int32_t;
  static constexpr float kShift = 0x1.8p23f;  // adding it leaves the rounded integer in the lowest bits
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;
};
template <>
struct ExpConstants<double> {
  using Bits = int64_t;
  static constexpr double kShift = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;
};

// exp(z) = 2^n exp(r), |r| <= ln(2) / 2, for |z| up to kSoftMaxZ.
template <typename T>
Vector<T> exponential(const Vector<T>& z) {
  using C = ExpConstants<T>;
  using Bits = Vector<typename C::Bits>;
  const Vector<T> shifted = z * T(1.4426950408889634) + C::kShift;
  const Vector<T> n = shifted - C::kShift;
  const Vector<T> r = (z - n * C::kLn2High) - n * C::kLn2Low;
  Vector<T> sum = r - r + T(1);  // Horner's scheme for the sum of r^i / i!
  for (int i = C::kTerms; i > 0; --i) sum = sum * r * (T(1) / static_cast<T>(i)) + T(1);
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + C::kBias) << C::kMantissa;  // the shift's own bits leave at the top
  Vector<T> power;
  std::memcpy(&power, &bits, sizeof(power));
  return sum * power;
}

// True only if all lanes are +0: where nothing is missed any more or nothing weighs.
template <typename T>
bool is_zero(const Vector<T>& v) {
  uint64_t words[kVectorBytes / 8], any = 0;
  std::memcpy(words, &v, sizeof(words));
  for (const uint64_t word : words) any |= word;
  return any == 0;
}

template <typename T>
void fill_centres(T* centre, int stride) {
  for (int j = 0; j < stride; ++j) centre[j] = static_cast<T>(j) + T(0.5);
}

// Calls visit(y, first, last) with the part of each row that a face reaches, or with its bounding box where looking
// closer does not pay.
template <typename T, typename Visit>
void for_rows(const SoftFace<T>& f, int y0, int y1, const Visit& visit) {
  if (f.x1 - f.x0 < 2 * kLanes<T>) {
    for (int y = y0; y <= y1; ++y) visit(y, f.x0, f.x1);
    return;
  }
  RowSpans spans(f.x0, f.x1);
  spans.add_edges(f.ax, f.ay, f.dx, f.dy, f.side, std::sqrt(static_cast<double>(f.reach)));
  int first, last;
  for (int y = y0; y <= y1; ++y)
    if (spans.find(y + 0.5, first, last)) visit(y, first, last);
}

template <typename T>
void miss_face(const SoftFace<T>& f, const T* centre, T* missed, int64_t stride, int row_begin, int row_end) {
  const T reached = static_cast<T>(f.x1) + T(0.5);
  for_rows(f, std::max(f.y0, row_begin), std::min(f.y1, row_end - 1), [&](int y, int first, int last) {
    T* row = missed + (y - row_begin) * stride;
    const bool is_wide = last - first >= 2 * kLanes<T>;
    for (int x = first; x <= last; x += kLanes<T>) {
      const Vector<T> px = load(centre + x), before = load(row + x);
      if (is_wide && is_zero<T>(before)) continue;
      const SoftPixel<Vector<T>> p = soft_pixel(f, px, static_cast<T>(y) + T(0.5));
      Vector<T> after = before / (exponential<T>(soft_z(f, p)) + T(1));
      after = after < kSoftNothing<T> ? after - after : after;
      store<T>(row + x, soft_reaches(f, p) & (px <= reached) ? after : before);
    }
  });
}

// grad (3 corners x 2) += of one face. `weight` is dL/dmask Q.
template <typename T>
void face_gradient(const SoftFace<T>& f, const T* centre, const T* weight, int64_t stride, T* grad) {
  const T reached = static_cast<T>(f.x1) + T(0.5);
  Vector<T> begin_x[3] = {}, begin_y[3] = {}, end_x[3] = {}, end_y[3] = {};
  for_rows(f, f.y0, f.y1, [&](int y, int first, int last) {
    const T* row = weight + y * stride;
    for (int x = first; x <= last; x += kLanes<T>) {
      const Vector<T> px = load(centre + x), w = load(row + x), zero = px - px;
      if (is_zero<T>(w)) continue;
      const SoftPixel<Vector<T>> p = soft_pixel(f, px, static_cast<T>(y) + T(0.5));
      const Vector<T> e = exponential<T>(soft_z(f, p));
      // dL/dq = dL/dz dz/dq, where z = +- q^2 / sigma and q = pixel - (1 - t) a - t b
      Vector<T> g = w * (e / (e + T(1))) * p.sign * (2 * f.inv_sigma);
      g = soft_reaches(f, p) & (px <= reached) ? g : zero;
      Vector<T> left = g;  // goes to the first of the nearest edges
      for (int k = 0; k < 3; ++k) {
        const Vector<T> own = p.edge[k].square == p.square ? left : zero;
        left -= own;
        const Vector<T> gx = own * p.edge[k].qx, gy = own * p.edge[k].qy;
        begin_x[k] -= gx * (T(1) - p.edge[k].t);
        begin_y[k] -= gy * (T(1) - p.edge[k].t);
        end_x[k] -= gx * p.edge[k].t;
        end_y[k] -= gy * p.edge[k].t;
      }
    }
  });
  for (int k = 0; k < 3; ++k) {
    const int next = k == 2 ? 0 : k + 1;
    grad[2 * k] += sum_of<T>(begin_x[k]);
    grad[2 * k + 1] += sum_of<T>(begin_y[k]);
    grad[2 * next] += sum_of<T>(end_x[k]);
    grad[2 * next + 1] += sum_of<T>(end_y[k]);
  }
}

}  // namespace

template <typename T>
void soft_rows(const SoftForward<T>& p, const FaceRows* rows, T* scratch, int64_t image, int row_begin, int row_end) {
  const RasterMesh<T>& m = p.mesh;
  const int64_t stride = canvas_stride(m.width);
  T* centre = scratch;
  T* canvas = scratch + stride;
  fill_centres(centre, static_cast<int>(stride));
  std::fill_n(canvas, (row_end - row_begin) * stride, T(1));
  const T* verts = m.verts_px + image * m.n_verts * 3;
  SoftFace<T> f;
  for (int64_t face = 0; face < m.n_faces; ++face)
    if ((!rows || meets_band(rows[face], row_begin, row_end)) && setup_soft_face(m, p.options, p.sigma, verts, face, f))
      miss_face(f, centre, canvas, stride, row_begin, row_end);
  for (int y = row_begin; y < row_end; ++y) {
    const T* __restrict row = canvas + (y - row_begin) * stride;
    const int64_t to = (image * m.height + y) * m.width;
    T* __restrict missed = p.missed + to;
    T* __restrict mask = p.mask + to;
    for (int x = 0; x < m.width; ++x) {
      missed[x] = row[x];
      mask[x] = T(1) - row[x];
    }
  }
}

template <typename T>
void soft_backward(const SoftBackward<T>& p, T* scratch, int64_t image) {
  const RasterMesh<T>& m = p.mesh;
  const int64_t stride = canvas_stride(m.width), pixels = static_cast<int64_t>(m.height) * m.width;
  T* centre = scratch;
  T* weight = scratch + stride;
  fill_centres(centre, static_cast<int>(stride));
  for (int y = 0; y < m.height; ++y) {
    const T* __restrict missed = p.missed + image * pixels + static_cast<int64_t>(y) * m.width;
    const T* __restrict grad = p.grad_mask + image * pixels + static_cast<int64_t>(y) * m.width;
    T* __restrict row = weight + y * stride;
    for (int x = 0; x < m.width; ++x) row[x] = missed[x] * grad[x];
    std::fill(row + m.width, row + stride, T(0));
  }
  const T* verts = m.verts_px + image * m.n_verts * 3;
  T* grad_verts = p.grad_verts + image * m.n_verts * 3;
  std::fill_n(grad_verts, m.n_verts * 3, T(0));
  SoftFace<T> f;
  for (int64_t face = 0; face < m.n_faces; ++face) {
    if (!setup_soft_face(m, p.options, p.sigma, verts, face, f)) continue;
    T grad[6] = {};
    face_gradient(f, centre, weight, stride, grad);
    for (int k = 0; k < 3; ++k) {
      T* to = grad_verts + 3 * static_cast<int64_t>(m.faces[3 * face + k]);
      to[0] += grad[2 * k];
      to[1] += grad[2 * k + 1];
    }
  }
}

#define DHPE_INSTANTIATE(T)                                                                  \
  template void soft_rows<T>(const SoftForward<T>&, const FaceRows*, T*, int64_t, int, int); \
  template void soft_backward<T>(const SoftBackward<T>&, T*, int64_t);
DHPE_INSTANTIATE(float)
DHPE_INSTANTIATE(double)
#undef DHPE_INSTANTIATE

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
