// The fp32 scratch in which blocks add up dQ. Elements lie in the order in which the threads of the backward kernel
// hold them, so that the additions of a warp fall on neighbouring addresses; the finishing kernel reads with the same
// map.
#pragma once

#include "kernels/core/tile_config.hpp"
#include "kernels/sm80/atoms.cuh"

namespace fdma::sm80 {

template <int kHeadDim_, int kQueries_, int kWarps_, int kQueryWarps_>
struct QuerySum {
  static constexpr int kHeadDim = kHeadDim_, kQueries = kQueries_, kThreads = kWarps_ * 32;
  static constexpr int kWarpsQ = kQueryWarps_, kWarpsD = kWarps_ / kQueryWarps_;
  static constexpr int kRows = kQueries / kWarpsQ, kCols = kHeadDim / kWarpsD;
  static constexpr int kM = kRows / 16, kN = kCols / 8;
  static constexpr int64_t kTileElements = static_cast<int64_t>(kQueries) * kHeadDim;

  FDMA_DEVICE static int warp_row(int warp) { return warp / kWarpsD * kRows; }
  FDMA_DEVICE static int warp_col(int warp) { return warp % kWarpsD * kCols; }

  // `index`: row tile of the scratch * query heads + head.
  FDMA_DEVICE static float* tile(float* sums, int64_t index) { return sums + index * kTileElements; }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  // Four elements of an accumulator block are one 16-byte reduction.
  FDMA_DEVICE static void add(float* tile, const float (&acc)[kM][kN][4], int thread) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        asm volatile(
            "red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(tile + ((i * kN + j) * kThreads + thread) * 4),
            "f"(acc[i][j][0]), "f"(acc[i][j][1]), "f"(acc[i][j][2]), "f"(acc[i][j][3])
            : "memory");
      }
    }
  }
  FDMA_DEVICE static void read(float (&acc)[kM][kN][4], const float* tile, int thread) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const float4 block = reinterpret_cast<const float4*>(tile)[(i * kN + j) * kThreads + thread];
        acc[i][j][0] = block.x, acc[i][j][1] = block.y, acc[i][j][2] = block.z, acc[i][j][3] = block.w;
      }
    }
  }
#else
  // Reductions are 4 bytes wide: element e of all threads lies together.
  FDMA_DEVICE static void add(float* tile, const float (&acc)[kM][kN][4], int thread) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) atomicAdd(tile + ((i * kN + j) * 4 + e) * kThreads + thread, acc[i][j][e]);
      }
    }
  }
  FDMA_DEVICE static void read(float (&acc)[kM][kN][4], const float* tile, int thread) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] = tile[((i * kN + j) * 4 + e) * kThreads + thread];
      }
    }
  }
#endif
};

}  // namespace fdma::sm80
