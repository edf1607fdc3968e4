// Picks Hopper's forward kernel for the mask and bias of a call, describes its tensors and starts it.
#pragma once

#include "kernels/core/launch.cuh"
#include "kernels/sm90/call_maps.hpp"
#include "kernels/sm90/fwd_kernel.cuh"

namespace fdma::sm90 {

// Keys and values that are read again and again by the blocks that run at one time, in bytes: a part of L2.
inline constexpr int64_t kSectionBytes = int64_t{32} << 20;

template <typename T, int kHeadDim, bool kMasked, BiasForm kBias>
cudaError_t launch_forward_variant(const ForwardParams& p, int multiprocessors, cudaStream_t stream) {
  using Traits = ForwardTraits<T, kHeadDim, kMasked, kBias>;
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
  launch.tiles_per_head = ceil_div(sequences.max_q, packed.position(Traits::kQueries));
  const int64_t heads = int64_t{p.heads_q >> packed.shift} * p.batch;
  const int64_t tiles = launch.tiles_per_head * heads;
  if (tiles > INT32_MAX) return cudaErrorInvalidConfiguration;
  launch.tiles = static_cast<int32_t>(tiles);
  const int64_t kv_head_bytes = max_of<int64_t>(1, int64_t{4} * sequences.max_k * p.head_dim);
  launch.section = static_cast<int32_t>(
      min_of<int64_t>(heads, max_of<int64_t>(1, kSectionBytes / kv_head_bytes) * (p.group >> packed.shift)));
  cudaError_t error = allow_shared_memory<forward_kernel<Traits>>(Traits::kSharedBytes);
  if (error == cudaSuccess && p.work_counter != nullptr) {
    error = cudaMemsetAsync(p.work_counter, 0, sizeof(int32_t), stream);
  }
  if (error != cudaSuccess) return error;
  const int64_t blocks = p.work_counter != nullptr ? min_of<int64_t>(tiles, multiprocessors) : tiles;
  return fdma::launch(forward_kernel<Traits>, blocks, Traits::kThreads, Traits::kSharedBytes, stream, launch);
}

template <typename T, int kHeadDim>
cudaError_t launch_forward(const ForwardParams& p, int multiprocessors, cudaStream_t stream) {
  constexpr auto kNone = BiasForm::kNone, kSame = BiasForm::kSame, kSlots = BiasForm::kSlots;
  if (p.slots.spans != nullptr) return launch_forward_variant<T, kHeadDim, false, kSlots>(p, multiprocessors, stream);
  if (p.bias.data != nullptr) {
    return p.has_mask ? launch_forward_variant<T, kHeadDim, true, kSame>(p, multiprocessors, stream)
                      : launch_forward_variant<T, kHeadDim, false, kSame>(p, multiprocessors, stream);
  }
  return p.has_mask ? launch_forward_variant<T, kHeadDim, true, kNone>(p, multiprocessors, stream)
                    : launch_forward_variant<T, kHeadDim, false, kNone>(p, multiprocessors, stream);
}

}  // namespace fdma::sm90
