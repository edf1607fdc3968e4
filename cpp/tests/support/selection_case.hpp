// Biases to select from, and the definition of what is kept.
#pragma once

#include <cstdint>
#include <functional>
#include <ostream>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "fdma/select.h"

namespace fdma::test {

struct SelectionCase {
  const char* name;
  fdma_dtype dtype;
  std::function<double(std::mt19937_64&, int64_t k)> value;  // of key k
};

inline std::ostream& operator<<(std::ostream& stream, const SelectionCase& row) { return stream << row.name; }

const std::vector<SelectionCase>& selection_cases();

// Names tests of (case, device).
struct SelectionName {
  template <typename Info>
  std::string operator()(const Info& info) const {
    return std::get<0>(info.param).name;
  }
};

// Asks for support, then for scratch, selects and waits for the device. Any status but success fails the test.
void select_and_wait(const fdma_select_params& params);

// The `keep` keys before `limit` that one query keeps, in rising order, straight from the definition.
std::vector<int64_t> best_keys(int64_t limit, int64_t keep, const std::function<double(int64_t k)>& bias,
                               const std::function<bool(int64_t k)>& visible);

}  // namespace fdma::test
