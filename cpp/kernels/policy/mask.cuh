// Masks on accumulator tiles: packed bits staged in shared memory, and the column limit of causality and ragged ends.
//
// Accumulator coordinates: block row i, half (0: row lane / 4, 1: 8 further down), block column j, element c of a pair;
// see sm80/atoms.cuh. A masked score becomes -inf.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/numeric.cuh"
#include "kernels/policy/range.hpp"

namespace fdma {

// Walks the key tiles [0, count) of kTileK keys downwards, skipping those in which no row of a query tile sees a key.
template <int kTileQ, int kTileK>
class LiveKeyTiles {
  static_assert(kTileQ % kMaskTile == 0 && (kTileK % kMaskTile == 0 || kMaskTile % kTileK == 0));
  static constexpr int kRowTiles = kTileQ / kMaskTile;

 public:
  FDMA_DEVICE LiveKeyTiles(const PackedMaskView& mask, int b, int h, int q_begin, int len_q) {
    const int last_row_tile = (len_q - 1) / static_cast<int>(kMaskTile);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      words_[i] = mask.row_tile(b, h, min_of(q_begin / static_cast<int>(kMaskTile) + i, last_row_tile));
    }
  }

  // The highest live tile that is not above n, or -1.
  FDMA_DEVICE int next(int n) {
    while (n >= 0) {
      const int top = last_mask_tile(n);
      const int index = top / 32;
      if (index != index_) {
        index_ = index;
        word_ = 0;
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) word_ |= __ldg(words_[i] + index);
      }
      const uint32_t live = word_ & (0xffffffffu >> (31 - top % 32));
      if (live != 0) return min_of(n, tile_of(index * 32 + 31 - __clz(live)));
      n = tile_of(index * 32 - 1);
    }
    return -1;
  }

 private:
  // Mask tiles are kMaskTile keys wide, key tiles kTileK.
  FDMA_DEVICE static int last_mask_tile(int n) { return ((n + 1) * kTileK - 1) / static_cast<int>(kMaskTile); }
  FDMA_DEVICE static int tile_of(int mask_tile) {
    return mask_tile < 0 ? -1 : ((mask_tile + 1) * static_cast<int>(kMaskTile) - 1) / kTileK;
  }
  const uint32_t* words_[kRowTiles];
  uint32_t word_ = 0;
  int index_ = -1;
};

// Hides the scores at and past `limit(row)`: causality and the end of the keys. `row0`, `col0`: coordinates of the
// warp's first row and column in the problem.
template <int kM, int kN>
FDMA_DEVICE void apply_key_limit(float (&acc)[kM][kN][4], int row0, int col0, int len_q, int len_k, bool is_causal,
                                 int lane) {
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int q = row0 + 16 * i + 8 * half + lane / 4;
      const int limit = static_cast<int>(key_limit(q, len_q, len_k, is_causal)) - col0 - 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (8 * j + c >= limit) acc[i][j][2 * half + c] = -INFINITY;
        }
      }
    }
  }
}

// Hides the scores of row (i, half) in the block columns of one word of a packed mask whose bit is zero. `mine`: the
// word, shifted to the thread's first column, so that every bit index is a constant.
template <int kM, int kN>
FDMA_DEVICE void apply_mask_word(float (&acc)[kM][kN][4], int i, int half, int word, uint32_t mine) {
#pragma unroll
  for (int j = word * 4; j < min_of(kN, word * 4 + 4); ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (!(mine & (1u << (8 * (j % 4) + c)))) acc[i][j][2 * half + c] = -INFINITY;
    }
  }
}

// Hides the scores whose bit is zero. `bits`: word of the warp's first column in the warp's first row, in shared
// memory; `pitch` words from row to row; `shift`: bit of the first column (0, or 16 for tiles of 16 columns).
template <int kM, int kN>
FDMA_DEVICE void apply_mask_bits(float (&acc)[kM][kN][4], const uint32_t* bits, int pitch, int lane, int shift = 0) {
  constexpr int kWords = (kN * 8 + 31) / 32;
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t* row = bits + (16 * i + 8 * half + lane / 4) * pitch;
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        apply_mask_word(acc, i, half, word, row[word] >> (shift + 2 * (lane % 4)));
      }
    }
  }
}

}  // namespace fdma
