// Decode on the CPU: first the selections, then attention on the keys that were selected, 64 of them at a time brought
// together from wherever they lie. Work items are units of queries that share their keys (host/decode_problem.hpp).
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/select.hpp"
#include "cpu/softmax_rows.hpp"
#include "cpu/tile_kernels.hpp"
#include "host/backend.hpp"
#include "host/dtype.hpp"

namespace fdma::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Scratch of one thread of attention.
struct Scratch : SoftmaxRows {
  uint64_t* visible;  // [rows]
  float* bias;        // [kTile]
  int32_t* keys;      // [kTile]
  char* gathered;     // [kTile][D] of the keys' dtype
};

// Queries and heads that share their keys. Row r is query first_query + r % queries of head first_head + r / queries.
struct Unit {
  int64_t batch, kv_head, first_head, first_query, queries, rows;
  int64_t len_k;         // keys in use
  int64_t list;          // selection
  const char* bias_row;  // of the unit, or null
};

class Decode {
 public:
  // `columns` (lists, keep) and `counts` (lists) are scratch, null where nothing is selected.
  Decode(const DecodeProblem& problem, int32_t* columns, int32_t* counts)
      : p_(problem), kernels_(tile_kernels()), columns_(columns), counts_(counts) {}

  void select(int64_t list, const SelectScratch& scratch) const;
  void attend(int64_t index, const Scratch& scratch) const;

 private:
  bool selects() const { return counts_ != nullptr; }
  // A causal query sees keys up to its position; others see all that are in use.
  int64_t key_limit(int64_t q, int64_t len_k) const {
    return p_.is_causal ? max_of<int64_t>(0, len_k - p_.len_q + q + 1) : len_k;
  }
  const char* bias_row(int64_t b, int64_t head) const {
    if (p_.bias.kind == FDMA_BIAS_NONE) return nullptr;
    const int64_t offset = b * p_.bias.view.stride[0] + head * p_.bias.view.stride[1];
    return static_cast<const char*>(p_.bias.view.data) + offset * dtype_size(p_.bias.dtype);
  }
  TensorRows rows_of(const View4& view, int64_t b, int64_t row, int64_t head, int64_t count) const {
    const int64_t offset = b * view.stride[0] + row * view.stride[1] + head * view.stride[2];
    return {static_cast<char*>(view.data) + offset * dtype_size(p_.dtype), p_.dtype, view.stride[1], count};
  }
  Unit unit(int64_t index) const;
  void load_queries(const Unit& unit, const Scratch& s) const;
  int64_t next_keys(const Unit& unit, int64_t& next, const Scratch& s) const;
  TensorRows gather(const Unit& unit, const View4& view, int64_t count, const Scratch& s) const;
  void step(const Unit& unit, int64_t count, const Scratch& s) const;
  void store(const Unit& unit, const Scratch& s) const;

  const DecodeProblem& p_;
  const TileKernels& kernels_;
  int32_t *columns_, *counts_;
};

void Decode::select(int64_t list, const SelectScratch& scratch) const {
  const int64_t q = list % p_.query_units(), row = list / p_.query_units();
  const int64_t b = row / p_.bias.heads;
  SelectProblem problem;
  problem.dtype = p_.bias.dtype;
  problem.batch = problem.heads = 1;
  problem.keys = key_limit(q, p_.length_k(b));
  problem.keep = min_of(p_.keep, problem.keys);
  problem.bias = bias_row(b, row % p_.bias.heads);
  problem.columns = columns_ + list * p_.keep;
  problem.counts = counts_ + list;
  select_columns(problem, 0, scratch);
}

Unit Decode::unit(int64_t index) const {
  const int64_t heads = p_.head_units(), queries = p_.query_units();
  Unit unit{};
  unit.first_query = index % queries;
  const int64_t head_unit = index / queries % heads;
  unit.kv_head = index / queries / heads % p_.heads_kv;
  unit.batch = index / queries / heads / p_.heads_kv;
  unit.first_head = unit.kv_head * p_.group() + head_unit;
  unit.queries = p_.len_q / queries;
  unit.rows = p_.unit_rows();
  unit.len_k = p_.length_k(unit.batch);
  const int64_t bias_head = unit.first_head / (p_.heads_q / p_.bias.heads);
  unit.list = (unit.batch * p_.bias.heads + bias_head) * queries + unit.first_query;
  unit.bias_row = bias_row(unit.batch, bias_head);
  return unit;
}

void Decode::load_queries(const Unit& unit, const Scratch& s) const {
  for (int64_t first = 0; first < unit.rows; first += unit.queries) {
    const TensorRows rows =
        rows_of(p_.query, unit.batch, unit.first_query, unit.first_head + first / unit.queries, unit.queries);
    kernels_.load_rows(rows, p_.head_dim, s.query + first * s.row, s.row);
  }
  s.begin(unit.rows);
}

// Up to kTile keys from `next` on, in the list of a selection or among all keys, and their biases. Keys that the bias
// hides are passed over.
int64_t Decode::next_keys(const Unit& unit, int64_t& next, const Scratch& s) const {
  const int64_t end = selects() ? counts_[unit.list] : unit.len_k;
  int64_t count = 0;
  for (; next < end && count < kTile; ++next) {
    const int64_t k = selects() ? columns_[unit.list * p_.keep + next] : next;
    if (unit.bias_row != nullptr) {
      char* source = const_cast<char*>(unit.bias_row) + k * dtype_size(p_.bias.dtype);
      float padded[16];
      kernels_.load_rows({source, p_.bias.dtype, 1, 1}, 1, padded, 16);
      if (padded[0] == -kInfinity || (p_.hides_nan && std::isnan(padded[0]))) continue;
      s.bias[count] = padded[0];
    }
    s.keys[count++] = static_cast<int32_t>(k);
  }
  return count;
}

