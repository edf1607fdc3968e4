// Selection on the CPU: one row (batch, head) after another, in parallel over rows.
#include <algorithm>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/tile_kernels.hpp"
#include "host/backend.hpp"
#include "host/dtype.hpp"
#include "kernels/policy/selection.hpp"

namespace fdma::cpu {
namespace {

// A key and how it is preferred: the smaller, the better.
using Preference = uint64_t;  // rank, then keys from the newest

// Scratch of one thread.
struct Scratch {
  float* bias;              // [keys]
  uint32_t* visible;        // bits of key_mask
  Preference* preferences;  // [keys]
  uint64_t* taken;          // [words of 64 keys]
};

class Selection {
 public:
  explicit Selection(const SelectProblem& problem) : p_(problem) {}

  void run(int64_t row, const Scratch& s) const {
    const int64_t kept = prefer(row, s);
    if (p_.is_interval()) return store_ends(kept, s, p_.end + row * p_.keys);
    store_columns(kept, s, p_.columns + row * p_.keep);
    p_.counts[row] = static_cast<int32_t>(min_of(kept, p_.keep));
  }

 private:
  int64_t key_of(Preference preference) const { return p_.keys - 1 - static_cast<int64_t>(preference & 0xffffffffu); }

  // Fills the preferences of the keys that may be kept; returns how many those are.
  int64_t prefer(int64_t row, const Scratch& s) const {
    const int64_t b = row / p_.heads;
    const int64_t offset = b * p_.bias_stride[0] + row % p_.heads * p_.bias_stride[1];
    void* bias = static_cast<char*>(const_cast<void*>(p_.bias)) + offset * dtype_size(p_.dtype);
    tile_kernels().load_rows({bias, p_.dtype, p_.keys, 1}, p_.keys, s.bias, p_.keys);
    if (p_.key_mask != nullptr) {
      const void* mask = static_cast<const char*>(p_.key_mask) + b * p_.key_mask_stride * dtype_size(p_.key_mask_dtype);
      tile_kernels().pack_mask_row(mask, p_.key_mask_dtype, p_.keys, s.visible, ceil_div<int64_t>(p_.keys, 32));
    }
    int64_t count = 0;
    for (int64_t k = 0; k < p_.keys; ++k) {
      if (p_.key_mask != nullptr && ((s.visible[k / 32] >> (k % 32)) & 1u) == 0) continue;
      const uint32_t rank = selection_rank(s.bias[k]);
      if (rank == kNeverKept) continue;
      s.preferences[count++] = static_cast<Preference>(rank) << 32 | static_cast<Preference>(p_.keys - 1 - k);
    }
    return count;
  }

  // Takes keys from the best on. A key is pushed out when the keep-th of those that beat it has come; that position
  // only falls from one key to the next, so a pointer walks down over the keys taken.
  void store_ends(int64_t kept, const Scratch& s, int32_t* end) const {
    std::sort(s.preferences, s.preferences + kept);
    std::fill_n(s.taken, ceil_div<int64_t>(p_.keys, 64), uint64_t{0});
    for (int64_t k = 0; k < p_.keys; ++k) end[k] = static_cast<int32_t>(k);
    int64_t limit = 0;  // the keep-th key taken, counted from the oldest
    for (int64_t r = 0; r < kept; ++r) {
      const int64_t k = key_of(s.preferences[r]);
      end[k] = static_cast<int32_t>(r < p_.keep ? p_.keys : max_of(k, limit));
      s.taken[k / 64] |= uint64_t{1} << (k % 64);
      if (r < p_.keep) {
        limit = max_of(limit, k);
      } else if (k < limit) {
        limit = taken_before(s.taken, limit);
      }
    }
  }

  // The newest key before `k` that is taken; there is one.
  static int64_t taken_before(const uint64_t* taken, int64_t k) {
    int64_t word = k / 64;
    uint64_t bits = taken[word] & ((uint64_t{1} << (k % 64)) - 1);
    while (bits == 0) bits = taken[--word];
    return word * 64 + 63 - __builtin_clzll(bits);
  }

  void store_columns(int64_t kept, const Scratch& s, int32_t* columns) const {
    const int64_t count = min_of(kept, p_.keep);
    std::nth_element(s.preferences, s.preferences + count, s.preferences + kept);
    for (int64_t i = 0; i < count; ++i) columns[i] = static_cast<int32_t>(key_of(s.preferences[i]));
    std::sort(columns, columns + count);
    std::fill(columns + count, columns + p_.keep, -1);
  }

  const SelectProblem& p_;
};

}  // namespace

void select(const SelectProblem& problem, Workspace& workspace) {
  constexpr double kFlopsAKey = 200;  // what sorting a key is worth, roughly
  const int64_t rows = problem.rows();
  const double work = kFlopsAKey * static_cast<double>(rows) * static_cast<double>(problem.keys);
  std::vector<Scratch> scratch(static_cast<size_t>(thread_count(problem.num_threads, rows, work)));
  for (Scratch& s : scratch) {
    s.bias = workspace.take<float>(round_up<int64_t>(problem.keys, 16));
    s.visible = workspace.take<uint32_t>(ceil_div<int64_t>(problem.keys, 32));
    s.preferences = workspace.take<Preference>(problem.keys);
    s.taken = workspace.take<uint64_t>(ceil_div<int64_t>(problem.keys, 64));
  }
  if (workspace.counting()) return;
  const Selection selection(problem);
  parallel_for(static_cast<int>(scratch.size()), rows,
               [&](int worker, int64_t row) { selection.run(row, scratch[static_cast<size_t>(worker)]); });
}

}  // namespace fdma::cpu
