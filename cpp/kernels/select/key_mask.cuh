// Masks over keys alone, of any dtype.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/macros.hpp"

namespace fdma {

// Whether an element of the key mask of selection params lets its key be kept.
template <typename Params>
FDMA_DEVICE bool is_visible(const Params& p, int64_t element) {
  switch (p.key_mask_bytes) {
    case 1:
      return static_cast<const uint8_t*>(p.key_mask)[element] != 0;
    case 2:
      return (static_cast<const uint16_t*>(p.key_mask)[element] & (p.key_mask_is_float ? 0x7fffu : 0xffffu)) != 0;
    case 4:
      return (static_cast<const uint32_t*>(p.key_mask)[element] & (p.key_mask_is_float ? 0x7fffffffu : ~0u)) != 0;
    default:
      return (static_cast<const uint64_t*>(p.key_mask)[element] & (p.key_mask_is_float ? ~0ull >> 1 : ~0ull)) != 0;
  }
}

}  // namespace fdma
