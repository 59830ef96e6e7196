// Sums of what pixels pull on an edge (nmr_math.h), a vector of pixels at a time: for sources compiled once per
// instruction set.
#pragma once

#include <algorithm>

#include "common/vector.h"
#include "raster/nmr_math.h"

namespace dhpe {
inline namespace DHPE_MATH_NAMESPACE {

// Both end points share the division: with q = (distance + margin0) (distance + margin1), A = sum of w distance / q and
// B = sum of w / q, they receive t0 (A + margin1 B) and t1 (A + margin0 B).
template <typename T>
class NmrSum {
 public:
  NmrSum(const NmrCrossing<T>& x, T eps_px) : x_(x) {
    // With a smaller eps, the product of both margins would leave the range of float where a pixel lies on the edge.
    eps_px = std::max(eps_px, T(1e-12));
    margin0_ = nmr_margin(eps_px, x.t0);
    margin1_ = nmr_margin(eps_px, x.t1);
  }

  void add(const Vector<T>& weight, const Vector<T>& position) {
    Vector<T> distance = position - x_.at;
    distance = distance < T(0) ? -distance : distance;
    const Vector<T> part = weight / ((distance + margin0_) * (distance + margin1_));
    a_ += part * distance;
    b_ += part;
  }

  void give(Vector<T>* to) const {
    to[0] += x_.t0 * (a_ + margin1_ * b_);
    to[1] += x_.t1 * (a_ + margin0_ * b_);
  }

 private:
  const NmrCrossing<T>& x_;
  T margin0_, margin1_;
  Vector<T> a_ = {}, b_ = {};
};

template <typename T>
inline Vector<T> lane_numbers() {
  Vector<T> lane;
  for (int l = 0; l < kLanes<T>; ++l) lane[l] = static_cast<T>(l);
  return lane;
}

}  // namespace DHPE_MATH_NAMESPACE
}  // namespace dhpe
