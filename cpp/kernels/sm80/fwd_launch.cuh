// Picks the forward kernel for the mask and bias of a call and starts it.
#pragma once

#include "kernels/core/launch.cuh"
#include "kernels/sm80/fwd_kernel.cuh"

namespace fdma::sm80 {

// The form in which kernels for dtype T read this bias.
template <typename T>
BiasForm bias_form(const BiasView& bias) {
  if (bias.data == nullptr) return BiasForm::kNone;
  return bias.type == Element<T>::kType ? BiasForm::kSame : BiasForm::kFloat;
}

template <typename T, int kHeadDim, bool kMasked, BiasForm kBias>
cudaError_t launch_forward_variant(const ForwardParams& p, cudaStream_t stream) {
  using Traits = ForwardTraits<T, kHeadDim, kMasked, kBias>;
  const PackedHeads packed = p.slots.packed;
  return launch_over_heads<forward_kernel<Traits>>(ceil_div(p.sequences.max_q, packed.position(Traits::kQueries)),
                                                   p.heads_q >> packed.shift, Traits::kThreads, Traits::kSharedBytes,
                                                   stream, p);
}

template <typename T, int kHeadDim, bool kMasked>
cudaError_t launch_forward_masked(const ForwardParams& p, cudaStream_t stream) {
  switch (bias_form<T>(p.bias)) {
    case BiasForm::kNone:
      return launch_forward_variant<T, kHeadDim, kMasked, BiasForm::kNone>(p, stream);
    case BiasForm::kSame:
      return launch_forward_variant<T, kHeadDim, kMasked, BiasForm::kSame>(p, stream);
    default:
      return launch_forward_variant<T, kHeadDim, kMasked, BiasForm::kFloat>(p, stream);
  }
}

template <typename T, int kHeadDim>
cudaError_t launch_forward(const ForwardParams& p, cudaStream_t stream) {
  if (p.slots.spans != nullptr) return launch_forward_variant<T, kHeadDim, false, BiasForm::kSlots>(p, stream);
  return p.has_mask ? launch_forward_masked<T, kHeadDim, true>(p, stream)
                    : launch_forward_masked<T, kHeadDim, false>(p, stream);
}

}  // namespace fdma::sm80
