// Selection on the CPU: one row of the bias after another, in parallel over rows.
#include "cpu/select.hpp"

#include <algorithm>
#include <vector>

#include "cpu/pack_mask.hpp"
#include "cpu/tile_kernels.hpp"
#include "host/backend.hpp"
#include "host/dtype.hpp"
#include "kernels/policy/range.hpp"
#include "kernels/policy/selection.hpp"

namespace fdma::cpu {
namespace {

class Selection {
 public:
  explicit Selection(const SelectProblem& problem) : p_(problem) {}

  // Interval and columns form; `row` is a (batch, head).
  void run(int64_t row, const SelectScratch& s) const {
    const int64_t kept = prefer(row / p_.heads, row % p_.heads, 0, p_.keys, s);
    if (p_.is_interval()) return store_ends(kept, s, p_.end + row * p_.keys);
    store_columns(kept, s, p_.columns + row * p_.keep);
    p_.counts[row] = static_cast<int32_t>(min_of(kept, p_.keep));
  }

  // Bits form: the words of query q in the packed mask.
  void run(int64_t b, int64_t h, int64_t q, uint32_t* words, const SelectScratch& s) const {
    const int64_t limit = max_of<int64_t>(0, key_limit(q, p_.queries, p_.keys, p_.is_causal));
    const int64_t count = keep_best(prefer(b, h, q, limit, s), s);
    std::fill_n(words, p_.layout().row_words(), 0u);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t k = key_of(s.preferences[i]);
      words[k / 32] |= 1u << (k % 32);
    }
  }

 private:
  int64_t key_of(Preference preference) const { return p_.keys - 1 - static_cast<int64_t>(preference & 0xffffffffu); }

  // Fills the preferences of the keys before `limit` that may be kept; returns how many those are.
  int64_t prefer(int64_t b, int64_t h, int64_t q, int64_t limit, const SelectScratch& s) const {
    const int64_t offset = b * p_.bias_stride[0] + h * p_.bias_stride[1] + q * p_.bias_stride[2];
    void* bias = static_cast<char*>(const_cast<void*>(p_.bias)) + offset * dtype_size(p_.dtype);
    tile_kernels().load_rows({bias, p_.dtype, limit, 1}, limit, s.bias, limit);
    if (p_.key_mask != nullptr) {
      const void* mask = static_cast<const char*>(p_.key_mask) + b * p_.key_mask_stride * dtype_size(p_.key_mask_dtype);
      tile_kernels().pack_mask_row(mask, p_.key_mask_dtype, limit, s.visible, ceil_div<int64_t>(limit, 32));
    }
    int64_t count = 0;
    for (int64_t k = 0; k < limit; ++k) {
      if (p_.key_mask != nullptr && ((s.visible[k / 32] >> (k % 32)) & 1u) == 0) continue;
      const uint32_t rank = selection_rank(s.bias[k]);
      if (rank == kNeverKept) continue;
      s.preferences[count++] = static_cast<Preference>(rank) << 32 | static_cast<Preference>(p_.keys - 1 - k);
    }
    return count;
  }

  // Takes keys from the best on. A key is pushed out when the keep-th of those that beat it has come; that position
  // only falls from one key to the next, so a pointer walks down over the keys taken.
  void store_ends(int64_t kept, const SelectScratch& s, int32_t* end) const {
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

  // Moves the best of `candidates` keys to the front, in any order; returns how many are kept.
  int64_t keep_best(int64_t candidates, const SelectScratch& s) const {
    const int64_t count = min_of(candidates, p_.keep);
    std::nth_element(s.preferences, s.preferences + count, s.preferences + candidates);
    return count;
  }

  void store_columns(int64_t kept, const SelectScratch& s, int32_t* columns) const {
    const int64_t count = keep_best(kept, s);
    for (int64_t i = 0; i < count; ++i) columns[i] = static_cast<int32_t>(key_of(s.preferences[i]));
    std::sort(columns, columns + count);
    std::fill(columns + count, columns + p_.keep, -1);
  }

  const SelectProblem& p_;
};

}  // namespace

SelectScratch take_select_scratch(int64_t keys, bool is_interval, Workspace& workspace) {
  SelectScratch s;
  s.bias = workspace.take<float>(round_up<int64_t>(keys, 16));
  s.visible = workspace.take<uint32_t>(ceil_div<int64_t>(keys, 32));
  s.preferences = workspace.take<Preference>(keys);
  s.taken = workspace.take<uint64_t>(is_interval ? ceil_div<int64_t>(keys, 64) : 0);
  return s;
}

void select_columns(const SelectProblem& problem, int64_t row, const SelectScratch& scratch) {
  Selection(problem).run(row, scratch);
}

void select(const SelectProblem& problem, Workspace& workspace) {
  const int64_t items = problem.is_bits() ? mask_row_tiles(problem.layout()) : problem.rows();
  const double work = kSelectFlopsAKey * static_cast<double>(problem.rows()) * static_cast<double>(problem.keys);
  const int threads = thread_count(problem.num_threads, items, work);
  std::vector<SelectScratch> scratch(static_cast<size_t>(threads));
  for (SelectScratch& s : scratch) s = take_select_scratch(problem.keys, problem.is_interval(), workspace);
  if (workspace.counting()) return;
  const Selection selection(problem);
  const auto scratch_of = [&](int worker) -> const SelectScratch& { return scratch[static_cast<size_t>(worker)]; };
  if (problem.is_bits()) {
    return write_packed_mask(problem.layout(), problem.packed_mask, threads,
                             [&](int worker, int64_t b, int64_t h, int64_t q, uint32_t* words) {
                               selection.run(b, h, q, words, scratch_of(worker));
                             });
  }
  parallel_for(threads, items, [&](int worker, int64_t row) { selection.run(row, scratch_of(worker)); });
}

}  // namespace fdma::cpu
