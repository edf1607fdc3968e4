// Integer and constant helpers shared by host and device.
#pragma once

#include <cstdint>

#include "kernels/core/macros.hpp"

namespace fdma {

inline constexpr float kLog2e = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.69314718055994530942f;

template <typename T>
FDMA_HOST_DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

template <typename T>
FDMA_HOST_DEVICE constexpr T round_up(T a, T b) {
  return ceil_div(a, b) * b;
}

template <typename T>
FDMA_HOST_DEVICE constexpr T min_of(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
FDMA_HOST_DEVICE constexpr T max_of(T a, T b) {
  return a > b ? a : b;
}

}  // namespace fdma
