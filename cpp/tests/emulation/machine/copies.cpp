// The copy engine and cp.async: PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy": cp.async,
// cp.async.bulk, cp.reduce.async.bulk and cp.async.bulk.tensor, with completion by mbarrier and by groups; "Tensors",
// for boxes, elements out of bounds and the swizzle of 128 bytes.
#include <algorithm>
#include <cstring>
#include <utility>

#include "tests/emulation/machine/machine.hpp"
#include "tests/emulation/machine/tensor_map.hpp"

namespace fdma::emulation {
namespace {

constexpr int kElementBytes = 2, kLineBytes = 128, kSwizzleRepeat = 1024;

BoxMap read_map(const void* map) {
  BoxMap read;
  std::memcpy(&read, map, sizeof(read));
  require(read.mark == kMapMark, "a copy of a box without a tensor map");
  return read;
}

int64_t box_bytes(const BoxMap& map) {
  return int64_t{kElementBytes} * map.box[0] * map.box[1] * map.box[2] * map.box[3];
}

// Calls body(address of shared memory, global address or null where it is out of bounds) for each element.
template <typename Body>
void for_each_element(const BoxMap& map, uint32_t smem, const int (&corner)[kRank], const Body& body) {
  require(smem % kSwizzleRepeat == 0, "a box starts at a multiple of 1024 bytes of shared memory");
  uint32_t line = smem;
  uint32_t i[kRank];
  for (i[3] = 0; i[3] < map.box[3]; ++i[3]) {
    for (i[2] = 0; i[2] < map.box[2]; ++i[2]) {
      for (i[1] = 0; i[1] < map.box[1]; ++i[1], line += kLineBytes) {
        for (i[0] = 0; i[0] < map.box[0]; ++i[0]) {
          bool inside = true;
          int64_t offset = 0;
          for (int d = 0; d < kRank; ++d) {
            const int64_t at = int64_t{corner[d]} + i[d];
            inside = inside && at >= 0 && at < static_cast<int64_t>(map.size[d]);
            offset += at * static_cast<int64_t>(map.stride[d]);
          }
          const uint32_t address = line + i[0] * kElementBytes;
          body(address ^ (address >> 7 & 7) << 4, inside ? map.base + offset : nullptr);
        }
      }
    }
  }
}

// Stores of a thread: done at once, or when it waits for their group.
void store_in_time(Action action) {
  if (timing() == Timing::kEarly || (timing() == Timing::kRandom && happens_once_in(2))) {
    action();
    action = [] {};
  }
  self().open_stores.push_back(std::move(action));
}

void run_copies(Thread& thread, size_t count) {
  for (size_t i = 0; i < count; ++i) thread.copies[i]();
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(count));
  for (size_t& behind : thread.copy_groups) behind -= std::min(behind, count);
}

bool is_multiple_of_16(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

}  // namespace

void load_box(uint32_t smem, const void* map, int c0, int c1, int c2, int c3, uint32_t barrier, uint64_t) {
  arrive_in_time([=, box = read_map(map)] {
    for_each_element(box, smem, {c0, c1, c2, c3}, [](uint32_t to, const char* from) {
      char* target = shared_bytes_at(to, kElementBytes);
      note_async_write(to, kElementBytes);
      if (to % 16 == 0) note_ordered_write(to, kSampleBytes);
      if (from == nullptr) {
        std::memset(target, 0, kElementBytes);
      } else {
        std::memcpy(target, from, kElementBytes);
      }
    });
    complete_bytes(barrier, box_bytes(box));
  });
}

void store_box(const void* map, int c0, int c1, int c2, int c3, uint32_t smem) {
  store_in_time([=, box = read_map(map)] {
    for_each_element(box, smem, {c0, c1, c2, c3}, [](uint32_t from, char* to) {
      require_published(from, kElementBytes);
      if (from % 16 == 0) note_ordered_read(from, kSampleBytes);
      if (to != nullptr) std::memcpy(to, shared_bytes_at(from, kElementBytes), kElementBytes);
    });
  });
}

void load_bytes(uint32_t smem, const void* source, int bytes, uint32_t barrier) {
  require(smem % 16 == 0 && is_multiple_of_16(source) && bytes % 16 == 0,
          "addresses and size of a bulk copy are multiples of 16");
  arrive_in_time([=] {
    note_async_write(smem, bytes);
    for (int i = 0; i < bytes; i += 16) {
      note_ordered_write(smem + static_cast<uint32_t>(i), kSampleBytes);
      std::memcpy(shared_bytes_at(smem + static_cast<uint32_t>(i), 16), static_cast<const char*>(source) + i, 16);
    }
    complete_bytes(barrier, bytes);
  });
}

void add_floats(float* target, uint32_t smem, int bytes) {
  require(smem % 16 == 0 && is_multiple_of_16(target) && bytes % 16 == 0,
          "addresses and size of a bulk addition are multiples of 16");
  store_in_time([=] {
    require_published(smem, bytes);
    for (int i = 0; i < bytes / 4; ++i) {
      float value;
      load_shared(value, smem + static_cast<uint32_t>(4 * i));
      target[i] += value;
    }
  });
}

void commit_stores() {
  self().store_groups.push_back(std::move(self().open_stores));
  self().open_stores.clear();
}

// What is only to be read by then is written, too: later would need memory that may be written again.
void wait_stores_read(int pending) {
  auto& groups = self().store_groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const Action& store : groups.front()) store();
    groups.erase(groups.begin());
    self().has_unwritten_stores = true;
  }
  made_progress();
}
void wait_stores(int pending) {
  wait_stores_read(pending);
  if (pending == 0) self().has_unwritten_stores = false;
}

void finish_stores() {
  for (Thread& thread : block.threads) {
    for (const auto& stores : thread.store_groups) {
      for (const Action& store : stores) store();
    }
    require(thread.open_stores.empty(), "a store of the copy engine was never committed");
  }
}

void copy_async(uint32_t smem, const void* source, int bytes, int valid_bytes) {
  require(reinterpret_cast<uintptr_t>(source) % static_cast<uintptr_t>(bytes) == 0, "misaligned source of cp.async");
  require(valid_bytes >= 0 && valid_bytes <= bytes, "more valid bytes than cp.async copies");
  const Action action = [=] {
    char* target = shared_bytes_at(smem, bytes);
    note_write(smem, bytes);
    note_ordered_write(smem, bytes);
    std::memset(target, 0, static_cast<size_t>(bytes));
    std::memcpy(target, source, static_cast<size_t>(valid_bytes));
  };
  if (timing() != Timing::kLateCopies && timing() != Timing::kRandom) return action();
  self().copies.push_back(action);
}
void commit_copies() { self().copy_groups.push_back(self().copies.size()); }
void wait_copies(int pending) {
  Thread& thread = self();
  while (static_cast<int>(thread.copy_groups.size()) > pending) {
    run_copies(thread, thread.copy_groups.front());
    thread.copy_groups.erase(thread.copy_groups.begin());
  }
}

void mbarrier_arrive_after_copies(uint32_t barrier) {
  Thread& thread = self();
  arrive_in_time([barrier, copies = std::move(thread.copies)] {
    for (const Action& copy : copies) copy();
    complete_copies(barrier);
  });
  thread.copies.clear();
  for (size_t& behind : thread.copy_groups) behind = 0;
}

}  // namespace fdma::emulation
