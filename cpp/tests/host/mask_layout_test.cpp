// Sizes of packed masks.
#include "host/mask_layout.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "calls.hpp"

namespace fdma::testing {
namespace {

fdma_tensor mask_of(std::initializer_list<int64_t> shape) {
  fdma_tensor tensor{};
  tensor.rank = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), tensor.shape);
  return tensor;
}

size_t packed_size(std::initializer_list<int64_t> shape, int64_t len_k) {
  const fdma_tensor mask = mask_of(shape);
  size_t bytes = 0;
  EXPECT_EQ(fdma_mask_packed_size(&mask, len_k, &bytes), FDMA_SUCCESS) << fdma_last_error_message();
  return bytes;
}

TEST(PackedMaskSize, OneBitAScoreAndOneATile) {
  // Rows of 128 bits each; tile bits: one word for each 64 rows.
  EXPECT_EQ(packed_size({2, 3, 64, 128}, 128), 2u * 3 * (64 * 16 + 4));
  EXPECT_EQ(packed_size({2, 3, 65, 128}, 128), 2u * 3 * (65 * 16 + 2 * 4));
  // 129 keys: rows padded to 256 bits. 2049 keys have 33 tiles, so two words of tile bits.
  EXPECT_EQ(packed_size({1, 1, 1, 129}, 129), 32u + 4);
  EXPECT_EQ(packed_size({1, 1, 1, 2049}, 2049), 272u + 8);
}

TEST(PackedMaskSize, BroadcastsAreKeptAndKeysAreFull) {
  EXPECT_EQ(packed_size({1, 1, 1, 1}, 4096), packed_size({1, 1, 1, 4096}, 4096));
  EXPECT_EQ(packed_size({1, 2, 1, 4096}, 4096), 2 * packed_size({1, 1, 1, 4096}, 4096));
}

TEST(PackedMaskSize, EmptyMasks) {
  EXPECT_EQ(packed_size({0, 3, 64, 128}, 128), 0u);
  EXPECT_EQ(packed_size({2, 3, 0, 128}, 128), 0u);
  EXPECT_EQ(packed_size({2, 3, 64, 0}, 0), 0u);
}

TEST(PackedMaskSize, PassesTwoToThe31) { EXPECT_EQ(packed_size({1, 512, 131072, 131072}, 131072), 1099780063232u); }

TEST(PackedMaskSize, AgreesWithTheLayoutWithoutOverflow) {
  for (const int64_t rows : {int64_t{1}, int64_t{63}, int64_t{64}, int64_t{1000}}) {
    for (const int64_t keys : {int64_t{1}, int64_t{32}, int64_t{127}, int64_t{4097}}) {
      const PackedMaskLayout layout{3, 2, rows, keys};
      EXPECT_EQ(packed_mask_bytes(layout), layout.bytes());
      EXPECT_EQ(layout.rows_bytes() % 16, 0);
    }
  }
}

TEST(PackedMaskSize, OverflowIsFound) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  EXPECT_FALSE(packed_mask_bytes({1, 1, 1, kMax}));
  EXPECT_FALSE(packed_mask_bytes({1, 1, kMax, 1}));
  EXPECT_FALSE(packed_mask_bytes({kMax, 1, 1, 1}));
  EXPECT_FALSE(packed_mask_bytes({1 << 20, 1 << 20, 1 << 20, 1 << 10}));
}

void expect_refused(const fdma_tensor* mask, int64_t len_k, fdma_status status, const char* message) {
  size_t bytes = 0;
  EXPECT_EQ(fdma_mask_packed_size(mask, len_k, &bytes), status);
  EXPECT_STREQ(fdma_last_error_message(), message);
}

TEST(PackedMaskSize, Refusals) {
  fdma_tensor mask = mask_of({2, 3, 64, 128});
  expect_refused(nullptr, 128, FDMA_INVALID_ARGUMENT, "mask is NULL; accepted: a tensor with rank and shape");
  expect_refused(&mask, -1, FDMA_INVALID_ARGUMENT, "len_k is -1; accepted: 0 or more");
  expect_refused(&mask, 64, FDMA_INVALID_SHAPE,
                 "mask.shape is (2, 3, 64, 128); accepted: a last dimension of 1 or len_k = 64");
  EXPECT_EQ(fdma_mask_packed_size(&mask, 128, nullptr), FDMA_INVALID_ARGUMENT);
  EXPECT_STREQ(fdma_last_error_message(), "bytes is NULL; accepted: where to write the size");
  mask.rank = 2;
  expect_refused(&mask, 128, FDMA_INVALID_SHAPE, "mask.rank is 2; accepted: 4, ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})");
}

}  // namespace
}  // namespace fdma::testing
