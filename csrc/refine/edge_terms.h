// What an energy asks of the "edge" silhouette, without drawing it, on the CPU: sums over its pixels, each weighted by
// an image, and their derivatives by the vertices.
//
// A border of the union adds its height to all pixels of the row to its right: with the images' sums from the right at
// hand, a sweep over the outline gives the sums and the derivatives at once, and its cost does not know the pixels. The
// sums of the images are made once for many meshes.
#pragma once

#include <algorithm>
#include <vector>

#include "raster/edge_image.h"

namespace dhpe {

constexpr int kMaxEdgeImages = 3;

// For each row of an image, the sums of its pixels from a column on: (H, W + 1).
template <typename T>
void sum_from_right(const T* image, int height, int width, std::vector<double>& sums) {
  sums.resize(static_cast<size_t>(height) * (width + 1));
  double* to = sums.data();
  for (int y = 0; y < height; ++y, image += width, to += width + 1) {
    to[width] = 0;
    for (int x = width - 1; x >= 0; --x) to[x] = to[x + 1] + static_cast<double>(image[x]);
  }
}

// Takes the outline of one row. kImages images weigh the pixels.
template <int kImages, bool kGradient>
struct WeightedSink {
  static constexpr bool kWantsFlat = kGradient, kWantsLeft = true;
  const ContourEdge* edges;
  const double* beyond[kImages];  // (W + 1,) of this row, see sum_from_right
  int row, width;
  double* sums;  // (kImages,)
  double* grad;  // (V, kImages, 2)

  double weight(int image, int column) const { return beyond[image][column] - beyond[image][column + 1]; }

  void border(const Piece& p, int side, double va, double vb) const {
    if (p.edge < 0) {  // what lies left of the image, as a whole
      for (int i = 0; i < kImages; ++i) sums[i] += side * (vb - va) * beyond[i][0];
      return;
    }
    const ContourEdge& e = edges[p.edge];
    const double inverse = kGradient ? 1 / (e.y1 - e.y0) : 0;
    double first[2 * kImages] = {}, last[2 * kImages] = {};
    for_columns(va, p.at(va), vb, p.at(vb), width, [&](int column, double v, double x, double v1, double x1) {
      if (column >= width) return;
      const double height = side * (v1 - v);
      if (column < 0) {
        for (int i = 0; i < kImages; ++i) sums[i] += height * beyond[i][0];
        return;
      }
      const double right = (column + 1) - 0.5 * (x + x1);
      double t = kGradient ? (row + 0.5 * (v + v1) - e.y0) * inverse : 0;
      t = t > 0 ? (t < 1 ? t : 1) : 0;
      for (int i = 0; i < kImages; ++i) {
        const double w = weight(i, column);
        sums[i] += height * (beyond[i][column + 1] + w * right);
        if constexpr (kGradient) {
          const double gx = w * height, gy = w * side * (x1 - x);
          first[2 * i] -= (1 - t) * gx;
          first[2 * i + 1] += (1 - t) * gy;
          last[2 * i] -= t * gx;
          last[2 * i + 1] += t * gy;
        }
      }
    });
    if constexpr (kGradient) add(e, first, last);
  }

  // side: +1 where the union lies below.
  void flat_border(const Piece& p, int side, double xa, double xb) const {
    const ContourEdge& e = edges[p.edge];
    double first[2 * kImages] = {}, last[2 * kImages] = {};
    for_columns(0, xa, 1, xb, width, [&](int column, double, double x, double, double x1) {
      if (column < 0 || column >= width) return;
      const double t = (0.5 * (x + x1) - e.x0) / (e.x1 - e.x0);
      for (int i = 0; i < kImages; ++i) {
        const double g = side * weight(i, column) * (x1 - x);
        first[2 * i + 1] -= (1 - t) * g;
        last[2 * i + 1] -= t * g;
      }
    });
    add(e, first, last);
  }
  int flat_jump(const Piece& p) const { return jump_downwards(edges[p.edge]); }

