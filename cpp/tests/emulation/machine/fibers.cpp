// Threads of a block as fibers, the order in which they run, and what ends in an error. A thread runs until it has to
// wait. Warps take turns; one goes on for as long as its lanes can, since they exchange values with each other above
// all. Shared memory is one window: CUDA C++ Programming Guide, "Thread Hierarchy"; PTX ISA, "State Spaces" (.shared)
// and "shfl.sync" for what lanes exchange.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iterator>
#include <random>
#include <utility>

#include "tests/emulation/machine/machine.hpp"

#if !defined(__x86_64__)
#error "The switch of fibers is written for x86-64."
#endif

// Saves what a function has to preserve on this stack, its pointer in *from, and goes on where `to` was saved.
extern "C" void fdma_emulation_switch(void** from, void* to);
asm(R"(
.text
.globl fdma_emulation_switch
.type fdma_emulation_switch, @function
fdma_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fdma_emulation_switch, .-fdma_emulation_switch
)");

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace fdma::emulation {

Block block;
int current = 0;

namespace {

constexpr size_t kStackBytes = 512 * 1024;
constexpr int kSavedRegisters = 6;
constexpr int kTurn = 64;  // how often the lanes of a warp are asked to go on before others are
constexpr int64_t kMaxPolls = 2'000'000;

alignas(1024) char window[kWindowBegin + kMaxShared];
Timing timing_of_launches = Timing::kEarly;
unsigned seed_of_launches = 1;
std::mt19937 random_numbers;
int64_t progress = 0;
void* scheduler = nullptr;  // its stack pointer while a thread runs
const std::function<void()>* body = nullptr;
bool is_in_thread = false;
std::exception_ptr error;

std::string describe(const Waiting& waiting) { return std::string(waiting.what) + " " + std::to_string(waiting.which); }

std::string describe_place() {
  std::string place = " in " + block.kernel + ", block " + std::to_string(blockIdx.x) + " " +
                      std::to_string(blockIdx.y) + " " + std::to_string(blockIdx.z);
  if (is_in_thread) place += ", thread " + std::to_string(current);
  constexpr const char* kTimings[] = {", early", ", copies late", ", products late", ", at random, seed "};
  place += kTimings[static_cast<int>(timing())];
  return timing() == Timing::kRandom ? place + std::to_string(seed_of_launches) : place;
}

// The first function on the stack of a thread. Never returns.
void run_thread() {
  try {
    (*body)();
  } catch (...) {
    error = std::current_exception();
  }
  self().is_done = true;
  made_progress();
  fdma_emulation_switch(&self().stack_pointer, scheduler);
  std::abort();
}

// Stacks of all blocks to come. Their tops differ modulo a page: caches keep those of a warp beside each other.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks() {
    for (void* stack : stacks_) munmap(stack, kStackBytes);
  }
  // Stack pointer of a thread that begins with run_thread.
  void* begin(size_t thread) {
    while (stacks_.size() <= thread) {
      void* stack =
          mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED) throw EmulationError("no memory for the stack of a thread");
      stacks_.push_back(stack);
    }
    const size_t stagger = 64 + thread % 64 * 2112;
    auto* top = reinterpret_cast<void**>(static_cast<char*>(stacks_[thread]) + kStackBytes - stagger);
    *--top = nullptr;  // where run_thread would return to
    *--top = reinterpret_cast<void*>(run_thread);
    for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
    return top;
  }

 private:
  std::vector<void*> stacks_;
};

void resume(int thread) {
  current = thread;
  threadIdx.x = static_cast<unsigned>(thread);
  is_in_thread = true;
  fdma_emulation_switch(&scheduler, self().stack_pointer);
  is_in_thread = false;
  if (error != nullptr) std::rethrow_exception(std::exchange(error, nullptr));
}

// Lets every thread of a warp run that can. Whether one did.
bool run_lanes(int warp) {
  if (block.warps[static_cast<size_t>(warp)].stands_still_until > block.turns) return false;
  const int end = std::min<int>((warp + 1) * kWarpThreads, static_cast<int>(block.threads.size()));
  bool ran = false;
  for (int thread = warp * kWarpThreads; thread < end; ++thread) {
    const Thread& t = block.threads[static_cast<size_t>(thread)];
    if (t.is_done || t.stands_still_until > block.turns ||
        (t.waiting.is_over != nullptr && !t.waiting.is_over(t.waiting.condition)))
      continue;
    resume(thread);
    ran = true;
  }
  return ran;
}

