// The forward passes that look at every pixel: a block owns a tile of 16 x 16 pixels, a thread one of them, and the
// block walks through the faces that may touch the tile, in ascending order. CUDA only.
//
// Where faces are few, the block looks at all of them itself: one launch, no memory, F boxes per tile. Otherwise a pass
// of face_bins.h goes ahead, and the block walks the set bits of its bin. Either way a lane holds a word of 32 faces;
// the block ranks the set bits, sets up kCapacity faces at a time in shared memory, and every thread visits those.
#pragma once

#include <type_traits>

#include "raster/face_bins.h"

namespace dhpe {
namespace {

constexpr int kTileShift = 4;
constexpr int kTile = 1 << kTileShift;
constexpr int kTileThreads = kTile * kTile;
constexpr int kTileWarps = kTileThreads / kWarp;
constexpr int64_t kMaxImagesInGrid = 65535;  // gridDim.y; larger batches loop

// Tests of a face against a tile, in a whole batch, up to which binning does not pay: it costs two more operations in
// the stream, some 4 us, and a test costs an H100 some 2 ps (60 instructions a warp of 32 faces, 132 multiprocessors).
// One image of a hand is 301,000 tests, eight are 2.4 million. An estimate, to be replaced by measurement.
constexpr double kMaxTileTests = 1 << 21;

__host__ __device__ inline int tiles_along(int pixels) { return (pixels + kTile - 1) / kTile; }

// What the threads of a block share. A face that set_up refuses keeps its place, with no pixels.
template <typename Face, int kCapacity>
struct TileFaces {
  static_assert(kCapacity <= kTileThreads);
  Face face[kCapacity];
  int32_t id[kCapacity];
  int32_t page[kTileThreads];
  int warp_sums[2][kTileWarps];
};

// The walks of a block, one image after another. `Faces` are those of all images: typename Face, with the pixels x0,
// x1, y0, y1; mesh; box(image, id, PixelBox&), a quick first look; and set_up(image, id, Face&), false where a face
// draws nothing. Every thread of the block takes every step.
template <typename Faces, int kCapacity>
class TileWalk {
 public:
  using Shared = TileFaces<typename Faces::Face, kCapacity>;
  const int x, y;  // this thread's pixel, which may lie outside of the image

  __device__ TileWalk(const Faces& faces, Shared& shared)
      : x(tile_x0(faces.mesh.width) + static_cast<int>(threadIdx.x) % kTile),
        y(tile_y0(faces.mesh.width) + static_cast<int>(threadIdx.x) / kTile),
        faces_(faces),
        shared_(shared) {
    const int x0 = tile_x0(faces.mesh.width), y0 = tile_y0(faces.mesh.width);
    tile_ = {x0, x0 + kTile - 1, y0, y0 + kTile - 1};
  }

  __device__ bool is_in_image() const { return x < faces_.mesh.width && y < faces_.mesh.height; }

  // Calls visit(face, id) in every thread for all faces that may touch the tile. `slot` is the image's place in `bins`.
  template <bool kBinned, typename Visit>
  __device__ void visit(int64_t image, const Bins& bins, int64_t slot, const Visit& visit) {
    if constexpr (kBinned)
      visit_bin(image, bins, slot, visit);
    else
      visit_all(image, visit);
  }

 private:
  static __device__ int tile_x0(int width) { return static_cast<int>(blockIdx.x) % tiles_along(width) * kTile; }
  static __device__ int tile_y0(int width) { return static_cast<int>(blockIdx.x) / tiles_along(width) * kTile; }

  __device__ BlockRank rank(int own) { return rank_in_block(own, shared_.warp_sums[rounds_++ % 2]); }

  // Every thread brings a word, whose bit i stands for face first + i; `first` ascends with the thread's index.
  template <typename Visit>
  __device__ void visit_word(int64_t image, uint32_t word, int64_t first, const Visit& visit) {
    const BlockRank set = rank(__popc(word));
    for (int begin = 0; begin < set.total; begin += kCapacity) {
      const int count = set.total - begin < kCapacity ? set.total - begin : kCapacity;
      int slot = set.before - begin;
      for (uint32_t left = word; left != 0; left &= left - 1, ++slot)
        if (slot >= 0 && slot < count)
          shared_.id[slot] = static_cast<int32_t>(first + __ffs(static_cast<int>(left)) - 1);
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < count) {
        typename Faces::Face& f = shared_.face[threadIdx.x];
        if (!faces_.set_up(image, shared_.id[threadIdx.x], f)) {
          f.x0 = f.y0 = 1;
          f.x1 = f.y1 = 0;
        }
      }
      __syncthreads();
      for (int i = 0; i < count; ++i) visit(shared_.face[i], shared_.id[i]);
      __syncthreads();  // what follows overwrites the shared faces
    }
  }

