// A tile of the bias in shared memory: how it is brought there and added to an accumulator tile.
#pragma once

#include "kernels/core/tile_config.hpp"
#include "kernels/sm80/tile_io.cuh"

namespace fdma::sm80 {

// fp32 rows; 16-byte chunks are permuted in pairs so that 8-byte reads of four rows fall into different banks.
template <int kRows_, int kCols_>
struct FloatTile {
  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kPitch = kCols * 4;
  static constexpr int kBytes = kRows * kPitch;
  FDMA_DEVICE static constexpr uint32_t offset(int row, int col) {
    return row * kPitch + (((col / 4) ^ ((row & 3) << 1)) << 4) + (col % 4) * 4;
  }
};

// Where a bias tile starts: element (row 0, key 0) of the tile, and how much of it exists.
struct BiasTileSource {
  const void* data;
  int64_t element;  // index of the first element
  int64_t stride_row;
  int stride_key;
  ElementType type;
  bool vector;  // chunks of 16 bytes may be read as such
  int valid_rows, valid_keys;

  // `row_element`: index of key 0 in the tile's first row.
  FDMA_DEVICE BiasTileSource(const BiasView& bias, int64_t row_element, int k, int rows, int keys)
      : data(bias.data),
        element(row_element + static_cast<int64_t>(k) * bias.stride_key),
        stride_row(bias.stride_row),
        stride_key(bias.stride_key),
        type(bias.type),
        vector(bias.vector_rows && bias.stride_key == 1),
        valid_rows(rows),
        valid_keys(keys) {}
};

template <BiasForm kForm, typename T, int kRows, int kCols, int kThreads>
struct BiasStage;

template <typename T, int kRows, int kCols, int kThreads>
struct BiasStage<BiasForm::kNone, T, kRows, kCols, kThreads> {
  static constexpr int kBytes = 0;
};

template <typename T, int kRows, int kCols, int kThreads>
struct BiasStage<BiasForm::kSame, T, kRows, kCols, kThreads> {
  using Tile = SmemTile<kRows, kCols>;
  static constexpr int kBytes = Tile::kBytes;

  FDMA_DEVICE static void load(uint32_t smem, const BiasTileSource& source, int thread) {
    using Assignment = RowAssignment<Tile, kThreads>;
    const Assignment own(thread);
    const int valid = min_of(max_of(source.valid_keys - own.chunk * kChunk, 0), kChunk);
    const T* from = static_cast<const T*>(source.data) + source.element + own.row * source.stride_row +
                    own.chunk * kChunk * source.stride_key;
    const int64_t step = source.stride_row * Assignment::kRowsPerPass;
    if (source.vector) {
#pragma unroll
      for (int pass = 0; pass < Assignment::kPasses; ++pass) {
        const int row = own.row + pass * Assignment::kRowsPerPass;
        copy_async<16>(smem + Tile::chunk_offset(row, own.chunk), from, row < source.valid_rows ? valid * 2 : 0);
        from += step;
      }
    } else {
#pragma unroll 1
      for (int pass = 0; pass < Assignment::kPasses; ++pass) {
        const int row = own.row + pass * Assignment::kRowsPerPass;
        uint32_t pair[4] = {0, 0, 0, 0};
        if (row < source.valid_rows) {
          const uint16_t* raw = reinterpret_cast<const uint16_t*>(from);
#pragma unroll
          for (int e = 0; e < kChunk; ++e) {
            if (e < valid) pair[e / 2] |= static_cast<uint32_t>(raw[e * source.stride_key]) << (16 * (e % 2));
          }
        }
        store_shared_16(smem + Tile::chunk_offset(row, own.chunk), make_uint4(pair[0], pair[1], pair[2], pair[3]));
        from += step;
      }
    }
  }

  // acc += bias * log2(e). (row, col): the warp's corner in the tile.
  template <int kM, int kN>
  FDMA_DEVICE static void add(float (&acc)[kM][kN][4], uint32_t smem, int row, int col, int lane) {
    visit(acc, smem, row, col, lane, [](float x, float bias) { return fmaf(bias, kLog2e, x); });
  }
  // acc = acc * scale + bias.
  template <int kM, int kN>
  FDMA_DEVICE static void scale_and_add(float (&acc)[kM][kN][4], float scale, uint32_t smem, int row, int col,
                                        int lane) {
    visit(acc, smem, row, col, lane, [scale](float x, float bias) { return fmaf(x, scale, bias); });
  }

