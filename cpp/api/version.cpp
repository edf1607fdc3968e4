#include "fdma/version.h"

#include <array>
#include <cstdio>

#include "build_config.hpp"
#include "cpu/tile_kernels.hpp"

int fdma_version(void) { return FDMA_VERSION_MAJOR * 10000 + FDMA_VERSION_MINOR * 100 + FDMA_VERSION_PATCH; }

const char* fdma_build_info(void) {
  static const auto info = [] {
    std::array<char, 512> text{};
    std::snprintf(text.data(), text.size(), "libfdma %d.%d.%d; %s; %s; CPU kernels %s", FDMA_VERSION_MAJOR,
                  FDMA_VERSION_MINOR, FDMA_VERSION_PATCH, FDMA_BUILD_COMPILER, FDMA_BUILD_CUDA,
                  fdma::cpu::tile_kernels().name);
    return text;
  }();
  return info.data();
}
