// The bounded cache against its definition: after every append it holds the best of all tokens so far.
#include "fdma/cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "tests/support/selection_case.hpp"
#include "tests/support/tensor.hpp"

namespace fdma::test {
namespace {

constexpr int64_t kBatch = 2, kHeads = 2, kDim = 8, kRows = kBatch * kHeads;

template <typename Params>
using Call = fdma_status (*)(const Params*, void*, size_t, fdma_stream);

template <typename Params>
void call_and_wait(const Params& params, fdma_status (*workspace_size)(const Params*, size_t*), Call<Params> call) {
  size_t bytes = 0;
  ASSERT_EQ(workspace_size(&params, &bytes), FDMA_SUCCESS) << fdma_last_error_message();
  DeviceMemory workspace(params.device, bytes);
  ASSERT_EQ(call(&params, workspace.data(), bytes, nullptr), FDMA_SUCCESS) << fdma_last_error_message();
  synchronize(params.device);
}

// Keys, values, biases and positions of `length` slots or tokens of each row.
struct Tokens {
  Tokens() = default;
  Tokens(fdma_dtype dtype, fdma_dtype bias_dtype, int64_t length, Layout layout)
      : key(dtype, {kBatch, length, kHeads, kDim}, layout),
        value(dtype, {kBatch, length, kHeads, kDim}, layout),
        bias(bias_dtype, {kBatch, kHeads, length}, layout == Layout::kHeadsFirst ? Layout::kContiguous : layout),
        position(FDMA_INT64, {kBatch, kHeads, length}) {}

  std::vector<Tensor*> tensors() { return {&key, &value, &bias, &position}; }
  void upload(fdma_device device) {
    for (Tensor* tensor : tensors()) tensor->upload(device);
  }
  void download() {
    for (Tensor* tensor : tensors()) {
      tensor->download();
      EXPECT_TRUE(tensor->surroundings_untouched());
    }
  }
  int64_t length() const { return bias.shape()[2]; }
  // Elements of row r = batch * heads + head.
  double bias_of(int64_t r, int64_t i) const { return bias.get(r * length() + i); }
  double position_of(int64_t r, int64_t i) const { return position.get(r * length() + i); }
  static std::vector<double> row_of(const Tensor& tensor, int64_t r, int64_t i) {
    const int64_t row = (r / kHeads * tensor.shape()[1] + i) * kHeads + r % kHeads;
    std::vector<double> elements;
    for (int64_t d = 0; d < kDim; ++d) elements.push_back(tensor.get(row * kDim + d));
    return elements;
  }

  Tensor key, value, bias, position;
};

// A cache and all tokens that were ever appended to it.
class CacheRun {
 public:
  CacheRun(const SelectionCase& row, fdma_device device, int64_t slots, int64_t length, std::mt19937_64& random,
           Layout layout)
      : device_(device),
        dtype_(row.dtype == FDMA_FLOAT32 ? FDMA_BFLOAT16 : row.dtype),
        layout_(layout),
        all_(dtype_, row.dtype, length, Layout::kContiguous),
        cache_(dtype_, row.dtype, slots, layout) {
    fill_normal(all_.key, random);
    fill_normal(all_.value, random);
    for (int64_t i = 0; i < all_.bias.size(); ++i) all_.bias.set(i, row.value(random, i % length));
    for (int64_t i = 0; i < cache_.key.size(); ++i) cache_.key.set(i, 0), cache_.value.set(i, 0);
    for (int64_t i = 0; i < cache_.bias.size(); ++i) {
      cache_.bias.set(i, -std::numeric_limits<double>::infinity());
      cache_.position.set(i, -1);
    }
    cache_.upload(device_);
  }

  int64_t appended() const { return appended_; }
  const Tokens& cache() const { return cache_; }

