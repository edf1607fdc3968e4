// Online softmax in base 2 over the rows of an accumulator tile.
//
// Scores enter as x with the understanding that the score in bits is x * unit (unit = scale * log2(e) when nothing was
// applied to q.k yet, 1 when scale, softcap or bias already were). A row that has seen no key keeps its maximum at -inf
// and its sum at 0; nothing here turns it into NaN.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/numeric.cuh"

namespace fdma {

template <int kM>
struct OnlineSoftmax {
  float max[kM][2];  // of x
  float sum[kM][2];  // this thread's share, reduced over the quad at the end
  float unit;        // positive

  FDMA_DEVICE explicit OnlineSoftmax(float unit_of_x) : unit(unit_of_x) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) max[i][half] = -INFINITY, sum[i][half] = 0.f;
    }
  }

  // Replaces scores by probabilities relative to the new row maximum and rescales what was summed before.
  template <int kN, int kNO>
  FDMA_DEVICE void step(float (&x)[kM][kN][4], float (&out)[kM][kNO][4]) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float tile_max = x[i][0][2 * half];
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          tile_max = fmaxf(tile_max, fmaxf(x[i][j][2 * half], x[i][j][2 * half + 1]));
        }
        const float new_max = fmaxf(max[i][half], quad_max(tile_max));
        const float shift = new_max == -INFINITY ? 0.f : new_max * unit;
        const float rescale = exp2_approx(max[i][half] * unit - shift);
        max[i][half] = new_max;
#pragma unroll
        for (int j = 0; j < kNO; ++j) out[i][j][2 * half] *= rescale, out[i][j][2 * half + 1] *= rescale;
        float tile_sum = 0.f;
#pragma unroll
        for (int j = 0; j < kN; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const float p = exp2_approx(x[i][j][2 * half + c] * unit - shift);
            x[i][j][2 * half + c] = p;
            tile_sum += p;
          }
        }
        sum[i][half] = sum[i][half] * rescale + tile_sum;
      }
    }
  }

  // Normalises `out`; afterwards lse(i, half) is the natural logarithm of the row's sum, -inf for a row without keys.
  template <int kNO>
  FDMA_DEVICE void finish(float (&out)[kM][kNO][4]) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sum[i][half] = quad_sum(sum[i][half]);
        const float inverse = sum[i][half] == 0.f ? 0.f : 1.f / sum[i][half];
#pragma unroll
        for (int j = 0; j < kNO; ++j) out[i][j][2 * half] *= inverse, out[i][j][2 * half + 1] *= inverse;
      }
    }
  }
  FDMA_DEVICE float lse(int i, int half) const {
    return sum[i][half] == 0.f ? -INFINITY : max[i][half] * unit * kLn2 + logf(sum[i][half]);
  }
};

}  // namespace fdma
