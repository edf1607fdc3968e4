#include "tests/support/selection_case.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/support/device_memory.hpp"

namespace fdma::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double normal(std::mt19937_64& random) { return std::normal_distribution<double>()(random); }

}  // namespace

const std::vector<SelectionCase>& selection_cases() {
  static const std::vector<SelectionCase> cases = {
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
  return cases;
}

void select_and_wait(const fdma_select_params& params) {
  ASSERT_EQ(fdma_select_supported(&params), FDMA_SUCCESS) << fdma_last_error_message();
  size_t bytes = 0;
  ASSERT_EQ(fdma_select_workspace_size(&params, &bytes), FDMA_SUCCESS) << fdma_last_error_message();
  DeviceMemory workspace(params.device, bytes);
  ASSERT_EQ(fdma_select(&params, workspace.data(), bytes, nullptr), FDMA_SUCCESS) << fdma_last_error_message();
  synchronize(params.device);
}

std::vector<int64_t> best_keys(int64_t limit, int64_t keep, const std::function<double(int64_t k)>& bias,
                               const std::function<bool(int64_t k)>& visible) {
  std::vector<int64_t> candidates;
  for (int64_t k = 0; k < limit; ++k) {
    if (visible(k) && !std::isnan(bias(k)) && bias(k) != -kInfinity) candidates.push_back(k);
  }
  std::sort(candidates.begin(), candidates.end(), [&](int64_t a, int64_t b) {
    const double x = bias(a), y = bias(b);
    return x != y ? x > y : a > b;
  });
  candidates.resize(std::min<size_t>(candidates.size(), static_cast<size_t>(keep)));
  std::sort(candidates.begin(), candidates.end());
  return candidates;
}

}  // namespace fdma::test