  // Sequence b begins at position begin + b * stagger. With `on_device` the library keeps count.
  void append(int64_t tokens, bool on_device, int64_t begin = 0, int64_t stagger = 0) {
    Tokens chunk = cut(tokens);
    fdma_cache_append_params params;
    fdma_cache_append_params_init(&params);
    params.device = device_;
    params.cache = {cache_.key.describe(), cache_.value.describe(), cache_.bias.describe(), cache_.position.describe()};
    params.key = chunk.key.describe();
    params.value = chunk.value.describe();
    params.bias = chunk.bias.describe();
    Tensor next(FDMA_INT64, {kBatch});
    for (int64_t b = 0; b < kBatch; ++b) next.set(b, static_cast<double>(begin + b * stagger + appended_));
    next.upload(device_);
    if (on_device) {
      params.next_position = next.describe();
    } else {
      params.first_position = begin + appended_;
    }
    ASSERT_EQ(fdma_cache_append_supported(&params), FDMA_SUCCESS) << fdma_last_error_message();
    call_and_wait(params, fdma_cache_append_workspace_size, fdma_cache_append);
    for (Tensor* input : {&chunk.key, &chunk.value, &chunk.bias}) EXPECT_TRUE(input->unchanged_on_device());
    cache_.download();
    begin_ = begin, stagger_ = on_device ? stagger : 0;
    appended_ += tokens;
    if (!on_device) return;
    next.download();
    for (int64_t b = 0; b < kBatch; ++b) EXPECT_EQ(next.get(b), begin + b * stagger + appended_);
  }

  void expect_best() const {
    for (int64_t r = 0; r < kRows; ++r) expect_row(r);
  }

  void expect_gathered(bool with_position) {
    Tokens sorted(dtype_, cache_.bias.dtype(), cache_.length(), layout_);
    for (Tensor* output : sorted.tensors()) output->refill(device_);
    fdma_cache_gather_params params;
    fdma_cache_gather_params_init(&params);
    params.device = device_;
    params.cache = {cache_.key.describe(), cache_.value.describe(), cache_.bias.describe(), cache_.position.describe()};
    params.key = sorted.key.describe();
    params.value = sorted.value.describe();
    params.bias = sorted.bias.describe();
    if (with_position) params.position = sorted.position.describe();
    ASSERT_EQ(fdma_cache_gather_supported(&params), FDMA_SUCCESS) << fdma_last_error_message();
    call_and_wait(params, fdma_cache_gather_workspace_size, fdma_cache_gather);
    for (Tensor* input : cache_.tensors()) EXPECT_TRUE(input->unchanged_on_device());
    sorted.download();
    for (int64_t r = 0; r < kRows; ++r) expect_gathered_row(sorted, r, with_position);
  }

 private:
  Tokens cut(int64_t tokens) const {
    Tokens chunk(dtype_, all_.bias.dtype(), tokens, layout_);
    const int64_t row = kHeads * kDim;
    for (int64_t i = 0; i < chunk.key.size(); ++i) {
      const int64_t from = (i / row / tokens * all_.length() + i / row % tokens + appended_) * row + i % row;
      chunk.key.set(i, all_.key.get(from));
      chunk.value.set(i, all_.value.get(from));
    }
    for (int64_t i = 0; i < chunk.bias.size(); ++i) {
      chunk.bias.set(i, all_.bias_of(i / tokens, i % tokens + appended_));
    }
    chunk.upload(device_);
    return chunk;
  }

  int64_t token_at(int64_t r, double position) const {
    return static_cast<int64_t>(position) - begin_ - r / kHeads * stagger_;
  }

  void expect_row(int64_t r) const {
    const std::vector<int64_t> expected = best_keys(
        appended_, cache_.length(), [&](int64_t k) { return all_.bias_of(r, k); }, [](int64_t) { return true; });
    std::vector<int64_t> actual;
    for (int64_t slot = 0; slot < cache_.length(); ++slot) {
      if (cache_.position_of(r, slot) < 0) {
        ASSERT_EQ(cache_.bias_of(r, slot), -std::numeric_limits<double>::infinity());
        ASSERT_EQ(Tokens::row_of(cache_.key, r, slot), std::vector<double>(kDim, 0.0));
        continue;
      }
      const int64_t token = token_at(r, cache_.position_of(r, slot));
      actual.push_back(token);
      ASSERT_EQ(cache_.bias_of(r, slot), all_.bias_of(r, token));
      ASSERT_EQ(std::signbit(cache_.bias_of(r, slot)), std::signbit(all_.bias_of(r, token)));
      ASSERT_EQ(Tokens::row_of(cache_.key, r, slot), Tokens::row_of(all_.key, r, token));
      ASSERT_EQ(Tokens::row_of(cache_.value, r, slot), Tokens::row_of(all_.value, r, token));
    }
    std::sort(actual.begin(), actual.end());
    ASSERT_EQ(actual, expected) << "row " << r << ", " << cache_.length() << " slots, " << appended_ << " tokens";
  }

