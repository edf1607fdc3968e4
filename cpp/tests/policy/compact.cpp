// The order of keys under a packed mask: its parts against brute force, and the whole on masks for which it pays and
// for which it does not.
#include "kernels/policy/compact.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/compact.hpp"

namespace fdma {
namespace {

TEST(Compact, KeysBeforeALimit) {
  for (int64_t word = 0; word < 4; ++word) {
    for (int64_t limit = -40; limit < 170; ++limit) {
      for (int64_t i = 0; i < 32; ++i) {
        EXPECT_EQ((keys_before(limit, word) >> i) & 1u, word * 32 + i < limit ? 1u : 0u) << limit << " " << word;
      }
    }
  }
}

TEST(Compact, SpanOfQueryTiles) {
  std::mt19937 random(1);
  for (int64_t count : {1, 2, 5}) {
    for (int bits = 0; bits < 4; ++bits) {
      for (int repeat = 0; repeat < 50; ++repeat) {
        const int64_t stride = 3;
        std::vector<uint32_t> words(static_cast<size_t>(count * stride), 0u);
        int32_t first = INT32_MAX, end = INT32_MIN;
        for (int i = 0; i < bits; ++i) {
          const auto tile = static_cast<int32_t>(random() % static_cast<uint32_t>(count * 32));
          words[static_cast<size_t>(tile / 32 * stride)] |= 1u << (tile % 32);
          first = std::min(first, tile);
          end = std::max(end, tile + 1);
        }
        const Span span = query_tile_span(words.data(), stride, count);
        EXPECT_EQ(span.begin, first);
        EXPECT_EQ(span.end, end);
      }
    }
  }
}

TEST(Compact, PlacesRiseWithEpochThenEndAndStayBelowHiddenKeys) {
  for (const int64_t rows : {1, 64, 65, 4096, 70000, 20000000}) {
    for (const int64_t keys : {1, 2048, 16384, 262144}) {
      const CompactOrder order(PackedMaskLayout{1, 1, rows, keys});
      const auto tiles = static_cast<int32_t>(ceil_div<int64_t>(rows, 64));
      EXPECT_LT(order.bin({tiles - 1, tiles}), CompactOrder::kBins);
      EXPECT_LE(order.bin({0, 1}), order.bin({tiles - 1, tiles}));
      const auto last = static_cast<int>(keys) - 1;
      EXPECT_LE(order.place(0, {0, 1}), order.place(0, {0, tiles}));
      EXPECT_LT(order.place(last, {0, tiles}), order.hidden());
      EXPECT_LE(order.hidden(), 0xffffffffu >> (32 - order.order.bits));
      if (last >= 1 << order.order.epoch_shift) {
        EXPECT_LT(order.place(0, {0, tiles}), order.place(last, {0, 1}));
      }
    }
  }
}

TEST(Compact, PaysWhenEnoughTilesAreLess) {
  EXPECT_TRUE(compaction_pays(10, 6));
  EXPECT_FALSE(compaction_pays(10, 7));
  EXPECT_FALSE(compaction_pays(10, 10));
  EXPECT_TRUE(compaction_pays(uint64_t{1} << 50, uint64_t{1} << 49));
}

using Sees = std::function<bool(int64_t q, int64_t k)>;

// A mask, the order of its keys, and live tiles by counting.
struct Ordered {
  PackedMaskLayout layout;
  std::vector<int32_t> keys;
  Sees sees;

  Ordered(int64_t rows, int64_t count, bool is_causal, const Sees& mask) : layout{1, 1, rows, count} {
    std::vector<uint32_t> packed(static_cast<size_t>(layout.bytes() / 4), 0u);
    for (int64_t q = 0; q < rows; ++q) {
      for (int64_t k = 0; k < count; ++k) {
        if (mask(q, k)) packed[static_cast<size_t>(q * layout.row_words() + k / 32)] |= 1u << (k % 32);
      }
    }
    keys.resize(static_cast<size_t>(count));
    cpu::order_keys(layout, packed.data(), 0, rows, is_causal, 2, keys.data());
    sees = [=](int64_t q, int64_t k) { return mask(q, k) && (!is_causal || k <= q + count - rows); };
  }

