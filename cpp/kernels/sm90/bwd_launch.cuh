// Picks Hopper's backward kernel for the bias of a call, describes its tensors and starts it.
#pragma once

#include "kernels/core/launch.cuh"
#include "kernels/launchers.hpp"
#include "kernels/sm80/bwd_finish.cuh"
#include "kernels/sm90/bwd_kernel.cuh"
#include "kernels/sm90/call_maps.hpp"

namespace fdma::sm90 {

template <typename T, int kHeadDim, BiasForm kBias, bool kCapped = false>
cudaError_t launch_backward_variant(const BackwardParams& p, cudaStream_t stream) {
  using Traits = BackwardTraits<T, kHeadDim, kBias, kCapped>;
  BackwardLaunch launch;
  static_cast<BackwardParams&>(launch) = p;
  const ElementType type = Element<T>::kType;
  bool described = map_queries(launch.query, p, p.query, type, Traits::kQueries) &&
                   map_queries(launch.grad_out, p, p.grad_out, type, Traits::kQueries) &&
                   map_keys(launch.key, p, p.key, type, Traits::kKeys) &&
                   map_keys(launch.value, p, p.value, type, Traits::kKeys);
  if constexpr (Traits::kBiased) {
    described = described && map_bias(launch.bias, p, type, Traits::kQueries);
    if (p.bias_grad == BiasGradMode::kScores) {
      const int64_t head = int64_t{p.bias_rows} * p.bias_keys;
      const TensorView view{p.grad_bias, p.bias_heads * head, p.bias_keys, head};
      described =
          described && make_tensor_map(launch.grad_bias, view, type,
                                       {p.bias_keys, p.bias_rows, p.bias_heads, p.bias_batch}, Traits::kQueries);
    }
  }
  if (!described) return cudaErrorInvalidValue;
  const int tiles = ceil_div(p.sequences.max_k, Traits::kKeys);
  if (Traits::kSplits && p.tail.any()) {
    const int64_t blocks = queue_items(int64_t{tiles} * p.heads_kv * p.batch, p.tail);
    const cudaError_t error =
        launch_large<backward_kernel<Traits>>(blocks, Traits::kThreads, Traits::kSharedBytes, stream, launch);
    return error != cudaSuccess ? error : launch_combine_gradients(p, type, stream);
  }
  launch.tail = {};
  return launch_over_heads<backward_kernel<Traits>>(tiles, p.heads_kv, Traits::kThreads, Traits::kSharedBytes, stream,
                                                    launch);
}

template <typename T, int kHeadDim>
cudaError_t launch_backward(const BackwardParams& p, cudaStream_t stream) {
  if (p.softcap != 0) {  // without a bias that has a row for every query, see hopper_serves_backward
    return p.slots.spans != nullptr ? launch_backward_variant<T, kHeadDim, BiasForm::kSlots, true>(p, stream)
                                    : launch_backward_variant<T, kHeadDim, BiasForm::kNone, true>(p, stream);
  }
  if (p.slots.spans != nullptr) return launch_backward_variant<T, kHeadDim, BiasForm::kSlots>(p, stream);
  return p.bias.data != nullptr ? launch_backward_variant<T, kHeadDim, BiasForm::kSame>(p, stream)
                                : launch_backward_variant<T, kHeadDim, BiasForm::kNone>(p, stream);
}

template <typename T_, int kHeadDim_>
struct FinishTraits {
  using T = T_;
  using Sum = sm90::QuerySum<kHeadDim_>;
  using Tile = sm80::SmemTile<Sum::kQueries, kHeadDim_>;
  static constexpr int kThreads = Sum::kThreads;
  static constexpr int kSharedBytes = Tile::kBytes;
};

template <typename T, int kHeadDim>
cudaError_t launch_finish_backward(const BackwardParams& p, cudaStream_t stream) {
  using Traits = FinishTraits<T, kHeadDim>;
  return launch_over_heads<sm80::finish_backward_kernel<Traits>>(
      ceil_div(p.sequences.max_q, Traits::Sum::kQueries), p.heads_q, Traits::kThreads, Traits::kSharedBytes, stream, p);
}

}  // namespace fdma::sm90
