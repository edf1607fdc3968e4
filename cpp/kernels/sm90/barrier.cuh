// Barriers of Hopper: mbarriers in shared memory, which count arrivals and bytes of the copy engine, and named
// barriers.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/math.hpp"

namespace fdma::sm90 {

// Named barriers in use. 0 is __syncthreads.
enum class NamedBarrier : int {
  kConsumers = 1,
  kTurn = 2,   // forward: one for each warpgroup of consumers
  kGroup = 2,  // backward: one for each warpgroup of consumers, of its own threads
  kWeights = 4,
  kCleared = 5
};

// Threads that wait in one round of a barrier wait at the same instruction (PTX: bar.sync is an aligned one, and
// synccheck looks); those that arrive alone may come from another.
FDMA_DEVICE void sync_named(NamedBarrier barrier, int index, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(static_cast<int>(barrier) + index), "r"(threads) : "memory");
}
FDMA_DEVICE void arrive_named(NamedBarrier barrier, int index, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(static_cast<int>(barrier) + index), "r"(threads) : "memory");
}

// An mbarrier by its address in shared memory. Phases alternate in parity, from 0 on.
struct Barrier {
  uint32_t address;

  FDMA_DEVICE void init(int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
  }
  FDMA_DEVICE void arrive() const {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
  }
  // Arrives, and lets the phase wait for `bytes` that the copy engine brings.
  FDMA_DEVICE void arrive_expecting(int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
  }
  // Arrives when the cp.async copies of this thread so far are done. Counts as one of the barrier's arrivals.
  FDMA_DEVICE void arrive_after_copies() const {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(address) : "memory");
  }
  // Waits for the end of the phase of this parity.
  FDMA_DEVICE void wait(int parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over:\n"
        "}" ::"r"(address),
        "r"(parity)
        : "memory");
  }
};

// Makes initialised barriers known to the copy engine. Then a barrier of all threads.
FDMA_DEVICE void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Shared memory that this thread wrote can be read by wgmma and the copy engine, after a barrier.
FDMA_DEVICE void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Position in a ring of kStages buffers, with the parity of its round.
template <int kStages>
struct RingPosition {
  static_assert(kStages == 1 || kStages == 2 || kStages == 4);
  uint32_t count = 0;
  FDMA_DEVICE int stage() const { return count % kStages; }
  FDMA_DEVICE uint32_t parity() const { return count / kStages % 2; }
  FDMA_DEVICE void advance() { ++count; }
};

// How many arrivals a warp makes at the end of its use of a buffer. One lane arrives for the warp; racecheck, which
// takes no such arrival for what orders the other lanes, gets a build in which every lane does.
#ifdef FDMA_EVERY_LANE_ARRIVES
inline constexpr int kWarpArrivals = 32;
#else
inline constexpr int kWarpArrivals = 1;
#endif

// A ring of buffers between producers and consumers: a pair of barriers a stage, 16 bytes, in shared memory.
template <int kStages>
struct Ring {
  static constexpr int kBytes = kStages * 16;
  uint32_t address;

  FDMA_DEVICE Barrier full(int stage) const { return {address + stage * 16}; }
  FDMA_DEVICE Barrier empty(int stage) const { return {address + stage * 16 + 8}; }
  FDMA_DEVICE void init(int producer_arrivals, int consumer_warps) const {
    for (int stage = 0; stage < kStages; ++stage) {
      full(stage).init(producer_arrivals);
      empty(stage).init(consumer_warps * kWarpArrivals);
    }
  }
  FDMA_DEVICE void wait_full(const RingPosition<kStages>& at) const { full(at.stage()).wait(at.parity()); }
  // Buffers start empty: the first round does not wait. All lanes of the warp: none may fill the buffer while another
  // still waits, since a buffer that is filled and given back again has the parity that the other one waits on.
  FDMA_DEVICE void wait_empty(const RingPosition<kStages>& at) const {
    empty(at.stage()).wait(at.parity() ^ 1);
    __syncwarp();
  }
  // The warp, all of it, has done with its buffer and goes on to the next.
  FDMA_DEVICE void release(RingPosition<kStages>& at, int lane) const {
    __syncwarp();
    if (lane < kWarpArrivals) empty(at.stage()).arrive();
    at.advance();
  }
};

// Registers of the warpgroup's threads from here on, a multiple of 8.
template <int kRegisters>
FDMA_DEVICE void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
FDMA_DEVICE void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace fdma::sm90
