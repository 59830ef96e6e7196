// How the CPU draws images: in bands of rows, one a task.
#pragma once

#include <algorithm>
#include <memory>

#include "common/simd.h"
#include "common/tensor_checks.h"
#include "raster/raster_scratch.h"

namespace dhpe {

#define DHPE_BAND_KERNELS                                                                                    \
  template <typename T>                                                                                      \
  void find_face_rows(const RasterMesh<T>& m, T z_near, T margin, int64_t image, int64_t begin, int64_t end, \
                      FaceRows* rows)
DHPE_DECLARE_SIMD(DHPE_BAND_KERNELS)
#undef DHPE_BAND_KERNELS

constexpr int64_t kMaxBandPixels = 1 << 18;  // bounds a task's canvas to 2 MB of float; a 224 crop is one band
constexpr int64_t kMinBandRows = 32;         // below, every band's look at all faces outweighs its pixels
constexpr int64_t kFacesPerTask = 1 << 15;

// Images are cut where there are fewer of them than threads, or one is large. A pixel's value depends on neither.
inline int64_t rows_per_band(int64_t batch, int64_t height, int64_t width) {
  const int64_t threads = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  const int64_t bands = (threads + batch - 1) / batch;
  const int64_t fair = std::max((height + bands - 1) / bands, kMinBandRows);
  return std::max<int64_t>(std::min({fair, height, kMaxBandPixels / canvas_stride(width)}), 1);
}

// Calls draw(scratch, image, rows of its faces or null, first row, last row + 1) for every band. `margin` is by how
// many pixels a face reaches beyond itself; scratch holds elements(rows) of T.
template <typename T, typename Elements, typename Draw>
void draw_in_bands(const RasterMesh<T>& mesh, int64_t batch, T z_near, T margin, const Elements& elements,
                   const Draw& draw) {
  if (batch == 0) return;
  const int64_t height = mesh.height, n_faces = mesh.n_faces;
  const int64_t rows = rows_per_band(batch, height, mesh.width), bands = (height + rows - 1) / rows;
  std::unique_ptr<FaceRows[]> face_rows;
  if (bands > 1) {
    face_rows = std::make_unique_for_overwrite<FaceRows[]>(batch * n_faces);
    const int64_t parts = (n_faces + kFacesPerTask - 1) / kFacesPerTask;
    torch::stable::parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / parts, first = task % parts * kFacesPerTask;
        DHPE_CALL_SIMD(find_face_rows, mesh, z_near, margin, image, first, std::min(first + kFacesPerTask, n_faces),
                       face_rows.get() + image * n_faces);
      }
    });
  }
  torch::stable::parallel_for(0, batch * bands, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = std::make_unique_for_overwrite<T[]>(elements(rows));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / bands, row = task % bands * rows;
      draw(scratch.get(), image, face_rows ? face_rows.get() + image * n_faces : nullptr, static_cast<int>(row),
           static_cast<int>(std::min(row + rows, height)));
    }
  });
}

}  // namespace dhpe
