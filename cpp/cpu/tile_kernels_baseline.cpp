// Tile kernels for the compiler's own target: any x86-64, any AArch64, anything else.
//
// The headers of the implementation come first, so that nothing of the standard library is compiled for this
// instruction set and then shared with code that runs on machines without it.
#include <cstdint>
#include <cstring>

#include "cpu/tile_kernels.hpp"

#define FDMA_SIMD_NAMESPACE baseline
#define FDMA_SIMD_NAME "baseline"
#define FDMA_SIMD_LANES 4
#if defined(__aarch64__)
#define FDMA_SIMD_COLUMN_VECTORS 4  // of the 32 registers, 24 hold sums
#else
#define FDMA_SIMD_COLUMN_VECTORS 2  // of the 16 registers, 12 hold sums
#endif
#include "cpu/tile_kernels_impl.hpp"