 private:
  // acc = result(acc, bias)
  template <int kM, int kN, typename Result>
  FDMA_DEVICE static void visit(float (&acc)[kM][kN][4], uint32_t smem, int row, int col, int lane,
                                const Result& result) {
    const MatrixAddress<Tile, BlockOrder::kDown> address(smem, row, col, lane);
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN / 2; ++j) {
        uint32_t r[4];
        load_matrix(r, address.at(16 * i, 16 * j));
#pragma unroll
        for (int part = 0; part < 4; ++part) {  // rows 0-7 and 8-15 of columns 0-7, then of columns 8-15
          const float2 bias = Element<T>::unpack(r[part]);
          float(&x)[4] = acc[i][2 * j + part / 2];
          x[2 * (part % 2)] = result(x[2 * (part % 2)], bias.x);
          x[2 * (part % 2) + 1] = result(x[2 * (part % 2) + 1], bias.y);
        }
      }
    }
  }
};

template <typename T, int kRows, int kCols, int kThreads>
struct BiasStage<BiasForm::kFloat, T, kRows, kCols, kThreads> {
  using Tile = FloatTile<kRows, kCols>;
  static constexpr int kBytes = Tile::kBytes;
  static constexpr int kChunksPerRow = kCols / 4;
  static constexpr int kRowsPerPass = kThreads / kChunksPerRow;

  FDMA_DEVICE static void load(uint32_t smem, const BiasTileSource& source, int thread) {
    const int col = thread % kChunksPerRow * 4;
    const int valid = min_of(max_of(source.valid_keys - col, 0), 4);
    int64_t element = source.element + thread / kChunksPerRow * source.stride_row + col * source.stride_key;
    const bool vector = source.vector && source.type == ElementType::kFloat32;
#pragma unroll 4
    for (int row = thread / kChunksPerRow; row < kRows; row += kRowsPerPass) {
      const uint32_t target = smem + Tile::offset(row, col);
      if (vector) {
        copy_async<16>(target, static_cast<const float*>(source.data) + element,
                       row < source.valid_rows ? valid * 4 : 0);
      } else {
        float value[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          value[e] = row < source.valid_rows && e < valid
                         ? load_element(source.data, source.type, element + e * source.stride_key)
                         : 0.f;
        }
        store_shared_16(target, make_uint4(__float_as_uint(value[0]), __float_as_uint(value[1]),
                                           __float_as_uint(value[2]), __float_as_uint(value[3])));
      }
      element += source.stride_row * kRowsPerPass;
    }
  }

  template <int kM, int kN>
  FDMA_DEVICE static void add(float (&acc)[kM][kN][4], uint32_t smem, int row, int col, int lane) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          const uint32_t address =
              smem + Tile::offset(row + 16 * i + 8 * half + lane / 4, col + 8 * j + 2 * (lane % 4));
          float2 bias;
          asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(bias.x), "=f"(bias.y) : "r"(address) : "memory");
          acc[i][j][2 * half] = fmaf(bias.x, kLog2e, acc[i][j][2 * half]);
          acc[i][j][2 * half + 1] = fmaf(bias.y, kLog2e, acc[i][j][2 * half + 1]);
        }
      }
    }
  }
};

// Packed mask rows of a tile in shared memory: kCols / 32 words a row.
template <int kRows, int kCols, int kThreads>
struct MaskStage {
  static constexpr int kWords = kCols / 32;
  static constexpr int kBytes = kRows * kWords * 4;

  static_assert(kRows <= kThreads, "a thread copies the words of one row");

  // Word 0 of the thread's row. Rows past the end repeat the last one: their results are not stored.
  FDMA_DEVICE static const uint32_t* source(const PackedMaskView& mask, int b, int h, int q, int len_q, int thread) {
    return mask.row(b, h, min_of(q + min_of(thread, kRows - 1), len_q - 1));
  }
  FDMA_DEVICE static void load(uint32_t smem, const uint32_t* source, int k, int thread) {
    if (thread < kRows) copy_async<kWords * 4>(smem + thread * kWords * 4, source + k / 32, kWords * 4);
  }
};

}  // namespace fdma::sm80
