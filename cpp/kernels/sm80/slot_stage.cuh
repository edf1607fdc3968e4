// What a tile of slots adds to scores and hides from them, in shared memory: a span and a bias for each slot.
#pragma once

#include "kernels/policy/slot_walk.cuh"
#include "kernels/sm80/bias_stage.cuh"

namespace fdma::sm80 {

template <typename T, int kRows, int kCols, int kThreads>
struct BiasStage<BiasForm::kSlots, T, kRows, kCols, kThreads> {
  static constexpr int kSpanBytes = kCols * static_cast<int>(sizeof(Span));
  static constexpr int kBytes = kSpanBytes + kCols * 4;
  static constexpr int kChunks = kBytes / 16;
  static_assert(kChunks <= kThreads);

  // Tile `tile` of a list of slots; `bias` is null without a bias. Asynchronous, or there after a barrier.
  template <bool kAsync>
  FDMA_DEVICE static void load(uint32_t smem, const Span* spans, const float* bias, int tile, int thread) {
    if (thread >= kChunks) return;
    const uint32_t target = smem + thread * 16;
    constexpr int kSpanChunks = kSpanBytes / 16;
    const void* source = nullptr;
    if (thread < kSpanChunks) {
      source = reinterpret_cast<const char*>(spans + tile * kCols) + thread * 16;
    } else if (bias != nullptr) {
      source = bias + tile * kCols + (thread - kSpanChunks) * 4;
    }
    if (kAsync && source != nullptr) {
      copy_async<16>(target, source, 16);
    } else {
      store_shared_16(target, source != nullptr ? *static_cast<const uint4*>(source) : make_uint4(0, 0, 0, 0));
    }
  }

  // acc += bias; with `partial`, -inf where the position of the row does not see the slot. `position`: of the warp's
  // first row; `col`: the warp's first column in the tile.
  template <int kM, int kN>
  FDMA_DEVICE static void apply(float (&acc)[kM][kN][4], uint32_t smem, int position, int col, bool partial, int lane,
                                PackedHeads packed = {}) {
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      const int slot = col + 8 * j + 2 * (lane % 4);
      float2 bias;
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(bias.x), "=f"(bias.y)
                   : "r"(smem + kSpanBytes + slot * 4)
                   : "memory");
#pragma unroll
      for (int i = 0; i < kM; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          acc[i][j][2 * half] += bias.x;
          acc[i][j][2 * half + 1] += bias.y;
        }
      }
    }
    if (!partial) return;
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      const int slot = col + 8 * j + 2 * (lane % 4);
      int4 spans;  // begin, end of two neighbours
      asm volatile("ld.shared.v4.s32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(spans.x), "=r"(spans.y), "=r"(spans.z), "=r"(spans.w)
                   : "r"(smem + slot * 8)
                   : "memory");
#pragma unroll
      for (int i = 0; i < kM; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int p = position + packed.position(16 * i + 8 * half + lane / 4);
          if (p < spans.x || p >= spans.y) acc[i][j][2 * half] = -INFINITY;
          if (p < spans.z || p >= spans.w) acc[i][j][2 * half + 1] = -INFINITY;
        }
      }
    }
  }
};

}  // namespace fdma::sm80
