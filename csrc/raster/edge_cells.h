// The "edge" silhouette where many contour edges meet a row of pixels, on the CPU: the row is cut into cells, between
// columns first and then finer, until the sweep of edge_math.h finds few pieces in each.
//
// The sweep costs pieces x (their ends + crossings): fine for the outline of a surface, not for thousands of small
// triangles in a row. A cell knows what lies to its left by L along its left side, a step function of the height: it
// enters the sweep as vertical pieces of no edge, which show nothing. All jumps are integers and all heights exact, so
// L agrees on both sides of a cut. Where L cannot fall to 0 within a cell, there is no outline and no more to do:
// triangles that lie many deep over each other, whatever their number, end here.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "raster/edge_math.h"

namespace dhpe {

template <typename Sink>
class CellSweep {
 public:
  // As sweep_row.
  void sweep(Piece* pieces, int count, int32_t* order, int width, Sink& sink) {
    if (count <= kFewPieces) return sweep_row(pieces, count, order, sink);
    pieces_.assign(pieces, pieces + count);
    sink_.sink = &sink;
    const size_t begin = cut_off_the_left(sink);
    sweep_cell(begin, {kOutside, static_cast<double>(width), 0, 1, kMaxCuts});
  }

 private:
  static constexpr int kFewPieces = 32;
  static constexpr int kMaxCuts = 40;  // of one cell inside another
  static constexpr int32_t kNoEdge = -1;
  static constexpr double kOutside = -1;  // not 0: an edge along the border of the image has a gradient

  struct Side {
    Sink* sink;
    static constexpr bool kWantsFlat = Sink::kWantsFlat;
    void border(const Piece& p, int side, double va, double vb) const {
      if (p.edge != kNoEdge) sink->border(p, side, va, vb);
    }
    void flat_border(const Piece& p, int side, double xa, double xb) const { sink->flat_border(p, side, xa, xb); }
    int flat_jump(const Piece& p) const { return sink->flat_jump(p); }
  };

  // What lies well left of the image only counts as a whole. Returns where the pieces of the rest begin.
  size_t cut_off_the_left(Sink& sink) {
    const auto is_outside = [](const Piece& p) { return std::min(p.x0, p.x1) < kOutside; };
    if (std::none_of(pieces_.begin(), pieces_.end(), is_outside)) return 0;
    const size_t count = pieces_.size();
    add_right_side(0, count, kOutside);
    if constexpr (Sink::kWantsLeft)
      for (size_t i = count; i < pieces_.size() && !is_edge(pieces_[i]); ++i) {
        const Piece& outside = pieces_[i];
        if (outside.jump > 0) sink.border(outside, 1, outside.v0, outside.v1);
      }
    return count;
  }

  struct Step {
    double v;
    int32_t jump;
  };

  struct Cell {
    double left, right, top, bottom;
    int cuts;  // that are still allowed
  };

  // Sweeps a cell whose pieces are those from `begin` on, and takes them away.
  void sweep_cell(size_t begin, const Cell& cell) {
    const int64_t count = pieces_.size() - begin;
    const int64_t n_edges = std::count_if(pieces_.begin() + begin, pieces_.end(), is_edge);
    if (n_edges > 0 && !is_covered(begin, cell)) {
      if (n_edges > kFewPieces && cell.cuts > 0 && cut(begin, n_edges, cell)) return;
      order_.resize(std::max<size_t>(order_.size(), count));
      if (count <= 2 * kFewPieces)
        sweep_row(pieces_.data() + begin, static_cast<int>(count), order_.data(), sink_);
      else
        sweep_many(pieces_.data() + begin, static_cast<int>(count));
    }
    pieces_.resize(begin);
  }

  static bool is_edge(const Piece& p) { return p.edge != kNoEdge; }

