// Picks Hopper's forward kernel for the mask and bias of a call, describes its tensors and starts it.
#pragma once

#include "kernels/core/launch.cuh"
#include "kernels/launchers.hpp"
#include "kernels/sm90/call_maps.hpp"
#include "kernels/sm90/fwd_kernel.cuh"

namespace fdma::sm90 {

// Keys and values that are read again and again by the blocks that run at one time, in bytes: a part of L2.
inline constexpr int64_t kSectionBytes = int64_t{32} << 20;

inline CombineParams combine_params(const ForwardParams& p, const TileQueue& queue, int tile_rows) {
  CombineParams combine;
  combine.parts = p.tail_parts;
  combine.count = p.tail.parts;
  combine.queue = queue;
  combine.first_tile = queue.heads * queue.tiles_per_head - p.tail.tiles;
  combine.tile_rows = tile_rows;
  combine.heads_q = p.heads_q;
  combine.len_q = p.sequences.max_q;
  combine.head_dim = p.head_dim;
  combine.out = p.out;
  combine.lse = p.lse;
  combine.lse_stride_batch = p.lse_stride_batch;
  combine.lse_stride_head = p.lse_stride_head;
  return combine;
}

template <typename Traits>
cudaError_t launch_forward_variant(const ForwardParams& p, int multiprocessors, cudaStream_t stream) {
  using T = typename Traits::T;
  ForwardLaunch launch;
  launch.params = p;
  const SequenceView& sequences = p.sequences;
  const ElementType type = Element<T>::kType;
  const PackedHeads packed = launch.packed<Traits>();
  bool described = map_queries(launch.query, p, p.query, type, Traits::kQueries, packed) &&
                   map_keys(launch.key, p, p.key, type, Traits::kKeys) &&
                   map_keys(launch.value, p, p.value, type, Traits::kKeys);
  if constexpr (Traits::kBiased) described = described && map_bias(launch.bias, p, type, Traits::kQueries);
  if (!described) return cudaErrorInvalidValue;
  TileQueue& queue = launch.queue;
  queue.tiles_per_head = ceil_div(sequences.max_q, packed.position(Traits::kQueries));
  queue.reversed = p.is_causal;
  const int64_t heads = int64_t{p.heads_q >> packed.shift} * p.batch;
  const TailSplit tail = Traits::kSplits ? p.tail : TailSplit{};
  const int64_t items = queue_items(queue.tiles_per_head * heads, tail);
  if (items > INT32_MAX) return cudaErrorInvalidConfiguration;
  queue.heads = static_cast<int32_t>(heads);
  launch.items = static_cast<int32_t>(items);
  const int64_t kv_head_bytes = max_of<int64_t>(1, int64_t{4} * sequences.max_k * p.head_dim);
  const int64_t kv_heads = heads / (p.group >> packed.shift);
  const int64_t sections = ceil_div(kv_heads, max_of<int64_t>(1, kSectionBytes / kv_head_bytes));
  queue.section = static_cast<int32_t>(ceil_div(kv_heads, sections) * (p.group >> packed.shift));  // nearly equal ones
  int64_t blocks = items;
  if (items <= multiprocessors || p.work_counter == nullptr) {
    launch.params.work_counter = nullptr;  // a block an item
  } else {
    blocks = multiprocessors;
    const cudaError_t error = cudaMemsetAsync(p.work_counter, 0, sizeof(int32_t), stream);
    if (error != cudaSuccess) return error;
  }
  const cudaError_t error =
      launch_large<forward_kernel<Traits>>(blocks, Traits::kThreads, Traits::kSharedBytes, stream, launch);
  if (error != cudaSuccess || !tail.any()) return error;
  return launch_combine_splits(combine_params(p, queue, Traits::kQueries), type, stream);
}

template <typename T, int kHeadDim, bool kMasked, BiasForm kBias>
cudaError_t launch_forward_form(const ForwardParams& p, int multiprocessors, cudaStream_t stream) {
  return p.softcap != 0
             ? launch_forward_variant<ForwardTraits<T, kHeadDim, kMasked, kBias, true>>(p, multiprocessors, stream)
             : launch_forward_variant<ForwardTraits<T, kHeadDim, kMasked, kBias, false>>(p, multiprocessors, stream);
}

template <typename T, int kHeadDim>
cudaError_t launch_forward(const ForwardParams& p, int multiprocessors, cudaStream_t stream) {
  constexpr auto kNone = BiasForm::kNone, kSame = BiasForm::kSame, kSlots = BiasForm::kSlots;
  if (p.slots.spans != nullptr) return launch_forward_form<T, kHeadDim, false, kSlots>(p, multiprocessors, stream);
  if (p.bias.data != nullptr) {
    return p.has_mask ? launch_forward_form<T, kHeadDim, true, kSame>(p, multiprocessors, stream)
                      : launch_forward_form<T, kHeadDim, false, kSame>(p, multiprocessors, stream);
  }
  return p.has_mask ? launch_forward_form<T, kHeadDim, true, kNone>(p, multiprocessors, stream)
                    : launch_forward_form<T, kHeadDim, false, kNone>(p, multiprocessors, stream);
}

}  // namespace fdma::sm90
