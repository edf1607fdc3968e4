// Online softmax in base 2 over the rows of an accumulator tile.
//
// Scores enter as x with the understanding that the score in bits is x * unit (unit = scale * log2(e) when nothing was
// applied to q.k yet, 1 when scale, softcap or bias already were). Weights are relative to a reference score of the row
// that follows the maximum loosely: it moves only when a score exceeds it by more than kSlackBits, so what was summed
// before is rarely rescaled. Weights stay below 2^kSlackBits, and out / sum does not depend on the reference.
// A row that has seen no key keeps its reference at -inf and its sum at 0; nothing here turns it into NaN.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/numeric.cuh"

namespace fdma {

template <int kM>
struct OnlineSoftmax {
  static constexpr float kSlackBits = 8.f;

  float reference[kM][2];   // in bits
  float sum[kM][2];         // this thread's share, reduced over the quad at the end
  float correction[kM][2];  // what the last move of the reference multiplies earlier weights by
  float unit;               // positive

  FDMA_DEVICE explicit OnlineSoftmax(float unit_of_x) : unit(unit_of_x) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) reference[i][half] = -INFINITY, sum[i][half] = 0.f;
    }
  }

  // Replaces scores by weights and adds them to the sums; rescales `out` and the sums where the reference has to move.
  template <int kN, int kNO>
  FDMA_DEVICE void step(float (&x)[kM][kN][4], float (&out)[kM][kNO][4]) {
    if (advance(x)) rescale(out);
  }

  // As step, for kernels whose `out` is being added to meanwhile: when the result is true (for the whole warp), what
  // was summed with earlier weights needs `rescale` before the new weights are.
  template <int kN>
  FDMA_DEVICE bool advance(float (&x)[kM][kN][4]) {
    float maximum[kM][2];
    bool exceeds = false;
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        maximum[i][half] = x[i][0][2 * half];
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          maximum[i][half] = fmaxf(maximum[i][half], fmaxf(x[i][j][2 * half], x[i][j][2 * half + 1]));
        }
        exceeds |= maximum[i][half] * unit > reference[i][half] + kSlackBits;
      }
    }
    const bool moves = __any_sync(0xffffffffu, exceeds);
    if (moves) raise(maximum);
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float shift = reference[i][half] == -INFINITY ? 0.f : reference[i][half];
#pragma unroll
        for (int j = 0; j < kN; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const float weight = exp2_approx(fmaf(x[i][j][2 * half + c], unit, -shift));
            x[i][j][2 * half + c] = weight;
            sum[i][half] += weight;
          }
        }
      }
    }
    return moves;
  }
  template <int kNO>
  FDMA_DEVICE void rescale(float (&out)[kM][kNO][4]) const {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) scale_row(out, i, half, correction[i][half]);
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
        scale_row(out, i, half, sum[i][half] == 0.f ? 0.f : 1.f / sum[i][half]);
      }
    }
  }
  FDMA_DEVICE float lse_bits(int i, int half) const {
    return sum[i][half] == 0.f ? -INFINITY : reference[i][half] + log2f(sum[i][half]);
  }
  FDMA_DEVICE float lse(int i, int half) const {
    return sum[i][half] == 0.f ? -INFINITY : reference[i][half] * kLn2 + logf(sum[i][half]);
  }

 private:
  // Moves the reference of every row to the maximum seen so far.
  FDMA_DEVICE void raise(const float (&maximum)[kM][2]) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float raised = fmaxf(reference[i][half], quad_max(maximum[i][half]) * unit);
        correction[i][half] = exp2_approx(reference[i][half] - (raised == -INFINITY ? 0.f : raised));
        reference[i][half] = raised;
        sum[i][half] *= correction[i][half];
      }
    }
  }
  template <int kNO>
  FDMA_DEVICE static void scale_row(float (&out)[kM][kNO][4], int i, int half, float factor) {
#pragma unroll
    for (int j = 0; j < kNO; ++j) out[i][j][2 * half] *= factor, out[i][j][2 * half + 1] *= factor;
  }
};

}  // namespace fdma
