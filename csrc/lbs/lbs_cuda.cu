// Linear blend skinning on the GPU. Forward: a block takes a tile of one hand's vertices and keeps everything between
// parameters and vertices on chip; the kinematic chain (16 joints) is cheap enough to be redone by every block.
// Backward: one block a hand; every sum runs in a fixed order, so the gradient is deterministic without atomics.
#include "common/cuda_launch.h"
#include "lbs/lbs_math.h"
#include "lbs/lbs_tensors.h"

namespace dhpe {
namespace {

constexpr int kForwardThreads = 128;  // vertices per block: 7 blocks a hand keep latency low at batch 1
constexpr int kBackwardThreads = 512;
constexpr int kWarp = 32;
constexpr int64_t kMaxBlocks = 65535;  // gridDim.y; larger batches loop

template <typename T>
struct SharedHand {
  Chain<T> chain;
  T offset[kMaxJoints * 3];
  T coeffs[kMaxCoeffs];
};

// The arrays of a SharedHand, sized by this model instead of by the maximum, in dynamic shared memory would save
// little: float needs 13 KiB.
template <typename T>
__device__ void load_hand(const LbsModel<T>& m, const T* pose, bool is_matrix, const T* betas, SharedHand<T>& s) {
  const int tid = threadIdx.x, step = blockDim.x;
  for (int j = tid; j < m.n_joints; j += step) local_rotation(pose, is_matrix, j, s.chain.local + 9 * j);
  for (int i = tid; i < 3 * m.n_joints; i += step) s.chain.rest[i] = rest_coordinate(m, betas, i);
  for (int i = tid; i < m.n_shape; i += step) s.coeffs[i] = betas[i];
  __syncthreads();
  for (int i = tid; i < m.n_pose; i += step) {
    const bool diagonal = i % 9 == 0 || i % 9 == 4 || i % 9 == 8;
    s.coeffs[m.n_shape + i] = s.chain.local[9 + i] - (diagonal ? T(1) : T(0));
  }
  if (tid == 0) chain_forward(m, s.chain);
  __syncthreads();
  for (int j = tid; j < m.n_joints; j += step) {
    const Vec3<T> o = skin_offset(s.chain, j);
    s.offset[3 * j] = o.x;
    s.offset[3 * j + 1] = o.y;
    s.offset[3 * j + 2] = o.z;
  }
  __syncthreads();
}

// A slot's joint, kept inside the table whatever the caller passed.
template <typename T>
__device__ int slot_joint(const LbsModel<T>& m, int64_t slot) {
  const int joint = m.skin_joints[slot];
  return joint < 0 || joint >= m.n_joints ? 0 : joint;
}

template <typename T>
__device__ void blended_transform(const LbsModel<T>& m, const SharedHand<T>& s, int64_t v, Mat3<T>& r, Vec3<T>& o) {
  for (int i = 0; i < 9; ++i) r.m[i] = 0;
  o = {0, 0, 0};
  for (int64_t k = 0; k < m.n_slots; ++k) {
    const T w = m.skin_weights[v * m.n_slots + k];
    const int j = slot_joint(m, v * m.n_slots + k);
    for (int i = 0; i < 9; ++i) r.m[i] += w * s.chain.world[9 * j + i];
    o = o + Vec3<T>{w * s.offset[3 * j], w * s.offset[3 * j + 1], w * s.offset[3 * j + 2]};
  }
}

template <typename T>
__global__ void lbs_forward_kernel(LbsForward<T> p, int64_t B) {
  __shared__ SharedHand<T> s;
  const LbsModel<T>& m = p.model;
  const int64_t n = m.n_verts * 3, width = m.n_joints * (p.pose_is_matrix ? 9 : 3);
  const int64_t v = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t b = blockIdx.y; b < B; b += gridDim.y) {
    load_hand(m, p.pose + b * width, p.pose_is_matrix, p.betas + b * m.n_shape, s);
    if (v < m.n_verts) {
      Vec3<T> u = load3(m.v_template + 3 * v);
      for (int64_t k = 0; k < m.n_shape; ++k) {
        const T c = s.coeffs[k];
        const T* d = m.shapedirs + k * n + 3 * v;
        u = {u.x + c * d[0], u.y + c * d[1], u.z + c * d[2]};
      }
      for (int64_t k = 0; k < m.n_pose; ++k) {
        const T c = s.coeffs[m.n_shape + k];
        const T* d = m.posedirs + k * n + 3 * v;
        u = {u.x + c * d[0], u.y + c * d[1], u.z + c * d[2]};
      }
      T* bent = p.bent + b * n + 3 * v;
      bent[0] = u.x;
      bent[1] = u.y;
      bent[2] = u.z;
      Mat3<T> r;
      Vec3<T> o;
      blended_transform(m, s, v, r, o);
      const Vec3<T> x = mul(r, u) + o;
      T* out = p.verts + b * n + 3 * v;
      out[0] = x.x;
      out[1] = x.y;
      out[2] = x.z;
    }
    if (blockIdx.x == 0)
      for (int i = threadIdx.x; i < 3 * m.n_joints; i += blockDim.x)
        p.joints[b * 3 * m.n_joints + i] = s.chain.position[i];
    __syncthreads();  // the next hand reuses the shared state
  }
}

template <typename T>
__device__ T warp_sum(T x) {
  for (int d = kWarp / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}

template <typename T>
struct SharedGrad {
  SharedHand<T> hand;
  ChainGrad<T> grad;
};

// dL/d[W | o] of one joint, summed by one warp over the vertices in a fixed order.
template <typename T>
__device__ void joint_gradient(const LbsBackward<T>& p, int64_t b, int joint, ChainGrad<T>& g) {
  const LbsModel<T>& m = p.model;
  const int lane = threadIdx.x % kWarp;
  T sum[12] = {};
  for (int64_t v = lane; v < m.n_verts; v += kWarp) {
    T w = 0;
    for (int64_t k = 0; k < m.n_slots; ++k)
      if (slot_joint(m, v * m.n_slots + k) == joint) w += m.skin_weights[v * m.n_slots + k];
    if (w == 0) continue;
    const Vec3<T> u = load3(p.bent + (b * m.n_verts + v) * 3), gv = load3(p.grad_verts + (b * m.n_verts + v) * 3);
    const Vec3<T> wg = {w * gv.x, w * gv.y, w * gv.z};
    add_outer(sum, wg, u);
    add_to(sum + 9, wg);
  }
  for (int i = 0; i < 12; ++i) {
    sum[i] = warp_sum(sum[i]);
    if (lane == 0) (i < 9 ? g.world[9 * joint + i] : g.offset[3 * joint + i - 9]) = sum[i];
  }
}

template <typename T>
__global__ void lbs_backward_kernel(LbsBackward<T> p, int64_t B) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  SharedGrad<T>& s = *reinterpret_cast<SharedGrad<T>*>(shared_bytes);
  const LbsModel<T>& m = p.model;
  const int64_t n = m.n_verts * 3, width = m.n_joints * (p.pose_is_matrix ? 9 : 3);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  for (int64_t b = blockIdx.x; b < B; b += gridDim.x) {
    const T* pose = p.pose + b * width;
    load_hand(m, pose, p.pose_is_matrix, p.betas + b * m.n_shape, s.hand);
    T* grad_bent = p.grad_bent + b * n;
    for (int64_t v = threadIdx.x; v < m.n_verts; v += blockDim.x) {
      Mat3<T> r;
      Vec3<T> o;
      blended_transform(m, s.hand, v, r, o);
      const Vec3<T> g = mul_transposed(r, load3(p.grad_verts + b * n + 3 * v));
      grad_bent[3 * v] = g.x;
      grad_bent[3 * v + 1] = g.y;
      grad_bent[3 * v + 2] = g.z;
    }
    for (int j = warp; j < m.n_joints; j += warps) joint_gradient(p, b, j, s.grad);
    for (int i = threadIdx.x; i < 3 * m.n_joints; i += blockDim.x)
      s.grad.position[i] = p.grad_joints[b * 3 * m.n_joints + i];
    __syncthreads();  // grad_bent and the joints' gradients are complete
    for (int64_t k = warp; k < m.n_shape + m.n_pose; k += warps) {
      const T* row = k < m.n_shape ? m.shapedirs + k * n : m.posedirs + (k - m.n_shape) * n;
      T sum = 0;
      for (int64_t i = lane; i < n; i += kWarp) sum += row[i] * grad_bent[i];
      sum = warp_sum(sum);
      if (lane == 0) s.hand.coeffs[k] = sum;
    }
    if (threadIdx.x == 0) chain_backward(m, s.hand.chain, s.grad);
    __syncthreads();
    for (int i = threadIdx.x; i < m.n_pose; i += blockDim.x) s.grad.local[9 + i] += s.hand.coeffs[m.n_shape + i];
    __syncthreads();
    for (int j = threadIdx.x; j < m.n_joints; j += blockDim.x)
      store_pose_grad(pose, p.pose_is_matrix, j, s.grad.local, p.grad_pose + b * width);
    for (int i = threadIdx.x; i < m.n_shape; i += blockDim.x) {
      T sum = s.hand.coeffs[i];
      for (int64_t k = 0; k < 3 * m.n_joints; ++k) sum += s.grad.rest[k] * m.joint_shapedirs[i * 3 * m.n_joints + k];
      p.grad_betas[b * m.n_shape + i] = sum;
    }
    __syncthreads();  // the next hand reuses the shared state
  }
}

std::tuple<Tensor, Tensor, Tensor> lbs_cuda(Tensor pose, Tensor betas, Tensor v_template, Tensor shapedirs,
                                            Tensor posedirs, Tensor joint_template, Tensor joint_shapedirs,
                                            Tensor skin_joints, Tensor skin_weights, Tensor parents) {
  const torch::stable::accelerator::DeviceGuard guard(pose.get_device_index());
  const LbsForwardTensors tensors({"lbs", pose, betas, v_template, shapedirs, posedirs, joint_template, joint_shapedirs,
                                   skin_joints, skin_weights, parents},
                                  pose, betas);
  const int64_t B = pose.size(0), V = v_template.size(0);
  if (B == 0) return {tensors.verts, tensors.joints, tensors.bent};
  const cudaStream_t stream = current_stream(pose);
  DHPE_DISPATCH_FLOATING(pose, [&] {
    const LbsForward<scalar_t> p = tensors.params<scalar_t>();
    const int64_t tiles = V > 0 ? ceil_div(V, kForwardThreads) : 1;  // the joints are there without a vertex
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(B < kMaxBlocks ? B : kMaxBlocks));
    lbs_forward_kernel<scalar_t><<<grid, kForwardThreads, 0, stream>>>(p, B);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {tensors.verts, tensors.joints, tensors.bent};
}

std::tuple<Tensor, Tensor> lbs_backward_cuda(Tensor grad_verts, Tensor grad_joints, Tensor bent, Tensor pose,
                                             Tensor betas, Tensor v_template, Tensor shapedirs, Tensor posedirs,
                                             Tensor joint_template, Tensor joint_shapedirs, Tensor skin_joints,
                                             Tensor skin_weights, Tensor parents) {
  const torch::stable::accelerator::DeviceGuard guard(pose.get_device_index());
  const LbsBackwardTensors tensors({"_lbs_backward", pose, betas, v_template, shapedirs, posedirs, joint_template,
                                    joint_shapedirs, skin_joints, skin_weights, parents},
                                   grad_verts, grad_joints, bent, pose, betas);
  const int64_t B = pose.size(0);
  if (B == 0) return {tensors.grad_pose, tensors.grad_betas};
  const cudaStream_t stream = current_stream(pose);
  DHPE_DISPATCH_FLOATING(pose, [&] {
    const LbsBackward<scalar_t> p = tensors.params<scalar_t>();
    const size_t bytes = sizeof(SharedGrad<scalar_t>);
    STD_CUDA_CHECK(cudaFuncSetAttribute(lbs_backward_kernel<scalar_t>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)));
    lbs_backward_kernel<scalar_t>
        <<<static_cast<unsigned>(B < kMaxBlocks ? B : kMaxBlocks), kBackwardThreads, bytes, stream>>>(p, B);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {tensors.grad_pose, tensors.grad_betas};
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CUDA, m) {
  m.impl("lbs", TORCH_BOX(&dhpe::lbs_cuda));
  m.impl("_lbs_backward", TORCH_BOX(&dhpe::lbs_backward_cuda));
}
