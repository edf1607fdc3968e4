// The functions of TileKernels over the vectors of one instruction set. Included by tile_kernels_<isa>.cpp, which sets
//   FDMA_SIMD_NAMESPACE       where the functions live
//   FDMA_SIMD_NAME            its name
//   FDMA_SIMD_LANES           floats in a vector
//   FDMA_SIMD_COLUMN_VECTORS  vectors side by side in one block of the product of two tiles

namespace fdma::cpu::FDMA_SIMD_NAMESPACE {
namespace {

#include "cpu/simd_impl.hpp"

// --- matrix product
// ----------------------------------------------------------------------------------------------------

constexpr int kBlockRows = 6;
constexpr int kBlockVectors = FDMA_SIMD_COLUMN_VECTORS;

// Rows x Vectors vectors of c, held in registers over the whole depth. The sum of one element of c takes the same
// steps whatever block it falls into, so results do not depend on how rows are grouped.
template <int Rows, int Vectors>
void multiply_block(int64_t k, const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t b_row, float* c,
                    int64_t c_row, bool accumulate) {
  VecF sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) sum[i][j] = accumulate ? load(c + i * c_row + j * kLanes) : VecF{};
  }
  for (int64_t p = 0; p < k; ++p, a += a_col, b += b_row) {
    VecF b_vector[Vectors];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) b_vector[j] = load(b + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) sum[i][j] += a[i * a_row] * b_vector[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) store(c + i * c_row + j * kLanes, sum[i][j]);
  }
}