  std::vector<int32_t> natural() const {
    std::vector<int32_t> order(keys.size());
    std::iota(order.begin(), order.end(), 0);
    return order;
  }
  bool is_natural() const { return keys == natural(); }
  bool is_permutation() const {
    std::vector<int32_t> sorted = keys;
    std::sort(sorted.begin(), sorted.end());
    return sorted == natural();
  }
  int64_t live_tiles(const std::vector<int32_t>& order) const {
    int64_t live = 0;
    for (int64_t q0 = 0; q0 < layout.rows; q0 += 64) {
      for (int64_t s0 = 0; s0 < layout.keys; s0 += 64) {
        bool any = false;
        for (int64_t q = q0; q < std::min(q0 + 64, layout.rows) && !any; ++q) {
          for (int64_t s = s0; s < std::min(s0 + 64, layout.keys) && !any; ++s) {
            any = sees(q, order[static_cast<size_t>(s)]);
          }
        }
        live += any;
      }
    }
    return live;
  }
};

// Each query keeps the `keep` keys of largest score among those up to its own.
Sees causal_top_keys(int64_t count, int64_t keep) {
  std::mt19937 random(3);
  std::vector<int64_t> end(static_cast<size_t>(count), count);
  std::vector<std::pair<uint32_t, int64_t>> kept;  // a heap, the weakest first
  for (int64_t k = 0; k < count; ++k) {
    kept.emplace_back(random(), k);
    std::push_heap(kept.begin(), kept.end(), std::greater<>());
    if (k < keep) continue;
    std::pop_heap(kept.begin(), kept.end(), std::greater<>());
    end[static_cast<size_t>(kept.back().second)] = k;
    kept.pop_back();
  }
  return [end](int64_t q, int64_t k) { return k <= q && q < end[static_cast<size_t>(k)]; };
}

TEST(CompactOfMasks, TopKeysGoIntoFewTiles) {
  for (const bool is_causal : {false, true}) {
    const Ordered mask(2100, 2100, is_causal, causal_top_keys(2100, 256));
    EXPECT_TRUE(mask.is_permutation());
    const int64_t natural = mask.live_tiles(mask.natural()), ordered = mask.live_tiles(mask.keys);
    EXPECT_EQ(natural, 33 * 34 / 2) << "every tile up to the diagonal";
    EXPECT_LT(ordered * 5, natural * 2);
  }
}

TEST(CompactOfMasks, KeysOfAllQueriesComeFirst) {
  const Ordered mask(700, 2100, false, [](int64_t, int64_t k) { return k * 7919 % 16 == 3; });
  EXPECT_TRUE(mask.is_permutation());
  for (size_t slot = 0; slot < 131; ++slot) EXPECT_EQ(mask.keys[slot] * 7919 % 16, 3);
  EXPECT_TRUE(std::is_sorted(mask.keys.begin(), mask.keys.begin() + 131));
  EXPECT_TRUE(std::is_sorted(mask.keys.begin() + 131, mask.keys.end()));
}

TEST(CompactOfMasks, StaysNaturalWhereNothingIsToBeGained) {
  EXPECT_TRUE(Ordered(600, 2100, false, [](int64_t, int64_t) { return true; }).is_natural());
  EXPECT_TRUE(Ordered(600, 2100, true, [](int64_t, int64_t) { return true; }).is_natural());
  EXPECT_TRUE(Ordered(600, 2100, false, [](int64_t q, int64_t k) { return std::abs(q - k) < 100; }).is_natural());
  EXPECT_TRUE(Ordered(600, 2100, false, [](int64_t q, int64_t k) { return (q * 31 + k * 17) % 5 == 0; }).is_natural());
  EXPECT_TRUE(Ordered(600, 2100, false, [](int64_t q, int64_t k) { return k / 64 % 5 == q / 64 % 5; }).is_natural());
}

// Counted with causality: keys that the mask shows and causality hides are nobody's.
TEST(CompactOfMasks, CausalityCounts) {
  const Ordered mask(600, 2100, true, [](int64_t q, int64_t k) { return k > q + 1500; });
  EXPECT_TRUE(mask.is_natural());
  const Ordered hidden(600, 2100, true, [](int64_t, int64_t k) { return k % 16 == 0 || k == 2099; });
  EXPECT_EQ(hidden.keys[131], 2096) << "the last of the keys that the last query tile sees first";
}

// A mask without a visible score.
TEST(CompactOfMasks, NothingVisible) {
  const Ordered mask(600, 2100, false, [](int64_t, int64_t) { return false; });
  EXPECT_TRUE(mask.is_permutation());
}

}  // namespace
}  // namespace fdma
