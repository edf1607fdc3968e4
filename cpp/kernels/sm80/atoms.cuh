// The instructions of the portable path, through CuTe's atoms: mma.sync m16n8k16, ldmatrix, cp.async; and the swizzled
// shared-memory tile they work on.
//
// An accumulator tile of 16 kM x 8 kN scores is float acc[kM][kN][4]. Thread `lane` of a warp holds, of block (i, j),
// rows 16 i + lane / 4 (elements 0, 1) and 8 further down (2, 3), columns 8 j + 2 (lane % 4) + {0, 1}. Hopper's WGMMA
// uses the same pattern, so the policies that work on accumulators serve both.
#pragma once

#include <cuda_runtime.h>

#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/mma_sm80.hpp>

#include "kernels/core/numeric.cuh"

namespace fdma::sm80 {

inline constexpr int kChunk = 8;  // 16-bit elements of one 16-byte shared-memory chunk

FDMA_DEVICE uint32_t smem_address(const void* pointer) { return cute::cast_smem_ptr_to_uint(pointer); }

// Rows of kCols 16-bit elements. The 16-byte chunks of a row are permuted by the row number so that the 8 rows of an
// ldmatrix, or of a column of stores, fall into different banks.
template <int kRows_, int kCols_>
struct SmemTile {
  static constexpr int kRows = kRows_;
  static constexpr int kCols = kCols_;
  static constexpr int kPitch = kCols * 2;  // bytes
  static constexpr int kBytes = kRows * kPitch;
  static_assert(kCols == 32 || kCols % 64 == 0, "the swizzle covers rows of 64 bytes or of whole 128-byte lines");

  FDMA_DEVICE static constexpr uint32_t swizzle(int row) { return kCols == 32 ? (row >> 1) & 3 : row & 7; }
  // Byte offset of a 16-byte chunk.
  FDMA_DEVICE static constexpr uint32_t chunk_offset(int row, int chunk) {
    return row * kPitch + ((chunk ^ swizzle(row)) << 4);
  }
  // Byte offset of an element.
  FDMA_DEVICE static constexpr uint32_t offset(int row, int col) {
    return chunk_offset(row, col / kChunk) + (col % kChunk) * 2;
  }
};

// How an operand lies in shared memory.
enum class Major {
  kK,  // rows are the outer dimension (m or n) of the product, columns the summed one
  kMN  // rows are the summed dimension: the fragment is loaded transposed
};

// ldmatrix.x4 loads four 8 x 8 blocks of a 16 x 16 block; lanes 8 i to 8 i + 7 name the rows of the i-th. The order of
// the blocks is chosen so that the four registers are the operand as mma wants it, without a move.
enum class BlockOrder {
  kDown,   // rows 0-7, rows 8-15 of columns 0-7; then of columns 8-15
  kAcross  // columns 0-7, columns 8-15 of rows 0-7; then of rows 8-15
};
constexpr BlockOrder block_order_a(Major major) { return major == Major::kK ? BlockOrder::kDown : BlockOrder::kAcross; }
constexpr BlockOrder block_order_b(Major major) { return major == Major::kK ? BlockOrder::kAcross : BlockOrder::kDown; }

// Addresses for ldmatrix.x4 in a tile. Row and column steps are compile-time constants in unrolled loops, so a step is
// an immediate offset and at most one XOR.
template <typename Tile, BlockOrder kOrder>
struct MatrixAddress {
  uint32_t base;

