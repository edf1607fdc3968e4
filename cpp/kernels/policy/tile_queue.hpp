// The query tiles of a call in the order in which blocks take them, and how the last of them are cut into parts.
//
// Tiles that take equally long leave SMs idle in the last round: 2048 tiles on 132 SMs take 16 rounds for 15.5 rounds
// of work. So the tiles of that round are cut along their keys (forward) or queries (backward), and a kernel of its own
// puts the parts together, in a fixed order.
#pragma once

#include <cstdint>

#include "kernels/core/math.hpp"

namespace fdma {

// Section by section of heads, so that the blocks that run at one time share keys in L2; in a section tile by tile.
struct TileQueue {
  int32_t heads = 1;  // of all batch entries
  int32_t tiles_per_head = 1;
  int32_t section = 1;    // heads
  bool reversed = false;  // the last tile of a head comes first

  struct Place {
    int head, tile;
  };
  FDMA_HOST_DEVICE Place at(int index) const {
    const int begin = index / (section * tiles_per_head) * section;
    const int heads_here = min_of(section, heads - begin);
    const int rest = index - begin * tiles_per_head;
    const int tile = rest / heads_here;
    return {begin + rest % heads_here, reversed ? tiles_per_head - 1 - tile : tile};
  }
};

// The last `tiles` of a queue are in `parts` parts each.
struct TailSplit {
  int32_t tiles = 0, parts = 1;

  FDMA_HOST_DEVICE bool any() const { return parts > 1; }

  // For tiles that take equally long, on so many multiprocessors. `most`: parts that a tile can be cut into.
  static TailSplit choose(int64_t tiles, int64_t multiprocessors, int64_t most) {
    constexpr int64_t kManyRounds = 64;  // of which the last hardly counts
    constexpr double kCost = 0.02;       // of a part, in tiles: it starts, and its result goes through memory
    TailSplit split;
    const int64_t rest = tiles % multiprocessors;
    if (rest == 0 || tiles / multiprocessors >= kManyRounds) return split;
    double best = 1.0;
    for (int32_t parts = 2; parts <= min_of<int64_t>(most, 16); ++parts) {
      const double rounds = static_cast<double>(ceil_div(rest * parts, multiprocessors));
      const double time = rounds / parts + kCost * parts;
      if (time < best) best = time, split = {static_cast<int32_t>(rest), parts};
    }
    return split;
  }
};

// Where an item of a queue with a split tail lies: a tile, and the part of it; -1: all of it.
struct QueueItem {
  int tile, part;

  FDMA_HOST_DEVICE QueueItem(int item, int tiles, const TailSplit& split) : tile(item), part(-1) {
    const int whole = tiles - split.tiles;
    if (!split.any() || item < whole) return;
    tile = whole + (item - whole) / split.parts;
    part = (item - whole) % split.parts;
  }
};
FDMA_HOST_DEVICE int64_t queue_items(int64_t tiles, const TailSplit& split) {
  return tiles + int64_t{split.tiles} * (split.parts - 1);
}

// [first, end) of part `part` of `count` things; all of them where part is -1.
struct PartRange {
  int first, end;

  FDMA_HOST_DEVICE PartRange(int count, int part, int parts)
      : first(part < 0 ? 0 : static_cast<int>(int64_t{count} * part / parts)),
        end(part < 0 ? count : static_cast<int>(int64_t{count} * (part + 1) / parts)) {}
};

// Attention of the same rows on parts of their keys, before it is put together.
struct SplitParts {
  float* out = nullptr;  // (parts, rows, head_dim); not written for a row that sees nothing
  float* lse = nullptr;  // (parts, rows), base 2
  int64_t rows = 0;
};

}  // namespace fdma
