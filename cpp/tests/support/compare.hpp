// The comparison rule of this project.
#pragma once

#include <vector>

#include "tests/support/tensor.hpp"

namespace fdma::test {

// Infinities and NaN where `exact` has them, and at no element an error above twice the largest of `eager`, the same
// computation step by step in the same dtype, plus two roundings of the largest value and `noise`. A tensor that is not
// given passes. Failures are reported to the test that runs.
void expect_close(const char* name, const Tensor& actual, const std::vector<double>& exact,
                  const std::vector<double>& eager, double noise = 0.0);

}  // namespace fdma::test
