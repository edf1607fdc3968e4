// Ranges of keys and queries against brute force over all scores.
#include "kernels/policy/range.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace fdma {
namespace {

constexpr int64_t kLengths[] = {1, 2, 3, 7, 16, 17, 31, 64, 65, 100};

bool sees(int64_t q, int64_t k, int64_t len_q, int64_t len_k, bool is_causal) {
  return k < len_k && (!is_causal || k <= q + len_k - len_q);
}

template <typename Body>
void for_each_problem(const Body& body) {
  for (int64_t len_q : kLengths) {
    for (int64_t len_k : kLengths) {
      for (bool is_causal : {false, true}) body(len_q, len_k, is_causal);
    }
  }
}

TEST(Range, KeyLimitIsTheFirstKeyThatARowMayNotSee) {
  for_each_problem([](int64_t len_q, int64_t len_k, bool is_causal) {
    for (int64_t q = 0; q < len_q; ++q) {
      int64_t visible = 0;
      for (int64_t k = 0; k < len_k; ++k) visible += sees(q, k, len_q, len_k, is_causal);
      EXPECT_EQ(std::max<int64_t>(0, key_limit(q, len_q, len_k, is_causal)), visible)
          << "row " << q << " of " << len_q << ", " << len_k << " keys, causal " << is_causal;
    }
  });
}

TEST(Range, FirstQueryOfKeyIsTheFirstRowThatMaySeeIt) {
  for_each_problem([](int64_t len_q, int64_t len_k, bool is_causal) {
    for (int64_t k = 0; k < len_k; ++k) {
      int64_t first = 0;
      while (first < len_q && !sees(first, k, len_q, len_k, is_causal)) ++first;
      EXPECT_EQ(first_query_of_key(k, len_q, len_k, is_causal), first)
          << "key " << k << " of " << len_k << ", " << len_q << " queries, causal " << is_causal;
    }
  });
}

TEST(Range, KeyTileCountCoversWhatTheRowsSeeAndNoMore) {
  for_each_problem([](int64_t len_q, int64_t len_k, bool is_causal) {
    for (int64_t tile_q : {1, 16, 64}) {
      for (int64_t tile_k : {1, 16, 64}) {
        for (int64_t q0 = 0; q0 < len_q; q0 += tile_q) {
          int64_t tiles = 0;
          for (int64_t q = q0; q < std::min(len_q, q0 + tile_q); ++q) {
            for (int64_t k = 0; k < len_k; ++k) {
              if (sees(q, k, len_q, len_k, is_causal)) tiles = std::max(tiles, k / tile_k + 1);
            }
          }
          EXPECT_EQ(key_tile_count(q0 + tile_q, len_q, len_k, is_causal, tile_k), tiles)
              << "rows from " << q0 << " of " << len_q << ", " << len_k << " keys, causal " << is_causal;
        }
      }
    }
  });
}

TEST(Range, NoKeysMeansNoTiles) {
  EXPECT_EQ(key_tile_count(64, 10, 0, false, 64), 0);
  EXPECT_EQ(key_tile_count(64, 10, 0, true, 64), 0);
}

TEST(Range, LengthsPast31Bits) {
  const int64_t len_k = int64_t{1} << 33;
  EXPECT_EQ(key_limit(0, 1, len_k, true), len_k);
  EXPECT_EQ(key_tile_count(64, 1, len_k, true, 64), len_k / 64);
  EXPECT_EQ(first_query_of_key(len_k - 1, len_k, len_k, true), len_k - 1);
}

}  // namespace
}  // namespace fdma
