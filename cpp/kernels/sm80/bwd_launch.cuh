// Picks the backward kernels for the bias and the device of a call and starts them.
#pragma once

#include "kernels/sm80/bias_grad_kernel.cuh"
#include "kernels/sm80/bwd_finish.cuh"
#include "kernels/sm80/bwd_kernel.cuh"
#include "kernels/sm80/fwd_launch.cuh"

namespace fdma::sm80 {

template <typename T, int kHeadDim, bool kRoomy, BiasForm kBias>
cudaError_t launch_backward_variant(const BackwardParams& p, cudaStream_t stream) {
  using Traits = BackwardTraits<T, kHeadDim, kRoomy, kBias>;
  return launch_over_heads<backward_kernel<Traits>>(ceil_div(p.sequences.max_k, Traits::kKeys), p.heads_kv,
                                                    Traits::kThreads, Traits::kSharedBytes, stream, p);
}

template <typename T, int kHeadDim, bool kRoomy>
cudaError_t launch_backward_sized(const BackwardParams& p, cudaStream_t stream) {
  if (p.slots.spans != nullptr) return launch_backward_variant<T, kHeadDim, kRoomy, BiasForm::kSlots>(p, stream);
  switch (bias_form<T>(p.bias)) {
    case BiasForm::kNone:
      return launch_backward_variant<T, kHeadDim, kRoomy, BiasForm::kNone>(p, stream);
    case BiasForm::kSame:
      return launch_backward_variant<T, kHeadDim, kRoomy, BiasForm::kSame>(p, stream);
    default:
      return launch_backward_variant<T, kHeadDim, kRoomy, BiasForm::kFloat>(p, stream);
  }
}

// Small head dims have one tile for all devices: it is built once.
template <typename T, int kHeadDim>
cudaError_t launch_backward(const BackwardParams& p, bool roomy, cudaStream_t stream) {
  if constexpr (has_roomy_backward(kHeadDim)) {
    if (roomy) return launch_backward_sized<T, kHeadDim, true>(p, stream);
  }
  return launch_backward_sized<T, kHeadDim, false>(p, stream);
}

template <typename T, int kHeadDim, bool kRoomy>
cudaError_t launch_finish_sized(const BackwardParams& p, cudaStream_t stream) {
  using Traits = FinishTraits<T, kHeadDim, kRoomy>;
  return launch_over_heads<finish_backward_kernel<Traits>>(
      ceil_div(p.sequences.max_q, Traits::kTile.queries), p.heads_q, Traits::kThreads, Traits::kSharedBytes, stream, p);
}

template <typename T, int kHeadDim>
cudaError_t launch_finish_backward(const BackwardParams& p, bool roomy, cudaStream_t stream) {
  if constexpr (has_roomy_backward(kHeadDim)) {
    if (roomy) return launch_finish_sized<T, kHeadDim, true>(p, stream);
  }
  return launch_finish_sized<T, kHeadDim, false>(p, stream);
}

template <typename T, int kHeadDim>
cudaError_t launch_bias_gradient(const BackwardParams& p, cudaStream_t stream) {
  using Traits = BiasGradTraits<T, kHeadDim>;
  const int64_t blocks = static_cast<int64_t>(ceil_div(p.sequences.max_k, Traits::kKeys)) *
                         ceil_div(p.sequences.max_q, Traits::kQueries) * p.bias_heads * p.bias_batch;
  return launch_large<bias_gradient_kernel<Traits>>(blocks, Traits::kThreads, Traits::kSharedBytes, stream, p);
}

}  // namespace fdma::sm80
