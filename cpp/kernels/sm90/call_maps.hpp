// The tensors of a call as the copy engine is told of them.
#pragma once

#include "kernels/sm90/tensor_map.hpp"

namespace fdma::sm90 {

inline bool map_queries(TensorMap& target, const AttentionParams& p, const TensorView& view, ElementType type,
                        int box_rows, PackedHeads packed = {}) {
  const SequenceView& s = p.sequences;
  return make_tensor_map(target, view, type, {p.head_dim, s.varies() ? s.rows_q : s.max_q, p.heads_q, p.batch},
                         packed.position(box_rows), packed.count());
}
// Keys in the order of slots follow each other without sequences.
inline bool map_keys(TensorMap& target, const AttentionParams& p, const TensorView& view, ElementType type,
                     int box_rows) {
  const SequenceView& s = p.sequences;
  return make_tensor_map(target, view, type, {p.head_dim, s.varies() ? s.rows_k : s.max_k, p.heads_kv, p.batch},
                         box_rows);
}
inline bool map_bias(TensorMap& target, const AttentionParams& p, ElementType type, int box_rows) {
  const TensorView view{const_cast<void*>(p.bias.data), p.bias.stride_batch, p.bias.stride_row, p.bias.stride_head};
  return make_tensor_map(target, view, type,
                         {p.sequences.max_k, p.sequences.max_q, p.heads_q / p.bias.heads_per_bias_head, p.batch},
                         box_rows);
}

}  // namespace fdma::sm90
