// Tile kernels for x86-64 with AVX-512 F, BW, DQ and VL.
//
// The headers of the implementation come first, so that nothing of the standard library is compiled for this
// instruction set and then shared with code that runs on machines without it.
#include <cstdint>
#include <cstring>

#include "cpu/tile_kernels.hpp"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define FDMA_SIMD_NAMESPACE avx512
#define FDMA_SIMD_NAME "avx512"
#define FDMA_SIMD_LANES 16
#define FDMA_SIMD_COLUMN_VECTORS 4  // of the 32 registers, 24 hold sums
#include "cpu/tile_kernels_impl.hpp"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
