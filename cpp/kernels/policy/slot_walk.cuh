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

// Tiles of slots from the last to the first that some position of [first, last] sees. All lanes of a warp ask together.
template <int kTile>
struct LiveSlotTiles {
  const SpanSummary* groups;  // of the list
  int first, last;

  // The highest such tile that is not above n, or -1.
  FDMA_DEVICE int next(int n) const {
    const int lane = threadIdx.x % 32;
    for (int top = n; top >= 0; top -= 32) {
      const int tile = top - lane;
      const bool live = tile >= 0 && tile_summary<kTile>(groups, tile).any(first, last);
      const uint32_t ballot = __ballot_sync(0xffffffffu, live);
      if (ballot != 0) return top - (__ffs(ballot) - 1);
    }
    return -1;
  }
  // Of the tiles from n on, below `count`.
  FDMA_DEVICE int count_from(int n, int count) const {
    const int lane = threadIdx.x % 32;
    int live_tiles = 0;
    for (int base = n; base < count; base += 32) {
      const int tile = base + lane;
      const bool live = tile < count && tile_summary<kTile>(groups, tile).any(first, last);
      live_tiles += __popc(__ballot_sync(0xffffffffu, live));
    }
    return live_tiles;
  }
};

}  // namespace fdma
