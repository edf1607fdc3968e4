// Text of messages: values as a reader of the C headers would write them.
#pragma once

#include <sstream>
#include <string>

#include "fdma/types.h"

namespace fdma {

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// "(2, 64, 8, 128)" from the first `rank` values; a rank outside 0..FDMA_MAX_RANK is cut to it.
std::string tuple_text(const int64_t* values, int rank);

std::string shape_text(const fdma_tensor& tensor);
std::string stride_text(const fdma_tensor& tensor);

}  // namespace fdma
