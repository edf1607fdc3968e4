// Selection for every query straight to bits: against its definition, and one device against the other.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "fdma/select.h"
#include "tests/support/packed_mask.hpp"
#include "tests/support/selection_case.hpp"

namespace fdma::test {
namespace {

enum class KeyMask { kNone, kBytes, kFloats };

struct RowsShape {
  int64_t batch, heads, len_q, len_k;
};

// One call, what it selects and what it should.
class RowsCall {
 public:
  RowsCall(const SelectionCase& row, const RowsShape& shape, Layout layout, KeyMask masked, std::mt19937_64& random)
      : shape_(shape), bias_(row.dtype, {shape.batch, shape.heads, shape.len_q, shape.len_k}, layout) {
    for (int64_t i = 0; i < bias_.size(); ++i) bias_.set(i, row.value(random, i % shape.len_k));
    if (masked == KeyMask::kNone) return;
    const bool floats = masked == KeyMask::kFloats;
    mask_ = Tensor(floats ? FDMA_FLOAT16 : FDMA_BOOL, {shape.batch, shape.len_k}, Layout::kMisaligned);
    for (int64_t i = 0; i < mask_.size(); ++i) mask_.set(i, random() % 4 != 0 ? 1.0 : floats ? -0.0 : 0.0);
  }

  std::vector<uint32_t> select(int64_t keep, bool is_causal, fdma_device device) {
    bias_.upload(device);
    mask_.upload(device);
    PackedOutput packed(layout(), device);
    fdma_select_params params;
    fdma_select_params_init(&params);
    params.device = device;
    params.bias = bias_.describe();
    params.key_mask = mask_.describe();
    params.keep_window_size = keep;
    params.is_causal = is_causal;
    params.packed_mask = packed.describe();
    select_and_wait(params);
    EXPECT_TRUE(bias_.unchanged_on_device());
    return packed.words();
  }

  std::vector<uint32_t> expected(int64_t keep, bool is_causal) const {
    std::vector<bool> kept(static_cast<size_t>(bias_.size()), false);
    for (int64_t row = 0; row < shape_.batch * shape_.heads * shape_.len_q; ++row) {
      const int64_t batch = row / shape_.len_q / shape_.heads, q = row % shape_.len_q;
      const int64_t limit = is_causal ? std::max<int64_t>(0, q + 1 + shape_.len_k - shape_.len_q) : shape_.len_k;
      const std::vector<int64_t> keys = best_keys(
          limit, keep, [&](int64_t k) { return bias_.get(row * shape_.len_k + k); },
          [&](int64_t k) { return !mask_.given() || mask_.get(batch * shape_.len_k + k) != 0; });
      for (int64_t k : keys) kept[static_cast<size_t>(row * shape_.len_k + k)] = true;
    }
    return packed_words(layout(), [&](int64_t b, int64_t h, int64_t q, int64_t k) {
      return kept[static_cast<size_t>(((b * shape_.heads + h) * shape_.len_q + q) * shape_.len_k + k)];
    });
  }

 private:
  PackedMaskLayout layout() const { return {shape_.batch, shape_.heads, shape_.len_q, shape_.len_k}; }

  RowsShape shape_;
  Tensor bias_, mask_;
};

class SelectionRows : public testing::TestWithParam<std::tuple<SelectionCase, int>> {
 protected:
  void SetUp() override {
    const std::string reason = unavailable_reason(device());
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
  static fdma_device device() { return std::get<1>(GetParam()) == FDMA_DEVICE_CPU ? kCpu : kCuda; }

  void expect_definition(const RowsShape& shape, Layout layout, KeyMask masked, std::mt19937_64& random) {
    RowsCall call(std::get<0>(GetParam()), shape, layout, masked, random);
    for (const int64_t keep : {int64_t{1}, shape.len_k / 3 + 1, shape.len_k - 1, shape.len_k + 3}) {
      if (keep < 1) continue;
      for (const bool is_causal : {false, true}) {
        ASSERT_EQ(call.select(keep, is_causal, device()), call.expected(keep, is_causal))
            << "Lq " << shape.len_q << " Lk " << shape.len_k << " keep " << keep << " causal " << is_causal;
      }
    }
  }
};

TEST_P(SelectionRows, EveryQueryKeepsItsBestKeys) {
  std::mt19937_64 random(17);
  for (const int64_t len_q : {1, 3, 65}) {
    for (const int64_t len_k : {1, 2, 31, 32, 33, 64, 65, 130}) {
      const KeyMask masked = static_cast<KeyMask>((len_q + len_k) % 3);
      expect_definition({2, 2, len_q, len_k}, len_k % 2 == 0 ? Layout::kContiguous : Layout::kMisaligned, masked,
                        random);
    }
  }
}

// Views, enough rows for several threads, and more keys than one word of tile bits and one pass of a kernel.
TEST_P(SelectionRows, ViewsAndLongRows) {
  std::mt19937_64 random(19);
  expect_definition({2, 3, 5, 40}, Layout::kHeadsFirst, KeyMask::kBytes, random);
  expect_definition({1, 2, 130, 260}, Layout::kContiguous, KeyMask::kBytes, random);
  expect_definition({1, 2, 3, 2056}, Layout::kContiguous, KeyMask::kNone, random);
  expect_definition({1, 1, 2, 4096}, Layout::kContiguous, KeyMask::kNone, random);
  expect_definition({1, 1, 2, 5003}, Layout::kMisaligned, KeyMask::kFloats, random);
}

TEST_P(SelectionRows, CallsWithoutScores) {
  std::mt19937_64 random(23);
  for (const RowsShape& shape : {RowsShape{0, 2, 3, 4}, RowsShape{2, 0, 3, 4}, RowsShape{2, 2, 0, 4}}) {
    RowsCall call(std::get<0>(GetParam()), shape, Layout::kContiguous, KeyMask::kNone, random);
    EXPECT_TRUE(call.select(2, true, device()).empty());
  }
  RowsCall call(std::get<0>(GetParam()), {2, 2, 3, 0}, Layout::kContiguous, KeyMask::kNone, random);
  EXPECT_TRUE(call.select(2, true, device()).empty());
}

INSTANTIATE_TEST_SUITE_P(Cpu, SelectionRows,
                         testing::Combine(testing::ValuesIn(selection_cases()), testing::Values(int{FDMA_DEVICE_CPU})),
                         SelectionName());
INSTANTIATE_TEST_SUITE_P(Gpu, SelectionRows,
                         testing::Combine(testing::ValuesIn(selection_cases()), testing::Values(int{FDMA_DEVICE_CUDA})),
                         SelectionName());

// Rows for which the definition takes too long: the devices agree.
TEST(SelectionRowsGpu, LongRowsEqualThoseOfTheCpu) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  for (const SelectionCase& row : selection_cases()) {
    for (const int64_t len_k : {8192, 50021}) {
      std::mt19937_64 random(29), same(29);
      const RowsShape shape{1, 2, 67, len_k};
      RowsCall cpu(row, shape, Layout::kContiguous, KeyMask::kBytes, random);
      RowsCall gpu(row, shape, Layout::kContiguous, KeyMask::kBytes, same);
      for (const int64_t keep : {1, 777, 30000}) {
        ASSERT_EQ(cpu.select(keep, true, kCpu), gpu.select(keep, true, kCuda))
            << row.name << " Lk " << len_k << " keep " << keep;
      }
    }
  }
}

}  // namespace
}  // namespace fdma::test
