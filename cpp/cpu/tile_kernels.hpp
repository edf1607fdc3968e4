// The inner loops of the CPU backend, one table of functions for each instruction set, chosen once at run time.
//
// Everything works on fp32 tiles in row-major order: a tile of scores has 64 keys to a row, a tile of query, key or
// value rows has padded_head_dim(D) floats to a row. Inputs of any dtype become fp32 on their way into a tile.
#pragma once

#include <cstdint>

#include "fdma/types.h"
#include "kernels/core/math.hpp"
#include "kernels/policy/mask_bits.hpp"

namespace fdma::cpu {

inline constexpr int64_t kTile = kMaskTile;  // query rows and keys of a tile: those that one tile bit stands for

// Floats from one row of a query, key, value or output tile to the next. Whole vectors of every instruction set; not a
// multiple of 128, which would map the rows of a tile to a few cache sets.
inline int64_t padded_head_dim(int64_t head_dim) {
  const int64_t padded = round_up<int64_t>(head_dim, 16);
  return padded % 128 == 0 ? padded + 16 : padded;
}

// `count` rows of a caller's tensor; `stride` elements from one to the next.
struct TensorRows {
  void* data;
  fdma_dtype dtype;
  int64_t stride;
  int64_t count;
};

// What turns products of queries and keys into scores, for rows of one head and 64 keys.
struct ScoreRule {
  int64_t rows;
  int64_t keys;             // keys inside the sequence: bias is not read past them
  const uint64_t* visible;  // bit k of word r: row r sees key k
  float scale;
  float softcap;     // 0 = off
  const void* bias;  // element (row 0, key 0), or null
  fdma_dtype bias_dtype;
  int64_t bias_row_stride;  // elements; 0 = all rows share one
  int64_t bias_key_stride;  // 1, or 0 when all keys share one
};

struct TileKernels {
  const char* name;

  // c[m][n] = a[m][k] * b[k][n], or += with `accumulate`. Element (i, p) of a is a[i * a_row + p * a_col]; c and b have
  // unit column stride, and room for n rounded up to 16 columns.
  void (*multiply)(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, int64_t a_col, const float* b,
                   int64_t b_row, float* c, int64_t c_row, bool accumulate);

  // tile[r][0, dim) = source row r; columns up to the next multiple of 16 are zeroed.
  void (*load_rows)(const TensorRows& source, int64_t dim, float* tile, int64_t tile_row);
  // tile[d][r] = source row r, element d, for r < 64; columns past source.count are zeroed.
  void (*load_transposed)(const TensorRows& source, int64_t dim, float* tile);
  // Row r of `destination` = scales[r] * tile row r, rounded to the nearest value of its dtype.
  void (*store_rows)(const float* tile, int64_t tile_row, const float* scales, int64_t dim,
                     const TensorRows& destination);
  // sums[r] = dot product of row r of a and row r of b.
  void (*dot_rows)(const TensorRows& a, const TensorRows& b, int64_t dim, float* sums);

  // One step of the online softmax. scores[r][k] becomes exp(score - running maximum), 0 for keys that are not seen;
  // row_max is raised, row_sum (16 partial sums a row) and acc[r][0, dim) are scaled to the new maximum.
  void (*softmax)(const ScoreRule& rule, float* scores, float* row_max, float* row_sum, float* acc, int64_t acc_row,
                  int64_t dim);

  // scores[r][k] becomes the probability p = exp(score - lse[r]), grad[r][k], on entry the gradient of p, becomes the
  // gradient of scale * product. Unless null, bias_grad[r * bias_grad_row + k] += gradient of the bias.
  void (*softmax_grad)(const ScoreRule& rule, const float* lse, const float* delta, float* scores, float* grad,
                       float* bias_grad, int64_t bias_grad_row);

  // Bit i of words[i / 32] = (element i of a dense mask row is not zero); bits from `count` to the end of the last of
  // `words` words are zero.
  void (*pack_mask_row)(const void* row, fdma_dtype dtype, int64_t count, uint32_t* words, int64_t word_count);
};

// The fastest table that this machine runs. The environment variable FDMA_CPU_ISA (baseline, avx2 or avx512), read at
// the first call, caps the choice, so that each table can be tested on one machine.
const TileKernels& tile_kernels();

namespace baseline {
const TileKernels* tile_kernels();
}
#if defined(__x86_64__)
namespace avx2 {
const TileKernels* tile_kernels();
}
namespace avx512 {
const TileKernels* tile_kernels();
}
#endif

}  // namespace fdma::cpu
