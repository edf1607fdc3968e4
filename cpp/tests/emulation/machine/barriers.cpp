// Named barriers and mbarriers: PTX ISA, "Parallel Synchronization and Communication Instructions": bar.sync and
// bar.arrive; "mbarrier", with its sections on phases, on the count of pending arrivals and on the tx-count.
#include "tests/emulation/machine/machine.hpp"

namespace fdma::emulation {
namespace {

constexpr int kNamedBarriers = 16;

// Round in which the thread arrived.
int64_t arrive_named(int index, int threads) {
  require(index >= 0 && index < kNamedBarriers, "a named barrier has an index from 0 to 15");
  require(threads > 0 && threads % kWarpThreads == 0, "the threads of a named barrier are whole warps");
  NamedBarrier& barrier = block.named[index];
  if (barrier.arrived == 0) barrier.threads = threads;
  if (barrier.threads != threads) fail("two counts of threads at named barrier " + std::to_string(index));
  const int64_t round = barrier.rounds;
  Clock& clock = barrier.clocks[round % 2];
  if (barrier.arrived == 0) clock.clear();
  release_order(clock);
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.rounds;
  }
  made_progress();
  return round;
}

void wait_named(int index, int64_t round) {
  const NamedBarrier& barrier = block.named[index];
  wait_until("named barrier", index, [&] { return barrier.rounds > round; });
  acquire_order(barrier.clocks[round % 2]);
}

MBarrier& mbarrier_at(uint32_t address) {
  const auto found = block.mbarriers.find(address);
  if (found == block.mbarriers.end()) fail("no mbarrier at address " + std::to_string(address));
  return found->second;
}

// The phase is over when all have arrived and all bytes have come, in any order.
void end_phase(MBarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.arrivals;
  barrier.parity ^= 1;
  barrier.clocks[barrier.parity].clear();
}

void arrive(uint32_t address) {
  MBarrier& barrier = mbarrier_at(address);
  if (barrier.pending == 0) fail("an arrival too many at the mbarrier at address " + std::to_string(address));
  release_order(barrier.clocks[barrier.parity]);
  --barrier.pending;
  end_phase(barrier);
  made_progress();
}

}  // namespace

void barrier_sync(int barrier, int threads) { wait_named(barrier, arrive_named(barrier, threads)); }
void barrier_arrive(int barrier, int threads) { arrive_named(barrier, threads); }
int barrier_count(bool predicate) {
  NamedBarrier& barrier = block.named[0];
  int& count = barrier.counts[barrier.rounds % 2];
  if (barrier.arrived == 0) count = 0;
  count += predicate ? 1 : 0;
  barrier_sync(0, static_cast<int>(block.threads.size()));
  return count;
}

void mbarrier_init(uint32_t barrier, int arrivals) {
  shared_bytes_at(barrier, 8);
  require(arrivals > 0, "an mbarrier waits for one arrival at least");
  block.mbarriers[barrier] = {arrivals, arrivals, 0, 0, false, {}};
}
void mbarrier_arrive(uint32_t barrier) { arrive(barrier); }
void mbarrier_arrive_expect(uint32_t barrier, int bytes) {
  mbarrier_at(barrier).bytes += bytes;
  arrive(barrier);
}
void mbarrier_wait(uint32_t barrier, int parity) {
  require(parity == 0 || parity == 1, "the parity of a phase is 0 or 1");
  const MBarrier& waited = mbarrier_at(barrier);
  wait_until("mbarrier", barrier, [&] { return waited.parity != parity; });
  acquire_order(waited.clocks[parity]);
}

void complete_bytes(uint32_t barrier, int64_t bytes) {
  MBarrier& completed = mbarrier_at(barrier);
  require(completed.is_published, "bytes come to an mbarrier without fence.mbarrier_init");
  release_order(completed.clocks[completed.parity]);
  completed.bytes -= bytes;
  end_phase(completed);
  made_progress();
}
void complete_copies(uint32_t barrier) { arrive(barrier); }

void check_barriers() {
  for (const auto& [address, barrier] : block.mbarriers) {
    if (barrier.bytes == 0) continue;
    fail("at the end of the block the mbarrier at address " + std::to_string(address) + " still expects " +
         std::to_string(barrier.bytes) + " bytes");
  }
}

}  // namespace fdma::emulation
