// The "edge" silhouette on the CPU, an image at a time on the calling thread: contour edges from faces, then a sweep
// over the rows that they meet. Memory is kept from one image to the next. For edge_cpu.cpp, and for host code that
// draws a mesh on its way to something else.
#pragma once

#include <algorithm>
#include <vector>

#include "raster/edge_cells.h"

namespace dhpe {

// Undirected edges. Half-edge 3 f + k leads from corner k of face f to the next corner and belongs to of_half_edge.
struct MeshEdges {
  std::vector<int32_t> of_half_edge;  // (3 F,)
  std::vector<int32_t> low, high;     // (E,) vertices, low < high but for faces that name a vertex twice
};

inline MeshEdges find_edges(const int32_t* faces, int64_t n_faces) {
  const int64_t n_half_edges = 3 * n_faces;
  int bits = 4;
  while ((int64_t{1} << bits) < 2 * n_half_edges) ++bits;
  const uint64_t last_slot = (uint64_t{1} << bits) - 1;
  std::vector<int32_t> slots(last_slot + 1, -1);  // a hash table with linear probing
  MeshEdges edges;
  edges.of_half_edge.resize(n_half_edges);
  edges.low.reserve(n_half_edges);
  edges.high.reserve(n_half_edges);
  for (int64_t face = 0; face < n_faces; ++face)
    for (int k = 0; k < 3; ++k) {
      const int32_t a = faces[3 * face + k], b = faces[3 * face + (k == 2 ? 0 : k + 1)];
      const int32_t low = std::min(a, b), high = std::max(a, b);
      const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(low)) << 32 | static_cast<uint32_t>(high);
      uint64_t slot = key * 0x9E3779B97F4A7C15u >> (64 - bits);
      while (slots[slot] >= 0 && (edges.low[slots[slot]] != low || edges.high[slots[slot]] != high))
        slot = (slot + 1) & last_slot;
      if (slots[slot] < 0) {
        slots[slot] = static_cast<int32_t>(edges.low.size());
        edges.low.push_back(low);
        edges.high.push_back(high);
      }
      edges.of_half_edge[3 * face + k] = slots[slot];
    }
  return edges;
}

// The contour edges of one image after another, and the memory that their sweep needs.
template <typename T>
class ContourRows {
 public:
  ContourRows(const RasterMesh<T>& mesh, const RasterOptions<T>& options, const MeshEdges& edges)
      : mesh_(mesh), options_(options), edges_(edges), balance_(edges.low.size()), row_start_(mesh.height + 1) {}

  // Finds the contour edges of an image.
  void find(int64_t image) {
    find_contours(mesh_.verts_px + image * mesh_.n_verts * 3);
    sort_by_first_row();
    active_.resize(contours_.size());
    pieces_.resize(contours_.size());
    order_.resize(contours_.size());
  }

  // Calls visit(row, contour edges, pieces, their number, order) for every row that meets a contour edge.
  template <typename Visit>
  void visit_rows(const Visit& visit) {
    size_t active = 0;
    for (int row = 0; row < mesh_.height; ++row) {
      size_t kept = 0;
      for (size_t i = 0; i < active; ++i)
        if (contours_[active_[i]].y1 >= row) active_[kept++] = active_[i];
      for (int32_t i = row_start_[row]; i < row_start_[row + 1]; ++i) active_[kept++] = by_row_[i];
      active = kept;
      int count = 0;
      for (size_t i = 0; i < active; ++i)
        count += piece_of(contours_[active_[i]], active_[i], row, mesh_.width, pieces_[count]);
      if (count > 0) visit(row, contours_.data(), pieces_.data(), count, order_.data());
    }
  }

 private:
  void find_contours(const T* verts) {
    std::fill(balance_.begin(), balance_.end(), 0);
    for (int64_t face = 0; face < mesh_.n_faces; ++face) {
      const int side = face_side(mesh_, options_, verts, face);
      if (side == 0) continue;
      const int32_t* ids = mesh_.faces + 3 * face;
      const int32_t* edge = edges_.of_half_edge.data() + 3 * face;
      for (int k = 0; k < 3; ++k) balance_[edge[k]] += ids[k] < ids[k == 2 ? 0 : k + 1] ? side : -side;
    }
    contours_.clear();
    for (size_t i = 0; i < balance_.size(); ++i) {
      if (balance_[i] == 0) continue;
      const ContourEdge e = contour_edge(verts, edges_.low[i], edges_.high[i], balance_[i]);
      if (e.y1 >= 0 && e.y0 < mesh_.height) contours_.push_back(e);
    }
  }

  int first_row(const ContourEdge& e) const { return e.y0 > 0 ? static_cast<int>(e.y0) : 0; }

