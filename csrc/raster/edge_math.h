// The "edge" silhouette: every pixel holds the area of its square which the union of the projected faces covers (a box
// filter), exactly up to rounding, and the gradient is that area's derivative.
//
// Let L(p) be the number of faces that cover the point p. It changes only across contour edges: those that do not have
// as many faces on one side as on the other. An edge shared by two faces that lie side by side is none, whatever their
// orientation. The union is where L > 0, so its outline consists of parts of contour edges; a hand of 1,538 faces has
// some 200 of these, and neither depth nor a raster at pixel centres is needed.
//
// A row of pixels is swept downwards in slabs between which no contour edge starts, ends or crosses another. Within a
// slab the edges have an order from left to right; L, added up along it, says which of them bound the union. Edges
// that cross swap places in that order: it is never recomputed from rounded positions, so every slab ends with the L
// of its right-hand side and no error of rounding can leak along the row.
//
// The derivative: where a bounding edge moves by (dx, dy), the union gains or loses |n . (dx, dy)| per length, n being
// the normal. For the part of an edge from a to b that runs through a pixel, with t the parameter on the edge,
//   d area = -+ ( integral (1 - t) dy da.x + integral t dy db.x - integral (1 - t) dx da.y - integral t dx db.y ),
// - on a left border of the union, + on a right one. Crossings move too, but what one edge loses there the other gains.
//
// Everything is computed in double, whatever the type of the vertices.
#pragma once

#include <cmath>

#include "raster/raster_math.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

struct ContourEdge {
  double x0, y0, x1, y1;  // y0 < y1, or y0 == y1 and x0 < x1
  int32_t vertex0, vertex1;
  int32_t jump;  // what L gains where a horizontal line crosses the edge to the right, see `jump_downwards`
};

// Where an edge is (nearly) horizontal, it is crossed downwards instead.
DHPE_HD int jump_downwards(const ContourEdge& e) { return e.x1 > e.x0 ? -e.jump : e.jump; }

// `balance`: how many more faces lie to the left of low -> high than to its right, x to the right and y upwards.
template <typename T>
DHPE_HD ContourEdge contour_edge(const T* verts, int32_t low, int32_t high, int32_t balance) {
  const T* a = verts + 3 * static_cast<int64_t>(low);
  const T* b = verts + 3 * static_cast<int64_t>(high);
  const bool in_order = a[1] < b[1] || (a[1] == b[1] && a[0] < b[0]);
  const T* first = in_order ? a : b;
  const T* last = in_order ? b : a;
  return {static_cast<double>(first[0]), static_cast<double>(first[1]), static_cast<double>(last[0]),
          static_cast<double>(last[1]),  in_order ? low : high,         in_order ? high : low,
          in_order ? -balance : balance};
}

// The sign of a face's area, or 0 if it does not take part. As in setup_face, but wherever it lies: a face beside the
// image counts for the edges that it shares.
template <typename T>
DHPE_HD int face_side(const RasterMesh<T>& m, const RasterOptions<T>& o, const T* verts, int64_t id) {
  const T* v[3];
  for (int k = 0; k < 3; ++k) {
    const int32_t vertex = m.faces[3 * id + k];
    if (vertex < 0 || vertex >= m.n_verts) return 0;
    v[k] = verts + 3 * static_cast<int64_t>(vertex);
    if (!is_drawable(v[k], o.z_near)) return 0;
  }
  const double ux = static_cast<double>(v[1][0]) - v[0][0], uy = static_cast<double>(v[1][1]) - v[0][1];
  const double wx = static_cast<double>(v[2][0]) - v[0][0], wy = static_cast<double>(v[2][1]) - v[0][1];
  const double area = ux * wy - uy * wx;
  return area > 0 ? (o.cull_backfaces ? 0 : 1) : (area < 0 ? -1 : 0);
}

// Heights within a row, from 0 to 1, are multiples of 2^-50: sums and differences of them are exact, and so are the
// pixels that no edge runs through, 0 or 1.
DHPE_HD double row_height(double v) {
  v = v > 0 ? (v < 1 ? v : 1) : 0;
  return (v + 4) - 4;
}

// The part of a contour edge within a row of pixels.
struct Piece {
  double v0, x0, v1, x1;  // height and position of its ends
  double top, bottom;     // positions at the limits of the current slab
  double shown_from;
  int32_t edge, jump;
  int32_t side;  // +1, -1: the union's left or right border since shown_from; 0: hidden

  DHPE_HD double at(double v) const { return v <= v0 ? x0 : v >= v1 ? x1 : x0 + (x1 - x0) * ((v - v0) / (v1 - v0)); }
  DHPE_HD bool is_flat() const { return v0 == v1; }
};

DHPE_HD double edge_at(const ContourEdge& e, double y) {
  return y <= e.y0 ? e.x0 : y >= e.y1 ? e.x1 : e.x0 + (e.x1 - e.x0) * ((y - e.y0) / (e.y1 - e.y0));
}

