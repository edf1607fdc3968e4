// Rows of an accumulator to global memory, without shared memory; zeros in rows of a tile.
#pragma once

#include <cuda_runtime.h>

#include "kernels/sm80/tile_io.cuh"

namespace fdma::sm90 {

// Zeros in the rows of a BlockedTile from `valid` on, by kThreads threads.
template <typename Tile, int kThreads>
FDMA_DEVICE void clear_rows(uint32_t tile, int valid, int thread) {
  constexpr int kChunks = 8;  // of 16 bytes in a line
  for (int i = valid * kChunks + thread; i < Tile::kRows * kChunks; i += kThreads) {
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; ++block) {
      sm80::store_shared_16(tile + block * Tile::kBlockBytes + i * 16, make_uint4(0, 0, 0, 0));
    }
  }
}

// Four registers of each of the four threads of a quad: afterwards thread c has the c-th register of all, in order.
FDMA_DEVICE void transpose_quad(uint32_t (&r)[4], int lane) {
  const bool odd = (lane & 1) != 0, high = (lane & 2) != 0;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? r[i] : r[i + 1], 1);
    r[i] = odd ? other : r[i];
    r[i + 1] = odd ? r[i + 1] : other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, high ? r[i] : r[i + 2], 2);
    r[i] = high ? other : r[i];
    r[i + 2] = high ? r[i + 2] : other;
  }
}

// Stores the row of (half) an accumulator, times `scale`, as 16-bit elements at `target`, columns below `cols` (a
// multiple of 8). All lanes of a warp call it; the quad of a row that is not `valid` stores nothing.
template <typename T, int kNO>
FDMA_DEVICE void store_row(const float (&acc)[1][kNO][4], int half, float scale, T* target, bool valid, int cols,
                           bool vector, int lane) {
  static_assert(kNO % 4 == 0);
#pragma unroll
  for (int j = 0; j < kNO; j += 4) {
    uint32_t r[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      r[i] = Element<T>::pack(acc[0][j + i][2 * half] * scale, acc[0][j + i][2 * half + 1] * scale);
    }
    transpose_quad(r, lane);
    const int col = (j + lane % 4) * 8;
    if (!valid || col >= cols) continue;
    const uint4 chunk = make_uint4(r[0], r[1], r[2], r[3]);
    if (vector) {
      *reinterpret_cast<uint4*>(target + col) = chunk;
    } else {
      sm80::store_unaligned_chunk(target + col, chunk);
    }
  }
}

// The same row as fp32; the columns are a multiple of 8.
template <int kNO>
FDMA_DEVICE void store_float_row(const float (&acc)[1][kNO][4], int half, float* target, int cols, int lane) {
#pragma unroll
  for (int j = 0; j < kNO; ++j) {
    const int col = 8 * j + 2 * (lane % 4);
    if (col < cols)
      *reinterpret_cast<float2*>(target + col) = make_float2(acc[0][j][2 * half], acc[0][j][2 * half + 1]);
  }
}

}  // namespace fdma::sm90
