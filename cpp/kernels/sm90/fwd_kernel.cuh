// Forward on Hopper: wgmma, the copy engine, and warps with roles. A block is one producer, which brings tiles to
// shared memory, and two or three warpgroups of consumers. Blocks stay for as long as the queue has query tiles.
#pragma once

#include "kernels/sm90/fwd_consumer.cuh"
#include "kernels/sm90/fwd_producer.cuh"

namespace fdma::sm90 {

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) forward_kernel(const __grid_constant__ ForwardLaunch launch) {
  extern __shared__ __align__(1024) char smem_bytes[];
  const ForwardShared<Traits> shared{smem_bytes, sm80::smem_address(smem_bytes)};
  if (threadIdx.x == 0) {
    prefetch_map(launch.query);
    prefetch_map(launch.key);
    prefetch_map(launch.value);
    shared.init_barriers();
  }
  if constexpr (Traits::kSlots) {  // without a bias nobody writes there
    if (launch.params.slots.bias == nullptr) {
      for (int i = threadIdx.x; i < Traits::kStages * Traits::kKeys / 4; i += Traits::kThreads) {
        sm80::store_shared_16(
            shared.slots(i / (Traits::kKeys / 4)) + Traits::Slots::kSpanBytes + i % (Traits::kKeys / 4) * 16,
            make_uint4(0, 0, 0, 0));
      }
    }
  }
  __syncthreads();
  if (threadIdx.x < kGroupThreads) {
    lower_registers<Traits::kProducerRegisters>();
    if (threadIdx.x < 32) ForwardProducer<Traits>(launch, shared).run();
  } else {
    raise_registers<Traits::kConsumerRegisters>();
    ForwardConsumer<Traits>(launch, shared).run();
  }
}

}  // namespace fdma::sm90
