#include "cpu/parallel.hpp"

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace fdma::cpu {
namespace {

int available_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

int thread_count(int requested, int64_t items, double flops) {
  // About 60 microseconds of one core's work, twice what starting and joining a thread takes.
  constexpr double kFlopsToRepayStart = 4e6;
  const double worthwhile = std::min(1e6, flops / kFlopsToRepayStart);
  const int64_t useful = std::min(items, static_cast<int64_t>(worthwhile));
  if (useful <= 1) return 1;
  return static_cast<int>(std::min<int64_t>(requested > 0 ? requested : available_cpus(), useful));
}

void run_workers(int threads, const std::function<void(int)>& worker) {
  std::vector<std::thread> started;
  started.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int index = 1; index < threads; ++index) started.emplace_back(worker, index);
  } catch (const std::system_error&) {
    // The workers that did start, and this thread, take all the items.
  }
  worker(0);
  for (std::thread& thread : started) thread.join();
}

}  // namespace fdma::cpu
