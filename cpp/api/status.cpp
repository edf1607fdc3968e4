#include "fdma/status.h"

#include <string>

#include "api/guard.hpp"

namespace fdma {
namespace {

thread_local std::string last_error_text;
thread_local const char* last_error = "";

}  // namespace

void set_last_error(const char* text) noexcept {
  try {
    last_error_text = text;
    last_error = last_error_text.c_str();
  } catch (const std::bad_alloc&) {
    last_error = "out of host memory";
  }
}

}  // namespace fdma

const char* fdma_status_name(fdma_status status) {
  switch (status) {
    case FDMA_SUCCESS:
      return "FDMA_SUCCESS";
    case FDMA_INVALID_ARGUMENT:
      return "FDMA_INVALID_ARGUMENT";
    case FDMA_INVALID_SHAPE:
      return "FDMA_INVALID_SHAPE";
    case FDMA_INVALID_DTYPE:
      return "FDMA_INVALID_DTYPE";
    case FDMA_INVALID_LAYOUT:
      return "FDMA_INVALID_LAYOUT";
    case FDMA_INVALID_WORKSPACE:
      return "FDMA_INVALID_WORKSPACE";
    case FDMA_UNSUPPORTED:
      return "FDMA_UNSUPPORTED";
    case FDMA_UNSUPPORTED_DEVICE:
      return "FDMA_UNSUPPORTED_DEVICE";
    case FDMA_CUDA_ERROR:
      return "FDMA_CUDA_ERROR";
    case FDMA_INTERNAL_ERROR:
      return "FDMA_INTERNAL_ERROR";
  }
  return "FDMA_UNKNOWN_STATUS";
}

const char* fdma_last_error_message(void) { return fdma::last_error; }
