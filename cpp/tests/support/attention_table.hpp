// Tables of attention cases as parameterised tests, on each device and dtype.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "tests/support/attention_case.hpp"

namespace fdma::test {

using AttentionParameter = std::tuple<AttentionCase, fdma_dtype, fdma_device_type>;

// Skips where the device of its parameter is not there.
class AttentionTable : public testing::TestWithParam<AttentionParameter> {
 protected:
  void SetUp() override;
  // Forward, and backward where the case asks for a gradient, against the reference.
  void expect_matches_reference() const;
};

// Case and dtype.
std::string parameter_name(const testing::TestParamInfo<AttentionParameter>& info);

inline auto on_cpu(std::vector<AttentionCase> cases) {
  return testing::Combine(testing::ValuesIn(std::move(cases)),
                          testing::Values(FDMA_FLOAT32, FDMA_FLOAT16, FDMA_BFLOAT16), testing::Values(FDMA_DEVICE_CPU));
}

inline auto on_gpu(std::vector<AttentionCase> cases) {
  return testing::Combine(testing::ValuesIn(std::move(cases)), testing::Values(FDMA_FLOAT16, FDMA_BFLOAT16),
                          testing::Values(FDMA_DEVICE_CUDA));
}

// "_<b>_<h>_<q>_<k>" and shape of each way to broadcast a mask or bias: 1, n = full, kv = key heads.
std::vector<std::pair<std::string, ScoreShape>> all_broadcasts();

}  // namespace fdma::test