  // True if L is positive all over the cell: on its left side, and less all that may be lost inside; and if it is so
  // beyond a horizontal edge along the cell's top, which belongs to the cell.
  bool is_covered(size_t begin, const Cell& cell) const {
    double reached = cell.top;
    int64_t least = INT32_MAX, lost = 0;
    for (size_t i = begin; i < pieces_.size(); ++i) {
      const Piece& p = pieces_[i];
      if (is_edge(p)) {
        lost += p.is_flat() ? std::abs(p.jump) : std::max(-p.jump, 0);
      } else {
        if (p.v0 != reached) return false;  // nothing to the left at some height
        reached = p.v1;
        least = std::min<int64_t>(least, p.jump);
      }
    }
    return reached == cell.bottom && least > lost;
  }

  // Cuts a cell in two and sweeps both. False, and nothing done, if that would not part the pieces.
  bool cut(size_t begin, int64_t n_edges, const Cell& cell) {
    const double middle = (cell.left + cell.right) / 2, height = (cell.top + cell.bottom) / 2;
    const double column = cell.right - cell.left > 1 ? std::floor(middle) : middle;
    int64_t across = 0, down = 0;
    for (size_t i = begin; i < pieces_.size(); ++i) {
      const Piece& p = pieces_[i];
      if (!is_edge(p)) continue;
      across += (std::min(p.x0, p.x1) < column) + (std::max(p.x0, p.x1) > column);
      down += (p.v0 < height) + (p.v1 > height);
    }
    if (2 * std::min(across, down) > 3 * n_edges) return false;
    const size_t end = pieces_.size();
    Cell first = cell, second = cell;
    first.cuts = second.cuts = cell.cuts - 1;
    if (across <= down) {
      add_right_side(begin, end, column);
      first.right = second.left = column;
    } else {
      add_below(begin, end, height);
      first.bottom = second.top = height;
    }
    const size_t second_end = pieces_.size();
    across <= down ? add_left_side(begin, end, column) : add_above(begin, end, height);
    // Now the cell, its second and its first part follow each other.
    sweep_cell(second_end, first);
    sweep_cell(end, second);
    pieces_.resize(begin);
    return true;
  }

  static bool is_left(const Piece& p, double column) { return std::max(p.x0, p.x1) <= column; }
  static bool is_right(const Piece& p, double column) { return !is_left(p, column) && std::min(p.x0, p.x1) >= column; }

  // The part of a piece on one side of a column that it crosses.
  static Piece part_beside(const Piece& p, double column, bool wants_left) {
    const double v = row_height(p.v0 + (column - p.x0) / (p.x1 - p.x0) * (p.v1 - p.v0));
    const bool wants_upper = (p.x0 < column) == wants_left;
    Piece part = p;
    (wants_upper ? part.v1 : part.v0) = std::clamp(v, p.v0, p.v1);
    (wants_upper ? part.x1 : part.x0) = column;
    return part;
  }

  void add_left_side(size_t begin, size_t end, double column) {
    for (size_t i = begin; i < end; ++i) {
      const Piece p = pieces_[i];
      if (!is_right(p, column)) pieces_.push_back(is_left(p, column) ? p : part_beside(p, column, true));
    }
  }

  // L along the column, then the edges right of it.
  void add_right_side(size_t begin, size_t end, double column) {
    steps_.clear();
    for (size_t i = begin; i < end; ++i) {
      Piece p = pieces_[i];
      if (is_right(p, column)) continue;
      if (!is_left(p, column)) p = part_beside(p, column, true);
      if (p.is_flat()) continue;
      steps_.push_back({p.v0, p.jump});
      steps_.push_back({p.v1, -p.jump});
    }
    std::sort(steps_.begin(), steps_.end(), [](const Step& a, const Step& b) { return a.v < b.v; });
    double from = 0;
    int32_t covering = 0;
    for (size_t i = 0; i < steps_.size();) {
      const double v = steps_[i].v;
      int32_t jump = 0;
      for (; i < steps_.size() && steps_[i].v == v; ++i) jump += steps_[i].jump;
      if (jump == 0) continue;
      if (covering != 0) pieces_.push_back({from, column, v, column, 0, 0, 0, kNoEdge, covering, 0});
      covering += jump;
      from = v;
    }
    for (size_t i = begin; i < end; ++i) {
      const Piece p = pieces_[i];
      if (!is_left(p, column)) pieces_.push_back(is_right(p, column) ? p : part_beside(p, column, false));
    }
  }

