// Kernels with one block of threads for each row of keys.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/math.hpp"

namespace fdma {

inline constexpr int kRowThreads = 1024;
inline constexpr int kRowWarps = kRowThreads / 32;

// Exclusive sum over the warps of a block of each warp's `value`; `total` is the sum over all of them. Calls alternate
// between the two halves of `sums`, so that one barrier is enough.
FDMA_DEVICE int sum_of_earlier_warps(int value, int (&sums)[2][kRowWarps], int half, int& total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) sums[half][warp] = value;
  __syncthreads();
  int running = sums[half][lane];
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, running, distance);
    if (lane >= distance) running += other;
  }
  total = __shfl_sync(0xffffffffu, running, 31);
  const int inclusive = __shfl_sync(0xffffffffu, running, warp);
  return inclusive - value;
}

}  // namespace fdma
