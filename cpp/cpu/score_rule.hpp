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
      : is_causal_(problem.is_causal), has_mask_(packed != nullptr), slots_(problem.slots), group_(problem.group()) {
    if (has_mask_) mask_ = packed_mask_view(problem.mask.layout, packed, problem.heads_q);
  }

  // Key tiles that query tile `q_tile` has to walk.
  int64_t key_tiles(const SequenceExtents& s, int64_t q_tile) const {
    return key_tile_count((q_tile + 1) * kTile, s.len_q, s.len_k, is_causal_, kTile);
  }

  // False when no row of the query tile sees a key of the key tile, or the sequence does not reach that far.
  bool tile(const SequenceExtents& s, int64_t h, int64_t q_tile, int64_t k_tile) const {
    if (q_tile * kTile >= s.len_q || k_tile >= key_tiles(s, q_tile)) return false;
    if (slots_.spans != nullptr) return slot_tile(s, h, q_tile, k_tile);
    return !has_mask_ ||
           ((mask_.row_tile(s.batch, static_cast<int32_t>(h), q_tile)[k_tile / 32] >> (k_tile % 32)) & 1u) != 0;
  }

  // Bit k of visible[r] = query q0 + r sees key k_tile * 64 + k.
  void rows(const SequenceExtents& s, int64_t h, int64_t q0, int64_t count, int64_t k_tile, uint64_t* visible) const {
    if (slots_.spans != nullptr) return slot_rows(s, h, q0, count, k_tile, visible);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t keys = key_limit(q0 + r, s.len_q, s.len_k, is_causal_) - k_tile * kTile;
      uint64_t word = keys >= kTile ? ~uint64_t{0} : keys <= 0 ? 0 : (uint64_t{1} << keys) - 1;
      if (has_mask_) {
        const uint32_t* bits = mask_.row(s.batch, static_cast<int32_t>(h), q0 + r) + k_tile * 2;
        word &= bits[0] | static_cast<uint64_t>(bits[1]) << 32;
      }
      visible[r] = word;
    }
  }

 private:
  const Span* slot_spans(const SequenceExtents& s, int64_t h) const {
    return slots_.spans + slots_.list(static_cast<int>(s.batch), static_cast<int>(h / group_)) * slots_.slots;
  }

  bool slot_tile(const SequenceExtents& s, int64_t h, int64_t q_tile, int64_t k_tile) const {
    const int64_t list = slots_.list(static_cast<int>(s.batch), static_cast<int>(h / group_));
    const SpanSummary* groups = slots_.groups + (list * slots_.slots + k_tile * kTile) / kSlotGroup;
    const auto first = static_cast<int>(q_tile * kTile);
    const auto last = static_cast<int>(min_of((q_tile + 1) * kTile, s.len_q) - 1);
    bool any = false;
    for (int64_t i = 0; i < kTile / kSlotGroup; ++i) any = any || groups[i].any(first, last);
    return any;
  }

  void slot_rows(const SequenceExtents& s, int64_t h, int64_t q0, int64_t count, int64_t k_tile,
                 uint64_t* visible) const {
    const Span* spans = slot_spans(s, h) + k_tile * kTile;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = q0 + r;
      uint64_t word = 0;
      for (int64_t k = 0; k < kTile; ++k) {
        word |= static_cast<uint64_t>(row >= spans[k].begin && row < spans[k].end) << k;
      }
      visible[r] = word;
    }
  }

  bool is_causal_, has_mask_;
  PackedMaskView mask_;
  SlotView slots_;
  int64_t group_;
};

// The rule for the rows of a query tile and the keys of `k_tile`; fills visible[0, tile.rows).
inline ScoreRule score_rule(const AttentionProblem& problem, const Visibility& visibility,
                            const SequenceExtents& sequence, const QueryTile& tile, int64_t k_tile, uint64_t* visible) {
  const int64_t q0 = tile.index * kTile;
  const int64_t k0 = k_tile * kTile;
  visibility.rows(sequence, tile.head, q0, tile.rows, k_tile, visible);
  ScoreRule rule{};
  rule.rows = tile.rows;
  rule.keys = min_of(kTile, sequence.len_k - k0);
  rule.visible = visible;
  rule.scale = problem.scale;
  rule.softcap = problem.softcap;
  if (problem.bias.kind != FDMA_BIAS_NONE) {
    const View4& view = problem.bias.view;
    const int64_t head = tile.head / (problem.heads_q / problem.bias.heads);
    const int64_t offset =
        sequence.batch * view.stride[0] + head * view.stride[1] + q0 * view.stride[2] + k0 * view.stride[3];
    rule.bias = static_cast<const char*>(view.data) + offset * dtype_size(problem.bias.dtype);
    rule.bias_dtype = problem.bias.dtype;
    rule.bias_row_stride = view.stride[2];
    rule.bias_key_stride = view.stride[3];
  }
  return rule;
}

}  // namespace fdma::cpu
