// A block that runs, and what the files of the emulation share of it.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tests/emulation/machine/instructions.hpp"

namespace fdma::emulation {

constexpr int kGroupThreads = 128;
constexpr size_t kMaxShared = 227 * 1024;  // of a block, compute capability 9.0
constexpr uint32_t kWindowBegin = 1024;    // no address of shared memory is 0
using Action = std::function<void()>;
using Clock = std::vector<uint32_t>;  // by thread, see races.cpp

// What a thread waits for, kept in its own frame.
struct Waiting {
  bool (*is_over)(const void* condition) = nullptr;  // null: the thread can go on
  const void* condition = nullptr;
  const char* what = "";
  int64_t which = 0;
};

struct Thread {
  void* stack_pointer = nullptr;
  bool is_done = false;
  Waiting waiting;
  int64_t stands_still_until = 0;  // turn of the block, kRandom
  // Products: how many it started, and how many it had at the end of each batch not waited for.
  int64_t products = 0;
  std::vector<int64_t> batches;
  std::deque<Product> read_by_products;  // those not waited for
  bool fenced_products = false;          // since it waited for products
  int32_t fences = 0;                    // of what it has written, for the async proxy
  // Stores by the copy engine: of the group to be committed, groups not waited for, and whether of one it is known that
  // it was read, but not that it was written.
  std::vector<Action> open_stores;
  std::vector<std::vector<Action>> store_groups;
  bool has_unwritten_stores = false;
  // cp.async not done, and how many of these there were at the end of each group not waited for.
  std::vector<Action> copies;
  std::vector<size_t> copy_groups;
};

// Values that lanes exchange. Those of an exchange stay until the one after the next.
struct Warp {
  int arrived = 0;
  int64_t exchanges = 0;
  int64_t stands_still_until = 0;  // as of a thread
  char values[2][kWarpThreads][kMaxExchange];
  Clock clocks[2];
};

// A product that its warpgroup starts thread by thread.
struct GroupProduct {
  Product of_first;
  float* accumulators[kGroupThreads];
  const uint32_t* registers[kGroupThreads];
  int started = 0;
  bool is_done = false;
};
struct Warpgroup {
  std::deque<GroupProduct> products;  // the first of them is number `first`
  int64_t first = 0;
};

struct NamedBarrier {
  int threads = 0, arrived = 0;
  int64_t rounds = 0;
  int counts[2] = {0, 0};  // of barrier_count, by round
  Clock clocks[2];         // of who arrived, by round
};
struct MBarrier {
  int arrivals = 0, pending = 0;
  int64_t bytes = 0;
  int parity = 0;  // of the phase that is not over
  bool is_published = false;
  Clock clocks[2];  // of who arrived, by parity
};

struct Block {
  std::string kernel;
  size_t shared_bytes = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Warpgroup> groups;
  NamedBarrier named[16];
  std::map<uint32_t, MBarrier> mbarriers;
  std::deque<Action> arrivals;  // what comes to shared memory later: kLateCopies, kRandom
  int64_t turns = 0;
  int64_t standstills = 0;  // how often threads waited for a standstill, and how many do
  int waiting_for_standstill = 0;
  int64_t polls = 0;  // of global memory
};
extern Block block;
extern int current;  // index of the running thread

inline Thread& self() { return block.threads[static_cast<size_t>(current)]; }
inline int index_in_group() { return current % kGroupThreads; }
inline Warpgroup& group() { return block.groups[static_cast<size_t>(current / kGroupThreads)]; }

// Throws EmulationError; adds kernel, block and thread.
[[noreturn]] void fail(const std::string& what);
void require(bool holds, const char* what);

// Lets others run until `waiting` is over.
void wait(const Waiting& waiting);
template <typename Condition>
void wait_until(const char* what, int64_t which, const Condition& condition) {
  if (condition()) return made_progress();
  wait({[](const void* c) { return (*static_cast<const Condition*>(c))(); }, &condition, what, which});
}

// Lets others run until none can go on.
void wait_for_standstill();

// Does `action` now, or when nobody can go on without it, or at some time.
void arrive_in_time(Action action);

// kRandom: a number below `count`; true once in `times`.
unsigned random_below(unsigned count);
inline bool happens_once_in(unsigned times) { return random_below(times) == 0; }
// Does a product that a warpgroup has started, if there is one. Whether there was.
bool do_some_product();

// Proxies. What the async proxy reads or writes must have been published; note_write is of instructions.hpp.
void forget_writes();
void require_published(uint32_t address, int bytes);
void note_async_write(uint32_t address, int bytes);

// Races: races.cpp; accesses are noted by functions of instructions.hpp. What the running thread has done so far comes
// before what those do that acquire from `to` later.
constexpr int kSampleBytes = 2;  // of 16 that the copy engine or a product reads or writes, the ones that are noted
void forget_order();
void release_order(Clock& to);
void acquire_order(const Clock& from);

// mbarrier, from the copy engine: bytes have come; a thread's copies are done.
void complete_bytes(uint32_t barrier, int64_t bytes);
void complete_copies(uint32_t barrier);
// At the end of a block.
void finish_stores();
void check_barriers();

}  // namespace fdma::emulation
