// The one exception type of the library; cpp/api turns it into a status and a message.
#pragma once

#include <stdexcept>
#include <string>

#include "fdma/status.h"

namespace fdma {

class Error : public std::runtime_error {
 public:
  Error(fdma_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  fdma_status status() const { return status_; }

 private:
  fdma_status status_;
};

}  // namespace fdma
