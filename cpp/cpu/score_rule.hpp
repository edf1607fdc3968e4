// Which keys the rows of a tile see: packed mask, causality and the end of the sequence in one 64-bit word a row.
#pragma once

#include <cstdint>

#include "cpu/query_blocks.hpp"
#include "cpu/tile_kernels.hpp"
#include "host/dtype.hpp"
#include "host/problem.hpp"
#include "kernels/policy/range.hpp"

namespace fdma::cpu {

class Visibility {
 public:
  // `packed`: the packed mask of the problem, null when it has no mask.
  Visibility(const AttentionProblem& problem, const void* packed)
      : len_q_(problem.len_q), len_k_(problem.len_k), is_causal_(problem.is_causal), has_mask_(packed != nullptr) {
    if (has_mask_) mask_ = packed_mask_view(problem.mask.layout, packed, problem.heads_q);
  }

  // Key tiles that query tile `q_tile` has to walk.
  int64_t key_tiles(int64_t q_tile) const {
    return key_tile_count((q_tile + 1) * kTile, len_q_, len_k_, is_causal_, kTile);
  }

  // First query tile with a row that may see a key of `k_tile`.
  int64_t first_query_tile(int64_t k_tile) const {
    return first_query_of_key(k_tile * kTile, len_q_, len_k_, is_causal_) / kTile;
  }

  // False when no row of the query tile sees a key of the key tile.
  bool tile(int64_t b, int64_t h, int64_t q_tile, int64_t k_tile) const {
    if (k_tile >= key_tiles(q_tile)) return false;
    return !has_mask_ || ((mask_.row_tile(b, h, q_tile)[k_tile / 32] >> (k_tile % 32)) & 1u) != 0;
  }

  // Bit k of visible[r] = query q0 + r sees key k_tile * 64 + k.
  void rows(int64_t b, int64_t h, int64_t q0, int64_t count, int64_t k_tile, uint64_t* visible) const {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t keys = key_limit(q0 + r, len_q_, len_k_, is_causal_) - k_tile * kTile;
      uint64_t word = keys >= kTile ? ~uint64_t{0} : keys <= 0 ? 0 : (uint64_t{1} << keys) - 1;
      if (has_mask_) {
        const uint32_t* bits = mask_.row(b, h, q0 + r) + k_tile * 2;
        word &= bits[0] | static_cast<uint64_t>(bits[1]) << 32;
      }
      visible[r] = word;
    }
  }

 private:
  int64_t len_q_, len_k_;
  bool is_causal_, has_mask_;
  PackedMaskView mask_;
};

// The rule for the rows of a query tile and the keys of `k_tile`; fills visible[0, tile.rows).
inline ScoreRule score_rule(const AttentionProblem& problem, const Visibility& visibility, int64_t b,
                            const QueryTile& tile, int64_t k_tile, uint64_t* visible) {
  const int64_t q0 = tile.index * kTile;
  const int64_t k0 = k_tile * kTile;
  visibility.rows(b, tile.head, q0, tile.rows, k_tile, visible);
  ScoreRule rule{};
  rule.rows = tile.rows;
  rule.keys = min_of(kTile, problem.len_k - k0);
  rule.visible = visible;
  rule.scale = problem.scale;
  rule.softcap = problem.softcap;
  if (problem.bias.kind != FDMA_BIAS_NONE) {
    const View4& view = problem.bias.view;
    const int64_t head = tile.head / (problem.heads_q / problem.bias.heads);
    const int64_t offset = b * view.stride[0] + head * view.stride[1] + q0 * view.stride[2] + k0 * view.stride[3];
    rule.bias = static_cast<const char*>(view.data) + offset * dtype_size(problem.bias.dtype);
    rule.bias_dtype = problem.bias.dtype;
    rule.bias_row_stride = view.stride[2];
    rule.bias_key_stride = view.stride[3];
  }
  return rule;
}

// `count` rows from (b, row, h) of a query-like tensor.
inline TensorRows tensor_rows(const AttentionProblem& problem, const View4& view, int64_t b, int64_t row, int64_t h,
                              int64_t count) {
  const int64_t offset = b * view.stride[0] + row * view.stride[1] + h * view.stride[2];
  return {static_cast<char*>(view.data) + offset * dtype_size(problem.dtype), problem.dtype, view.stride[1], count};
}

}  // namespace fdma::cpu
