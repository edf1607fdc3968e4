// Which tiles of slots a tile of queries visits.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/numeric.cuh"

namespace fdma {

FDMA_DEVICE SpanSummary load_summary(const SpanSummary* groups, int index) {
  const int4 raw = __ldg(reinterpret_cast<const int4*>(groups) + index);
  return {raw.x, raw.y, raw.z, raw.w};
}

// Of a tile of kTile slots.
template <int kTile>
FDMA_DEVICE SpanSummary tile_summary(const SpanSummary* groups, int tile) {
  static_assert(kTile % kSlotGroup == 0);
  constexpr int kGroups = kTile / kSlotGroup;
  SpanSummary summary = load_summary(groups, tile * kGroups);
#pragma unroll
  for (int i = 1; i < kGroups; ++i) summary.add(load_summary(groups, tile * kGroups + i));
  return summary;
}

// Tiles of slots, from the last to the first, that some row of [first, last] may see. All lanes of a warp ask together.
// Where 32 tiles have none, whole regions are passed over, 32 at a time: a list may be much longer than what a row sees
// of it.
template <int kTile>
class LiveSlotTiles {
 public:
  LiveSlotTiles() = default;
  FDMA_DEVICE LiveSlotTiles(const SlotView& slots, int64_t list, int first, int last)
      : groups_(slots.groups_of(list)), regions_(slots.regions_of(list)), first_(first), last_(last) {}

  // The highest such tile that is not above n, or -1.
  FDMA_DEVICE int next(int n) const {
    for (; n >= 0; n = below_dead_tiles(n)) {
      const uint32_t live = live_tiles(n, 0);
      if (live != 0) return n - (__ffs(live) - 1);
    }
    return -1;
  }
  // How many of the tiles from `end` on, below `count`.
  FDMA_DEVICE int count_from(int end, int count) const {
    int sum = 0;
    for (int n = count - 1; n >= end;) {
      const uint32_t live = live_tiles(n, end);
      sum += __popc(live);
      n = live != 0 ? n - 32 : below_dead_tiles(n);
    }
    return sum;
  }
  FDMA_DEVICE SpanSummary summary(int tile) const { return tile_summary<kTile>(groups_, tile); }

 private:
  static_assert(kSlotRegion % kTile == 0);
  static constexpr int kOfRegion = kSlotRegion / kTile;

  // Bit i: tile n - i, if it is not below `end`.
  FDMA_DEVICE uint32_t live_tiles(int n, int end) const {
    const int tile = n - static_cast<int>(threadIdx.x % 32);
    return __ballot_sync(0xffffffffu, tile >= end && summary(tile).any(first_, last_));
  }
  // Where the walk goes on when none of the 32 tiles down from n is live: the highest tile below them in a region of
  // which something is seen, or -1.
  FDMA_DEVICE int below_dead_tiles(int n) const {
    n -= 32;
    if (n < 0) return -1;
    for (int top = n / kOfRegion; top >= 0; top -= 32) {
      const int region = top - static_cast<int>(threadIdx.x % 32);
      const bool any = region >= 0 && load_summary(regions_, region).any(first_, last_);
      const uint32_t live = __ballot_sync(0xffffffffu, any);
      if (live != 0) return min_of(n, (top - (__ffs(live) - 1)) * kOfRegion + kOfRegion - 1);
    }
    return -1;
  }

  const SpanSummary* groups_;
  const SpanSummary* regions_;
  int first_, last_;
};

}  // namespace fdma