 private:
  void add(const ContourEdge& e, const double* first, const double* last) const {
    double* to_first = grad + 2 * kImages * static_cast<int64_t>(e.vertex0);
    double* to_last = grad + 2 * kImages * static_cast<int64_t>(e.vertex1);
    for (int k = 0; k < 2 * kImages; ++k) {
      to_first[k] += first[k];
      to_last[k] += last[k];
    }
  }
};

// The weighted sums of one mesh after another, and their derivatives. `edges` and what `mesh` points to must live as
// long.
template <typename T>
class EdgeTerms {
 public:
  EdgeTerms(const RasterMesh<T>& mesh, const RasterOptions<T>& options, const MeshEdges& edges)
      : mesh_(mesh), rows_(mesh, options, edges), grad_(2 * kMaxEdgeImages * mesh.n_verts) {}

  // Adds an image (H, W) that weighs the pixels, null for one of ones; returns which it is. None may change later.
  int add_image(const T* image) {
    sum_from_right(image, mesh_.height, mesh_.width, beyond_[n_images_]);
    return n_images_++;
  }
  int add_ones() {
    beyond_[n_images_].resize(mesh_.width + 1);
    for (int x = 0; x <= mesh_.width; ++x) beyond_[n_images_][x] = mesh_.width - x;
    is_one_row_[n_images_] = true;
    return n_images_++;
  }

  // The sums over the silhouette of mesh `image` of the batch, one for each image; they last until the next call.
  const double* sums(int64_t image) {
    n_images_ == 1 ? sweep<1, false>(image) : n_images_ == 2 ? sweep<2, false>(image) : sweep<3, false>(image);
    return sums_;
  }
  // The same, for add_gradient().
  const double* sums_and_gradients(int64_t image) {
    n_images_ == 1 ? sweep<1, true>(image) : n_images_ == 2 ? sweep<2, true>(image) : sweep<3, true>(image);
    return sums_;
  }

  // Adds the derivative of the sum of weights[i] sums[i], over the first `count` images or all, to grad_verts (V, 3),
  // whose x and y have a unit of `scale` pixels.
  void add_gradient(const double* weights, double scale, T* grad_verts) const {
    add_gradient(weights, n_images_, scale, grad_verts);
  }
  void add_gradient(const double* weights, int count, double scale, T* grad_verts) const {
    for (int64_t v = 0; v < mesh_.n_verts; ++v) {
      const double* from = grad_.data() + 2 * n_images_ * v;
      double gx = 0, gy = 0;
      for (int i = 0; i < count; ++i) {
        gx += weights[i] * from[2 * i];
        gy += weights[i] * from[2 * i + 1];
      }
      grad_verts[3 * v] += static_cast<T>(scale * gx);
      grad_verts[3 * v + 1] += static_cast<T>(scale * gy);
    }
  }

 private:
  template <int kImages, bool kGradient>
  void sweep(int64_t image) {
    std::fill(sums_, sums_ + kImages, 0.0);
    if constexpr (kGradient) std::fill_n(grad_.begin(), 2 * kImages * mesh_.n_verts, 0.0);
    rows_.find(image);
    CellSweep<WeightedSink<kImages, kGradient>> cells;
    rows_.visit_rows([&](int row, const ContourEdge* contours, Piece* pieces, int count, int32_t* order) {
      WeightedSink<kImages, kGradient> sink = {contours, {}, row, mesh_.width, sums_, grad_.data()};
      for (int i = 0; i < kImages; ++i)
        sink.beyond[i] = beyond_[i].data() + (is_one_row_[i] ? 0 : row * static_cast<int64_t>(mesh_.width + 1));
      cells.sweep(pieces, count, order, mesh_.width, sink);
    });
  }

  const RasterMesh<T> mesh_;
  ContourRows<T> rows_;
  std::vector<double> beyond_[kMaxEdgeImages];
  bool is_one_row_[kMaxEdgeImages] = {};
  int n_images_ = 0;
  double sums_[kMaxEdgeImages] = {};
  std::vector<double> grad_;  // (V, n_images, 2)
};

}  // namespace dhpe
