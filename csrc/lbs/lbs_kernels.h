// The CPU kernels of linear blend skinning, for lbs_cpu.cpp and for host code that poses a hand on its way to something
// else. The latter takes one hand on the calling thread and owns the memory: nothing is allocated, and the numbers are
// those of the op for a single hand, bit for bit.
#pragma once

#include <algorithm>

#include "common/simd.h"
#include "lbs/lbs.h"
#include "lbs/lbs_tensors.h"

namespace dhpe {

#define DHPE_LBS_KERNELS                                                                                            \
  void lbs_joint_range(const int32_t* joints, int64_t count, int32_t& low, int32_t& high);                          \
  template <typename T>                                                                                             \
  void lbs_group_forward(const LbsForward<T>& p, int64_t begin, int64_t end);                                       \
  template <typename T>                                                                                             \
  void lbs_group_backward(const LbsBackward<T>& p, int64_t begin, int64_t end);                                     \
  template <typename T>                                                                                             \
  void lbs_pose(const LbsModel<T>& m, const T* pose, bool is_matrix, const T* betas, PosedHand<T>& posed);          \
  template <typename T>                                                                                             \
  void lbs_verts(const LbsForward<T>& p, int64_t hand, const PosedHand<T>& posed, int64_t begin, int64_t end);      \
  template <typename T>                                                                                             \
  void lbs_backward_pose(const LbsModel<T>& m, const T* pose, bool is_matrix, const T* betas, PosedHand<T>& posed); \
  template <typename T>                                                                                             \
  void lbs_backward_half(const LbsBackward<T>& p, int64_t hand, const PosedHand<T>& posed, int half,                \
                         VertexSums<T>& sums);                                                                      \
  template <typename T>                                                                                             \
  void lbs_backward_finish(const LbsBackward<T>& p, int64_t hand, const PosedHand<T>& posed, VertexSums<T>* halves)
DHPE_DECLARE_SIMD(DHPE_LBS_KERNELS)
#undef DHPE_LBS_KERNELS

// The kernels index by these values: a wrong one would read out of bounds.
inline void check_lbs_indices(const char* op, const LbsModelTensors& m) {
  const int64_t J = m.parents.size(0);
  const int32_t* parents = m.parents.const_data_ptr<int32_t>();
  for (int64_t j = 1; j < J; ++j)
    STD_TORCH_CHECK(parents[j] >= 0 && parents[j] < j, op, ": parents[", j, "] = ", parents[j],
                    ", expected an earlier joint");
  int32_t low, high;
  DHPE_CALL_SIMD(lbs_joint_range, m.skin_joints.const_data_ptr<int32_t>(), m.skin_joints.numel(), low, high);
  STD_TORCH_CHECK(low >= 0 && high < J, op, ": skin_joints holds ", low < 0 ? low : high, ", expected 0 to ", J - 1);
}

// Poses one hand of the batch; p.bent must have room.
template <typename T>
void lbs_forward_hand(const LbsForward<T>& p, int64_t hand, HandScratch<T>& scratch) {
  const LbsModel<T>& m = p.model;
  const int64_t width = m.n_joints * (p.pose_is_matrix ? 9 : 3);
  PosedHand<T>& posed = scratch.posed;
  DHPE_CALL_SIMD(lbs_pose, m, p.pose + hand * width, p.pose_is_matrix, p.betas + hand * m.n_shape, posed);
  DHPE_CALL_SIMD(lbs_verts, p, hand, posed, 0, m.n_verts);
  std::copy_n(posed.chain.position, 3 * m.n_joints, p.joints + hand * 3 * m.n_joints);
}

// The gradients of one hand of the batch.
template <typename T>
void lbs_backward_hand(const LbsBackward<T>& p, int64_t hand, HandScratch<T>& scratch) {
  const LbsModel<T>& m = p.model;
  const int64_t width = m.n_joints * (p.pose_is_matrix ? 9 : 3);
  PosedHand<T>& posed = scratch.posed;
  DHPE_CALL_SIMD(lbs_backward_pose, m, p.pose + hand * width, p.pose_is_matrix, p.betas + hand * m.n_shape, posed);
  for (int half = 0; half < kHalves; ++half)
    DHPE_CALL_SIMD(lbs_backward_half, p, hand, posed, half, scratch.halves[half]);
  DHPE_CALL_SIMD(lbs_backward_finish, p, hand, posed, scratch.halves);
}

}  // namespace dhpe
