// The CPU kernels of rasterization and of the "nmr" silhouette, for raster_cpu.cpp and for host code that draws a mesh
// on its way to something else. The latter takes one image on the calling thread and owns the memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>

#include "common/simd.h"
#include "raster/raster_scratch.h"

namespace dhpe {

#define DHPE_RASTER_KERNELS                                                                                         \
  template <typename T>                                                                                             \
  void rasterize_rows(const RasterForward<T>& p, const FaceRows* rows, void* scratch, int64_t image, int row_begin, \
                      int row_end);                                                                                 \
  template <typename T>                                                                                             \
  void rasterize_backward(const RasterBackward<T>& p, int64_t image);                                               \
  template <typename T>                                                                                             \
  void nmr_count_missing(const NmrBackward<T>& p, int64_t image, int64_t& missing);                                 \
  template <typename T>                                                                                             \
  void nmr_backward(const NmrBackward<T>& p, void* scratch, int64_t missing, int64_t image)
DHPE_DECLARE_SIMD(DHPE_RASTER_KERNELS)
#undef DHPE_RASTER_KERNELS

// Draws one image of the batch; scratch holds canvas_elements(height, width) of T.
template <typename T>
void draw_image(const RasterForward<T>& p, int64_t image, T* scratch) {
  DHPE_CALL_SIMD(rasterize_rows, p, nullptr, scratch, image, 0, p.mesh.height);
}

// Memory that grows to what the largest image so far has needed.
class NmrScratch {
 public:
  std::byte* at_least(int64_t bytes) {
    if (bytes > bytes_) {
      memory_ = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(bytes));
      bytes_ = bytes;
    }
    return memory_.get();
  }

 private:
  std::unique_ptr<std::byte[]> memory_;
  int64_t bytes_ = 0;
};

// The gradients of one image of the batch.
template <typename T>
void nmr_backward_image(const NmrBackward<T>& p, int64_t image, NmrScratch& scratch) {
  int64_t missing = 0;
  DHPE_CALL_SIMD(nmr_count_missing, p, image, missing);
  std::byte* at = scratch.at_least(nmr_scratch_bytes<T>(missing, p.mesh.height, p.mesh.width, p.mesh.n_faces));
  DHPE_CALL_SIMD(nmr_backward, p, at, missing, image);
}

}  // namespace dhpe