  // (row, col): the corner all steps count from, multiples of 16.
  FDMA_DEVICE MatrixAddress(uint32_t tile, int row, int col, int lane) {
    const int lane_row = kOrder == BlockOrder::kDown ? lane & 15 : (lane & 7) + ((lane >> 4) << 3);
    const int lane_chunk = kOrder == BlockOrder::kDown ? lane >> 4 : (lane >> 3) & 1;
    base = step(tile + (row + lane_row) * Tile::kPitch + ((lane_chunk ^ Tile::swizzle(lane_row)) << 4), col / kChunk);
  }
  FDMA_DEVICE static uint32_t step(uint32_t address, int chunk) {
    if constexpr (Tile::kCols == 32) {
      return address ^ (chunk << 4);
    } else {
      return (address ^ ((chunk & 7) << 4)) + (chunk >> 3) * 128;
    }
  }
  FDMA_DEVICE uint32_t at(int row, int col) const { return step(base, col / kChunk) + row * Tile::kPitch; }
};
template <typename Tile, Major kMajor>
using AddressA = MatrixAddress<Tile, block_order_a(kMajor)>;
template <typename Tile, Major kMajor>
using AddressB = MatrixAddress<Tile, block_order_b(kMajor)>;

FDMA_DEVICE void load_matrix(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.x4.m8n8.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
FDMA_DEVICE void load_matrix_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.x4.trans.m8n8.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
FDMA_DEVICE void store_matrix(const uint32_t (&r)[4], uint32_t address) {
  asm volatile("stmatrix.sync.aligned.x4.m8n8.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}
#endif

template <typename T>
FDMA_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (Element<T>::kType == ElementType::kBFloat16) {
    cute::SM80_16x8x16_F32BF16BF16F32_TN::fma(d[0], d[1], d[2], d[3], a[0], a[1], a[2], a[3], b0, b1, d[0], d[1], d[2],
                                              d[3]);
  } else {
    cute::SM80_16x8x16_F32F16F16F32_TN::fma(d[0], d[1], d[2], d[3], a[0], a[1], a[2], a[3], b0, b1, d[0], d[1], d[2],
                                            d[3]);
  }
}

// A operand of block row i at summed step k.
template <Major kMajor, typename Tile>
FDMA_DEVICE void load_a(uint32_t (&a)[4], const AddressA<Tile, kMajor>& address, int i, int k) {
  if constexpr (kMajor == Major::kK) {
    load_matrix(a, address.at(16 * i, 16 * k));
  } else {
    load_matrix_transposed(a, address.at(16 * k, 16 * i));
  }
}

// B operands of the block columns 2 j and 2 j + 1 at summed step k: b[0], b[1] of the first, b[2], b[3] of the second.
template <Major kMajor, typename Tile>
FDMA_DEVICE void load_b(uint32_t (&b)[4], const AddressB<Tile, kMajor>& address, int j, int k) {
  if constexpr (kMajor == Major::kK) {
    load_matrix(b, address.at(16 * j, 16 * k));
  } else {
    load_matrix_transposed(b, address.at(16 * k, 16 * j));
  }
}

// acc += A B over kSteps summed steps of 16, both operands in shared memory.
template <typename T, Major kMajorA, Major kMajorB, int kSteps, int kM, int kN, typename TileA, typename TileB>
FDMA_DEVICE void gemm(float (&acc)[kM][kN][4], const MatrixAddress<TileA, block_order_a(kMajorA)>& a_address,
                      const MatrixAddress<TileB, block_order_b(kMajorB)>& b_address) {
  static_assert(kN % 2 == 0, "B fragments are loaded two block columns at a time");
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    uint32_t a[kM][4];
#pragma unroll
    for (int i = 0; i < kM; ++i) load_a<kMajorA, TileA>(a[i], a_address, i, k);
#pragma unroll
    for (int j = 0; j < kN / 2; ++j) {
      uint32_t b[4];
      load_b<kMajorB, TileB>(b, b_address, j, k);
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        mma<T>(acc[i][2 * j], a[i], b[0], b[1]);
        mma<T>(acc[i][2 * j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// acc += A B with A in registers: a[i][k] is the operand of block row i at summed step k.
template <typename T, Major kMajorB, int kSteps, int kM, int kN, typename TileB>
FDMA_DEVICE void gemm_register_a(float (&acc)[kM][kN][4], const uint32_t (&a)[kM][kSteps][4],
                                 const MatrixAddress<TileB, block_order_b(kMajorB)>& b_address) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int j = 0; j < kN / 2; ++j) {
      uint32_t b[4];
      load_b<kMajorB, TileB>(b, b_address, j, k);
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        mma<T>(acc[i][2 * j], a[i][k], b[0], b[1]);
        mma<T>(acc[i][2 * j + 1], a[i][k], b[2], b[3]);
      }
    }
  }
}

template <int kM, int kN>
FDMA_DEVICE void clear(float (&acc)[kM][kN][4]) {
#pragma unroll
  for (int i = 0; i < kM; ++i)
#pragma unroll
    for (int j = 0; j < kN; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[i][j][e] = 0.f;
}

// Copies kBytes from global to shared memory without passing through registers; bytes from `valid_bytes` on are zero.
template <int kBytes>
FDMA_DEVICE void copy_async(uint32_t smem, const void* global, int valid_bytes) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem), "l"(global), "r"(valid_bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(smem), "l"(global), "n"(kBytes), "r"(valid_bytes)
                 : "memory");
  }
}
FDMA_DEVICE void copy_async_commit() { cute::cp_async_fence(); }
template <int kPending>
FDMA_DEVICE void copy_async_wait() {
  cute::cp_async_wait<kPending>();
}

FDMA_DEVICE void store_shared_16(uint32_t smem, uint4 value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(smem), "r"(value.x), "r"(value.y), "r"(value.z),
               "r"(value.w)
               : "memory");
}
FDMA_DEVICE uint4 load_shared_16(uint32_t smem) {
  uint4 value;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(smem)
               : "memory");
  return value;
}
FDMA_DEVICE void store_shared_4(uint32_t smem, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(smem), "r"(value) : "memory");
}
FDMA_DEVICE uint32_t load_shared_4(uint32_t smem) {
  uint32_t value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(smem) : "memory");
  return value;
}

}  // namespace fdma::sm80
