// Moves tiles of rows between global and shared memory. Rows past the end and columns past the head dimension are zero
// in shared memory and never touched in global memory.
#pragma once

#include "kernels/core/params.hpp"
#include "kernels/sm80/atoms.cuh"

namespace fdma::sm80 {

// 16 bytes of 16-bit elements that need not be aligned to more than an element.
template <typename T>
FDMA_DEVICE uint4 load_unaligned_chunk(const T* source) {
  const uint16_t* raw = reinterpret_cast<const uint16_t*>(source);
  uint32_t pair[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pair[i] = raw[2 * i] | (static_cast<uint32_t>(raw[2 * i + 1]) << 16);
  return make_uint4(pair[0], pair[1], pair[2], pair[3]);
}
template <typename T>
FDMA_DEVICE void store_unaligned_chunk(T* target, uint4 value) {
  uint16_t* raw = reinterpret_cast<uint16_t*>(target);
  const uint32_t pair[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    raw[2 * i] = static_cast<uint16_t>(pair[i]);
    raw[2 * i + 1] = static_cast<uint16_t>(pair[i] >> 16);
  }
}

// Which chunk a thread moves: kChunksPerRow neighbouring threads share a row, a pass covers kRowsPerPass rows.
template <typename Tile, int kThreads>
struct RowAssignment {
  static constexpr int kChunksPerRow = Tile::kCols / kChunk;
  static constexpr int kRowsPerPass = kThreads / kChunksPerRow;
  static constexpr int kPasses = (Tile::kRows + kRowsPerPass - 1) / kRowsPerPass;
  static constexpr bool kExact = Tile::kRows % kRowsPerPass == 0;
  static_assert(kThreads % kChunksPerRow == 0);
  int row, chunk;
  FDMA_DEVICE explicit RowAssignment(int thread) : row(thread / kChunksPerRow), chunk(thread % kChunksPerRow) {}
};

// Where the rows of a tile lie, from its first one: `stride` elements apart, or with several heads at each position
// `stride_head` from one to the next.
struct RowStride {
  int64_t stride, stride_head;
  PackedHeads packed;

  FDMA_DEVICE RowStride(int64_t stride_row) : stride(stride_row), stride_head(0) {}  // NOLINT: a plain stride is one
  FDMA_DEVICE RowStride(const TensorView& view, PackedHeads heads)
      : stride(view.stride_row), stride_head(view.stride_head), packed(heads) {}
  FDMA_DEVICE int64_t offset(int row) const { return packed.position(row) * stride + packed.head(row) * stride_head; }
  // Over `rows` rows, a multiple of the heads at a position.
  FDMA_DEVICE int64_t step(int rows) const { return packed.position(rows) * stride; }
};

// Starts the copy of `valid_rows` rows from `rows` (row 0 of the tile) into the tile. With `vector` the copy is
// asynchronous and belongs to the caller's next commit group; without it (rows that are not 16-byte aligned) it is done
// through registers and only needs a barrier.
template <typename Tile, int kThreads, typename T>
FDMA_DEVICE void load_tile(uint32_t smem, const T* rows, RowStride stride, int valid_rows, int head_dim, bool vector,
                           int thread) {
  using Assignment = RowAssignment<Tile, kThreads>;
  const Assignment own(thread);
  const bool column_valid = own.chunk * kChunk < head_dim;
  const T* source = rows + stride.offset(own.row) + own.chunk * kChunk;
  const int64_t step = stride.step(Assignment::kRowsPerPass);
  if (vector) {
#pragma unroll
    for (int pass = 0; pass < Assignment::kPasses; ++pass) {
      const int row = own.row + pass * Assignment::kRowsPerPass;
      if (Assignment::kExact || row < Tile::kRows) {
        copy_async<16>(smem + Tile::chunk_offset(row, own.chunk), source, column_valid && row < valid_rows ? 16 : 0);
      }
      source += step;
    }
  } else {
#pragma unroll 1
    for (int pass = 0; pass < Assignment::kPasses; ++pass) {
      const int row = own.row + pass * Assignment::kRowsPerPass;
      if (Assignment::kExact || row < Tile::kRows) {
        const bool valid = column_valid && row < valid_rows;
        store_shared_16(smem + Tile::chunk_offset(row, own.chunk),
                        valid ? load_unaligned_chunk(source) : make_uint4(0, 0, 0, 0));
      }
      source += step;
    }
  }
}

// As load_tile, for rows first_row.. of sequence b in a paged tensor; `base` is row 0 of page 0 at the head. An entry
// of the table that names no page is cut to one that exists.
template <typename Tile, int kThreads, typename T>
__device__ __noinline__ void load_paged_tile(uint32_t smem, const T* base, const TensorView& view,
                                             const PageView& pages, int b, int first_row, int valid_rows, int head_dim,
                                             bool vector, int thread) {
  using Assignment = RowAssignment<Tile, kThreads>;
  const Assignment own(thread);
  const int32_t* table = pages.table + b * pages.pages_per_sequence;
#pragma unroll 2
  for (int row = own.row; row < Tile::kRows; row += Assignment::kRowsPerPass) {
    const uint32_t target = smem + Tile::chunk_offset(row, own.chunk);
    if (row < valid_rows && own.chunk * kChunk < head_dim) {
      const int position = first_row + row;
      const int64_t page = max_of(0, min_of(__ldg(table + position / pages.page_size), pages.pages - 1));
      const T* source =
          base + page * view.stride_batch + position % pages.page_size * view.stride_row + own.chunk * kChunk;
      if (vector) {
        copy_async<16>(target, source, 16);
      } else {
        store_shared_16(target, load_unaligned_chunk(source));
      }
    } else {
      store_shared_16(target, make_uint4(0, 0, 0, 0));
    }
  }
}

// Stores `valid_rows` rows of the tile.
template <typename Tile, int kThreads, typename T>
FDMA_DEVICE void store_tile(uint32_t smem, T* rows, RowStride stride, int valid_rows, int head_dim, bool vector,
                            int thread) {
  using Assignment = RowAssignment<Tile, kThreads>;
  const Assignment own(thread);
  if (own.chunk * kChunk >= head_dim) return;
#pragma unroll 4
  for (int pass = 0; pass < Assignment::kPasses; ++pass) {
    const int row = own.row + pass * Assignment::kRowsPerPass;
    if (row >= Tile::kRows || row >= valid_rows) return;
    const uint4 value = load_shared_16(smem + Tile::chunk_offset(row, own.chunk));
    T* target = rows + stride.offset(row) + own.chunk * kChunk;
    if (vector) {
      *reinterpret_cast<uint4*>(target) = value;
    } else {
      store_unaligned_chunk(target, value);
    }
  }
}

// Writes an accumulator tile, times `scale`, as 16-bit elements at (row, col) of a shared-memory tile.
template <typename T, typename Tile, int kM, int kN>
FDMA_DEVICE void store_accumulator(uint32_t smem, const float (&acc)[kM][kN][4], int row, int col, float scale,
                                   int lane) {
  static_assert(kN % 2 == 0, "stores go by 16 x 16 blocks");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const MatrixAddress<Tile, BlockOrder::kDown> address(smem, row, col, lane);
#endif
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int j = 0; j < kN; j += 2) {
      uint32_t r[4];  // rows 0-7 and 8-15 of block column j, then of j + 1
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float* pair = acc[i][j + part / 2] + 2 * (part % 2);
        r[part] = Element<T>::pack(pair[0] * scale, pair[1] * scale);
      }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      store_matrix(r, address.at(16 * i, 8 * j));
#else
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        store_shared_4(
            smem + Tile::offset(row + 16 * i + 8 * (part % 2) + lane / 4, col + 8 * (j + part / 2) + 2 * (lane % 4)),
            r[part]);
      }
#endif
    }
  }
}

}  // namespace fdma::sm80