template <int Vectors>
void multiply_columns(int64_t m, int64_t k, const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t b_row,
                      float* c, int64_t c_row, bool accumulate) {
  int64_t i = 0;
  for (; i + kBlockRows <= m; i += kBlockRows) {
    multiply_block<kBlockRows, Vectors>(k, a + i * a_row, a_row, a_col, b, b_row, c + i * c_row, c_row, accumulate);
  }
  a += i * a_row;
  c += i * c_row;
  switch (m - i) {
    case 5:
      return multiply_block<5, Vectors>(k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
    case 4:
      return multiply_block<4, Vectors>(k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
    case 3:
      return multiply_block<3, Vectors>(k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
    case 2:
      return multiply_block<2, Vectors>(k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
    case 1:
      return multiply_block<1, Vectors>(k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
    default:
      return;
  }
}

void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, int64_t a_col, const float* b,
              int64_t b_row, float* c, int64_t c_row, bool accumulate) {
  int64_t vectors = ceil_div<int64_t>(n, kLanes);
  for (; vectors >= kBlockVectors; vectors -= kBlockVectors, b += kBlockVectors * kLanes, c += kBlockVectors * kLanes) {
    multiply_columns<kBlockVectors>(m, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
  }
  static_assert(kBlockVectors <= 4, "the cases below cover what can remain");
  switch (vectors) {
    case 3:
      return multiply_columns<3>(m, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
    case 2:
      return multiply_columns<2>(m, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
    case 1:
      return multiply_columns<1>(m, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
    default:
      return;
  }
}

// --- rows of the caller's tensors
// --------------------------------------------------------------------------------------

// Calls body(typed pointer) for data of one of the float dtypes.
template <typename Body>
FDMA_SIMD void with_dtype(void* data, fdma_dtype dtype, Body body) {
  switch (dtype) {
    case FDMA_FLOAT16:
      return body(static_cast<Half*>(data));
    case FDMA_BFLOAT16:
      return body(static_cast<BFloat*>(data));
    default:
      return body(static_cast<float*>(data));
  }
}

void load_rows(const TensorRows& source, int64_t dim, float* tile, int64_t tile_row) {
  const int64_t padded = round_up<int64_t>(dim, 16);
  with_dtype(source.data, source.dtype, [&](auto* data) {
    for (int64_t r = 0; r < source.count; ++r) {
      for (int64_t d = 0; d < padded; d += kLanes) {
        store(tile + r * tile_row + d, load_part(data + r * source.stride + d, dim - d));
      }
    }
  });
}

typedef float Quad __attribute__((vector_size(16)));

#if defined(__clang__)
#define FDMA_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t QuadIndex __attribute__((vector_size(16)));
#define FDMA_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, QuadIndex{i, j, k, l})
#endif

// columns[i][j] = rows[j][i], rows `row` apart, columns `column` apart.
FDMA_SIMD void transpose_4x4(const float* rows, int64_t row, float* columns, int64_t column) {
  Quad r[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&r[i], rows + i * row, sizeof(Quad));
  const Quad low01 = FDMA_SHUFFLE(r[0], r[1], 0, 4, 1, 5);
  const Quad high01 = FDMA_SHUFFLE(r[0], r[1], 2, 6, 3, 7);
  const Quad low23 = FDMA_SHUFFLE(r[2], r[3], 0, 4, 1, 5);
  const Quad high23 = FDMA_SHUFFLE(r[2], r[3], 2, 6, 3, 7);
  const Quad c[4] = {FDMA_SHUFFLE(low01, low23, 0, 1, 4, 5), FDMA_SHUFFLE(low01, low23, 2, 3, 6, 7),
                     FDMA_SHUFFLE(high01, high23, 0, 1, 4, 5), FDMA_SHUFFLE(high01, high23, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) std::memcpy(columns + i * column, &c[i], sizeof(Quad));
}

#undef FDMA_SHUFFLE

void load_transposed(const TensorRows& source, int64_t dim, float* tile) {
  constexpr int64_t kMaxDim = 256;
  alignas(64) float rows[4 * kMaxDim];
  char* data = static_cast<char*>(source.data);
  const int64_t element = source.dtype == FDMA_FLOAT32 ? 4 : 2;
  for (int64_t r = 0; r < kTile; r += 4) {
    const int64_t count = max_of<int64_t>(0, min_of<int64_t>(4, source.count - r));
    for (int64_t i = count; i < 4; ++i) std::memset(rows + i * kMaxDim, 0, static_cast<size_t>(dim) * sizeof(float));
    if (count > 0) {
      load_rows({data + r * source.stride * element, source.dtype, source.stride, count}, dim, rows, kMaxDim);
    }
    for (int64_t d = 0; d < dim; d += 4) transpose_4x4(rows + d, kMaxDim, tile + d * kTile + r, kTile);
  }
}

void store_rows(const float* tile, int64_t tile_row, const float* scales, int64_t dim, const TensorRows& destination) {
  with_dtype(destination.data, destination.dtype, [&](auto* data) {
    for (int64_t r = 0; r < destination.count; ++r) {
      for (int64_t d = 0; d < dim; d += kLanes) {
        store_part(data + r * destination.stride + d, load(tile + r * tile_row + d) * scales[r], dim - d);
      }
    }
  });
}

void dot_rows(const TensorRows& a, const TensorRows& b, int64_t dim, float* sums) {
  with_dtype(a.data, a.dtype, [&](auto* x) {
    const auto* y = static_cast<decltype(x)>(b.data);
    for (int64_t r = 0; r < a.count; ++r) {
      VecF sum = {};
      for (int64_t d = 0; d < dim; d += kLanes) {
        sum += load_part(x + r * a.stride + d, dim - d) * load_part(y + r * b.stride + d, dim - d);
      }
      sums[r] = horizontal_sum(sum);
    }
  });
}

// --- scores
// ------------------------------------------------------------------------------------------------------------

constexpr int64_t kRowVectors = kTile / kLanes;

// Lanes of vector i whose bit in `visible` is set.
FDMA_SIMD VecU visible_lanes(uint64_t visible, int i) {
  VecU lane_bit;
  for (int lane = 0; lane < kLanes; ++lane) lane_bit[lane] = 1u << lane;
  return (VecU)((splat(static_cast<uint32_t>(visible >> (i * kLanes))) & lane_bit) != 0u);
}

FDMA_SIMD VecF select(VecU lanes, VecF a, VecF b) { return lanes != 0u ? a : b; }

template <typename T>
FDMA_SIMD void add_bias(const ScoreRule& rule, int64_t row, VecF* scores) {
  const T* bias = static_cast<const T*>(rule.bias) + row * rule.bias_row_stride;
  if (rule.bias_key_stride == 0) {
    T all[kLanes];
    for (T& element : all) element = bias[0];
    const VecF b = load(all);
    for (int i = 0; i < kRowVectors; ++i) scores[i] += b;
  } else {
    for (int i = 0; i < kRowVectors; ++i) scores[i] += load_part(bias + i * kLanes, rule.keys - i * kLanes);
  }
}

// Scores of one row from the products of its query and the keys: scaled, soft-capped, with bias, -inf where hidden.
// With `capped` the quotients tanh(x / softcap), which the gradient needs, are kept there.
template <bool kKeepCapped>
FDMA_SIMD void row_scores(const ScoreRule& rule, int64_t row, const float* products, VecF* scores, VecF* capped) {
  for (int i = 0; i < kRowVectors; ++i) scores[i] = load(products + i * kLanes) * rule.scale;
  if (rule.softcap != 0.0f) {
    const float inverse = 1.0f / rule.softcap;
    for (int i = 0; i < kRowVectors; ++i) {
      const VecF quotient = tanh(scores[i] * inverse);
      if (kKeepCapped) capped[i] = quotient;
      scores[i] = quotient * rule.softcap;
    }
  }
  if (rule.bias != nullptr) {
    switch (rule.bias_dtype) {
      case FDMA_FLOAT16:
        add_bias<Half>(rule, row, scores);
        break;
      case FDMA_BFLOAT16:
        add_bias<BFloat>(rule, row, scores);
        break;
      default:
        add_bias<float>(rule, row, scores);
        break;
    }
  }
  const uint64_t visible = rule.visible[row];
  if (visible != ~uint64_t{0}) {
    for (int i = 0; i < kRowVectors; ++i) {
      scores[i] = select(visible_lanes(visible, i), scores[i], splat(-__builtin_inff()));
    }
  }
}

void softmax(const ScoreRule& rule, float* scores, float* row_max, float* row_sum, float* acc, int64_t acc_row,
             int64_t dim) {
  for (int64_t r = 0; r < rule.rows; ++r) {
    float* row = scores + r * kTile;
    if (rule.visible[r] == 0) {
      std::memset(row, 0, kTile * sizeof(float));
      continue;
    }
    VecF s[kRowVectors];
    row_scores<false>(rule, r, row, s, nullptr);
    VecF top = s[0];
    for (int i = 1; i < kRowVectors; ++i) top = vmax(top, s[i]);
    const float old_max = row_max[r];
    const float tile_max = horizontal_max(top);
    const float new_max = tile_max > old_max ? tile_max : old_max;
    const float base = new_max == -__builtin_inff() ? 0.0f : new_max;  // nothing seen yet: exp(-inf - 0) = 0
    VecF sum = {};
    for (int i = 0; i < kRowVectors; ++i) {
      const VecF p = exp2((s[i] - base) * kLog2e);
      store(row + i * kLanes, p);
      sum += p;
    }
    float* partial = row_sum + r * 16;
    if (new_max != old_max) {
      const VecF decay = exp2(splat((old_max - base) * kLog2e));
      for (int i = 0; i < 16; i += kLanes) store(partial + i, load(partial + i) * decay);
      for (int64_t d = 0; d < dim; d += kLanes) store(acc + r * acc_row + d, load(acc + r * acc_row + d) * decay);
      row_max[r] = new_max;
    }
    store(partial, load(partial) + sum);
  }
}

void softmax_grad(const ScoreRule& rule, const float* lse, const float* delta, float* scores, float* grad,
                  float* bias_grad, int64_t bias_grad_row) {
  for (int64_t r = 0; r < rule.rows; ++r) {
    float* score_row = scores + r * kTile;
    float* grad_row = grad + r * kTile;
    if (rule.visible[r] == 0 || lse[r] == -__builtin_inff()) {
      std::memset(score_row, 0, kTile * sizeof(float));
      std::memset(grad_row, 0, kTile * sizeof(float));
      continue;
    }
    VecF s[kRowVectors], capped[kRowVectors] = {};
    row_scores<true>(rule, r, score_row, s, capped);
    for (int i = 0; i < kRowVectors; ++i) {
      const VecF p = exp2((s[i] - lse[r]) * kLog2e);
      // A hidden key has no gradient even where its value row makes the product infinite or NaN.
      VecF g = s[i] == -__builtin_inff() ? VecF{} : p * (load(grad_row + i * kLanes) - delta[r]);
      store(score_row + i * kLanes, p);
      if (bias_grad != nullptr) {
        float* sum = bias_grad + r * bias_grad_row + i * kLanes;
        store(sum, load(sum) + g);
      }
      if (rule.softcap != 0.0f) g *= 1.0f - capped[i] * capped[i];
      store(grad_row + i * kLanes, g);
    }
  }
}

// --- masks
// -------------------------------------------------------------------------------------------------------------

FDMA_SIMD bool is_visible(Half x) { return (x.bits & 0x7fff) != 0; }
template <typename T>
FDMA_SIMD bool is_visible(T x) {
  return x != 0;
}

// Bit i of the result = bit 0 of byte i of `flags`.
FDMA_SIMD uint32_t gather_bits(const uint8_t* flags) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    uint64_t eight = 0;
    for (int j = 0; j < 8; ++j) eight |= static_cast<uint64_t>(flags[i * 8 + j]) << (8 * j);
    word |= static_cast<uint32_t>((eight * 0x0102040810204080u) >> 56) << (8 * i);
  }
  return word;
}

template <typename T>
void pack_typed_row(const T* row, int64_t count, uint32_t* words, int64_t word_count) {
  for (int64_t w = 0; w < word_count; ++w) {
    uint8_t flags[32];
    const int64_t left = count - w * 32;
    if (left >= 32) {
      for (int i = 0; i < 32; ++i) flags[i] = is_visible(row[w * 32 + i]);
    } else {
      for (int i = 0; i < 32; ++i) flags[i] = i < left && is_visible(row[w * 32 + i]);
    }
    words[w] = gather_bits(flags);
  }
}

void pack_mask_row(const void* row, fdma_dtype dtype, int64_t count, uint32_t* words, int64_t word_count) {
  switch (dtype) {
    case FDMA_FLOAT16:
    case FDMA_BFLOAT16:
      return pack_typed_row(static_cast<const Half*>(row), count, words, word_count);
    case FDMA_FLOAT32:
      return pack_typed_row(static_cast<const float*>(row), count, words, word_count);
    case FDMA_FLOAT64:
      return pack_typed_row(static_cast<const double*>(row), count, words, word_count);
    case FDMA_INT16:
      return pack_typed_row(static_cast<const int16_t*>(row), count, words, word_count);
    case FDMA_INT32:
      return pack_typed_row(static_cast<const int32_t*>(row), count, words, word_count);
    case FDMA_INT64:
      return pack_typed_row(static_cast<const int64_t*>(row), count, words, word_count);
    default:
      return pack_typed_row(static_cast<const uint8_t*>(row), count, words, word_count);
  }
}

constexpr TileKernels kTable = {FDMA_SIMD_NAME, multiply, load_rows,    load_transposed, store_rows,
                                dot_rows,       softmax,  softmax_grad, pack_mask_row};

}  // namespace

const TileKernels* tile_kernels() { return &kTable; }

#undef FDMA_SIMD

}  // namespace fdma::cpu::FDMA_SIMD_NAMESPACE