  void expect_gathered_row(const Tokens& sorted, int64_t r, bool with_position) const {
    std::map<double, int64_t> slots;  // of tokens, by position
    for (int64_t slot = 0; slot < cache_.length(); ++slot) {
      if (cache_.position_of(r, slot) >= 0) slots[cache_.position_of(r, slot)] = slot;
    }
    const int64_t empty = cache_.length() - static_cast<int64_t>(slots.size());
    for (int64_t i = 0; i < empty; ++i) {
      ASSERT_EQ(Tokens::row_of(sorted.key, r, i), std::vector<double>(kDim, 0.0));
      ASSERT_EQ(Tokens::row_of(sorted.value, r, i), std::vector<double>(kDim, 0.0));
      ASSERT_EQ(sorted.bias_of(r, i), -std::numeric_limits<double>::infinity());
      if (with_position) {
        ASSERT_EQ(sorted.position_of(r, i), -1);
      }
    }
    int64_t i = empty;
    for (const auto& [position, slot] : slots) {
      ASSERT_EQ(Tokens::row_of(sorted.key, r, i), Tokens::row_of(cache_.key, r, slot));
      ASSERT_EQ(Tokens::row_of(sorted.value, r, i), Tokens::row_of(cache_.value, r, slot));
      ASSERT_EQ(sorted.bias_of(r, i), cache_.bias_of(r, slot));
      if (with_position) {
        ASSERT_EQ(sorted.position_of(r, i), position);
      }
      ++i;
    }
  }

  fdma_device device_;
  fdma_dtype dtype_;
  Layout layout_;
  Tokens all_, cache_;
  int64_t appended_ = 0, begin_ = 0, stagger_ = 0;
};

class Cache : public testing::TestWithParam<std::tuple<SelectionCase, int>> {
 protected:
  void SetUp() override {
    const std::string reason = unavailable_reason(device());
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
  static fdma_device device() { return std::get<1>(GetParam()) == FDMA_DEVICE_CPU ? kCpu : kCuda; }

  // Appends of the given sizes, in turn, until `length` tokens are in; checked after each.
  void run(int64_t slots, const std::vector<int64_t>& sizes, int64_t length, Layout layout) {
    CacheRun run(std::get<0>(GetParam()), device(), slots, length, random_, layout);
    for (size_t i = 0; run.appended() < length; ++i) {
      run.append(std::min(sizes[i % sizes.size()], length - run.appended()), slots % 2 == 0, 5, 100);
      run.expect_best();
      if (HasFatalFailure()) return;
    }
    run.expect_gathered(slots % 3 != 0);
  }

  std::mt19937_64 random_{17};
};

TEST_P(Cache, HoldsTheBestTokensHoweverTheyCome) {
  const std::vector<int64_t> splits[] = {{1}, {3}, {16}, {17}, {64}, {1, 17, 3, 40}, {20, 1, 1, 1}};
  for (const int64_t slots : {1, 2, 3, 7, 16, 33, 100}) {
    for (const auto& sizes : splits) {
      run(slots, sizes, 64, slots % 2 == 0 ? Layout::kContiguous : Layout::kMisaligned);
      if (HasFatalFailure()) return;
    }
  }
  run(5, {2, 30}, 64, Layout::kHeadsFirst);
}

TEST_P(Cache, NothingAppendedChangesNothing) {
  CacheRun run(std::get<0>(GetParam()), device(), 4, 6, random_, Layout::kContiguous);
  run.append(6, true);
  const std::vector<double> before = run.cache().position.values();
  run.append(0, true);
  EXPECT_EQ(run.cache().position.values(), before);
  run.expect_best();
}

// Rows that take several passes of every kernel.
TEST_P(Cache, ManySlots) {
  run(1500, {4000, 1, 16, 900, 3}, 6000, Layout::kContiguous);
  run(3000, {2500, 17, 5}, 2600, Layout::kContiguous);
}

INSTANTIATE_TEST_SUITE_P(Cpu, Cache,
                         testing::Combine(testing::ValuesIn(selection_cases()), testing::Values(int{FDMA_DEVICE_CPU})),
                         SelectionName());
INSTANTIATE_TEST_SUITE_P(Gpu, Cache,
                         testing::Combine(testing::ValuesIn(selection_cases()), testing::Values(int{FDMA_DEVICE_CUDA})),
                         SelectionName());

// Few calls, for the sanitizers.
TEST(CacheGpu, EachPathOnce) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  std::mt19937_64 random(19);
  for (const SelectionCase& row : selection_cases()) {
    CacheRun run(row, kCuda, 1100, 1400, random, Layout::kMisaligned);
    for (const int64_t tokens : {1300, 1, 3, 96}) {
      run.append(tokens, true);
      run.expect_best();
    }
    run.expect_gathered(true);
  }
}

}  // namespace
}  // namespace fdma::test