[[noreturn]] void fail_of_deadlock() {
  std::string what = "deadlock: no thread can go on";
  for (size_t first = 0; first < block.threads.size(); first += kWarpThreads) {
    const size_t end = std::min(first + kWarpThreads, block.threads.size());
    for (size_t thread = first; thread < end; ++thread) {
      const Thread& t = block.threads[thread];
      if (t.is_done || (thread > first && describe(t.waiting) == describe(block.threads[thread - 1].waiting))) continue;
      what += "\n  warp " + std::to_string(first / kWarpThreads) + " from lane " + std::to_string(thread - first) +
              " on waits for " + describe(t.waiting);
    }
  }
  fail(what + "\n ");
}

bool all_done() {
  for (const Thread& t : block.threads) {
    if (!t.is_done) return false;
  }
  return true;
}

void run_arrival(size_t index) {
  const Action action = std::move(block.arrivals[index]);
  block.arrivals.erase(block.arrivals.begin() + static_cast<std::ptrdiff_t>(index));
  action();
}
void run_next_arrival() {
  run_arrival(timing() == Timing::kRandom ? random_below(static_cast<unsigned>(block.arrivals.size())) : 0);
}

void run_warps() {
  for (int warp = 0; warp < static_cast<int>(block.warps.size()); ++warp) {
    for (int turn = 0; turn < kTurn && run_lanes(warp); ++turn) continue;
  }
}

// For some turns, now and then for very many.
int64_t end_of_standing_still() { return block.turns + (int64_t{1} << random_below(9)); }

// Warps in any order, for some steps each. Now and then one of them, or a lane, stands still for some turns. Between
// turns copies come and products are done, or not.
void run_warps_at_random() {
  ++block.turns;
  const auto warps = static_cast<unsigned>(block.warps.size());
  const unsigned first = random_below(warps);
  for (unsigned i = 0; i < warps; ++i) {
    const auto warp = static_cast<int>((first + i) % warps);
    if (happens_once_in(8)) block.warps[static_cast<size_t>(warp)].stands_still_until = end_of_standing_still();
    if (happens_once_in(8)) {
      const size_t thread = static_cast<size_t>(warp) * kWarpThreads + random_below(kWarpThreads);
      if (thread < block.threads.size()) block.threads[thread].stands_still_until = end_of_standing_still();
    }
    const unsigned steps = 1 + random_below(kTurn);
    for (unsigned step = 0; step < steps && run_lanes(warp); ++step) continue;
  }
  while (!block.arrivals.empty() && happens_once_in(2)) run_next_arrival();
  while (happens_once_in(2) && do_some_product()) continue;
}

// When nobody goes on and nothing is to come. Warps first: lanes may fall far behind while others go on.
void end_standing_still() {
  const int64_t before = progress;
  for (Warp& warp : block.warps) warp.stands_still_until = 0;
  run_warps();
  if (progress != before) return;
  for (Thread& thread : block.threads) thread.stands_still_until = 0;
}

void run_block(size_t threads) {
  static Stacks stacks;
  std::memset(window + kWindowBegin, 0xff, block.shared_bytes);
  forget_writes();
  block.threads.assign(threads, Thread());
  block.warps.assign((threads + kWarpThreads - 1) / kWarpThreads, Warp());
  block.groups.assign((threads + kGroupThreads - 1) / kGroupThreads, Warpgroup());
  std::fill(std::begin(block.named), std::end(block.named), NamedBarrier());
  block.mbarriers.clear();
  block.arrivals.clear();
  block.turns = 0;
  block.polls = 0;
  block.standstills = 0;
  block.waiting_for_standstill = 0;
  forget_order();
  for (size_t i = 0; i < threads; ++i) block.threads[i].stack_pointer = stacks.begin(i);
  while (!all_done()) {
    const int64_t before = progress;
    if (timing() == Timing::kRandom) {
      run_warps_at_random();
      if (progress == before && block.arrivals.empty()) end_standing_still();
    }
    if (progress == before) run_warps();
    if (progress != before) continue;
    if (!block.arrivals.empty()) {
      run_next_arrival();
    } else if (std::exchange(block.waiting_for_standstill, 0) > 0) {
      ++block.standstills;
    } else {
      fail_of_deadlock();
    }
  }
  while (!block.arrivals.empty()) run_next_arrival();
  finish_stores();
  check_barriers();
}

}  // namespace