  // All faces of a mesh. Each warp looks at as many words as the others.
  template <typename Visit>
  __device__ void visit_all(int64_t image, const Visit& visit) {
    const int64_t n_faces = faces_.mesh.n_faces, words = (n_faces + kWarp - 1) / kWarp;
    for (int64_t begin = 0; begin < words; begin += kTileThreads) {
      const int64_t fair = (words - begin + kTileWarps - 1) / kTileWarps;
      const int share = fair < kWarp ? static_cast<int>(fair) : kWarp;
      const int64_t first_word = begin + threadIdx.x / kWarp * share;
      uint32_t word = 0;
      for (int i = 0; i < share; ++i) {
        const int64_t id = (first_word + i) * kWarp + lane_of();
        PixelBox box;
        const bool touches = id < n_faces && faces_.box(image, id, box) && boxes_meet(box, tile_);
        const unsigned votes = __ballot_sync(kAllLanes, touches);
        if (lane_of() == i) word = votes;
      }
      visit_word(image, word, (first_word + lane_of()) * kWarp, visit);
    }
  }

  // The faces of the tile's bin. Pages that have any are listed, then every warp takes one of them.
  template <typename Visit>
  __device__ void visit_bin(int64_t image, const Bins& bins, int64_t slot, const Visit& visit) {
    const int64_t bin = bins.bin_at(slot, tile_.x0, tile_.y0);
    for (int64_t begin = 0; begin < bins.n_pages; begin += kTileThreads) {
      const int64_t own = begin + threadIdx.x;
      const bool is_used = own < bins.n_pages && bins.summary[bin * bins.n_pages + own] != 0;
      const BlockRank used = rank(is_used);
      if (is_used) shared_.page[used.before] = static_cast<int32_t>(own);
      __syncthreads();
      for (int i = 0; i < used.total; i += kTileWarps) {
        const int at = i + static_cast<int>(threadIdx.x) / kWarp;
        uint32_t word = 0;
        int64_t first = 0;
        if (at < used.total) {
          const int64_t page = shared_.page[at];
          word = page_word(bins, bin, page);
          if (bins.boxes) word = keep_touching(bins, slot, page, word, tile_);
          first = page * kPageItems + lane_of() * kWarp;
        }
        visit_word(image, word, first, visit);
      }
    }
  }

  const Faces& faces_;
  Shared& shared_;
  PixelBox tile_;
  int rounds_ = 0;
};

// Faces as items of bins: their exact pixels, and none for those that draw nothing.
template <typename Faces>
struct FaceItems {
  Faces faces;

  __device__ int64_t count(int64_t) const { return faces.mesh.n_faces; }
  __device__ bool box(int64_t image, int64_t id, PixelBox& box) const {
    typename Faces::Face f;
    if (!faces.set_up(image, id, f)) return false;
    box = {f.x0, f.x1, f.y0, f.y1};
    return true;
  }
};

// Calls launch(is_binned, grid, bins, first image, end) for slices of the batch, is_binned being std::true_type where
// bins have been filled, else std::false_type. Image i of a slice has slot i - first.
template <typename Faces, typename Launch>
void for_tiles(const Faces& faces, const Tensor& like, int64_t batch, cudaStream_t stream, const Launch& launch) {
  const int width = faces.mesh.width, height = faces.mesh.height;
  const int tiles = tiles_along(width) * tiles_along(height);
  const auto grid = [tiles](int64_t n_images) {
    return dim3(static_cast<unsigned>(tiles),
                static_cast<unsigned>(n_images < kMaxImagesInGrid ? n_images : kMaxImagesInGrid));
  };
  if (batch == 0) return;
  if (static_cast<double>(batch) * tiles * static_cast<double>(faces.mesh.n_faces) <= kMaxTileTests) {
    launch(std::false_type(), grid(batch), Bins{}, int64_t{0}, batch);
    return;
  }
  BinTensors memory(like, batch, faces.mesh.n_faces, width, height, {kTileShift, kTileShift, true});
  for (int64_t first = 0; first < batch; first += memory.slice) {
    const int64_t n_images = batch - first < memory.slice ? batch - first : memory.slice;
    memory.fill(FaceItems<Faces>{faces}, first, n_images, stream);
    launch(std::true_type(), grid(n_images), memory.bins, first, first + n_images);
  }
}

}  // namespace
}  // namespace dhpe
