// The "edge" silhouette on the CPU: contour edges from faces, then a sweep over the rows that they meet. One thread an
// image: results do not depend on the number of threads.
#include <algorithm>
#include <vector>

#include "raster/edge_cells.h"
#include "raster/raster_tensors.h"

namespace dhpe {
namespace {

// Undirected edges. Half-edge 3 f + k leads from corner k of face f to the next corner and belongs to of_half_edge.
struct MeshEdges {
  std::vector<int32_t> of_half_edge;  // (3 F,)
  std::vector<int32_t> low, high;     // (E,) vertices, low < high but for faces that name a vertex twice
};

MeshEdges find_edges(const int32_t* faces, int64_t n_faces) {
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
class Sweeper {
 public:
  Sweeper(const RasterMesh<T>& mesh, const RasterOptions<T>& options, const MeshEdges& edges)
      : mesh_(mesh), options_(options), edges_(edges), balance_(edges.low.size()), row_start_(mesh.height + 1) {}

  // Calls visit(row, contour edges, pieces, their number, order) for every row that meets a contour edge.
  template <typename Visit>
  void visit_rows(int64_t image, const Visit& visit) {
    const T* verts = mesh_.verts_px + image * mesh_.n_verts * 3;
    find_contours(verts);
    sort_by_first_row();
    size_t active = 0;
    active_.resize(contours_.size());
    pieces_.resize(contours_.size());
    order_.resize(contours_.size());
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

// A row of coverage that knows which of its columns differ from their left neighbour.
class CoverageRow {
 public:
  explicit CoverageRow(int width) : width_(width), values_(2 * (width + 1)), touched_((width + 64) / 64) {}

  auto sink() {
    const auto touch = [words = touched_.data()](int column) { words[column / 64] |= uint64_t{1} << column % 64; };
    return CoverageSink<decltype(touch)>{values_.data(), values_.data() + width_ + 1, width_, touch};
  }

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

template <typename T>
void draw(const EdgeForward<T>& p, const MeshEdges& edges, int64_t begin, int64_t end) {
  const int64_t height = p.mesh.height, width = p.mesh.width;
  Sweeper<T> sweeper(p.mesh, p.options, edges);
  CoverageRow coverage(p.mesh.width);
  auto sink = coverage.sink();
  CellSweep<decltype(sink)> cells;
  for (int64_t image = begin; image < end; ++image) {
    T* mask = p.mask + image * height * width;
    std::fill_n(mask, height * width, T(0));
    sweeper.visit_rows(image, [&](int row, const ContourEdge*, Piece* pieces, int count, int32_t* order) {
      cells.sweep(pieces, count, order, p.mesh.width, sink);
      coverage.write_and_clear(mask + row * width);
    });
  }
}

template <typename T>
void draw_backward(const EdgeBackward<T>& p, const MeshEdges& edges, int64_t begin, int64_t end) {
  const int64_t height = p.mesh.height, width = p.mesh.width;
  Sweeper<T> sweeper(p.mesh, p.options, edges);
  std::vector<double> grad(2 * p.mesh.n_verts);
  const auto add = [&grad](int32_t vertex, double gx, double gy) {
    grad[2 * static_cast<int64_t>(vertex)] += gx;
    grad[2 * static_cast<int64_t>(vertex) + 1] += gy;
  };
  CellSweep<GradientSink<T, decltype(add)>> cells;
  for (int64_t image = begin; image < end; ++image) {
    std::fill(grad.begin(), grad.end(), 0);
    const T* grad_mask = p.grad_mask + image * height * width;
    sweeper.visit_rows(image, [&](int row, const ContourEdge* contours, Piece* pieces, int count, int32_t* order) {
      GradientSink<T, decltype(add)> sink = {contours, grad_mask + row * width, row, p.mesh.width, add};
      cells.sweep(pieces, count, order, p.mesh.width, sink);
    });
    T* grad_verts = p.grad_verts + image * p.mesh.n_verts * 3;
    for (int64_t v = 0; v < p.mesh.n_verts; ++v) {
      grad_verts[3 * v] = static_cast<T>(grad[2 * v]);
      grad_verts[3 * v + 1] = static_cast<T>(grad[2 * v + 1]);
      grad_verts[3 * v + 2] = T(0);
    }
  }
}

Tensor silhouette_edge_cpu(Tensor verts_px, Tensor faces, int64_t height, int64_t width, std::optional<double> z_near,
                           bool fill_back) {
  const RasterMeshTensors mesh("silhouette_edge", verts_px, faces, height, width);
  const int64_t B = verts_px.size(0);
  Tensor mask = new_image(verts_px, B, height, width);
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const EdgeForward<scalar_t> p = {
        mesh.mesh<scalar_t>(), raster_options<scalar_t>("silhouette_edge", z_near.has_value(), z_near, !fill_back),
        mask.mutable_data_ptr<scalar_t>()};
    const MeshEdges edges = find_edges(p.mesh.faces, p.mesh.n_faces);
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) { draw(p, edges, begin, end); });
  });
  return mask;
}

Tensor silhouette_edge_backward_cpu(Tensor grad_mask, Tensor verts_px, Tensor faces, std::optional<double> z_near,
                                    bool fill_back, bool deterministic) {
  (void)deterministic;  // one thread per image adds up in a fixed order
  const char* op = "_silhouette_edge_backward";
  const RasterMeshTensors mesh(op, verts_px, faces, grad_mask.size(1), grad_mask.size(2));
  const int64_t B = verts_px.size(0);
  check_tensor(op, "grad_mask", grad_mask, {B, mesh.height, mesh.width}, verts_px.scalar_type(), verts_px);
  grad_mask = torch::stable::contiguous(grad_mask);
  Tensor grad_verts = torch::stable::new_empty(verts_px, {B, verts_px.size(1), 3});
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    const EdgeBackward<scalar_t> p = {mesh.mesh<scalar_t>(),
                                      raster_options<scalar_t>(op, z_near.has_value(), z_near, !fill_back),
                                      grad_mask.const_data_ptr<scalar_t>(), grad_verts.mutable_data_ptr<scalar_t>()};
    const MeshEdges edges = find_edges(p.mesh.faces, p.mesh.n_faces);
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) { draw_backward(p, edges, begin, end); });
  });
  return grad_verts;
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CPU, m) {
  m.impl("silhouette_edge", TORCH_BOX(&dhpe::silhouette_edge_cpu));
  m.impl("_silhouette_edge_backward", TORCH_BOX(&dhpe::silhouette_edge_backward_cpu));
}
