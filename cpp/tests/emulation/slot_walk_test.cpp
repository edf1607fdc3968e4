// Walks over tiles of slots against a look at every tile: lists with long stretches that no row sees.
#include "kernels/policy/slot_walk.cuh"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/emulation/machine/emulator.hpp"

namespace fdma::emulation {
namespace {

constexpr Span kFar{1 << 20, (1 << 20) + 1};  // seen by no row that is asked for

struct Slots {
  std::vector<Span> spans;
  std::vector<SpanSummary> groups, regions;

  explicit Slots(std::vector<Span> of_slots) : spans(std::move(of_slots)) {
    const int slots = static_cast<int>(spans.size());
    groups.assign(static_cast<size_t>(slots / kSlotGroup), of(kNoSpan));
    regions.assign(static_cast<size_t>(slot_regions(slots)), of(kNoSpan));
    for (size_t i = 0; i < spans.size(); ++i) {
      groups[i / kSlotGroup].add(of(spans[i]));
      regions[i / kSlotRegion].add(of(spans[i]));
    }
  }
  static SpanSummary of(Span span) { return {span.begin, span.end, span.begin, span.end}; }

  SlotView view() const {
    SlotView view;
    view.groups = groups.data();
    view.regions = regions.data();
    view.slots = static_cast<int32_t>(spans.size());
    return view;
  }
  // Per tile, whether rows [first, last] see one of its groups: spans may leave rows out between them.
  template <int kTile>
  std::vector<bool> live_tiles(int first, int last) const {
    std::vector<bool> live(spans.size() / kTile);
    for (size_t tile = 0; tile < live.size(); ++tile) {
      SpanSummary summary = of(kNoSpan);
      for (size_t i = 0; i < kTile; ++i) summary.add(of(spans[tile * kTile + i]));
      live[tile] = summary.any(first, last);
    }
    return live;
  }
};

template <int kTile>
void expect_walks_match(const Slots& slots, int first, int last) {
  const std::vector<bool> live = slots.live_tiles<kTile>(first, last);
  const int tiles = static_cast<int>(live.size());
  std::vector<int> next(live.size()), expected_next(live.size()), count(live.size() + 1),
      expected_count(live.size() + 1);
  for (int n = 0, below = -1; n < tiles; ++n) {
    if (live[static_cast<size_t>(n)]) below = n;
    expected_next[static_cast<size_t>(n)] = below;
  }
  for (int n = tiles - 1; n >= 0; --n) {
    expected_count[static_cast<size_t>(n)] = expected_count[static_cast<size_t>(n) + 1] + live[static_cast<size_t>(n)];
  }
  run("slot_walk", dim3(1), dim3(32), 0, [&] {
    const LiveSlotTiles<kTile> walk(slots.view(), 0, first, last);
    for (int n = 0; n < tiles; ++n) next[static_cast<size_t>(n)] = walk.next(n);
    for (int n = 0; n <= tiles; ++n) count[static_cast<size_t>(n)] = walk.count_from(n, tiles);
  });
  EXPECT_EQ(next, expected_next) << kTile << " slots a tile, " << slots.spans.size() << " slots";
  EXPECT_EQ(count, expected_count) << kTile << " slots a tile, " << slots.spans.size() << " slots";
}

// One slot in `of` is seen.
Slots sparse(int slots, unsigned of, std::mt19937& random) {
  std::vector<Span> spans(static_cast<size_t>(slots), kFar);
  for (Span& span : spans) {
    if (random() % of == 0) span = {static_cast<int32_t>(random() % 64), 200};
  }
  return Slots(std::move(spans));
}

TEST(SlotWalk, MatchesALookAtEveryTile) {
  std::mt19937 random(17);
  for (const int slots : {128, 1024, 1152, 8064, 40960, 51072}) {
    for (const unsigned of : {1u, 50u, 1000u, 6000u, 30000u, 1000000u}) {
      const Slots list = sparse(slots, of, random);
      expect_walks_match<64>(list, 100, 227);
      expect_walks_match<128>(list, 100, 227);
    }
  }
}

// As of a mask that keeps the last keys: each row sees one run of slots.
TEST(SlotWalk, MatchesUnderAWindow) {
  std::vector<Span> spans(45056);
  for (size_t i = 0; i < spans.size(); ++i) spans[i] = {static_cast<int32_t>(i), static_cast<int32_t>(i) + 300};
  const Slots list(std::move(spans));
  for (const int first : {0, 128, 20096, 44928}) {
    expect_walks_match<64>(list, first, first + 127);
    expect_walks_match<128>(list, first, first + 127);
  }
}

}  // namespace
}  // namespace fdma::emulation