  void add_above(size_t begin, size_t end, double height) {
    for (size_t i = begin; i < end; ++i) {
      Piece p = pieces_[i];
      if (p.v0 >= height) continue;
      if (p.v1 > height) {
        p.x1 = p.at(height);
        p.v1 = height;
      }
      pieces_.push_back(p);
    }
  }

  void add_below(size_t begin, size_t end, double height) {
    for (size_t i = begin; i < end; ++i) {
      Piece p = pieces_[i];
      if (p.v0 < height && p.v1 <= height) continue;
      if (p.v0 < height) {
        p.x0 = p.at(height);
        p.v0 = height;
      }
      pieces_.push_back(p);
    }
  }

  // As sweep_row, for pieces that no cut parts: copies of a mesh that hardly differ. Crossings wait in a heap, and each
  // changes what its two pieces show and no other: the cost of one is a logarithm, not the number of pieces.
  void sweep_many(Piece* pieces, int count) {
    std::sort(pieces, pieces + count, [](const Piece& p, const Piece& q) { return p.x0 + p.x1 < q.x0 + q.x1; });
    places_.resize(std::max<size_t>(places_.size(), count));
    int32_t* order = order_.data();
    int active = 0;
    for (double v = 0; v < 1;) {
      const double next = start_slab(pieces, count, order, active, v);
      if (Sink::kWantsFlat) show_flat(pieces, count, order, active, v, sink_);
      show_all(pieces, order, active, v, sink_);
      swap_crossing(pieces, active, v, next);
      for (int i = 0; i < active; ++i)
        if (pieces[order[i]].v1 <= next) show(pieces[order[i]], 0, next, sink_);
      v = next;
    }
  }

  struct Place {
    int32_t at;        // in the order
    int32_t covering;  // L left of the piece
  };

  struct Crossing {
    double fraction;  // of the slab's height
    int32_t left, right;
    bool operator<(const Crossing& other) const { return fraction > other.fraction; }  // the least on top of a heap
  };

  // The crossings within a slab from v to next, from the first to the last.
  void swap_crossing(Piece* pieces, int active, double v, double next) {
    int32_t* order = order_.data();
    for (int i = 0, covering = 0; i < active; ++i) {
      places_[order[i]] = {i, covering};
      covering += pieces[order[i]].jump;
    }
    crossings_.clear();
    for (int i = 0; i + 1 < active; ++i) add_crossing(pieces, order[i], order[i + 1]);
    for (double from = v; !crossings_.empty();) {
      const Crossing c = crossings_.front();
      std::pop_heap(crossings_.begin(), crossings_.end());
      crossings_.pop_back();
      Place &left = places_[c.left], &right = places_[c.right];
      if (right.at != left.at + 1) continue;  // parted by a third, or swapped already
      from = std::max(from, row_height(v + c.fraction * (next - v)));
      std::swap(left.at, right.at);
      std::swap(order[left.at], order[right.at]);
      right.covering = left.covering;
      left.covering += pieces[c.right].jump;
      for (const int32_t i : {c.right, c.left}) {
        const int32_t covering = places_[i].covering;
        show(pieces[i], (covering + pieces[i].jump > 0) - (covering > 0), from, sink_);
      }
      if (right.at > 0) add_crossing(pieces, order[right.at - 1], c.right);
      if (left.at + 1 < active) add_crossing(pieces, c.left, order[left.at + 1]);
    }
  }

  void add_crossing(const Piece* pieces, int32_t left, int32_t right) {
    const double closing = pieces[right].top - pieces[left].top, beyond = pieces[left].bottom - pieces[right].bottom;
    if (!(beyond > 0)) return;
    crossings_.push_back({closing > 0 ? closing / (closing + beyond) : 0, left, right});
    std::push_heap(crossings_.begin(), crossings_.end());
  }

  Side sink_ = {};
  std::vector<Piece> pieces_;  // a stack of cells
  std::vector<Step> steps_;
  std::vector<int32_t> order_;
  std::vector<Place> places_;
  std::vector<Crossing> crossings_;  // a heap
};

}  // namespace dhpe
