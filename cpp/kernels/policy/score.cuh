// From q.k to the score: scale, softcap, bias. The order is fixed by the contract: softcap(scale * q.k) + bias.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/numeric.cuh"

namespace fdma {

// Scale and softcap as the inner loop wants them.
struct ScoreUnit {
  float scale_log2;  // scale * log2(e)
  float cap_log2;    // softcap * log2(e), 0 = off
  float scale_over_cap;

  FDMA_DEVICE ScoreUnit(float scale, float softcap)
      : scale_log2(scale * kLog2e),
        cap_log2(softcap * kLog2e),
        scale_over_cap(softcap == 0.f ? 0.f : scale / softcap) {}

  FDMA_DEVICE bool capped() const { return cap_log2 != 0.f; }
  // The online softmax can fold a positive scale into its exponent; anything else is applied to the scores first.
  FDMA_DEVICE bool foldable() const { return !capped() && scale_log2 > 0.f; }

  // Scores in bits (base-2 logarithm of the weight), before bias.
  template <int kM, int kN>
  FDMA_DEVICE void to_bits(float (&acc)[kM][kN][4]) const {
    if (capped()) {
      to_bits_capped(acc);
    } else {
      to_bits_uncapped(acc);
    }
  }
  // As to_bits, where it is known whether there is a softcap.
  template <int kM, int kN>
  FDMA_DEVICE void to_bits_capped(float (&acc)[kM][kN][4]) const {
#pragma unroll
    for (int i = 0; i < kM; ++i)
#pragma unroll
      for (int j = 0; j < kN; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] = cap_log2 * tanh_exp2(acc[i][j][e] * scale_over_cap);
  }
  template <int kM, int kN>
  FDMA_DEVICE void to_bits_uncapped(float (&acc)[kM][kN][4]) const {
#pragma unroll
    for (int i = 0; i < kM; ++i)
#pragma unroll
      for (int j = 0; j < kN; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] *= scale_log2;
  }
};

}  // namespace fdma
