// The fp32 scratch in which blocks add up dQ, in the order in which warps hold it: what a warp adds in one step is one
// run of bytes for the copy engine. The finishing kernel reads with the same map.
#pragma once

#include "kernels/sm90/tile_config.hpp"
#include "kernels/sm90/wgmma.cuh"

namespace fdma::sm90 {

template <int kHeadDim_>
struct QuerySum {
  static constexpr int kHeadDim = kHeadDim_, kQueries = backward_tile(kHeadDim_).queries;
  static constexpr int kM = 1, kN = kBlockCols / 8;  // a warpgroup has 64 rows and 64 columns at a time
  static constexpr int kWarpElements = 16 * kBlockCols;
  static constexpr int64_t kTileElements = static_cast<int64_t>(kQueries) * kHeadDim;
  static constexpr int kParts = static_cast<int>(kTileElements / kWarpElements);
  static constexpr int kThreads = kParts * 32;                                  // of the finishing kernel
  static constexpr bool kSplitRows = kQueries == kBackwardGroups * kGroupRows;  // else the columns

  // `warp`: of the finishing kernel, which has one for each part of a tile.
  FDMA_DEVICE static int warp_row(int warp) { return (kSplitRows ? warp / 4 * kGroupRows : 0) + warp % 4 * 16; }
  FDMA_DEVICE static int warp_col(int warp) { return kSplitRows ? 0 : warp / 4 * kBlockCols; }

  // `index`: row tile of the scratch * query heads + head.
  FDMA_DEVICE static float* tile(float* sums, int64_t index) { return sums + index * kTileElements; }
  // A warp's part of a tile, in shared memory (and back) and in the scratch.
  FDMA_DEVICE static void stage(uint32_t smem, const float (&acc)[kM][kN][4], int lane) {
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(smem + (j * 32 + lane) * 16), "f"(acc[0][j][0]),
                   "f"(acc[0][j][1]), "f"(acc[0][j][2]), "f"(acc[0][j][3])
                   : "memory");
    }
  }
  FDMA_DEVICE static void unstage(float (&acc)[kM][kN][4], uint32_t smem, int lane) {
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(acc[0][j][0]), "=f"(acc[0][j][1]), "=f"(acc[0][j][2]), "=f"(acc[0][j][3])
                   : "r"(smem + (j * 32 + lane) * 16)
                   : "memory");
    }
  }
  FDMA_DEVICE static void read(float (&acc)[kM][kN][4], const float* tile, int thread) {
    const float4* part = reinterpret_cast<const float4*>(tile + thread / 32 * kWarpElements);
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      const float4 block = part[j * 32 + thread % 32];
      acc[0][j][0] = block.x, acc[0][j][1] = block.y, acc[0][j][2] = block.z, acc[0][j][3] = block.w;
    }
  }
};

}  // namespace fdma::sm90
