// The order of query tiles, and tails in parts, against what they are for.
#include "kernels/policy/tile_queue.hpp"

#include <gtest/gtest.h>

#include <set>
#include <utility>
#include <vector>

namespace fdma {
namespace {

TEST(TileQueue, EveryTileOfEveryHeadComesOnce) {
  for (const int heads : {1, 5, 16}) {
    for (const int section : {1, 2, 3, 16, 40}) {
      for (const int tiles : {1, 7}) {
        for (const bool reversed : {false, true}) {
          const TileQueue queue{heads, tiles, section, reversed};
          std::set<std::pair<int, int>> seen;
          for (int i = 0; i < heads * tiles; ++i) {
            const TileQueue::Place place = queue.at(i);
            EXPECT_TRUE(place.head >= 0 && place.head < heads && place.tile >= 0 && place.tile < tiles);
            seen.insert({place.head, place.tile});
          }
          EXPECT_EQ(seen.size(), static_cast<size_t>(heads * tiles)) << heads << " " << section << " " << tiles;
        }
      }
    }
  }
}

TEST(TailSplit, ItemsCoverEveryTileOrAllOfItsParts) {
  for (const int64_t tiles : {1, 64, 131, 132, 133, 200, 2048, 5000}) {
    for (const int64_t most : {1, 2, 7, 100}) {
      const TailSplit split = TailSplit::choose(tiles, 132, most);
      EXPECT_LE(split.parts, std::max<int64_t>(1, most));
      std::vector<int> parts_of(tiles);
      const int64_t items = queue_items(tiles, split);
      for (int64_t i = 0; i < items; ++i) {
        const QueueItem item(static_cast<int>(i), static_cast<int>(tiles), split);
        ASSERT_TRUE(item.tile >= 0 && item.tile < tiles);
        const bool in_tail = item.tile >= tiles - split.tiles;
        EXPECT_EQ(item.part, in_tail && split.any() ? parts_of[item.tile] : -1);
        ++parts_of[item.tile];
      }
      for (int64_t t = 0; t < tiles; ++t) EXPECT_EQ(parts_of[t], t >= tiles - split.tiles ? split.parts : 1);
    }
  }
}

TEST(TailSplit, IsForRoundsThatAreNotFull) {
  EXPECT_FALSE(TailSplit::choose(132 * 4, 132, 100).any());
  EXPECT_FALSE(TailSplit::choose(132 * 4 + 131, 132, 100).any());
  EXPECT_FALSE(TailSplit::choose(132 * 500 + 66, 132, 100).any());
  EXPECT_FALSE(TailSplit::choose(66, 132, 1).any());
  const TailSplit half = TailSplit::choose(2048, 132, 100);
  EXPECT_EQ(half.tiles, 68);
  EXPECT_GT(half.parts, 2);
  EXPECT_EQ(TailSplit::choose(66, 132, 100).parts, 2);
  EXPECT_GT(TailSplit::choose(8, 132, 100).parts, 4);
}

TEST(PartRange, PartsAreNextToEachOther) {
  for (const int count : {0, 1, 5, 64}) {
    EXPECT_EQ(PartRange(count, -1, 4).first, 0);
    EXPECT_EQ(PartRange(count, -1, 4).end, count);
    for (const int parts : {1, 2, 7}) {
      int end = 0;
      for (int part = 0; part < parts; ++part) {
        const PartRange range(count, part, parts);
        EXPECT_EQ(range.first, end);
        EXPECT_LE(range.first, range.end);
        end = range.end;
      }
      EXPECT_EQ(end, count);
    }
  }
}

}  // namespace
}  // namespace fdma
