#include "fdma/version.h"

#include "build_config.hpp"

#define FDMA_TEXT_OF(value) #value
#define FDMA_TEXT(value) FDMA_TEXT_OF(value)

int fdma_version(void) { return FDMA_VERSION_MAJOR * 10000 + FDMA_VERSION_MINOR * 100 + FDMA_VERSION_PATCH; }

const char* fdma_build_info(void) {
  return "libfdma " FDMA_TEXT(FDMA_VERSION_MAJOR) "." FDMA_TEXT(FDMA_VERSION_MINOR) "." FDMA_TEXT(
      FDMA_VERSION_PATCH) "; " FDMA_BUILD_COMPILER "; " FDMA_BUILD_CUDA;
}
