// The bounded cache on the CPU: one (batch, kv head) after another, in parallel over them.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/tile_kernels.hpp"
#include "host/backend.hpp"
#include "host/dtype.hpp"
#include "kernels/policy/selection.hpp"

namespace fdma::cpu {
namespace {

constexpr double kFlopsACandidate = 100;  // what looking at a slot or a new token is worth, roughly

// A token that may be in the cache after an append.
struct Candidate {
  uint32_t rank;
  int64_t position;
  int64_t place;  // its slot, or `slots` and its index among the new ones

  // Whether it is preferred.
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank < other.rank : position > other.position;
  }
};

// Element `index` of a row of a (B, H_kv, K) tensor.
char* element(const HeadRows<void>& rows, fdma_dtype dtype, int64_t b, int64_t h, int64_t index) {
  const int64_t offset = b * rows.stride_batch + h * rows.stride_head + index;
  return static_cast<char*>(rows.data) + offset * dtype_size(dtype);
}
int64_t* element(const HeadRows<int64_t>& rows, int64_t b, int64_t h, int64_t index) {
  return rows.data + b * rows.stride_batch + h * rows.stride_head + index;
}
// Row `index` of head h of a (B, rows, H_kv, D) tensor.
char* row_of(const View4& view, fdma_dtype dtype, int64_t b, int64_t h, int64_t index) {
  const int64_t offset = b * view.stride[0] + index * view.stride[1] + h * view.stride[2];
  return static_cast<char*>(view.data) + offset * dtype_size(dtype);
}

class Append {
 public:
  // Scratch of one thread.
  struct Scratch {
    float* bias;            // [slots or tokens, whatever is more]
    Candidate* candidates;  // [slots + tokens]
    int64_t* entrants;      // [slots]: new tokens that are kept, oldest first
    uint8_t* survives;      // [slots]
  };

  explicit Append(const CacheAppendProblem& problem) : p_(problem) {}

  Scratch take(Workspace& workspace) const {
    Scratch s;
    s.bias = workspace.take<float>(round_up<int64_t>(max_of(p_.slots, p_.tokens), 16));
    s.candidates = workspace.take<Candidate>(p_.slots + p_.tokens);
    s.entrants = workspace.take<int64_t>(p_.slots);
    s.survives = workspace.take<uint8_t>(p_.slots);
    return s;
  }

  void run(int64_t row, const Scratch& s) const {
    const int64_t b = row / p_.heads, h = row % p_.heads;
    const int64_t first = p_.next_position != nullptr ? p_.next_position[b] : p_.first_position;
    const int64_t* position = element(p_.cache.position, b, h, 0);
    int64_t count = add_candidates(p_.cache.bias, b, h, p_.slots, 0, s, 0);
    for (int64_t i = 0; i < count; ++i) s.candidates[i].position = position[s.candidates[i].place];
    const int64_t cached = count;
    count = add_candidates(p_.bias, b, h, p_.tokens, p_.slots, s, count);
    for (int64_t i = cached; i < count; ++i) s.candidates[i].position = first + s.candidates[i].place - p_.slots;
    if (count > p_.slots) {
      std::nth_element(s.candidates, s.candidates + p_.slots, s.candidates + count);
      count = p_.slots;
    }
    place_entrants(b, h, first, count, s);
  }

 private:
  int64_t add_candidates(const HeadRows<void>& bias, int64_t b, int64_t h, int64_t length, int64_t first_place,
                         const Scratch& s, int64_t count) const {
    tile_kernels().load_rows({element(bias, p_.bias_dtype, b, h, 0), p_.bias_dtype, length, 1}, length, s.bias, length);
    for (int64_t i = 0; i < length; ++i) {
      const uint32_t rank = selection_rank(s.bias[i]);
      if (rank != kNeverKept) s.candidates[count++] = {rank, 0, first_place + i};
    }
    return count;
  }

  // New tokens among the `kept` first candidates take the slots of those that are not.
  void place_entrants(int64_t b, int64_t h, int64_t first, int64_t kept, const Scratch& s) const {
    std::fill_n(s.survives, p_.slots, uint8_t{0});
    int64_t entrants = 0;
    for (int64_t i = 0; i < kept; ++i) {
      const int64_t place = s.candidates[i].place;
      if (place < p_.slots) {
        s.survives[place] = 1;
      } else {
        s.entrants[entrants++] = place - p_.slots;
      }
    }
    std::sort(s.entrants, s.entrants + entrants);
    int64_t slot = 0;
    for (int64_t i = 0; i < entrants; ++i, ++slot) {
      while (s.survives[slot] != 0) ++slot;
      store(b, h, slot, s.entrants[i], first + s.entrants[i]);
    }
  }

