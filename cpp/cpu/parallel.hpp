// Work shared among threads that live for one call: no global state, nothing for fork() to break, and calls of several
// threads do not wait for each other.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace fdma::cpu {

// Threads for a call of `flops` floating-point operations: what the caller asked for (0 = every CPU that the process
// may run on), at most one an item, and no more than have enough to do to repay their start.
int thread_count(int requested, int64_t items, double flops);

// Runs `worker(index)` for index 0 (on the calling thread) to threads - 1 and returns when all have returned. `worker`
// must not throw. A thread that the system refuses to start is left out.
void run_workers(int threads, const std::function<void(int)>& worker);

// body(worker, item) for every item in [0, items), each taken by the next free worker. Late items first: with causality
// they are the long ones.
template <typename Body>
void parallel_for(int threads, int64_t items, const Body& body) {
  if (threads <= 1 || items <= 1) {
    for (int64_t item = items - 1; item >= 0; --item) body(0, item);
    return;
  }
  std::atomic<int64_t> left{items};
  run_workers(threads, [&](int worker) {
    for (;;) {
      const int64_t item = left.fetch_sub(1, std::memory_order_relaxed) - 1;
      if (item < 0) return;
      body(worker, item);
    }
  });
}

}  // namespace fdma::cpu
