// Names, sizes and sets of dtypes.
#pragma once

#include <cstdint>
#include <string>

#include "fdma/types.h"

namespace fdma {

// Bytes of one element; 0 for FDMA_DTYPE_NONE and for numbers that are no dtype.
int64_t dtype_size(fdma_dtype dtype);

// "float16", "bool"; "unknown dtype 7" for numbers that are no dtype.
std::string dtype_name(fdma_dtype dtype);

// A set of dtypes as a bit mask over the values of fdma_dtype.
class DtypeSet {
 public:
  template <typename... Dtypes>
  explicit constexpr DtypeSet(Dtypes... dtypes) : bits_((0u | ... | (1u << dtypes))) {}

  bool contains(fdma_dtype dtype) const;
  std::string names() const;  // "float16, bfloat16"

 private:
  uint32_t bits_;
};

inline constexpr DtypeSet kCudaDtypes(FDMA_FLOAT16, FDMA_BFLOAT16);
inline constexpr DtypeSet kCpuDtypes(FDMA_FLOAT16, FDMA_BFLOAT16, FDMA_FLOAT32);
inline constexpr DtypeSet kBiasDtypes(FDMA_FLOAT16, FDMA_BFLOAT16, FDMA_FLOAT32);
inline constexpr DtypeSet kMaskDtypes(FDMA_FLOAT16, FDMA_BFLOAT16, FDMA_FLOAT32, FDMA_FLOAT64, FDMA_BOOL, FDMA_UINT8,
                                      FDMA_INT8, FDMA_INT16, FDMA_INT32, FDMA_INT64);

}  // namespace fdma
