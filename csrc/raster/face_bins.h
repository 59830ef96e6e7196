// Which faces (or contour edges) may touch which part of the image, so that no kernel walks all of them for every tile
// or row. CUDA only.
//
// A bit matrix has a row for every bin, a rectangle of pixels, and a bit for every item. A warp looks at 32 consecutive
// items and writes one word per bin that they meet, by ballot. Nothing is counted, sorted or made room for as it comes:
// sizes follow from the arguments alone, so the host never waits, and set bits come in ascending order, so whoever
// walks them sees items in the order of their ids, in every run. 1,024 items are a page; a summary with one bit per
// word says which words were written, all others hold rubbish and are not read.
//
// Work: one box per item, and a ballot for every bin which the joint box of 32 consecutive items meets: some tens on a
// mesh whose faces come in any sensible order, all bins at worst, of which there are at most kMaxBins. A tile reads the
// summary of its bin, F / 8192 bytes, and the words that it names.
#pragma once

#include <climits>

#include "raster/raster_math.h"
#include "raster/warp_tasks.h"

namespace dhpe {
namespace {

constexpr int kPageItems = 1024;
constexpr int64_t kMaxBins = 1024;
// What the bins of all images at work together may take; where one image needs more, its bins become larger, and
// batches are done in slices.
constexpr int64_t kMaxBinBytes = 64 << 20;

__device__ inline bool boxes_meet(const PixelBox& a, const PixelBox& b) {
  return a.x0 <= b.x1 && a.x1 >= b.x0 && a.y0 <= b.y1 && a.y1 >= b.y0;
}

struct Bins {
  int x_shift, y_shift;  // a bin is 2^x_shift pixels wide and 2^y_shift high
  int columns, rows;     // bins of an image
  int64_t n_pages;
  ushort4* boxes;     // (slice, kPageItems n_pages) of items that touch a bin; null where bins say enough
  uint32_t* words;    // (slice, rows, columns, n_pages, 32)
  uint32_t* summary;  // (slice, rows, columns, n_pages): bit i is set where word i of the page is not 0

  __host__ __device__ int64_t count() const { return static_cast<int64_t>(rows) * columns; }
  __device__ int64_t bin_at(int64_t slot, int x, int y) const {
    return (slot * rows + (y >> y_shift)) * columns + (x >> x_shift);
  }
};

// The word of this lane in a page of a bin.
__device__ inline uint32_t page_word(const Bins& bins, int64_t bin, int64_t page) {
  const int64_t at = bin * bins.n_pages + page;
  return bins.summary[at] >> lane_of() & 1 ? bins.words[at * kWarp + lane_of()] : 0u;
}

// Keeps those bits of a page, one word a lane, whose item touches `box`: bins may be larger than it.
__device__ inline uint32_t keep_touching(const Bins& bins, int64_t slot, int64_t page, uint32_t word,
                                         const PixelBox& box) {
  const ushort4* boxes = bins.boxes + (slot * bins.n_pages + page) * kPageItems;
  for (unsigned left = __ballot_sync(kAllLanes, word != 0); left != 0; left &= left - 1) {
    const int source = __ffs(static_cast<int>(left)) - 1;
    const uint32_t items = __shfl_sync(kAllLanes, word, source);
    bool touches = false;
    if (items >> lane_of() & 1) {
      const ushort4 b = boxes[source * kWarp + lane_of()];
      touches = boxes_meet({b.x, b.y, b.z, b.w}, box);
    }
    const unsigned kept = __ballot_sync(kAllLanes, touches);
    if (lane_of() == source) word = kept;
  }
  return word;
}

// `Items` has count(image) and, for item < count, box(image, item, PixelBox&), false where the item touches nothing.
template <typename Items>
__global__ void __launch_bounds__(kTaskThreads)
    fill_bins(Items items, Bins bins, int64_t first_image, int64_t n_images) {
  const int64_t words = bins.n_pages * kWarp;
  for (int64_t task = first_task(); task < n_images * words; task += task_step()) {
    const int64_t slot = task / words, word = task % words, image = first_image + slot;
    const int64_t item = word * kWarp + lane_of(), count = items.count(image);
    if (word * kWarp >= count) continue;
    PixelBox box;
    const bool touches = item < count && items.box(image, item, box);
    if (touches && bins.boxes) {
      const auto pack = [](int pixel) { return static_cast<unsigned short>(pixel); };  // kMaxImageSize fits
      bins.boxes[slot * words * kWarp + item] = {pack(box.x0), pack(box.x1), pack(box.y0), pack(box.y1)};
    }
    const int x0 = touches ? box.x0 >> bins.x_shift : INT_MAX, x1 = touches ? box.x1 >> bins.x_shift : -1;
    const int y0 = touches ? box.y0 >> bins.y_shift : INT_MAX, y1 = touches ? box.y1 >> bins.y_shift : -1;
    const int all_x0 = min_over_warp(x0), all_x1 = max_over_warp(x1);
    const int all_y0 = min_over_warp(y0), all_y1 = max_over_warp(y1);
    for (int y = all_y0; y <= all_y1; ++y)
      for (int x = all_x0; x <= all_x1; ++x) {
        const unsigned votes = __ballot_sync(kAllLanes, x0 <= x && x <= x1 && y0 <= y && y <= y1);
        if (votes == 0 || lane_of() != 0) continue;
        const int64_t bin = (slot * bins.rows + y) * bins.columns + x;
        bins.words[bin * words + word] = votes;
        atomicOr(bins.summary + bin * bins.n_pages + word / kWarp, 1u << word % kWarp);
      }
  }
}

// The smallest bins that a kernel can make use of, and whether it asks for boxes where they have to be larger.
struct BinShape {
  int x_shift, y_shift;
  bool keeps_boxes;
};

// The memory behind Bins of n_items > 0 an image. It holds `slice` images at a time.
struct BinTensors {
  Tensor bytes;
  Bins bins;
  int64_t slice;