// False where the edge does not meet the row. An edge that is horizontal in it, within 2^-50, gives a flat piece.
DHPE_HD bool piece_of(const ContourEdge& e, int32_t id, int row, int width, Piece& p) {
  if (!(e.y1 >= row && e.y0 < row + 1) || (e.x0 >= width && e.x1 >= width)) return false;
  p.v0 = row_height(e.y0 - row);
  p.v1 = row_height(e.y1 - row);
  if (p.v0 == p.v1 && (e.y0 < row || e.y1 >= row + 1)) return false;
  p.x0 = edge_at(e, row);
  p.x1 = edge_at(e, row + 1);
  p.edge = id;
  p.jump = e.jump;
  p.side = 0;
  p.shown_from = 0;
  return true;
}

// Visits the columns through which a line from (va, xa) to (vb, xb) runs, as visit(column, v, x, v', x'). Everything
// left of the image is column -1, everything right of it column `width`.
template <typename Visit>
DHPE_HD void for_columns(double va, double xa, double vb, double xb, int width, const Visit& visit) {
  const auto column_of = [width](double x) {
    return x < 0 ? -1 : x >= width ? width : static_cast<int>(x);  // truncation is floor here
  };
  int column = column_of(xa);
  const int last = column_of(xb), step = last > column ? 1 : -1;
  double v = va, x = xa;
  for (; column != last; column += step) {
    const double border = step > 0 ? column + 1 : column;
    double at = row_height(va + (border - xa) / (xb - xa) * (vb - va));
    at = at < v ? v : at > vb ? vb : at;
    visit(column, v, x, at, border);
    v = at;
    x = border;
  }
  visit(column, v, x, vb, xb);
}

// Hands what a piece has shown of the union's outline to the sink, and notes what it shows from now on.
template <typename Sink>
DHPE_HD void show(Piece& p, int side, double v, Sink& sink) {
  if (side == p.side) return;
  if (p.side != 0 && v > p.shown_from) sink.border(p, p.side, p.shown_from, v);
  p.side = side;
  p.shown_from = v;
}

template <typename Sink>
DHPE_HD void show_all(Piece* pieces, const int32_t* order, int active, double v, Sink& sink) {
  int covering = 0;
  for (int i = 0; i < active; ++i) {
    Piece& p = pieces[order[i]];
    const bool before = covering > 0;
    covering += p.jump;
    show(p, (covering > 0) - before, v, sink);
  }
}

// The horizontal edges at the top of a slab: visible where only one of their sides is covered. L below them is that of
// the slab, L above them follows from their jump.
template <typename Sink>
DHPE_HD void show_flat(const Piece* pieces, int count, const int32_t* order, int active, double v, Sink& sink) {
  for (int k = 0; k < count; ++k) {
    const Piece& flat = pieces[k];
    if (!flat.is_flat() || flat.v0 != v) continue;
    const int jump = sink.flat_jump(flat);
    const double low = flat.x0 < flat.x1 ? flat.x0 : flat.x1, high = flat.x0 < flat.x1 ? flat.x1 : flat.x0;
    int covering = 0;
    double from = low;
    for (int i = 0; i <= active; ++i) {
      const double end = i < active ? pieces[order[i]].top : high;
      const double to = end < high ? end : high;
      const int side = (covering > 0) - (covering - jump > 0);
      if (to > from) {
        if (side != 0) sink.flat_border(flat, side, from, to);
        from = to;
      }
      if (i < active) covering += pieces[order[i]].jump;
    }
  }
}

// Ties at the top are told apart at the bottom; edges that coincide open no gap: L first rises, then falls.
DHPE_HD bool is_left_of(const Piece& p, const Piece& q) {
  if (p.top != q.top) return p.top < q.top;
  if (p.bottom != q.bottom) return p.bottom < q.bottom;
  return p.jump > q.jump;
}

// Takes out of `order` what has ended at v, adds what starts there, and sorts; returns the height at which the next
// piece ends or starts.
DHPE_HD double start_slab(Piece* pieces, int count, int32_t* order, int& active, double v) {
  int kept = 0;
  for (int i = 0; i < active; ++i)
    if (pieces[order[i]].v1 > v) order[kept++] = order[i];
  double next = 1;
  for (int k = 0; k < count; ++k) {
    const Piece& p = pieces[k];
    if (p.v0 == v && p.v1 > v) order[kept++] = k;
    const double event = p.v0 > v ? p.v0 : p.v1;
    if (event > v && event < next) next = event;
  }
  active = kept;
  for (int i = 0; i < active; ++i) {
    Piece& p = pieces[order[i]];
    p.top = p.at(v);
    p.bottom = p.at(next);
  }
  for (int i = 1; i < active; ++i) {
    const int32_t moved = order[i];
    int to = i;
    for (; to > 0 && is_left_of(pieces[moved], pieces[order[to - 1]]); --to) order[to] = order[to - 1];
    order[to] = moved;
  }
  return next;
}