TensorRows Decode::gather(const Unit& unit, const View4& view, int64_t count, const Scratch& s) const {
  const int64_t bytes = p_.head_dim * dtype_size(p_.dtype);
  for (int64_t i = 0; i < count; ++i) {
    int64_t b = unit.batch, row = s.keys[i];
    if (p_.pages) {
      b = p_.pages.table[unit.batch * p_.pages.pages_per_sequence + row / p_.pages.page_size];
      row %= p_.pages.page_size;
    }
    std::memcpy(s.gathered + i * bytes, rows_of(view, b, row, unit.kv_head, 1).data, static_cast<size_t>(bytes));
  }
  return {s.gathered, p_.dtype, p_.head_dim, count};
}

// Attention of all rows on the `count` keys that are at hand.
void Decode::step(const Unit& unit, int64_t count, const Scratch& s) const {
  kernels_.load_transposed(gather(unit, p_.key, count, s), p_.head_dim, s.key);
  kernels_.load_rows(gather(unit, p_.value, count, s), p_.head_dim, s.value, s.row);
  kernels_.multiply(unit.rows, kTile, p_.head_dim, s.query, s.row, 1, s.key, kTile, s.scores, kTile, false);

  const uint64_t all = count == kTile ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
  for (int64_t r = 0; r < unit.rows; ++r) {
    s.visible[r] = all;
    if (!p_.is_causal || selects()) continue;  // what was selected is seen
    const int64_t limit = key_limit(unit.first_query + r % unit.queries, unit.len_k);
    for (int64_t i = 0; i < count; ++i) {
      if (s.keys[i] >= limit) s.visible[r] &= ~(uint64_t{1} << i);
    }
  }
  ScoreRule rule{};
  rule.rows = unit.rows;
  rule.keys = count;
  rule.visible = s.visible;
  rule.scale = p_.scale;
  rule.softcap = p_.softcap;
  rule.bias = unit.bias_row == nullptr ? nullptr : s.bias;
  rule.bias_dtype = FDMA_FLOAT32;
  rule.bias_key_stride = 1;
  kernels_.softmax(rule, s.scores, s.row_max, s.row_sum, s.acc, s.row, p_.head_dim);
  kernels_.multiply(unit.rows, p_.head_dim, count, s.scores, kTile, 1, s.value, s.row, s.acc, s.row, true);
}

void Decode::store(const Unit& unit, const Scratch& s) const {
  for (int64_t r = 0; r < unit.rows; ++r) {
    const int64_t head = unit.first_head + r / unit.queries, q = unit.first_query + r % unit.queries;
    float* lse = p_.lse == nullptr ? nullptr : p_.lse + (unit.batch * p_.heads_q + head) * p_.len_q + q;
    const float factor = s.finish(r, lse);
    kernels_.store_rows(s.acc + r * s.row, s.row, &factor, p_.head_dim, rows_of(p_.out, unit.batch, q, head, 1));
  }
}

void Decode::attend(int64_t index, const Scratch& scratch) const {
  const Unit unit = this->unit(index);
  load_queries(unit, scratch);
  int64_t next = 0;
  for (;;) {
    const int64_t count = next_keys(unit, next, scratch);
    if (count == 0) break;
    step(unit, count, scratch);
  }
  store(unit, scratch);
}

Scratch take_scratch(const DecodeProblem& p, Workspace& workspace) {
  return {SoftmaxRows(p.unit_rows(), p.head_dim, workspace), workspace.take<uint64_t>(p.unit_rows()),
          workspace.take<float>(kTile), workspace.take<int32_t>(kTile),
          workspace.take<char>(kTile * p.head_dim * dtype_size(p.dtype))};
}

}  // namespace

void decode(const DecodeProblem& problem, Workspace& workspace) {
  const int64_t lists = problem.lists(), units = problem.units();
  const double keys = static_cast<double>(problem.len_k);
  const int select_threads =
      thread_count(problem.num_threads, lists, kSelectFlopsAKey * static_cast<double>(lists) * keys);
  const double attended = problem.keep > 0 ? static_cast<double>(problem.keep) : keys;
  const double rows = static_cast<double>(units) * static_cast<double>(problem.unit_rows());
  const int threads =
      thread_count(problem.num_threads, units, 4.0 * rows * attended * static_cast<double>(problem.head_dim));

  int32_t* columns = lists > 0 ? workspace.take<int32_t>(lists * problem.keep) : nullptr;
  int32_t* counts = lists > 0 ? workspace.take<int32_t>(lists) : nullptr;
  std::vector<SelectScratch> select_scratch(static_cast<size_t>(lists > 0 ? select_threads : 0));
  for (SelectScratch& s : select_scratch) s = take_select_scratch(problem.len_k, false, workspace);
  std::vector<Scratch> scratch(static_cast<size_t>(threads));
  for (Scratch& s : scratch) s = take_scratch(problem, workspace);
  if (workspace.counting()) return;

  const Decode decode(problem, columns, counts);
  parallel_for(select_threads, lists,
               [&](int worker, int64_t list) { decode.select(list, select_scratch[static_cast<size_t>(worker)]); });
  parallel_for(threads, units,
               [&](int worker, int64_t unit) { decode.attend(unit, scratch[static_cast<size_t>(worker)]); });
}

}  // namespace fdma::cpu
