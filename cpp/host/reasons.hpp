// Why a call cannot run: every reason is collected, so that a caller sees all of them at once.
#pragma once

#include <string>

#include "host/error.hpp"

namespace fdma {

class Reasons {
 public:
  void add(fdma_status status, const std::string& text) {
    if (status_ == FDMA_SUCCESS) status_ = status;
    text_ += (text_.empty() ? "" : "\n") + text;
  }

  bool empty() const { return status_ == FDMA_SUCCESS; }

  // The status of the first reason, the text of all, one a line.
  void throw_if_any() const {
    if (!empty()) throw Error(status_, text_);
  }

 private:
  fdma_status status_ = FDMA_SUCCESS;
  std::string text_;
};

}  // namespace fdma
