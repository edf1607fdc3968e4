// Selection against its definition, position by position, and one device against the other.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "fdma/select.h"
#include "tests/support/selection_case.hpp"
#include "tests/support/tensor.hpp"

namespace fdma::test {
namespace {

// One call and what it selects.
class SelectionCall {
 public:
  SelectionCall(const SelectionCase& row, Shape shape, int64_t keep, bool masked, std::mt19937_64& random,
                fdma_device device)
      : device_(device), keep_(keep), bias_(row.dtype, shape, Layout::kMisaligned) {
    for (int64_t i = 0; i < bias_.size(); ++i) bias_.set(i, row.value(random, i % shape[2]));
    bias_.upload(device_);
    if (!masked) return;
    mask_ = Tensor(FDMA_INT16, {shape[0], shape[2]});
    for (int64_t i = 0; i < mask_.size(); ++i) mask_.set(i, random() % 4 != 0 ? 1.0 : 0.0);
    mask_.upload(device_);
  }

  Tensor end() {
    Tensor end(FDMA_INT32, bias_.shape());
    run(&end, nullptr, nullptr);
    return end;
  }

  void columns(Tensor& columns, Tensor& counts) {
    const Shape& shape = bias_.shape();
    columns = Tensor(FDMA_INT32, {shape[0], shape[1], std::min(keep_, shape[2])});
    counts = Tensor(FDMA_INT32, {shape[0], shape[1]});
    run(nullptr, &columns, &counts);
  }

  // What position p of a row keeps, in rising order, straight from the definition.
  std::vector<int64_t> kept(int64_t row, int64_t p) const {
    const int64_t keys = bias_.shape()[2];
    const int64_t batch = row / bias_.shape()[1];
    return best_keys(
        p + 1, keep_, [&](int64_t k) { return bias_.get(row * keys + k); },
        [&](int64_t k) { return !mask_.given() || mask_.get(batch * keys + k) != 0; });
  }

  int64_t rows() const { return bias_.shape()[0] * bias_.shape()[1]; }
  int64_t keys() const { return bias_.shape()[2]; }

 private:
  void run(Tensor* end, Tensor* columns, Tensor* counts) {
    fdma_select_params params;
    fdma_select_params_init(&params);
    params.device = device_;
    params.bias = bias_.describe();
    params.keep_window_size = keep_;
    if (mask_.given()) params.key_mask = mask_.describe();
    for (Tensor* output : {end, columns, counts}) {
      if (output != nullptr) output->refill(device_);
    }
    if (end != nullptr) params.end = end->describe();
    if (columns != nullptr) params.columns = columns->describe();
    if (counts != nullptr) params.counts = counts->describe();
    select_and_wait(params);
    for (Tensor* output : {end, columns, counts}) {
      if (output == nullptr) continue;
      output->download();
      EXPECT_TRUE(output->surroundings_untouched());
    }
  }

  fdma_device device_;
  int64_t keep_;
  Tensor bias_, mask_;
};

class Selection : public testing::TestWithParam<std::tuple<SelectionCase, int>> {
 protected:
  void SetUp() override {
    const std::string reason = unavailable_reason(device());
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
  static fdma_device device() { return std::get<1>(GetParam()) == FDMA_DEVICE_CPU ? kCpu : kCuda; }
};

TEST_P(Selection, EveryPositionKeepsItsBestKeys) {
  const SelectionCase& row = std::get<0>(GetParam());
  std::mt19937_64 random(7);
  for (int64_t keys = 0; keys < 40; ++keys) {
    for (const int64_t keep : {int64_t{1}, int64_t{2}, keys / 3 + 1, keys - 1, keys, keys + 3}) {
      if (keep < 1) continue;
      SelectionCall call(row, {2, 3, keys}, keep, keys % 2 == 1, random, device());
      const Tensor end = call.end();
      for (int64_t i = 0; i < call.rows(); ++i) {
        for (int64_t p = 0; p < keys; ++p) {
          std::vector<int64_t> actual;
          for (int64_t k = 0; k <= p; ++k) {
            if (p < end.get(i * keys + k)) actual.push_back(k);
          }
          ASSERT_EQ(actual, call.kept(i, p)) << "keys " << keys << " keep " << keep << " row " << i << " p " << p;
        }
      }
    }
  }
}

TEST_P(Selection, ColumnsAreTheBestOfAllKeys) {
  const SelectionCase& row = std::get<0>(GetParam());
  std::mt19937_64 random(11);
  for (const int64_t keys : {0, 1, 2, 31, 32, 33, 100, 1024, 1500}) {
    for (const int64_t keep : {int64_t{1}, keys / 2 + 1, keys + 1}) {
      SelectionCall call(row, {2, 2, keys}, keep, keys % 2 == 0, random, device());
      Tensor columns, counts;
      call.columns(columns, counts);
      const int64_t width = columns.shape()[2];
      for (int64_t i = 0; i < call.rows(); ++i) {
        const std::vector<int64_t> expected = call.kept(i, keys - 1);
        ASSERT_EQ(counts.get(i), static_cast<double>(expected.size()));
        for (int64_t c = 0; c < width; ++c) {
          const double wanted = c < counts.get(i) ? static_cast<double>(expected[static_cast<size_t>(c)]) : -1.0;
          ASSERT_EQ(columns.get(i * width + c), wanted) << "keys " << keys << " keep " << keep << " column " << c;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, Selection,
                         testing::Combine(testing::ValuesIn(selection_cases()), testing::Values(int{FDMA_DEVICE_CPU})),
                         SelectionName());
INSTANTIATE_TEST_SUITE_P(Gpu, Selection,
                         testing::Combine(testing::ValuesIn(selection_cases()), testing::Values(int{FDMA_DEVICE_CUDA})),
                         SelectionName());

// Rows longer than one pass of every kernel, where the definition takes too long.
void expect_devices_agree(const SelectionCase& row, int64_t keys, int64_t keep) {
  std::mt19937_64 random(13), same(13);
  SelectionCall cpu(row, {1, 2, keys}, keep, true, random, kCpu), gpu(row, {1, 2, keys}, keep, true, same, kCuda);
  ASSERT_EQ(cpu.end().values(), gpu.end().values()) << row.name << " keys " << keys << " keep " << keep;
  Tensor cpu_columns, cpu_counts, gpu_columns, gpu_counts;
  cpu.columns(cpu_columns, cpu_counts);
  gpu.columns(gpu_columns, gpu_counts);
  ASSERT_EQ(cpu_columns.values(), gpu_columns.values()) << row.name << " keys " << keys << " keep " << keep;
  ASSERT_EQ(cpu_counts.values(), gpu_counts.values());
}

TEST(SelectionGpu, LongRowsEqualThoseOfTheCpu) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  for (const SelectionCase& row : selection_cases()) {
    for (const int64_t keys : {8192, 50021}) {
      for (const int64_t keep : {1, 777, 30000}) expect_devices_agree(row, keys, keep);
    }
  }
}

// Few calls, for the sanitizers.
TEST(SelectionGpu, OneRowOfEachKind) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  for (const SelectionCase& row : selection_cases()) expect_devices_agree(row, 9001, 500);
}

}  // namespace
}  // namespace fdma::test