  void sort_by_first_row() {  // a counting sort
    std::fill(row_start_.begin(), row_start_.end(), 0);
    for (const ContourEdge& e : contours_) ++row_start_[first_row(e)];
    int32_t end = 0;
    for (int32_t& start : row_start_) end = start += end;
    by_row_.resize(contours_.size());
    for (size_t i = contours_.size(); i-- > 0;)
      by_row_[--row_start_[first_row(contours_[i])]] = static_cast<int32_t>(i);
  }

  const RasterMesh<T> mesh_;
  const RasterOptions<T> options_;
  const MeshEdges& edges_;
  std::vector<int32_t> balance_;  // (E,) see contour_edge
  std::vector<ContourEdge> contours_;
  std::vector<int32_t> row_start_, by_row_;  // (H + 1,) into by_row: contour edges by the first row that they meet
  std::vector<int32_t> active_, order_;
  std::vector<Piece> pieces_;
};

struct TouchColumns {
  uint64_t* words;
  void operator()(int column) const { words[column / 64] |= uint64_t{1} << column % 64; }
};

// A row of coverage that knows which of its columns differ from their left neighbour.
class CoverageRow {
 public:
  using Sink = CoverageSink<TouchColumns>;

  explicit CoverageRow(int width) : width_(width), values_(2 * (width + 1)), touched_((width + 64) / 64) {}

  Sink sink() { return {values_.data(), values_.data() + width_ + 1, width_, {touched_.data()}}; }

  template <typename T>
  void write_and_clear(T* mask) {
    double* cover = values_.data();
    double* area = cover + width_ + 1;
    double covered = 0;
    int done = 0;
    for (size_t word = 0; word < touched_.size(); ++word)
      for (uint64_t& bits = touched_[word]; bits != 0; bits &= bits - 1) {
        const int column = static_cast<int>(64 * word) + __builtin_ctzll(bits);
        std::fill(mask + done, mask + column, static_cast<T>(clamp_coverage(covered)));
        covered += cover[column];
        done = std::min(column + 1, width_);
        if (column < width_) mask[column] = static_cast<T>(clamp_coverage(covered + area[column]));
        cover[column] = area[column] = 0;
      }
    std::fill(mask + done, mask + width_, static_cast<T>(clamp_coverage(covered)));
  }

 private:
  int width_;
  std::vector<double> values_;
  std::vector<uint64_t> touched_;
};

// Draws one image after another, and takes gradients back to the vertices. `edges` must live as long.
template <typename T>
class EdgeImage {
 public:
  EdgeImage(const RasterMesh<T>& mesh, const RasterOptions<T>& options, const MeshEdges& edges)
      : mesh_(mesh), rows_(mesh, options, edges), coverage_(mesh.width), grad_xy_(2 * mesh.n_verts) {}

  // Finds the contour edges of an image, which the functions below are about.
  void find(int64_t image) { rows_.find(image); }

  void draw(T* mask) {  // (H, W)
    const int64_t height = mesh_.height, width = mesh_.width;
    std::fill_n(mask, height * width, T(0));
    CoverageRow::Sink sink = coverage_.sink();
    rows_.visit_rows([&](int row, const ContourEdge*, Piece* pieces, int count, int32_t* order) {
      coverage_cells_.sweep(pieces, count, order, mesh_.width, sink);
      coverage_.write_and_clear(mask + row * width);
    });
  }

  // dL/dx and dL/dy of the vertices (V, 2); they last until the next call.
  const double* backward(const T* grad_mask) {  // (H, W)
    const int64_t width = mesh_.width;
    std::fill(grad_xy_.begin(), grad_xy_.end(), 0);
    rows_.visit_rows([&](int row, const ContourEdge* contours, Piece* pieces, int count, int32_t* order) {
      GradientSink<T, AddXy> sink = {contours, grad_mask + row * width, row, mesh_.width, {grad_xy_.data()}};
      gradient_cells_.sweep(pieces, count, order, mesh_.width, sink);
    });
    return grad_xy_.data();
  }

 private:
  struct AddXy {
    double* grad_xy;
    void operator()(int32_t vertex, double gx, double gy) const {
      grad_xy[2 * static_cast<int64_t>(vertex)] += gx;
      grad_xy[2 * static_cast<int64_t>(vertex) + 1] += gy;
    }
  };

  const RasterMesh<T> mesh_;
  ContourRows<T> rows_;
  CoverageRow coverage_;
  std::vector<double> grad_xy_;  // (V, 2)
  CellSweep<CoverageRow::Sink> coverage_cells_;
  CellSweep<GradientSink<T, AddXy>> gradient_cells_;
};

}  // namespace dhpe
