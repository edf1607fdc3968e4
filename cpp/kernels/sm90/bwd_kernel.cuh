// Backward on Hopper. A block owns 128 or 64 keys of one kv head and walks the query tiles of the group's heads; a
// producer warp brings them, two warpgroups of consumers compute, and two warps that are left clear the gradient of the
// bias where the walk does not come by.
#pragma once

#include "kernels/sm90/bwd_producer.cuh"
#include "kernels/sm90/bwd_roles.cuh"

namespace fdma::sm90 {

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) backward_kernel(const __grid_constant__ BackwardLaunch launch) {
  extern __shared__ __align__(1024) char smem_bytes[];
  const BackwardParams& p = launch;
  const BackwardShared<Traits> shared{smem_bytes, sm80::smem_address(smem_bytes)};
  if (threadIdx.x == 0) {
    prefetch_map(launch.query);
    prefetch_map(launch.grad_out);
    shared.init_barriers(p.has_mask);
  }
  const sm80::BackwardBlock<Traits> block(p, *reinterpret_cast<Sequence*>(smem_bytes + Traits::kSequenceOffset));
  if (threadIdx.x < kGroupThreads) {
    lower_registers<Traits::kProducerRegisters>();
    if (threadIdx.x < 32) {
      BackwardProducer<Traits>(launch, shared, block).run();
    } else if (Traits::kBiased && p.bias_grad == BiasGradMode::kScores && threadIdx.x >= 64) {
      clear_bias_gradient_gaps<Traits, 64>(p, block, threadIdx.x - 64);
    }
  } else {
    raise_registers<Traits::kConsumerRegisters>();
    if constexpr (Traits::kRoles) {
      BackwardRoles<Traits>(launch, shared, block).run();
    } else {
      BackwardConsumer<Traits>(launch, shared, block, uniform(threadIdx.x / kGroupThreads) - 1).run();
    }
  }
}

}  // namespace fdma::sm90