  void store(int64_t b, int64_t h, int64_t slot, int64_t token, int64_t position) const {
    const auto bytes = static_cast<size_t>(p_.head_dim * dtype_size(p_.dtype));
    const CacheSlots& cache = p_.cache;
    std::memcpy(row_of(cache.key, p_.dtype, b, h, slot), row_of(p_.key, p_.dtype, b, h, token), bytes);
    std::memcpy(row_of(cache.value, p_.dtype, b, h, slot), row_of(p_.value, p_.dtype, b, h, token), bytes);
    std::memcpy(element(cache.bias, p_.bias_dtype, b, h, slot), element(p_.bias, p_.bias_dtype, b, h, token),
                static_cast<size_t>(dtype_size(p_.bias_dtype)));
    *element(cache.position, b, h, slot) = position;
  }

  const CacheAppendProblem& p_;
};

class Gather {
 public:
  explicit Gather(const CacheGatherProblem& problem) : p_(problem) {}

  int64_t* take(Workspace& workspace) const { return workspace.take<int64_t>(p_.slots); }

  // `order`: scratch, the slots in order of position.
  void run(int64_t row, int64_t* order) const {
    const int64_t b = row / p_.heads, h = row % p_.heads;
    const int64_t* position = element(p_.cache.position, b, h, 0);
    for (int64_t slot = 0; slot < p_.slots; ++slot) order[slot] = slot;
    // Empty slots, in their own order, are older than any token.
    const auto age = [&](int64_t slot) { return position[slot] < 0 ? slot - p_.slots : position[slot]; };
    std::sort(order, order + p_.slots, [&](int64_t x, int64_t y) { return age(x) < age(y); });
    for (int64_t i = 0; i < p_.slots; ++i) {
      const int64_t slot = order[i];
      const bool empty = position[slot] < 0;
      copy_row(p_.cache.key, p_.sorted.key, b, h, slot, i, empty);
      copy_row(p_.cache.value, p_.sorted.value, b, h, slot, i, empty);
      std::memcpy(element(p_.sorted.bias, p_.bias_dtype, b, h, i), element(p_.cache.bias, p_.bias_dtype, b, h, slot),
                  static_cast<size_t>(dtype_size(p_.bias_dtype)));
      if (p_.sorted.position) *element(p_.sorted.position, b, h, i) = position[slot];
    }
  }

 private:
  void copy_row(const View4& from, const View4& to, int64_t b, int64_t h, int64_t slot, int64_t i, bool empty) const {
    const auto bytes = static_cast<size_t>(p_.head_dim * dtype_size(p_.dtype));
    char* target = row_of(to, p_.dtype, b, h, i);
    if (empty) {
      std::memset(target, 0, bytes);
    } else {
      std::memcpy(target, row_of(from, p_.dtype, b, h, slot), bytes);
    }
  }

  const CacheGatherProblem& p_;
};

// `operation.take` carves the scratch of a thread, `operation.run` does a row with it.
template <typename Operation>
void run_rows(const Operation& operation, const CacheProblem& problem, int64_t candidates, Workspace& workspace) {
  const double work = static_cast<double>(problem.rows()) * static_cast<double>(candidates) * kFlopsACandidate;
  const int threads = thread_count(problem.num_threads, problem.rows(), work);
  std::vector<decltype(operation.take(workspace))> scratch(static_cast<size_t>(threads));
  for (auto& s : scratch) s = operation.take(workspace);
  if (workspace.counting()) return;
  parallel_for(threads, problem.rows(),
               [&](int worker, int64_t row) { operation.run(row, scratch[static_cast<size_t>(worker)]); });
}

}  // namespace

void cache_append(const CacheAppendProblem& problem, Workspace& workspace) {
  run_rows(Append(problem), problem, problem.slots + problem.tokens, workspace);
  if (workspace.counting() || problem.next_position == nullptr) return;
  for (int64_t b = 0; b < problem.batch; ++b) problem.next_position[b] += problem.tokens;
}

void cache_gather(const CacheGatherProblem& problem, Workspace& workspace) {
  run_rows(Gather(problem), problem, problem.slots, workspace);
}

}  // namespace fdma::cpu
