// Sizes of the memory which the CPU kernels work in; the host functions allocate it, once per task.
#pragma once

#include <cstdint>

#include "raster/raster.h"

namespace dhpe {

constexpr int64_t kCanvasPadding = 16;  // a vector of float under AVX-512, the widest

inline int64_t canvas_stride(int64_t width) {
  return (width + kCanvasPadding - 1) / kCanvasPadding * kCanvasPadding + kCanvasPadding;
}

// Elements of T for `rows` rows: column centres, depth and face ids.
inline int64_t canvas_elements(int64_t rows, int64_t width) { return canvas_stride(width) * (1 + rows * 2); }

// The rows of an image that a face may touch; last < first where there are none. An image is drawn in bands of rows
// (raster_bands.h): those tell which faces a band has to look at.
struct FaceRows {
  int16_t first, last;
};
static_assert(kMaxImageSize <= INT16_MAX);

inline bool meets_band(const FaceRows& rows, int row_begin, int row_end) {
  return rows.last >= row_begin && rows.first < row_end && rows.first <= rows.last;
}

constexpr int64_t kNmrPadding = 16;
constexpr int kNmrBlock = 16;

inline int64_t nmr_blocks(int64_t size) { return (size + kNmrBlock - 1) / kNmrBlock; }

// Bytes for the backward pass of the "nmr" silhouette: position and weight of the missing pixels by row and by column,
// where each block of each line starts, and flags for lines and faces.
template <typename T>
int64_t nmr_scratch_bytes(int64_t missing, int64_t height, int64_t width, int64_t n_faces) {
  const int64_t starts = (nmr_blocks(width) + 1) * height + (nmr_blocks(height) + 1) * width + width;
  const int64_t flags = height + width + n_faces;
  return 4 * (missing + kNmrPadding) * static_cast<int64_t>(sizeof(T)) + 4 * starts + flags;
}

// Bytes for the backward pass of visibility_gradient: the planes of one layout, where the gradients of each line
// begin and end, and flags for faces.
template <typename T>
int64_t visibility_scratch_bytes(int64_t channels, int64_t height, int64_t width, int64_t n_faces) {
  const int64_t values = height * width * 2 * channels + kNmrPadding;
  return values * static_cast<int64_t>(sizeof(T)) + 8 * (height + width) + n_faces;
}

}  // namespace dhpe
