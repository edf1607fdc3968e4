// Layout of a packed mask: one bit a score, plus one bit for each 64 x 64 tile that has a visible score.
//
// Both parts keep the broadcast shape of the dense mask they came from:
//   rows   uint32 [batch][heads][rows][row_words]          bit k % 32 of word k / 32 is the score of key k
//   tiles  uint32 [batch][heads][row_tiles][tile_words]    bit t % 32 of word t / 32 is key tile t (64 keys)
// Rows are padded to 16 bytes so that kernels may read them as vectors; padding bits are zero, so a packed mask also
// hides keys past the end of the sequence.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/math.hpp"

namespace fdma {

inline constexpr int64_t kMaskTile = 64;  // rows and keys of one tile bit

struct PackedMaskLayout {
  int64_t batch, heads, rows, keys;  // extents of the mask; keys is always Lk

  FDMA_HOST_DEVICE int64_t row_words() const { return round_up<int64_t>(ceil_div<int64_t>(keys, 32), 4); }
  FDMA_HOST_DEVICE int64_t row_tiles() const { return ceil_div(rows, kMaskTile); }
  FDMA_HOST_DEVICE int64_t key_tiles() const { return ceil_div(keys, kMaskTile); }
  FDMA_HOST_DEVICE int64_t tile_words() const { return ceil_div<int64_t>(key_tiles(), 32); }
  FDMA_HOST_DEVICE int64_t rows_bytes() const { return batch * heads * rows * row_words() * 4; }
  FDMA_HOST_DEVICE int64_t tiles_bytes() const { return batch * heads * row_tiles() * tile_words() * 4; }
  FDMA_HOST_DEVICE int64_t bytes() const { return rows_bytes() + tiles_bytes(); }
};

// Read view of a packed mask for one problem. Strides count words; 0 where the mask broadcasts.
struct PackedMaskView {
  const uint32_t* rows = nullptr;
  const uint32_t* tiles = nullptr;
  int64_t row_stride_batch = 0, row_stride_head = 0, row_stride = 0;
  int64_t tile_stride_batch = 0, tile_stride_head = 0, tile_stride = 0;  // tile_stride: from one row tile to the next
  int32_t heads_per_mask_head = 1;                                       // query heads that share a mask head

  FDMA_HOST_DEVICE const uint32_t* row(int64_t b, int32_t h, int64_t q) const {
    return rows + b * row_stride_batch + (h / heads_per_mask_head) * row_stride_head + q * row_stride;
  }
  FDMA_HOST_DEVICE const uint32_t* row_tile(int64_t b, int32_t h, int64_t q_tile) const {
    return tiles + b * tile_stride_batch + (h / heads_per_mask_head) * tile_stride_head + q_tile * tile_stride;
  }
};

// View of the packed mask at `data` in a problem with `heads_q` query heads. A mask extent of 1 broadcasts.
inline PackedMaskView packed_mask_view(const PackedMaskLayout& layout, const void* data, int64_t heads_q) {
  PackedMaskView view;
  view.rows = static_cast<const uint32_t*>(data);
  view.tiles = view.rows + layout.rows_bytes() / 4;
  view.row_stride = layout.rows == 1 ? 0 : layout.row_words();
  view.row_stride_head = layout.heads == 1 ? 0 : layout.rows * layout.row_words();
  view.row_stride_batch = layout.batch == 1 ? 0 : layout.heads * layout.rows * layout.row_words();
  view.tile_stride = layout.rows == 1 ? 0 : layout.tile_words();
  view.tile_stride_head = layout.heads == 1 ? 0 : layout.row_tiles() * layout.tile_words();
  view.tile_stride_batch = layout.batch == 1 ? 0 : layout.heads * layout.row_tiles() * layout.tile_words();
  view.heads_per_mask_head = static_cast<int32_t>(heads_q / layout.heads);
  return view;
}

}  // namespace fdma
