#include "tests/support/compare.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/dtype.hpp"

namespace fdma::test {

void expect_close(const char* name, const Tensor& actual, const std::vector<double>& exact,
                  const std::vector<double>& eager, double noise) {
  if (!actual.given()) return;
  ASSERT_EQ(static_cast<size_t>(actual.size()), exact.size()) << name;
  double eager_error = 0.0, error = 0.0, largest = 0.0;
  int64_t worst = -1;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double value = actual.get(static_cast<int64_t>(i));
    if (!std::isfinite(exact[i])) {
      ASSERT_TRUE(value == exact[i] || (std::isnan(value) && std::isnan(exact[i])))
          << name << '[' << i << "] is " << value << ", expected " << exact[i];
      continue;
    }
    ASSERT_TRUE(std::isfinite(value)) << name << '[' << i << "] is " << value << ", expected " << exact[i];
    largest = std::max(largest, std::fabs(exact[i]));
    eager_error = std::max(eager_error, std::fabs(rounded(eager[i], actual.dtype()) - exact[i]));
    if (std::fabs(value - exact[i]) > error) {
      error = std::fabs(value - exact[i]);
      worst = static_cast<int64_t>(i);
    }
  }
  const double small = 2.0 * unit_roundoff(actual.dtype()) * std::max(largest, 0.1);
  EXPECT_LE(error, 2.0 * eager_error + small + noise)
      << name << '[' << worst << "] is " << (worst < 0 ? 0.0 : actual.get(worst)) << ", expected "
      << (worst < 0 ? 0.0 : exact[static_cast<size_t>(worst)]) << "; eager error " << eager_error << ", noise "
      << noise;
}

}  // namespace fdma::test
