// Policies on transposed score tiles: keys along the rows, queries along the columns. Thread `lane` of a warp has the
// keys lane / 4 and 8 further down of the warp's 16, and of every 8 queries the two at 2 (lane % 4).
#pragma once

#include "kernels/core/numeric.cuh"
#include "kernels/policy/range.hpp"
#include "kernels/policy/slots.hpp"
#include "kernels/sm80/atoms.cuh"

namespace fdma::sm90 {

// Where a lane points for 16 keys of a warp and 16 queries in a block of 64 keys of a tile (query rows, 128 bytes
// each): ldmatrix and stmatrix with .trans then have matrices in the order in which an operand has its registers.
FDMA_DEVICE uint32_t transposed_address(uint32_t block, int warp, int lane) {
  const int row = lane % 8, matrix = lane / 8;
  return block + (8 * (matrix / 2) + row) * 128 + (((warp * 2 + matrix % 2) ^ row) << 4);
}

// Writes the warp's keys, packed as an operand, to the tile.
template <int kSteps>
FDMA_DEVICE void store_transposed(uint32_t block, const uint32_t (&a)[1][kSteps][4], int warp, int lane) {
  const uint32_t address = transposed_address(block, warp, lane);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address + k * 16 * 128),
                 "r"(a[0][k][0]), "r"(a[0][k][1]), "r"(a[0][k][2]), "r"(a[0][k][3])
                 : "memory");
  }
}

// x += bias * log2(e), of a tile of the bias.
template <typename T, int kN>
FDMA_DEVICE void add_transposed_bias(float (&x)[1][kN][4], uint32_t block, int warp, int lane) {
  const uint32_t address = transposed_address(block, warp, lane);
#pragma unroll
  for (int k = 0; k < kN / 2; ++k) {
    uint32_t r[4];
    sm80::load_matrix_transposed(r, address + k * 16 * 128);
#pragma unroll
    for (int part = 0; part < 4; ++part) {  // keys 0-7 and 8-15 of queries 0-7, then of queries 8-15
      const float2 bias = Element<T>::unpack(r[part]);
      float(&target)[4] = x[0][2 * k + part / 2];
      target[2 * (part % 2)] = fmaf(bias.x, kLog2e, target[2 * (part % 2)]);
      target[2 * (part % 2) + 1] = fmaf(bias.y, kLog2e, target[2 * (part % 2) + 1]);
    }
  }
}

// x = x * factor + the shift of its key.
template <int kN>
FDMA_DEVICE void scale_and_shift(float (&x)[1][kN][4], float factor, const float (&shift)[2]) {
#pragma unroll
  for (int j = 0; j < kN; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[0][j][e] = fmaf(x[0][j][e], factor, shift[e / 2]);
  }
}

// Hides the scores whose bit is zero. `words`: the word with the warp's first key, of the first query, in shared
// memory; queries are kPitch bytes apart; `bit`: of the first key in it, 0 or 16.
template <int kPitch, int kN>
FDMA_DEVICE void apply_transposed_mask(float (&x)[1][kN][4], uint32_t words, int bit, int lane) {
  const uint32_t address = words + lane % 4 * 2 * kPitch;
  const int shift = bit + lane / 4;
#pragma unroll
  for (int j = 0; j < kN; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const uint32_t mine = sm80::load_shared_4(address + (8 * j + c) * kPitch) >> shift;
      if (!(mine & 1u)) x[0][j][c] = -INFINITY;
      if (!(mine & 0x100u)) x[0][j][2 + c] = -INFINITY;
    }
  }
}

// Hides the scores at positions outside the span of their key. `first`: position of the first query.
template <int kN>
FDMA_DEVICE void apply_transposed_spans(float (&x)[1][kN][4], const Span (&spans)[2], int first, int lane) {
  const bool all =
      max_of(spans[0].begin, spans[1].begin) <= first && min_of(spans[0].end, spans[1].end) >= first + kN * 8;
  if (__all_sync(0xffffffffu, all)) return;
#pragma unroll
  for (int j = 0; j < kN; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int position = first + 8 * j + 2 * (lane % 4) + e % 2;
      if (position < spans[e / 2].begin || position >= spans[e / 2].end) x[0][j][e] = -INFINITY;
    }
  }
}

