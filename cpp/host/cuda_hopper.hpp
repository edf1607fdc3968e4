// Which calls Hopper's own kernels serve. The others run on the portable ones.
#pragma once

#include "host/backend.hpp"
#include "host/cuda_device.hpp"
#include "kernels/launchers.hpp"
#include "kernels/policy/range.hpp"
#include "kernels/sm90/tile_config.hpp"

namespace fdma::cuda {

// What the copy engine needs: something to copy; rows that start at multiples of 16 bytes and follow each other at a
// distance; no pages. A bias has a row of its own for every query and the dtype of the query, or is one of slots.
inline bool hopper_serves(const AttentionParams& p, ElementType type) {
  const bool empty = p.batch == 0 || p.sequences.max_q == 0 || p.sequences.max_k == 0 ||
                     (p.sequences.varies() && (p.sequences.rows_q == 0 || p.sequences.rows_k == 0));
  const bool rows =
      !empty && p.vector_rows && p.query.stride_row != 0 && p.key.stride_row != 0 && p.value.stride_row != 0;
  if (p.slots.spans != nullptr || p.bias.data == nullptr) return rows;
  return rows && p.bias.type == type && p.bias.vector_rows && p.bias.stride_key == 1 && p.bias.stride_row != 0;
}

inline bool takes_hopper(const DeviceInfo& device) {
  return device.compute_capability == 90 && kernel_family == KernelFamily::kBest;
}
inline bool takes_hopper_backward(const AttentionKernels& kernels, const DeviceInfo& device) {
  return kernels.backward_sm90 != nullptr && takes_hopper(device);
}
inline bool hopper_serves_forward(const ForwardParams& p, const AttentionKernels& kernels, const DeviceInfo& device) {
  return kernels.forward_sm90 != nullptr && takes_hopper(device) && p.pages.table == nullptr &&
         hopper_serves(p, kernels.type);
}
// Tiles of queries, or of keys, that take equally long: without mask and bias, and with the same keys for all queries
// up to a few.
inline bool has_equal_tiles(const AttentionParams& p) {
  const int64_t len_q = p.sequences.max_q, len_k = p.sequences.max_k;
  return !p.has_mask && p.slots.spans == nullptr && p.bias.data == nullptr && !p.sequences.varies() && len_q > 0 &&
         len_k > 0 && (!p.is_causal || len_k >= 4 * len_q);
}
// The tile of the forward kernel for equal tiles.
inline sm90::ForwardTile equal_tile(const ForwardParams& p, const AttentionKernels& kernels) {
  return sm90::forward_tile(kernels.head_dim, p.softcap != 0);
}
// How Hopper's kernels cut the last of their tiles, should they serve the call: that follows from addresses, too, and
// scratch is asked for without.
inline TailSplit forward_tail(const ForwardParams& p, const AttentionKernels& kernels, const DeviceInfo& device) {
  if (kernels.forward_sm90 == nullptr || !takes_hopper(device) || p.pages.table != nullptr || !has_equal_tiles(p)) {
    return {};
  }
  constexpr int kFewestTiles = 4;  // of keys, in a part
  const sm90::ForwardTile tile = equal_tile(p, kernels);
  const int64_t tiles = ceil_div<int64_t>(p.sequences.max_q, tile.queries()) * p.heads_q * p.batch;
  return TailSplit::choose(tiles, device.multiprocessors,
                           ceil_div<int64_t>(p.sequences.max_k, tile.keys) / kFewestTiles);
}
// Without causality alone: walks of the first key tiles are longer. Deterministic mode adds in the order of whole
// tiles.
inline TailSplit backward_tail(const BackwardParams& p, const AttentionKernels& kernels, const DeviceInfo& device,
                               bool deterministic) {
  if (!takes_hopper_backward(kernels, device) || deterministic || p.is_causal || !has_equal_tiles(p)) return {};
  constexpr int kFewestTiles = 4;  // of queries, in a part
  const sm90::BackwardTile tile = sm90::backward_tile(kernels.head_dim);
  const int64_t tiles = ceil_div<int64_t>(p.sequences.max_k, tile.keys) * p.heads_kv * p.batch;
  const int64_t walk = ceil_div<int64_t>(p.sequences.max_q, tile.queries);
  return TailSplit::choose(tiles, device.multiprocessors, walk / kFewestTiles);
}

// A softcap without a bias, or with one of slots. The gradient of the bias is stored by the copy engine, too.
inline bool hopper_serves_backward(const BackwardParams& p, const AttentionKernels& kernels, const DeviceInfo& device) {
  const bool stores_scores = p.bias_grad == BiasGradMode::kScores && p.slots.spans == nullptr;
  const bool vector_scores = p.bias_keys % 8 == 0 && reinterpret_cast<uintptr_t>(p.grad_bias) % 16 == 0;
  const bool caps = p.bias.data == nullptr;
  return takes_hopper_backward(kernels, device) && (p.softcap == 0 || caps) && p.grad_out.stride_row != 0 &&
         (!stores_scores || vector_scores) && hopper_serves(p, kernels.type);
}

}  // namespace fdma::cuda
