// Tile kernels for x86-64 with AVX2 and FMA.
//
// The headers of the implementation come first, so that nothing of the standard library is compiled for this
// instruction set and then shared with code that runs on machines without it.
#include <cstdint>
#include <cstring>

#include "cpu/tile_kernels.hpp"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define FDMA_SIMD_NAMESPACE avx2
#define FDMA_SIMD_NAME "avx2"
#define FDMA_SIMD_LANES 8
#define FDMA_SIMD_COLUMN_VECTORS 2  // of the 16 registers, 12 hold sums
#include "cpu/tile_kernels_impl.hpp"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
