// Layout of a packed mask against a list of (row, key) positions.
#include "kernels/policy/mask_bits.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace fdma {
namespace {

std::vector<PackedMaskLayout> layouts() {
  std::vector<PackedMaskLayout> all;
  for (int64_t batch : {1, 2}) {
    for (int64_t heads : {1, 3}) {
      for (int64_t rows : {1, 5, 64, 65, 130}) {
        for (int64_t keys : {0, 1, 31, 32, 33, 64, 128, 129, 2049}) all.push_back({batch, heads, rows, keys});
      }
    }
  }
  return all;
}

TEST(PackedMaskLayout, HasRoomForEveryScoreAndTile) {
  for (const PackedMaskLayout& layout : layouts()) {
    EXPECT_GE(layout.row_words() * 32, layout.keys);
    EXPECT_EQ(layout.row_words() % 4, 0) << "rows are whole vectors of 16 bytes";
    EXPECT_GE(layout.row_words(), 2 * layout.key_tiles()) << "the two words of the last key tile are inside the row";
    EXPECT_GE(layout.row_tiles() * kMaskTile, layout.rows);
    EXPECT_LT((layout.row_tiles() - 1) * kMaskTile, layout.rows);
    EXPECT_GE(layout.tile_words() * 32, layout.key_tiles());
    EXPECT_EQ(layout.rows_bytes() % 16, 0) << "tiles start at a multiple of 16 bytes";
  }
}

TEST(PackedMaskLayout, BytesMatchAHandComputedCase) {
  const PackedMaskLayout layout{2, 3, 65, 129};  // 5 words a row, padded to 8; 2 x 3 tiles, one word a row of tiles
  EXPECT_EQ(layout.rows_bytes(), 2 * 3 * 65 * 8 * 4);
  EXPECT_EQ(layout.tiles_bytes(), 2 * 3 * 2 * 1 * 4);
  EXPECT_EQ(layout.bytes(), layout.rows_bytes() + layout.tiles_bytes());
}

// Distinct (batch, head, row) of the mask have distinct words inside the packed mask; broadcast ones share them.
TEST(PackedMaskView, RowsAndTilesAreWhereTheLayoutSays) {
  for (const PackedMaskLayout& layout : layouts()) {
    std::vector<uint32_t> packed(static_cast<size_t>(layout.bytes() / 4 + 1));
    const int64_t group = 2, heads_q = 3 * group, batch = 2, len_q = layout.rows == 1 ? 70 : layout.rows;
    const PackedMaskView view = packed_mask_view(layout, packed.data(), heads_q);
    const uint32_t* tiles = packed.data() + layout.rows_bytes() / 4;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t h = 0; h < heads_q; ++h) {
        const int64_t mask_head = (layout.batch == 1 ? 0 : b) * layout.heads + h * layout.heads / heads_q;
        for (int64_t q = 0; q < len_q; ++q) {
          const int64_t row = mask_head * layout.rows + (layout.rows == 1 ? 0 : q);
          EXPECT_EQ(view.row(b, h, q) - packed.data(), row * layout.row_words());
          const int64_t tile = mask_head * layout.row_tiles() + (layout.rows == 1 ? 0 : q / kMaskTile);
          EXPECT_EQ(view.row_tile(b, h, q / kMaskTile) - tiles, tile * layout.tile_words());
        }
      }
    }
  }
}

TEST(PackedMaskLayout, OffsetsPast31Bits) {
  const PackedMaskLayout layout{4, 32, 65536, 65536};
  EXPECT_EQ(layout.rows_bytes(), int64_t{4} * 32 * 65536 * 65536 / 8);
  const PackedMaskView view = packed_mask_view(layout, nullptr, 32);
  EXPECT_EQ(view.row_stride_batch, int64_t{32} * 65536 * 65536 / 32);
}

}  // namespace
}  // namespace fdma
