// Conversions, fast exponentials and the reduction over the four threads that share an accumulator row.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/core/math.hpp"
#include "kernels/core/params.hpp"

namespace fdma {

using half_t = __half;
using bfloat16_t = __nv_bfloat16;

template <typename T>
struct Element;
template <>
struct Element<half_t> {
  static constexpr ElementType kType = ElementType::kFloat16;
  FDMA_DEVICE static float to_float(half_t x) { return __half2float(x); }
  FDMA_DEVICE static half_t from_float(float x) { return __float2half_rn(x); }
  FDMA_DEVICE static uint32_t pack(float lo, float hi) {
    const __half2 pair = __floats2half2_rn(lo, hi);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  FDMA_DEVICE static float2 unpack(uint32_t pair) { return __half22float2(reinterpret_cast<const __half2&>(pair)); }
};
template <>
struct Element<bfloat16_t> {
  static constexpr ElementType kType = ElementType::kBFloat16;
  FDMA_DEVICE static float to_float(bfloat16_t x) { return __bfloat162float(x); }
  FDMA_DEVICE static bfloat16_t from_float(float x) { return __float2bfloat16_rn(x); }
  FDMA_DEVICE static uint32_t pack(float lo, float hi) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  FDMA_DEVICE static float2 unpack(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  }
};
template <>
struct Element<float> {
  static constexpr ElementType kType = ElementType::kFloat32;
  FDMA_DEVICE static float to_float(float x) { return x; }
  FDMA_DEVICE static float from_float(float x) { return x; }
};

// Element `index` of an array whose type is a run-time value.
FDMA_DEVICE float load_element(const void* data, ElementType type, int64_t index) {
  switch (type) {
    case ElementType::kFloat16:
      return Element<half_t>::to_float(static_cast<const half_t*>(data)[index]);
    case ElementType::kBFloat16:
      return Element<bfloat16_t>::to_float(static_cast<const bfloat16_t*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

FDMA_DEVICE void store_element(void* data, ElementType type, int64_t index, float value) {
  switch (type) {
    case ElementType::kFloat16:
      static_cast<half_t*>(data)[index] = Element<half_t>::from_float(value);
      break;
    case ElementType::kBFloat16:
      static_cast<bfloat16_t*>(data)[index] = Element<bfloat16_t>::from_float(value);
      break;
    default:
      static_cast<float*>(data)[index] = value;
  }
}

FDMA_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

FDMA_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 - 2 / (e^2x + 1): two special-function operations, absolute error below 3e-7 (tanh.approx has 5e-4).
FDMA_DEVICE float tanh_exp2(float x) { return 1.f - __fdividef(2.f, exp2_approx(2.f * kLog2e * x) + 1.f); }

// The four threads of a quad hold one row of an accumulator.
FDMA_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
FDMA_DEVICE float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

}  // namespace fdma
