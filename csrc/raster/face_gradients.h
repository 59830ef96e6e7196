// From gradients of faces' corners to gradients of vertices on the GPU: by atomics, or in a fixed order. CUDA only.
#pragma once

#include "common/cuda_launch.h"
#include "raster/raster.h"

namespace dhpe {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 4;
constexpr int64_t kMaxGrid = 1 << 20;  // larger tasks loop

inline unsigned warp_blocks(int64_t warps) {
  const int64_t blocks = (warps + kWarpsPerBlock - 1) / kWarpsPerBlock;
  return static_cast<unsigned>(blocks < kMaxGrid ? blocks : kMaxGrid);
}

// This thread's warp among all of the grid, and their number: for loops over tasks of one warp each.
__device__ inline int64_t first_task() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
}
__device__ inline int64_t task_step() { return static_cast<int64_t>(gridDim.x) * kWarpsPerBlock; }
__device__ inline int lane_of() { return threadIdx.x % kWarp; }

template <typename T>
__device__ T sum_over_warp(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// On this device nobody has looked at the ids before.
template <typename T>
__device__ bool has_vertices(const RasterMesh<T>& m, int64_t face) {
  for (int k = 0; k < 3; ++k)
    if (m.faces[3 * face + k] < 0 || m.faces[3 * face + k] >= m.n_verts) return false;
  return true;
}

// Adds a face's gradient (3 corners x 3), of which every lane holds a part, to `grad_verts`, or stores it for
// `gather_face_gradients`.
template <typename T>
__device__ void put_face_gradient(const RasterMesh<T>& m, int64_t image, int64_t face, const T* part, T* grad_faces,
                                  T* grad_verts) {
  for (int k = 0; k < 9; ++k) {
    const T sum = sum_over_warp(part[k]);
    if (lane_of() != 0) continue;
    if (grad_faces) {
      grad_faces[(image * m.n_faces + face) * 9 + k] = sum;
    } else if (sum != 0) {
      atomicAdd(grad_verts + (image * m.n_verts + m.faces[3 * face + k / 3]) * 3 + k % 3, sum);
    }
  }
}

// One warp a vertex reads every corner of every face: slow for large meshes, but always in the same order.
template <typename T>
__global__ void gather_face_gradients(RasterMesh<T> m, int64_t batch, const T* grad_faces, T* grad_verts) {
  for (int64_t task = first_task(); task < batch * m.n_verts; task += task_step()) {
    const int64_t image = task / m.n_verts, vertex = task % m.n_verts;
    T sum[3] = {};
    for (int64_t corner = lane_of(); corner < 3 * m.n_faces; corner += kWarp)
      if (m.faces[corner] == vertex)
        for (int k = 0; k < 3; ++k) sum[k] += grad_faces[(image * m.n_faces * 3 + corner) * 3 + k];
    for (int k = 0; k < 3; ++k) {
      sum[k] = sum_over_warp(sum[k]);
      if (lane_of() == 0) grad_verts[task * 3 + k] = sum[k];
    }
  }
}

// The output of a backward pass, and where its kernel puts faces' gradients (null: adds them to the vertices).
template <typename T>
struct FaceGradients {
  Tensor grad_verts, grad_faces;
  bool deterministic;

  FaceGradients(const Tensor& verts_px, int64_t n_faces, bool deterministic_, cudaStream_t stream)
      : grad_verts(torch::stable::new_empty(verts_px, {verts_px.size(0), verts_px.size(1), 3})),
        grad_faces(torch::stable::new_empty(verts_px, {deterministic_ ? verts_px.size(0) : 0, n_faces, 9})),
        deterministic(deterministic_) {
    STD_CUDA_CHECK(cudaMemsetAsync(grad_verts.mutable_data_ptr<T>(), 0, grad_verts.numel() * sizeof(T), stream));
    STD_CUDA_CHECK(cudaMemsetAsync(grad_faces.mutable_data_ptr<T>(), 0, grad_faces.numel() * sizeof(T), stream));
  }

  T* faces() { return deterministic ? grad_faces.mutable_data_ptr<T>() : nullptr; }
  T* verts() { return grad_verts.mutable_data_ptr<T>(); }

  void finish(const RasterMesh<T>& mesh, int64_t batch, cudaStream_t stream) {
    if (!deterministic) return;
    gather_face_gradients<T>
        <<<warp_blocks(batch * mesh.n_verts), kWarp * kWarpsPerBlock, 0, stream>>>(mesh, batch, faces(), verts());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace
}  // namespace dhpe
