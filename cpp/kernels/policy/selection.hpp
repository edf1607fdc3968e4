// The order in which selection prefers keys, shared by the CPU and CUDA so that they keep the same ones.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/core/math.hpp"

namespace fdma {

// Rank of a key that is never kept: behind all others.
inline constexpr uint32_t kNeverKept = 0xffffffffu;

// Falls as the bias rises: of two keys the one with the smaller rank is preferred, of equal ranks the newer key. Every
// 16-bit float is a float, and in the same order.
FDMA_HOST_DEVICE uint32_t selection_rank(float bias) {
  if (!(bias > -__builtin_huge_valf())) return kNeverKept;  // -inf and NaN
  const float value = bias + 0.0f;                          // -0.0 becomes 0.0
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t rising = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return ~rising;
}

// The same order among the floats of 16 bits, in 16 bits. `infinity`: the bits of infinity in their format.
inline constexpr uint32_t kNeverKept16 = 0xffffu;
FDMA_HOST_DEVICE uint32_t selection_rank16(uint32_t bits, uint32_t infinity) {
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude > infinity || bits == (infinity | 0x8000u)) return kNeverKept16;
  return 0xffffu - ((bits & 0x8000u) != 0 ? 0x8000u - magnitude : 0x8000u + magnitude);  // -0.0 is 0.0
}

}  // namespace fdma