// The earliest crossing of two neighbours in a slab from v to next: their index, or -1. The first of all crossings
// happens between neighbours, and every swap takes one inversion away: the loop over this ends.
DHPE_HD int next_crossing(const Piece* pieces, const int32_t* order, int active, double v, double next, double& at) {
  int found = -1;
  double least = 2;
  for (int i = 0; i + 1 < active; ++i) {
    const Piece &p = pieces[order[i]], &q = pieces[order[i + 1]];
    if (!(p.bottom > q.bottom)) continue;
    const double closing = q.top - p.top, beyond = p.bottom - q.bottom;
    const double fraction = closing > 0 ? closing / (closing + beyond) : 0;
    if (fraction < least) {
      least = fraction;
      found = i;
    }
  }
  if (found >= 0) at = row_height(v + least * (next - v));
  return found;
}

// Finds the union's outline within a row. `pieces` are its contour edges in any order; `order` is room for as many
// indices. A sink says whether it wants horizontal borders, and borders that lie to the left of the image.
template <typename Sink>
DHPE_HD void sweep_row(Piece* pieces, int count, int32_t* order, Sink& sink) {
  int active = 0;
  for (double v = 0; v < 1;) {
    const double next = start_slab(pieces, count, order, active, v);
    if (Sink::kWantsFlat) show_flat(pieces, count, order, active, v, sink);
    for (double from = v;;) {
      show_all(pieces, order, active, from, sink);
      double at = from;
      const int i = next_crossing(pieces, order, active, v, next, at);
      if (i < 0) break;
      from = at > from ? at : from;
      const int32_t left = order[i];
      order[i] = order[i + 1];
      order[i + 1] = left;
    }
    for (int i = 0; i < active; ++i)
      if (pieces[order[i]].v1 <= next) show(pieces[order[i]], 0, next, sink);
    v = next;
  }
}

// Adds up coverage: alpha of column j is cover[0] + ... + cover[j] + area[j].
template <typename Touch>
struct CoverageSink {
  static constexpr bool kWantsFlat = false, kWantsLeft = true;
  double* cover;  // (width + 1,)
  double* area;   // (width + 1,)
  int width;
  Touch touch;  // called with every column that changes

  DHPE_HD void border(const Piece& p, int side, double va, double vb) const {
    for_columns(va, p.at(va), vb, p.at(vb), width, [this, side](int column, double v, double x, double v1, double x1) {
      const double gain = side * (v1 - v);
      if (column >= width) return;
      cover[column + 1] += gain;
      touch(column + 1);
      if (column < 0) return;
      area[column] += gain * ((column + 1) - 0.5 * (x + x1));
      touch(column);
    });
  }
  DHPE_HD void flat_border(const Piece&, int, double, double) const {}
  DHPE_HD int flat_jump(const Piece&) const { return 0; }
};

// Adds up the gradient: add(vertex, dL/dx, dL/dy).
template <typename T, typename Add>
struct GradientSink {
  static constexpr bool kWantsFlat = true, kWantsLeft = false;
  const ContourEdge* edges;
  const T* grad_row;  // (width,) dL/dalpha
  int row, width;
  Add add;

  DHPE_HD void border(const Piece& p, int side, double va, double vb) const {
    const ContourEdge& e = edges[p.edge];
    double gx0 = 0, gy0 = 0, gx1 = 0, gy1 = 0;
    for_columns(va, p.at(va), vb, p.at(vb), width, [&](int column, double v, double x, double v1, double x1) {
      if (column < 0 || column >= width) return;
      const double g = side * static_cast<double>(grad_row[column]);
      double t = (row + 0.5 * (v + v1) - e.y0) / (e.y1 - e.y0);
      t = t > 0 ? (t < 1 ? t : 1) : 0;
      gx0 -= g * (1 - t) * (v1 - v);
      gx1 -= g * t * (v1 - v);
      gy0 += g * (1 - t) * (x1 - x);
      gy1 += g * t * (x1 - x);
    });
    add(e.vertex0, gx0, gy0);
    add(e.vertex1, gx1, gy1);
  }

  // side: +1 where the union lies below.
  DHPE_HD void flat_border(const Piece& p, int side, double xa, double xb) const {
    const ContourEdge& e = edges[p.edge];
    double gy0 = 0, gy1 = 0;
    for_columns(0, xa, 1, xb, width, [&](int column, double, double x, double, double x1) {
      if (column < 0 || column >= width) return;
      const double g = side * static_cast<double>(grad_row[column]);
      const double t = (0.5 * (x + x1) - e.x0) / (e.x1 - e.x0);
      gy0 -= g * (1 - t) * (x1 - x);
      gy1 -= g * t * (x1 - x);
    });
    add(e.vertex0, 0.0, gy0);
    add(e.vertex1, 0.0, gy1);
  }
  DHPE_HD int flat_jump(const Piece& p) const { return jump_downwards(edges[p.edge]); }
};

DHPE_HD double clamp_coverage(double alpha) { return alpha > 0 ? (alpha < 1 ? alpha : 1) : 0; }

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