void set_timing(Timing timing, unsigned seed) {
  timing_of_launches = timing;
  seed_of_launches = seed;
  random_numbers.seed(seed);
}
unsigned random_below(unsigned count) { return static_cast<unsigned>(random_numbers() % count); }
Timing timing() { return timing_of_launches; }
void made_progress() { ++progress; }

void fail(const std::string& what) { throw EmulationError("emulation: " + what + describe_place()); }
void require(bool holds, const char* what) {
  if (!holds) fail(what);
}

void run(const std::string& kernel, dim3 grid, dim3 threads, size_t shared_bytes,
         const std::function<void()>& of_thread) {
  block.kernel = kernel;
  block.shared_bytes = shared_bytes;
  blockIdx = {0, 0, 0};
  require(shared_bytes <= kMaxShared, "more shared memory than a block can have");
  require(threads.y == 1 && threads.z == 1, "blocks of more than one dimension are not emulated");
  body = &of_thread;
  gridDim = grid;
  blockDim = threads;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(threads.x);
    }
  }
}

void wait(const Waiting& waiting) {
  self().waiting = waiting;
  fdma_emulation_switch(&self().stack_pointer, scheduler);
  self().waiting = Waiting();
  made_progress();
}

void wait_for_standstill() {
  ++block.waiting_for_standstill;
  const int64_t before = block.standstills;
  wait_until("others to wait", before, [&] { return block.standstills > before; });
}

void arrive_in_time(Action action) {
  if (timing() != Timing::kLateCopies && timing() != Timing::kRandom) return action();
  block.arrivals.push_back(std::move(action));
}

void* dynamic_shared_memory() { return window + kWindowBegin; }
uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - window);
}
char* shared_bytes_at(uint32_t address, int bytes) {
  const uint32_t alignment = bytes > 16 ? 16 : static_cast<uint32_t>(bytes);
  if (address % alignment != 0) {
    fail("misaligned address " + std::to_string(address) + " of shared memory for " + std::to_string(bytes) + " bytes");
  }
  if (address < kWindowBegin || address - kWindowBegin + static_cast<size_t>(bytes) > block.shared_bytes) {
    fail("address " + std::to_string(address) + " outside of the shared memory from " + std::to_string(kWindowBegin) +
         " to " + std::to_string(kWindowBegin + block.shared_bytes));
  }
  return window + address;
}

void exchange(uint32_t mask, const void* mine, void* all, int bytes) {
  require(mask == 0xffffffffu, "an exchange of a part of the warp is not emulated");
  require(bytes <= kMaxExchange, "an exchange of more than 16 bytes");
  Warp& warp = block.warps[static_cast<size_t>(current / kWarpThreads)];
  const int first = current / kWarpThreads * kWarpThreads;
  const int lanes = std::min<int>(kWarpThreads, static_cast<int>(block.threads.size()) - first);
  const int64_t number = warp.exchanges;
  auto& values = warp.values[number % 2];
  std::memcpy(values[current - first], mine, static_cast<size_t>(bytes));
  Clock& clock = warp.clocks[number % 2];
  if (warp.arrived == 0) clock.clear();
  release_order(clock);
  if (++warp.arrived == lanes) {
    warp.arrived = 0;
    ++warp.exchanges;
  }
  wait_until("lanes of its warp, exchange", number, [&] { return warp.exchanges > number; });
  acquire_order(clock);
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    std::memcpy(static_cast<char*>(all) + lane * bytes, values[lane], static_cast<size_t>(bytes));
  }
}

void load_acquire(int& value, const int* address) {
  if (++block.polls > kMaxPolls) fail("a counter in global memory never comes to what a thread waits for");
  bool asked = false;
  wait_until("a counter in global memory", 0, [&] { return std::exchange(asked, true); });
  value = *address;
}

}  // namespace fdma::emulation
