// A dense mask packed by itself, bit by bit.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "fdma/mask.h"
#include "tests/support/packed_mask.hpp"

namespace fdma::test {
namespace {

struct PackCase {
  const char* name;
  fdma_dtype dtype;
};

std::ostream& operator<<(std::ostream& stream, const PackCase& row) { return stream << row.name; }

const PackCase kCases[] = {{"mask_bool", FDMA_BOOL},       {"mask_uint8", FDMA_UINT8},
                           {"mask_int8", FDMA_INT8},       {"mask_int16", FDMA_INT16},
                           {"mask_int32", FDMA_INT32},     {"mask_int64", FDMA_INT64},
                           {"mask_float16", FDMA_FLOAT16}, {"mask_bfloat16", FDMA_BFLOAT16},
                           {"mask_float32", FDMA_FLOAT32}, {"mask_float64", FDMA_FLOAT64}};

bool is_float(fdma_dtype dtype) { return dtype <= FDMA_FLOAT64; }

// Floats have both zeros, which are hidden, and NaN, which is visible.
double element(std::mt19937_64& random, fdma_dtype dtype) {
  const double floats[] = {0.0, -0.0, 0.0, 1.0, -2.0, std::nan("")};
  if (is_float(dtype)) return floats[random() % 6];
  return random() % 3 == 0 ? 1.0 : 0.0;
}

class PackMask : public testing::TestWithParam<std::tuple<PackCase, int>> {
 protected:
  void SetUp() override {
    const std::string reason = unavailable_reason(device());
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
  static fdma_device device() { return std::get<1>(GetParam()) == FDMA_DEVICE_CPU ? kCpu : kCuda; }

  // `hidden_rows`: the first rows have no visible score, so that some tiles have none either.
  void expect_packed(const Shape& shape, int64_t len_k, Layout layout, int64_t hidden_rows) {
    const fdma_dtype dtype = std::get<0>(GetParam()).dtype;
    Tensor mask(dtype, shape, layout);
    for (int64_t i = 0; i < mask.size(); ++i) {
      mask.set(i, i / shape[3] % shape[2] < hidden_rows ? 0.0 : element(random_, dtype));
    }
    mask.upload(device());
    const PackedMaskLayout packed{shape[0], shape[1], shape[2], len_k};
    PackedOutput output(packed, device());
    fdma_pack_mask_params params;
    fdma_pack_mask_params_init(&params);
    params.device = device();
    params.mask = mask.describe();
    params.len_k = len_k;
    params.packed_mask = output.describe();
    ASSERT_EQ(fdma_pack_mask_supported(&params), FDMA_SUCCESS) << fdma_last_error_message();
    size_t bytes = 1;
    ASSERT_EQ(fdma_pack_mask_workspace_size(&params, &bytes), FDMA_SUCCESS) << fdma_last_error_message();
    ASSERT_EQ(bytes, 0u);
    ASSERT_EQ(fdma_pack_mask(&params, nullptr, 0, nullptr), FDMA_SUCCESS) << fdma_last_error_message();
    synchronize(device());
    ASSERT_EQ(output.words(), packed_words(packed,
                                           [&](int64_t b, int64_t h, int64_t q, int64_t k) {
                                             const int64_t row = (b * shape[1] + h) * shape[2] + q;
                                             const double value = mask.get(row * shape[3] + (shape[3] == 1 ? 0 : k));
                                             return std::isnan(value) || value != 0.0;
                                           }))
        << "rows " << shape[2] << " keys " << shape[3] << " len_k " << len_k;
  }

 private:
  std::mt19937_64 random_{31};
};

TEST_P(PackMask, OneBitAScoreAndOneATile) {
  for (const int64_t rows : {1, 3, 64, 65, 130}) {
    for (const int64_t keys : {1, 31, 64, 65, 256, 2056}) {
      expect_packed({2, 2, rows, keys}, keys, rows % 2 == 0 ? Layout::kContiguous : Layout::kMisaligned, rows / 2);
    }
  }
}

TEST_P(PackMask, OneElementForAllKeys) {
  expect_packed({2, 3, 70, 1}, 130, Layout::kContiguous, 64);
  expect_packed({1, 1, 1, 1}, 2049, Layout::kContiguous, 0);
}

TEST_P(PackMask, ViewsAndEmptyMasks) {
  expect_packed({2, 3, 66, 40}, 40, Layout::kHeadsFirst, 0);
  expect_packed({3, 2, 5, 100}, 100, Layout::kExpanded, 0);
  expect_packed({2, 2, 0, 8}, 8, Layout::kContiguous, 0);
  expect_packed({2, 2, 5, 0}, 0, Layout::kContiguous, 0);
}

struct PackName {
  template <typename Info>
  std::string operator()(const Info& info) const {
    return std::get<0>(info.param).name;
  }
};

INSTANTIATE_TEST_SUITE_P(Cpu, PackMask,
                         testing::Combine(testing::ValuesIn(kCases), testing::Values(int{FDMA_DEVICE_CPU})),
                         PackName());
INSTANTIATE_TEST_SUITE_P(Gpu, PackMask,
                         testing::Combine(testing::ValuesIn(kCases), testing::Values(int{FDMA_DEVICE_CUDA})),
                         PackName());

}  // namespace
}  // namespace fdma::test
