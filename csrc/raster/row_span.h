// Which columns of a row a triangle may cover: for the CPU's kernels, where a triangle is much wider than a vector.
#pragma once

#include <cmath>
#include <limits>

#include "common/host_device.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

// Without it, a row would be visited over the whole width of a triangle's bounding box: slivers that fan out over the
// image would cost faces x pixels.
class RowSpans {
 public:
  RowSpans(int x0, int x1) : x0_(x0), x1_(x1) {}

  // Edge k runs through (ax, ay) along (dx, dy), with the inside where side (dx (y - ay) - dy (x - ax)) > 0. Columns up
  // to `reach` pixels outside of an edge count too.
  template <typename T>
  void add_edges(const T* ax, const T* ay, const T* dx, const T* dy, T side, double reach) {
    rounding_ = 32 * static_cast<double>(std::numeric_limits<T>::epsilon());
    for (int k = 0; k < 3; ++k) {
      const double run = static_cast<double>(side) * dx[k], rise = static_cast<double>(side) * dy[k];
      if (!(std::fabs(rise) > 1e-30)) continue;  // bounds no row; or so small that its edge function is all rounding
      Border& border = rise > 0 ? right_[n_right_++] : left_[n_left_++];
      border = {ax[k] - 0.5, ay[k], run / rise, 0.01 + reach * std::sqrt(1 + run / rise * (run / rise))};
    }
  }

  // False if the row at height y has no such column among x0 .. x1. What the edge functions say of the columns in
  // between counts: the span is widened by more than their rounding, which moves a border by some units in the last
  // place of its distance to the edge's anchor.
  bool find(double y, int& first, int& last) const {
    double low = x0_, high = x1_;
    for (int k = 0; k < n_left_; ++k) {
      const double offset = left_[k].slope * (y - left_[k].y);
      const double x = left_[k].x + offset - (left_[k].margin + rounding_ * std::fabs(offset));
      low = x > low ? x : low;
    }
    for (int k = 0; k < n_right_; ++k) {
      const double offset = right_[k].slope * (y - right_[k].y);
      const double x = right_[k].x + offset + (right_[k].margin + rounding_ * std::fabs(offset));
      high = x < high ? x : high;
    }
    if (!(low <= high)) return false;
    first = static_cast<int>(std::ceil(low));
    last = static_cast<int>(high);
    return first <= last;
  }

 private:
  struct Border {
    double x, y, slope, margin;  // column and height of the anchor
  };
  int x0_, x1_, n_left_ = 0, n_right_ = 0;
  double rounding_ = 0;
  Border left_[3], right_[3];
};

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
