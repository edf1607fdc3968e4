// Where the keys of sequences lie, and which rows see them, against brute force.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/policy/slots.hpp"

namespace fdma {
namespace {

KeyRows packed_rows(const std::vector<int64_t>& offsets, int64_t rows) {
  KeyRows result;
  SequenceView& s = result.sequences;
  s.cu_q = s.cu_k = offsets.data();
  s.is_64bit = s.packed = true;
  s.max_q = s.max_k = static_cast<int32_t>(rows);
  s.rows_q = s.rows_k = result.rows = rows;
  result.batch = static_cast<int64_t>(offsets.size()) - 1;
  return result;
}

TEST(KeyRows, EveryRowOfAPackedTensorHasItsSequence) {
  const std::vector<std::vector<int64_t>> all = {{0, 5}, {0, 0, 0, 3, 3, 7, 7}, {0, 0}, {0, 1, 2, 3, 4, 5, 6, 7, 8}};
  for (const std::vector<int64_t>& offsets : all) {
    const int64_t rows = offsets.back() + 3;
    const KeyRows keys = packed_rows(offsets, rows);
    EXPECT_EQ(keys.entries(), 1);
    for (int64_t row = 0; row < rows; ++row) {
      const KeyRows::Key key = keys.at(0, row);
      if (row >= offsets.back()) {
        EXPECT_EQ(key.k, -1);
        continue;
      }
      const auto b = static_cast<size_t>(key.b);
      EXPECT_TRUE(offsets[b] <= row && row < offsets[b + 1]) << row;
      EXPECT_EQ(key.k, row - offsets[b]);
    }
  }
}

// Offsets on a device may be wrong: whatever is found lies inside.
TEST(KeyRows, FallingOffsetsLeadNowhereElse) {
  for (const std::vector<int64_t>& offsets : {std::vector<int64_t>{0, 9, 2, 9}, {-5, 4, -1, 30}, {7, 3, 3, 0}}) {
    const KeyRows keys = packed_rows(offsets, 10);
    for (int64_t row = 0; row < 10; ++row) {
      const KeyRows::Key key = keys.at(0, row);
      EXPECT_TRUE(key.b >= 0 && key.b < 3);
      EXPECT_TRUE(key.k == -1 || key.sequence.k_begin + key.k == row);
    }
  }
}

TEST(KeyRows, RowsOfABatchEntryAreItsKeys) {
  KeyRows keys;
  keys.sequences.max_q = keys.sequences.max_k = 6;
  keys.batch = 2;
  keys.rows = 6;
  EXPECT_EQ(keys.entries(), 2);
  const KeyRows::Key key = keys.at(1, 4);
  EXPECT_EQ(key.b, 1);
  EXPECT_EQ(key.k, 4);
}

// From the first row of the tensors, whatever the first offset says; keys in an order of their own have no offsets.
TEST(SequenceView, JoinedSequencesAreOne) {
  for (const int64_t first : {-3, 0, 1}) {
    const std::vector<int64_t> offsets = {first, 2, 2, 7};
    KeyRows keys = packed_rows(offsets, 9);
    keys.sequences.joined = 3;
    keys.sequences.cu_k = nullptr;
    keys.sequences.max_k = 64;
    const Sequence joined = keys.sequences.at(0);
    EXPECT_EQ(joined.q_begin, 0);
    EXPECT_EQ(joined.len_q, 7);
    EXPECT_EQ(joined.k_begin, 0);
    EXPECT_EQ(joined.len_k, 64);
  }
}

TEST(Slots, RowsThatSeeAKeyFollowFromTheLists) {
  constexpr int32_t kBegin = 100;
  for (const int32_t len_q : {0, 1, 4, 9}) {
    for (const int32_t len_k : {0, 1, 4, 9}) {
      const Sequence sequence{len_q, len_k, kBegin, 0};
      const auto contains = [](const Span& span, int32_t row) { return span.begin <= row && row < span.end; };
      for (int32_t k = 0; k < len_k; ++k) {
        for (int32_t q = -2; q < len_q + 2; ++q) {
          const int32_t row = kBegin + q, position = q + len_k - len_q;
          const bool is_row = q >= 0 && q < len_q;
          EXPECT_EQ(contains(column_rows(sequence, k, false), row), is_row);
          EXPECT_EQ(contains(column_rows(sequence, k, true), row), is_row && k <= position);
          for (int32_t end = -3; end < len_k + 3; ++end) {
            EXPECT_EQ(contains(interval_rows(sequence, k, end), row), is_row && k <= position && position < end);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace fdma
