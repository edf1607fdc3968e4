// Gradient of the bias from a tile of dS: stored as it is where the bias has an element for every score, summed over
// rows where the bias is the same for all of them.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/numeric.cuh"

namespace fdma {

FDMA_DEVICE uint32_t pack_pair(ElementType type, float lo, float hi) {
  return type == ElementType::kFloat16 ? Element<half_t>::pack(lo, hi) : Element<bfloat16_t>::pack(lo, hi);
}

// A matrix of gradients of one batch and head: row-major, rows of len_k elements, starting at element `first`.
struct ScoreGradients {
  void* data;
  ElementType type;
  int64_t first;
  int len_q, len_k;
  bool pairs;  // two neighbours with an even column may be stored at once

  FDMA_DEVICE ScoreGradients(void* grad, ElementType element_type, int64_t head_index, int rows, int keys)
      : data(grad),
        type(element_type),
        first(head_index * rows * keys),
        len_q(rows),
        len_k(keys),
        pairs(keys % 2 == 0 && reinterpret_cast<uintptr_t>(grad) % (2 * element_bytes(element_type)) == 0) {}

  // `col` is even.
  FDMA_DEVICE void store_pair(int row, int col, float lo, float hi) const {
    const int64_t index = first + static_cast<int64_t>(row) * len_k + col;
    if (pairs && col < len_k) {
      if (type == ElementType::kFloat32) {
        *reinterpret_cast<float2*>(static_cast<float*>(data) + index) = make_float2(lo, hi);
      } else {
        *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(data) + index) = pack_pair(type, lo, hi);
      }
    } else {
      if (col < len_k) store_element(data, type, index, lo);
      if (col + 1 < len_k) store_element(data, type, index + 1, hi);
    }
  }

  // Stores an accumulator tile whose first row and column are (row0, col0).
  template <int kM, int kN>
  FDMA_DEVICE void store(const float (&acc)[kM][kN][4], int row0, int col0, int lane) const {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row0 + 16 * i + 8 * half + lane / 4;
        if (row >= len_q) continue;
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          store_pair(row, col0 + 8 * j + 2 * (lane % 4), acc[i][j][2 * half], acc[i][j][2 * half + 1]);
        }
      }
    }
  }

  // Writes zeros to the rows [row_begin, row_end) of kCols columns from col0 on.
  template <int kCols, int kThreads>
  FDMA_DEVICE void clear(int row_begin, int row_end, int col0, int thread) const {
    constexpr int kPairs = kCols / 2;
    const int col = col0 + thread % kPairs * 2;
    for (int row = row_begin + thread / kPairs; row < min_of(row_end, len_q); row += kThreads / kPairs) {
      store_pair(row, col, 0.f, 0.f);
    }
  }
};

// The (batch, head) pairs of a problem that share one (batch, head) of its bias.
struct BiasSharers {
  int batch_begin, batch_end, head_begin, head_end;

  FDMA_DEVICE BiasSharers(const BackwardParams& p, int bias_batch, int bias_head) {
    batch_begin = p.bias_batch == 1 ? 0 : bias_batch;
    batch_end = p.bias_batch == 1 ? p.batch : bias_batch + 1;
    head_begin = bias_head * (p.heads_q / p.bias_heads);
    head_end = head_begin + p.heads_q / p.bias_heads;
  }
};

// Adds the column sums of a warp's tile to `sums` (shared memory, the warp's first column). Only this warp adds there,
// and always in the same order.
template <int kM, int kN>
FDMA_DEVICE void add_column_sums(float* sums, const float (&acc)[kM][kN][4], int lane) {
#pragma unroll
  for (int j = 0; j < kN; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < kM; ++i) sum += acc[i][j][c] + acc[i][j][2 + c];
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      if (lane < 4) sums[8 * j + 2 * lane + c] += sum;
    }
  }
}

}  // namespace fdma
