// A table row of refusals: what is broken, and what the library then says.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>

#include "fdma/status.h"

namespace fdma::testing {

template <typename Call>
struct Refusal {
  const char* name;
  std::function<void(Call&)> break_it;
  fdma_status status;
  const char* message;  // the whole of it: argument, value and what is accepted
};

// gtest would print the bytes of the row otherwise.
template <typename Call>
std::ostream& operator<<(std::ostream& stream, const Refusal<Call>& row) {
  return stream << row.name;
}

// The last error message contains both parts; for messages with an address between them.
inline void expect_message_has(const char* first, const char* second) {
  const std::string message = fdma_last_error_message();
  EXPECT_NE(message.find(first), std::string::npos) << message;
  EXPECT_NE(message.find(second), std::string::npos) << message;
}

struct RefusalName {
  template <typename Info>
  std::string operator()(const Info& info) const {
    return info.param.name;
  }
};

}  // namespace fdma::testing
