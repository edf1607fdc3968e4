// Hopper's matrix instruction, wgmma: a warpgroup (128 threads) multiplies an operand of 64 rows, in shared memory or
// in registers, by one in shared memory. Through CuTe's atoms; the descriptors of operands are made here.
//
// The accumulator of 64 rows is float acc[1][kN][4] in each thread: warp w of the group has rows 16 w to 16 w + 15 in
// the pattern of mma.sync (sm80/atoms.cuh), so all policies on accumulators serve it as they are.
#pragma once

#include <cuda_runtime.h>

#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

#include "kernels/core/numeric.cuh"

namespace fdma::sm90 {

inline constexpr int kGroupThreads = 128;  // of a warpgroup
inline constexpr int kGroupRows = 64;
inline constexpr int kBlockCols = 64;  // 16-bit elements of a 128-byte line

// A value that all lanes of the warp share, so that the compiler knows it: descriptors then live in uniform registers.
FDMA_DEVICE int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

// A tile of 16-bit elements as the copy engine writes it with the 128-byte swizzle: blocks of 64 columns one behind the
// other, in each a line of 128 bytes for every row. A block is sm80::SmemTile<kRows, 64>. Starts at a multiple of 1024.
template <int kRows_, int kCols_>
struct BlockedTile {
  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kBlocks = kCols / kBlockCols;
  static constexpr int kBlockBytes = kRows * 128;
  static constexpr int kBytes = kBlocks * kBlockBytes;
  static_assert(kCols % kBlockCols == 0 && kRows % 8 == 0);
};

// What wgmma is told of an operand in shared memory. Addresses and distances in bytes.
FDMA_DEVICE uint64_t operand_descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | static_cast<uint64_t>(stride >> 4) << 32 | static_cast<uint64_t>(leading >> 4) << 16 |
         (address & 0x3ffff) >> 4;
}

// Rows are m or n of the product, columns are summed.
template <typename Tile>
struct RowOperand {
  static constexpr cute::SM90::GMMA::Major kMajor = cute::SM90::GMMA::Major::K;
  uint64_t first;
  FDMA_DEVICE explicit RowOperand(uint32_t tile, int row = 0) : first(operand_descriptor(tile + row * 128, 16, 1024)) {}
  // Columns 16 step.. of the tile that lies `offset` bytes behind.
  FDMA_DEVICE uint64_t at(int step, int offset = 0) const {
    return first + ((step / 4 * Tile::kBlockBytes + step % 4 * 32 + offset) >> 4);
  }
};

// Rows are summed, columns are m or n.
template <typename Tile>
struct ColumnOperand {
  static constexpr cute::SM90::GMMA::Major kMajor = cute::SM90::GMMA::Major::MN;
  uint64_t first;
  FDMA_DEVICE explicit ColumnOperand(uint32_t tile, int col = 0)
      : first(operand_descriptor(tile + col / kBlockCols * Tile::kBlockBytes, Tile::kBlockBytes, 1024)) {}
  // Rows 16 step.. of the tile that lies `offset` bytes behind.
  FDMA_DEVICE uint64_t at(int step, int offset = 0) const { return first + ((step * 16 * 128 + offset) >> 4); }
};

// The same operand, whose descriptors the compiler makes here and does not keep from step to step of a loop: it would,
// of one that does not change, and there are not enough registers for it.
template <typename Operand>
FDMA_DEVICE Operand anew(Operand operand) {
  asm volatile("" : "+l"(operand.first));
  return operand;
}

