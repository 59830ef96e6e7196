// Rasterization and silhouettes: the arguments of their kernels, on every device. B images of H x W pixels, V vertices,
// F faces. All arrays are dense and row-major. Pixel (row i, column j) has its centre at (j + 0.5, i + 0.5).
#pragma once

#include <cstdint>

namespace dhpe {

constexpr int64_t kMaxImageSize = 16384;
// A face with a vertex farther out draws nothing: float32 no longer resolves pixels there, and within the limit no
// product of two coordinates overflows and every coordinate fits an int.
constexpr double kMaxCoordinatePx = 16777216;
constexpr double kMaxDepth = 1e12;                           // likewise for |z|
constexpr double kMinNear = 1e-6;                            // so that 1 / z^2 stays finite in float32
constexpr double kMinSoftSigma = 1e-6, kMaxSoftSigma = 1e6;  // square pixels

template <typename T>
struct RasterMesh {
  const T* verts_px;     // (B, V, 3) x, y in pixels, z away from the camera
  const int32_t* faces;  // (F, 3)
  int64_t n_verts, n_faces;
  int height, width;
};

template <typename T>
struct RasterOptions {
  bool perspective;  // z and barycentrics linear in space (true) or in the image (false)
  bool cull_backfaces;
  T z_near;  // faces with a vertex nearer than this are dropped; -inf keeps all
};

template <typename T>
struct RasterForward {
  RasterMesh<T> mesh;
  RasterOptions<T> options;
  // outputs; a null pointer is not written
  int32_t* face_index;  // (B, H, W), -1 where no face is
  T* bary;              // (B, H, W, 3), 0 where no face is
  T* depth;             // (B, H, W), 0 where no face is
  T* mask;              // (B, H, W), 1 where a face is, else 0
};

template <typename T>
struct RasterBackward {
  RasterMesh<T> mesh;
  RasterOptions<T> options;
  // inputs
  const int32_t* face_index;  // (B, H, W) from the forward pass
  const T* grad_bary;         // (B, H, W, 3)
  const T* grad_depth;        // (B, H, W)
  // outputs
  T* grad_verts;  // (B, V, 3)
};

// The gradient of a hard silhouette after Kato et al., "Neural 3D Mesh Renderer" (CVPR 2018).
template <typename T>
struct NmrBackward {
  RasterMesh<T> mesh;
  T eps;  // in normalised device coordinates, where the image spans [-1, 1]
  // inputs
  const int32_t* face_index;  // (B, H, W) from the forward pass
  const T* grad_mask;         // (B, H, W)
  // outputs
  T* grad_verts;  // (B, V, 3), z is 0
};

// The area of every pixel's square that the union of the projected faces covers.
template <typename T>
struct EdgeForward {
  RasterMesh<T> mesh;
  RasterOptions<T> options;
  T* mask;  // (B, H, W) output
};

template <typename T>
struct EdgeBackward {
  RasterMesh<T> mesh;
  RasterOptions<T> options;
  const T* grad_mask;  // (B, H, W)
  T* grad_verts;       // (B, V, 3) output, z is 0
};

// The probabilistic silhouette of Liu et al., "Soft Rasterizer" (ICCV 2019).
template <typename T>
struct SoftForward {
  RasterMesh<T> mesh;
  RasterOptions<T> options;
  T sigma;  // square pixels
  // outputs
  T* mask;    // (B, H, W)
  T* missed;  // (B, H, W) 1 - mask, precise where that is small
};

template <typename T>
struct SoftBackward {
  RasterMesh<T> mesh;
  RasterOptions<T> options;
  T sigma;
  // inputs
  const T* missed;     // (B, H, W) from the forward pass
  const T* grad_mask;  // (B, H, W)
  // outputs
  T* grad_verts;  // (B, V, 3), z is 0
};

}  // namespace dhpe
