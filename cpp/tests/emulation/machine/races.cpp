// Accesses of shared memory that nothing orders. A vector clock of a thread says what it knows of the others: of each,
// how many of its releases (Lamport's happened-before; as in Flanagan and Freund, "FastTrack", PLDI 2009). Arriving at
// a barrier releases, waiting at it acquires, an exchange of lanes does both. Two accesses of a place, one of them a
// write, must be ordered that way, whatever order the emulation ran them in. Only of the generic proxy, by
// instructions: what the copy engine and products do is not seen, and neither is what C++ reads or writes through a
// pointer.
#include <algorithm>
#include <string>

#include "tests/emulation/machine/machine.hpp"

namespace fdma::emulation {
namespace {

constexpr int kUnit = 2;  // bytes: lanes write elements side by side

struct Access {
  int32_t thread = -1;
  uint32_t time = 0;  // releases of the thread before it
};
struct Place {
  int64_t block = -1;  // of the accesses
  Access write;
  std::vector<Access> reads;  // since then
};
Place places[(kWindowBegin + kMaxShared) / kUnit];
std::vector<Clock> clocks;
int64_t blocks = 0;

// One order is enough to look at, and in this one an instruction runs in the thread that it is of.
bool looks() { return timing() == Timing::kEarly; }

Clock& own_clock() { return clocks[static_cast<size_t>(current)]; }

void require_before(const Access& other, uint32_t address, const char* what) {
  if (other.thread < 0 || other.thread == current || own_clock()[static_cast<size_t>(other.thread)] > other.time)
    return;
  fail(std::string("a race: nothing orders this ") + what + " of thread " + std::to_string(other.thread) +
       ", address " + std::to_string(address));
}

template <typename Body>
void for_each_place(uint32_t address, int bytes, const Body& body) {
  if (!looks()) return;
  const uint32_t end = address + static_cast<uint32_t>(bytes);
  for (uint32_t at = address / kUnit * kUnit; at < end; at += kUnit) {
    Place& place = places[at / kUnit];
    if (place.block != blocks) place.block = blocks, place.write = Access(), place.reads.clear();
    body(place, at);
  }
}

Access access() { return {current, own_clock()[static_cast<size_t>(current)]}; }

}  // namespace

void forget_order() {
  ++blocks;
  if (looks()) clocks.assign(block.threads.size(), Clock(block.threads.size(), 0));
}

void release_order(Clock& to) {
  if (!looks()) return;
  Clock& own = own_clock();
  to.resize(own.size(), 0);
  ++own[static_cast<size_t>(current)];
  for (size_t i = 0; i < own.size(); ++i) to[i] = std::max(to[i], own[i]);
}

void acquire_order(const Clock& from) {
  if (!looks()) return;
  Clock& own = own_clock();
  for (size_t i = 0; i < from.size(); ++i) own[i] = std::max(own[i], from[i]);
}

void note_ordered_read(uint32_t address, int bytes) {
  for_each_place(address, bytes, [](Place& place, uint32_t at) {
    require_before(place.write, at, "read and a write");
    const auto known =
        std::find_if(place.reads.begin(), place.reads.end(), [](const Access& read) { return read.thread == current; });
    if (known != place.reads.end()) {
      *known = access();
    } else {
      place.reads.push_back(access());
    }
  });
}

void note_ordered_write(uint32_t address, int bytes) {
  for_each_place(address, bytes, [](Place& place, uint32_t at) {
    require_before(place.write, at, "write and a write");
    for (const Access& read : place.reads) require_before(read, at, "write and a read");
    place.write = access();
    place.reads.clear();
  });
}

}  // namespace fdma::emulation