namespace detail {
using cute::SM90::GMMA::Major;
// The instructions that are used, by dtype and columns.
template <typename T, int kCols>
struct Instruction;
#define FDMA_WGMMA_INSTRUCTION(T, name, cols)                                           \
  template <>                                                                           \
  struct Instruction<T, cols> {                                                         \
    template <Major a, Major b>                                                         \
    using Shared = cute::SM90::GMMA::MMA_64x##cols##x16_F32##name##_SS<a, b>;           \
    template <Major b>                                                                  \
    using Registers = cute::SM90::GMMA::MMA_64x##cols##x16_F32##name##_RS<Major::K, b>; \
  };
FDMA_WGMMA_INSTRUCTION(half_t, F16F16, 64)
FDMA_WGMMA_INSTRUCTION(half_t, F16F16, 128)
FDMA_WGMMA_INSTRUCTION(half_t, F16F16, 256)
FDMA_WGMMA_INSTRUCTION(bfloat16_t, BF16BF16, 64)
FDMA_WGMMA_INSTRUCTION(bfloat16_t, BF16BF16, 128)
FDMA_WGMMA_INSTRUCTION(bfloat16_t, BF16BF16, 256)
#undef FDMA_WGMMA_INSTRUCTION

template <typename Atom, int kN, size_t... kIndices>
FDMA_DEVICE void multiply_shared(float (&acc)[1][kN][4], uint64_t a, uint64_t b, bool add,
                                 std::index_sequence<kIndices...>) {
  Atom::fma(a, b, acc[0][kIndices / 4][kIndices % 4]...,
            add ? cute::SM90::GMMA::ScaleOut::One : cute::SM90::GMMA::ScaleOut::Zero);
}
template <typename Atom, int kN, size_t... kIndices>
FDMA_DEVICE void multiply_registers(float (&acc)[1][kN][4], const uint32_t (&a)[4], uint64_t b,
                                    std::index_sequence<kIndices...>) {
  Atom::fma(a[0], a[1], a[2], a[3], b, acc[0][kIndices / 4][kIndices % 4]..., cute::SM90::GMMA::ScaleOut::One);
}
}  // namespace detail

// Products are asynchronous. Between `begin_products` and `finish_products` nobody may touch what they read or write.
FDMA_DEVICE void begin_products() { cute::warpgroup_arrive(); }
FDMA_DEVICE void commit_products() { cute::warpgroup_commit_batch(); }
// At most kPending of the batches committed last are still under way.
template <int kPending>
FDMA_DEVICE void wait_products() {
  cute::warpgroup_wait<kPending>();
}
// The compiler moves no access to these registers past this point.
template <int kM, int kN>
FDMA_DEVICE void hold(float (&acc)[kM][kN][4]) {
#pragma unroll
  for (int i = 0; i < kM; ++i)
#pragma unroll
    for (int j = 0; j < kN; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) cute::warpgroup_fence_operand(acc[i][j][e]);
}
template <int kM, int kK>
FDMA_DEVICE void hold(uint32_t (&a)[kM][kK][4]) {
#pragma unroll
  for (int i = 0; i < kM; ++i)
#pragma unroll
    for (int k = 0; k < kK; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) cute::warpgroup_fence_operand(a[i][k][e]);
}

// acc = A B over kSteps summed steps of 16, or acc += A B. `offset_a`, `offset_b`: bytes from the operands' tiles to
// those that are meant, in a ring of buffers.
template <typename T, int kSteps, int kN, typename OperandA, typename OperandB>
FDMA_DEVICE void multiply(float (&acc)[1][kN][4], const OperandA& a, int offset_a, const OperandB& b, int offset_b,
                          bool add) {
  using Atom = typename detail::Instruction<T, kN * 8>::template Shared<OperandA::kMajor, OperandB::kMajor>;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    detail::multiply_shared<Atom>(acc, a.at(k, offset_a), b.at(k, offset_b), add || k > 0,
                                  std::make_index_sequence<kN * 4>{});
  }
}

// acc += A B with A in registers: a[0][k] is the operand of summed step k.
template <typename T, int kSteps, int kN, typename OperandB>
FDMA_DEVICE void multiply(float (&acc)[1][kN][4], const uint32_t (&a)[1][kSteps][4], const OperandB& b, int offset_b) {
  using Atom = typename detail::Instruction<T, kN * 8>::template Registers<OperandB::kMajor>;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    detail::multiply_registers<Atom>(acc, a[0][k], b.at(k, offset_b), std::make_index_sequence<kN * 4>{});
  }
}

}  // namespace fdma::sm90
