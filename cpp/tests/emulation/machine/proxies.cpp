// Who may see what was written: PTX ISA, "Memory Consistency Model", "Proxies": the copy engine and products reach
// shared memory through the async proxy, all else through the generic one, and a write by one of these is not there for
// the other until its thread has said so with fence.proxy.async. "Asynchronous Warpgroup Level Matrix Instructions":
// wgmma.fence. Memory itself has one state here, so that without a fence the result would be right; hence these checks.
#include <algorithm>
#include <string>

#include "tests/emulation/machine/machine.hpp"

namespace fdma::emulation {
namespace {

constexpr int kUnit = 2;  // bytes of the smallest write that products read: an element

// The last write through the generic proxy, and how many fences its thread had behind it.
struct Write {
  int32_t thread = -1, fences = 0;
};
Write last_writes[(kWindowBegin + kMaxShared) / kUnit];

template <typename Body>
void for_each_write(uint32_t address, int bytes, const Body& body) {
  const size_t first = address / kUnit, count = static_cast<size_t>((bytes + kUnit - 1) / kUnit);
  for (size_t i = first; i < first + count; ++i) body(last_writes[i]);
}

}  // namespace

void forget_writes() {
  std::fill_n(last_writes + kWindowBegin / kUnit, (block.shared_bytes + kUnit - 1) / kUnit, Write());
}

void note_write(uint32_t address, int bytes) {
  for_each_write(address, bytes, [](Write& write) { write = {current, self().fences}; });
}

void fence_async() { ++self().fences; }

void require_published(uint32_t address, int bytes) {
  for_each_write(address, bytes, [&](const Write& write) {
    if (write.thread < 0 || block.threads[static_cast<size_t>(write.thread)].fences > write.fences) return;
    fail("the async proxy comes to address " + std::to_string(address) + ", which thread " +
         std::to_string(write.thread) + " has written without fence.proxy.async");
  });
}

void note_async_write(uint32_t address, int bytes) {
  require_published(address, bytes);
  for_each_write(address, bytes, [](Write& write) { write = Write(); });
}

void fence_products() { self().fenced_products = true; }

void publish_barriers() {
  for (auto& [address, barrier] : block.mbarriers) barrier.is_published = true;
}

// What others may take for done once they see it.
void reduce_add(int* address, int value) {
  const Thread& thread = self();
  require(thread.open_stores.empty() && thread.store_groups.empty() && !thread.has_unwritten_stores,
          "a release of stores that may not be written yet");
  *address += value;
  made_progress();
}

}  // namespace fdma::emulation
