// Selection against its definition, position by position, and one device against the other.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "fdma/select.h"
#include "tests/support/dtype.hpp"
#include "tests/support/tensor.hpp"

namespace fdma::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct SelectionCase {
  const char* name;
  fdma_dtype dtype;
  std::function<double(std::mt19937_64&, int64_t k)> value;
};

std::ostream& operator<<(std::ostream& stream, const SelectionCase& row) { return stream << row.name; }

double normal(std::mt19937_64& random) { return std::normal_distribution<double>()(random); }

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
    std::vector<int64_t> candidates;
    for (int64_t k = 0; k <= p; ++k) {
      const double bias = bias_.get(row * keys + k);
      if (mask_.given() && mask_.get(batch * keys + k) == 0) continue;
      if (!std::isnan(bias) && bias != -kInfinity) candidates.push_back(k);
    }
    std::sort(candidates.begin(), candidates.end(), [&](int64_t a, int64_t b) {
      const double x = bias_.get(row * keys + a), y = bias_.get(row * keys + b);
      return x != y ? x > y : a > b;
    });
    candidates.resize(std::min<size_t>(candidates.size(), static_cast<size_t>(keep_)));
    std::sort(candidates.begin(), candidates.end());
    return candidates;
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
    ASSERT_EQ(fdma_select_supported(&params), FDMA_SUCCESS) << fdma_last_error_message();
    size_t bytes = 0;
    ASSERT_EQ(fdma_select_workspace_size(&params, &bytes), FDMA_SUCCESS) << fdma_last_error_message();
    DeviceMemory workspace(device_, bytes);
    ASSERT_EQ(fdma_select(&params, workspace.data(), bytes, nullptr), FDMA_SUCCESS) << fdma_last_error_message();
    synchronize(device_);
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

const SelectionCase kCases[] = {
    {"normal_float32", FDMA_FLOAT32, [](std::mt19937_64& random, int64_t) { return normal(random); }},
    {"normal_bfloat16", FDMA_BFLOAT16, [](std::mt19937_64& random, int64_t) { return normal(random); }},
    {"normal_float16", FDMA_FLOAT16, [](std::mt19937_64& random, int64_t) { return normal(random); }},
    {"ties_bfloat16", FDMA_BFLOAT16,
     [](std::mt19937_64& random, int64_t) { return static_cast<double>(random() % 5) - 2.0; }},
    {"signed_zeros_float32", FDMA_FLOAT32,
     [](std::mt19937_64& random, int64_t) { return random() % 2 == 0 ? -0.0 : 0.0; }},
    {"constant_float16", FDMA_FLOAT16, [](std::mt19937_64&, int64_t) { return -1.5; }},
    {"rising_float32", FDMA_FLOAT32, [](std::mt19937_64&, int64_t k) { return static_cast<double>(k); }},
    {"falling_float32", FDMA_FLOAT32, [](std::mt19937_64&, int64_t k) { return -static_cast<double>(k); }},
    {"specials_float32", FDMA_FLOAT32,
     [](std::mt19937_64& random, int64_t) {
       const double values[] = {-kInfinity, kInfinity, std::nan(""), 1e-45, -1e-45, 3e38, -3e38, 0.0};
       return values[random() % 8];
     }},
    {"hidden_float16", FDMA_FLOAT16, [](std::mt19937_64&, int64_t) { return -kInfinity; }},
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

struct SelectionName {
  template <typename Info>
  std::string operator()(const Info& info) const {
    return std::get<0>(info.param).name;
  }
};

INSTANTIATE_TEST_SUITE_P(Cpu, Selection,
                         testing::Combine(testing::ValuesIn(kCases), testing::Values(int{FDMA_DEVICE_CPU})),
                         SelectionName());
INSTANTIATE_TEST_SUITE_P(Gpu, Selection,
                         testing::Combine(testing::ValuesIn(kCases), testing::Values(int{FDMA_DEVICE_CUDA})),
                         SelectionName());

// Rows longer than one pass of every kernel, where the definition takes too long: the devices agree.
TEST(SelectionGpu, LongRowsEqualThoseOfTheCpu) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  for (const SelectionCase& row : kCases) {
    for (const int64_t keys : {8192, 50021}) {
      for (const int64_t keep : {1, 777, 30000}) {
        std::mt19937_64 random(13), same(13);
        SelectionCall cpu(row, {1, 2, keys}, keep, true, random, kCpu), gpu(row, {1, 2, keys}, keep, true, same, kCuda);
        ASSERT_EQ(cpu.end().values(), gpu.end().values()) << row.name << " keys " << keys << " keep " << keep;
        Tensor cpu_columns, cpu_counts, gpu_columns, gpu_counts;
        cpu.columns(cpu_columns, cpu_counts);
        gpu.columns(gpu_columns, gpu_counts);
        ASSERT_EQ(cpu_columns.values(), gpu_columns.values()) << row.name << " keys " << keys << " keep " << keep;
        ASSERT_EQ(cpu_counts.values(), gpu_counts.values());
      }
    }
  }
}

}  // namespace
}  // namespace fdma::test