// Hides what causality and the end of the keys hide. `key`, `q`: the warp's first key and query in the sequence.
template <int kN>
FDMA_DEVICE void apply_transposed_key_limit(float (&x)[1][kN][4], int key, int q, const Sequence& sequence,
                                            bool is_causal, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int own = key + 8 * half + lane / 4;
    // The first query that sees the key, counted from the thread's first.
    int first = is_causal ? own - (sequence.len_k - sequence.len_q) - q - 2 * (lane % 4) : INT32_MIN;
    if (own >= sequence.len_k) first = INT32_MAX;
#pragma unroll
    for (int j = 0; j < kN; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (8 * j + c < first) x[0][j][2 * half + c] = -INFINITY;
      }
    }
  }
}

// Hides the scores of queries from `valid` on.
template <int kN>
FDMA_DEVICE void hide_queries_behind(float (&x)[1][kN][4], int valid, int lane) {
  if (valid >= kN * 8) return;
#pragma unroll
  for (int j = 0; j < kN; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (8 * j + 2 * (lane % 4) + e % 2 >= valid) x[0][j][e] = -INFINITY;
    }
  }
}

// {lse * log2(e), delta} of the thread's two queries of block column j. `stats`: address of those of the first.
FDMA_DEVICE float4 load_stats(uint32_t stats, int j) {
  float4 pair;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(pair.x), "=f"(pair.y), "=f"(pair.z), "=f"(pair.w)
               : "r"(stats + j * 64)
               : "memory");
  return pair;
}

// P^T = exp2(x * unit - lse), unit > 0. `first`: the stats of block column 0.
template <int kN>
FDMA_DEVICE void transposed_weights_from_bits(float (&x)[1][kN][4], const float4& first, uint32_t stats, float unit) {
#pragma unroll
  for (int j = 0; j < kN; ++j) {
    const float4 pair = j == 0 ? first : load_stats(stats, j);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      x[0][j][e] = exp2_approx(fmaf(x[0][j][e], unit, e % 2 == 0 ? -pair.x : -pair.z));
    }
  }
}

// dS^T = P^T (dP^T - delta), in place of dP^T.
template <int kN>
FDMA_DEVICE void to_transposed_grad_scores(float (&grad)[1][kN][4], const float (&weights)[1][kN][4], uint32_t stats) {
#pragma unroll
  for (int j = 0; j < kN; ++j) {
    const float4 pair = load_stats(stats, j);
#pragma unroll
    for (int e = 0; e < 4; ++e) grad[0][j][e] = weights[0][j][e] * (grad[0][j][e] - (e % 2 == 0 ? pair.y : pair.w));
  }
}

// dS^T times the derivative of the softcap, 1 - t^2 with t = tanh(scale * q.k / cap). Scores are not kept: a weight
// says what its was. `bias`: of the thread's keys, in bits.
template <int kN>
FDMA_DEVICE void apply_transposed_cap(float (&grad)[1][kN][4], const float (&weights)[1][kN][4], uint32_t stats,
                                      float cap_log2, const float (&bias)[2]) {
  const float inverse = __fdividef(1.f, cap_log2);
#pragma unroll
  for (int j = 0; j < kN; ++j) {
    const float4 pair = load_stats(stats, j);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float shift = (e % 2 == 0 ? pair.x : pair.z) - bias[e / 2];
      const float t = (log2_approx(weights[0][j][e]) + shift) * inverse;
      grad[0][j][e] *= 1.f - fminf(t * t, 1.f);  // 0 where the weight is, also of inf - inf
    }
  }
}

}  // namespace fdma::sm90
