// From the words of the host to those of the kernels.
#pragma once

#include <cstdint>

#include "host/dtype.hpp"
#include "host/error.hpp"
#include "host/text.hpp"
#include "kernels/core/params.hpp"

namespace fdma::cuda {

inline constexpr DtypeSet kFloatDtypes(FDMA_FLOAT16, FDMA_BFLOAT16, FDMA_FLOAT32, FDMA_FLOAT64);

inline ElementType element_type(fdma_dtype dtype) {
  switch (dtype) {
    case FDMA_FLOAT16:
      return ElementType::kFloat16;
    case FDMA_BFLOAT16:
      return ElementType::kBFloat16;
    default:
      return ElementType::kFloat32;
  }
}

// Lengths stay clear of 2^31 by more than a tile, so that kernels may round them up in 32 bits.
inline int32_t narrow(int64_t value, const char* name) {
  constexpr int64_t kLimit = (int64_t{1} << 31) - 4096;
  if (value >= kLimit) {
    throw Error(FDMA_UNSUPPORTED, concat(name, " is ", value, "; accepted on CUDA: less than ", kLimit));
  }
  return static_cast<int32_t>(value);
}

}  // namespace fdma::cuda