  BinTensors(const Tensor& like, int64_t batch, int64_t n_items, int width, int height, const BinShape& least)
      : bins{least.x_shift, least.y_shift, 0, 0, (n_items + kPageItems - 1) / kPageItems, nullptr, nullptr, nullptr} {
    const int64_t page_bytes = (kWarp + 1) * static_cast<int64_t>(sizeof(uint32_t));
    for (;; ++bins.x_shift, ++bins.y_shift) {
      bins.columns = ((width - 1) >> bins.x_shift) + 1;
      bins.rows = ((height - 1) >> bins.y_shift) + 1;
      if (bins.count() == 1) break;
      if (bins.count() <= kMaxBins && bins.count() * bins.n_pages * page_bytes <= kMaxBinBytes) break;
    }
    const bool wants_boxes = least.keeps_boxes && bins.x_shift > least.x_shift;
    const int64_t box_bytes = wants_boxes ? bins.n_pages * kPageItems * static_cast<int64_t>(sizeof(ushort4)) : 0;
    const int64_t image_bytes = box_bytes + bins.count() * bins.n_pages * page_bytes;
    slice = kMaxBinBytes / image_bytes;
    slice = slice < 1 ? 1 : slice < batch ? slice : batch;
    bytes = torch::stable::new_empty(like, {slice * image_bytes}, ScalarType::Byte);
    uint8_t* at = bytes.mutable_data_ptr<uint8_t>();
    if (wants_boxes) bins.boxes = reinterpret_cast<ushort4*>(at);
    bins.words = reinterpret_cast<uint32_t*>(at + slice * box_bytes);
    bins.summary = bins.words + slice * bins.count() * bins.n_pages * kWarp;
  }

  // Fills the bins of up to `slice` images from `first_image` on.
  template <typename Items>
  void fill(const Items& items, int64_t first_image, int64_t n_images, cudaStream_t stream) {
    const int64_t summary_words = n_images * bins.count() * bins.n_pages;
    zero_async(bins.summary, summary_words * static_cast<int64_t>(sizeof(uint32_t)), stream);
    fill_bins<Items>
        <<<warp_blocks(n_images * bins.n_pages * kWarp), kTaskThreads, 0, stream>>>(items, bins, first_image, n_images);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace
}  // namespace dhpe
