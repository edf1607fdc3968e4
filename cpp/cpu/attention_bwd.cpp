// Attention backward on the CPU. The probabilities are computed again, tile by tile, from forward's lse:
//
//   p = exp(s - lse)    dv = p^T dout    dp = dout v^T    ds = p * (dp - delta)    delta = sum_d(out * dout) - dlse
//   dbias = ds summed over broadcast dimensions    dq = scale * ds' k    dk = scale * ds'^T q
//
// where ds' = ds * (1 - tanh^2) with a softcap, else ds. Each output tile belongs to one work item, which adds up its
// terms in a fixed order: gradients are bitwise the same for any number of threads, and the scratch is O(Lq).
//
//   by keys     an item is a key tile of one kv head and walks the query rows: grad_key, grad_value, and grad_bias
//               where the tiles of the bias belong to one such item
//   by queries  an item is a block of query tiles and walks the keys: grad_query
//   by bias     an item is a tile of the bias and walks all scores that share it: grad_bias in the other cases
#include <algorithm>
#include <vector>

#include "cpu/bias_grad.hpp"
#include "cpu/pack_mask.hpp"
#include "cpu/parallel.hpp"
#include "cpu/query_blocks.hpp"
#include "cpu/score_rule.hpp"
#include "cpu/slots.hpp"
#include "cpu/tensor_rows.hpp"
#include "cpu/tile_kernels.hpp"
#include "cpu/unreached_rows.hpp"
#include "host/backend.hpp"

namespace fdma::cpu {
namespace {

// Scratch of one thread. `rows` are those of a block of queries.
struct Scratch {
  float* query;       // [rows][row]
  float* grad_out;    // [rows][row]
  float* grad_query;  // [rows][row]
  float* scores;      // [rows][kTile], then probabilities
  float* grad;        // [rows][kTile]: gradient of the probabilities, then of the scores
  float* key_t;       // [D][kTile]
  float* value_t;     // [D][kTile]
  float* key;         // [kTile][row]
  float* grad_key;    // [kTile][row]
  float* grad_value;  // [kTile][row]
  float* bias_sums;
  uint64_t* visible;  // [kTile]
};

// Tiles of scores between one key tile and some query tiles of the heads that share its kv head.
struct KeyItem {
  SequenceExtents sequence;
  int64_t kv_head, k_tile;
  int64_t head_begin, head_end;
  int64_t q_begin, q_end;  // query tiles
};

class Backward {
 public:
  Backward(const BackwardProblem& problem, const void* packed_mask, float* delta)
      : p_(problem),
        visibility_(problem, packed_mask),
        kernels_(tile_kernels()),
        row_(padded_head_dim(problem.head_dim)),
        delta_(delta) {}

  void run(const QueryBlocks& blocks, const std::vector<Scratch>& scratch) const;

 private:
  void compute_delta(const SequenceExtents& sequence, const QueryTile& tile) const;
  void load_key_tile(const SequenceExtents& sequence, int64_t kv_head, int64_t k_tile, const Scratch& s) const;
  void load_query_tile(const SequenceExtents& sequence, const QueryTile& tile, const Scratch& s) const;
  void tile_gradients(const SequenceExtents& sequence, const QueryTile& tile, int64_t k_tile, const Scratch& s,
                      BiasGradTile* bias) const;

  void by_keys(const KeyItem& item, bool for_key_and_value, BiasGradTile* bias, const Scratch& s) const;
  void add_key_and_value(const QueryTile& tile, int64_t keys, const Scratch& s) const;
  void store_key_and_value(const KeyItem& item, int64_t keys, const Scratch& s) const;
  void by_queries(const QueryBlock& block, const Scratch& s) const;
  void by_bias(int64_t item, const Scratch& s) const;

  bool bias_tiles_belong_to_key_tiles() const;
  int64_t bias_items() const;

  const BackwardProblem& p_;
  Visibility visibility_;
  const TileKernels& kernels_;
  int64_t row_;   // floats to a row of a query-like tile
  float* delta_;  // laid out as lse
};

void Backward::run(const QueryBlocks& blocks, const std::vector<Scratch>& scratch) const {
  const auto of = [&](int worker) -> const Scratch& { return scratch[static_cast<size_t>(worker)]; };
  const int threads = blocks.threads();
  const SequenceItems block_items = blocks.items();
  parallel_for(threads, block_items.size(), [&](int, int64_t item) {
    const QueryBlock block = blocks.block(block_items.at(item));
    for (int64_t i = 0; i < block.count; ++i) compute_delta(block.sequence, block.tiles[i]);
  });

  const bool bias_by_keys = p_.grad_bias != nullptr && bias_tiles_belong_to_key_tiles();
  const bool key_or_value = p_.grad_key || p_.grad_value;
  if (key_or_value || bias_by_keys) {
    // A tile of the bias is written whether or not its sequence reaches that far.
    const auto length_q = [&](const SequenceExtents& s) { return bias_by_keys ? p_.len_q : s.len_q; };
    const auto key_tiles = [&](const SequenceExtents& s) { return ceil_div(bias_by_keys ? p_.len_k : s.len_k, kTile); };
    const SequenceItems items(p_, key_tiles);
    parallel_for(threads, items.size(), [&](int worker, int64_t index) {
      const SequenceItems::Item item = items.at(index);
      // Early key tiles, which causality lets most queries see, are taken first.
      const int64_t k_tile = key_tiles(item.sequence) - 1 - item.index;
      const KeyItem tiles = {item.sequence,
                             item.kv_head,
                             k_tile,
                             item.kv_head * p_.group(),
                             (item.kv_head + 1) * p_.group(),
                             0,
                             ceil_div(length_q(item.sequence), kTile)};
      BiasGradTile bias(p_, of(worker).bias_sums);
      by_keys(tiles, key_or_value, bias_by_keys ? &bias : nullptr, of(worker));
      bias.finish();
    });
  }
  if (p_.grad_query) {
    parallel_for(threads, block_items.size(),
                 [&](int worker, int64_t item) { by_queries(blocks.block(block_items.at(item)), of(worker)); });
  }
  if (p_.grad_bias != nullptr && !bias_by_keys) {
    parallel_for(threads, bias_items(), [&](int worker, int64_t item) { by_bias(item, of(worker)); });
  }
  clear_unreached_query_rows(p_, p_.grad_query);
  clear_unreached_key_rows(p_, p_.grad_key);
  clear_unreached_key_rows(p_, p_.grad_value);
}

void Backward::compute_delta(const SequenceExtents& sequence, const QueryTile& tile) const {
  const int64_t q0 = tile.index * kTile;
  const int64_t offset = p_.row_statistic(sequence, tile.head, q0);
  kernels_.dot_rows(query_rows(p_, p_.out, sequence, q0, tile.head, tile.rows),
                    query_rows(p_, p_.grad_out, sequence, q0, tile.head, tile.rows), p_.head_dim, delta_ + offset);
  if (p_.grad_lse == nullptr) return;
  for (int64_t r = 0; r < tile.rows; ++r) delta_[offset + r] -= p_.grad_lse[offset + r];
}

void Backward::load_key_tile(const SequenceExtents& sequence, int64_t kv_head, int64_t k_tile, const Scratch& s) const {
  const int64_t k0 = k_tile * kTile;
  const int64_t keys = min_of(kTile, sequence.len_k - k0);
  kernels_.load_transposed(key_rows(p_, p_.key, sequence, k0, kv_head, keys), p_.head_dim, s.key_t);
  kernels_.load_transposed(key_rows(p_, p_.value, sequence, k0, kv_head, keys), p_.head_dim, s.value_t);
}

void Backward::load_query_tile(const SequenceExtents& sequence, const QueryTile& tile, const Scratch& s) const {
  const int64_t q0 = tile.index * kTile;
  kernels_.load_rows(query_rows(p_, p_.query, sequence, q0, tile.head, tile.rows), p_.head_dim,
                     s.query + tile.first_row * row_, row_);
  kernels_.load_rows(query_rows(p_, p_.grad_out, sequence, q0, tile.head, tile.rows), p_.head_dim,
                     s.grad_out + tile.first_row * row_, row_);
}

// Probabilities (s.scores) and score gradients (s.grad) of a query tile and the key tile that is loaded.
void Backward::tile_gradients(const SequenceExtents& sequence, const QueryTile& tile, int64_t k_tile, const Scratch& s,
                              BiasGradTile* bias) const {
  float* scores = s.scores + tile.first_row * kTile;
  float* grad = s.grad + tile.first_row * kTile;
  kernels_.multiply(tile.rows, kTile, p_.head_dim, s.query + tile.first_row * row_, row_, 1, s.key_t, kTile, scores,
                    kTile, false);
  kernels_.multiply(tile.rows, kTile, p_.head_dim, s.grad_out + tile.first_row * row_, row_, 1, s.value_t, kTile, grad,
                    kTile, false);
  const ScoreRule rule = score_rule(p_, visibility_, sequence, tile, k_tile, s.visible);
  const int64_t row = p_.row_statistic(sequence, tile.head, tile.index * kTile);
  kernels_.softmax_grad(rule, p_.lse + row, delta_ + row, scores, grad, bias == nullptr ? nullptr : bias->sums(),
                        bias == nullptr ? 0 : bias->row_stride());
  if (bias != nullptr) bias->fold();
}

void Backward::by_keys(const KeyItem& item, bool for_key_and_value, BiasGradTile* bias, const Scratch& s) const {
  const int64_t keys = min_of(kTile, item.sequence.len_k - item.k_tile * kTile);
  if (keys > 0) load_key_tile(item.sequence, item.kv_head, item.k_tile, s);
  if (for_key_and_value) {
    std::fill_n(s.grad_key, kTile * row_, 0.0f);
    std::fill_n(s.grad_value, kTile * row_, 0.0f);
  }
  // A bias tile that heads share takes them one after another, a bias row that queries share takes those.
  const int64_t heads = item.head_end - item.head_begin;
  const int64_t q_tiles = item.q_end - item.q_begin;
  const bool heads_outside = bias != nullptr && p_.bias.heads == p_.heads_q;
  for (int64_t i = 0; i < heads * q_tiles; ++i) {
    const int64_t head = item.head_begin + (heads_outside ? i / q_tiles : i % heads);
    const int64_t q_tile = item.q_begin + (heads_outside ? i % q_tiles : i / heads);
    if (bias != nullptr) bias->select(item.sequence.batch, head, q_tile, item.k_tile);
    if (!visibility_.tile(item.sequence, head, q_tile, item.k_tile)) continue;
    const QueryTile tile = {head, q_tile, min_of(kTile, item.sequence.len_q - q_tile * kTile), 0};
    load_query_tile(item.sequence, tile, s);
    tile_gradients(item.sequence, tile, item.k_tile, s, bias);
    if (for_key_and_value) add_key_and_value(tile, keys, s);
  }
  if (for_key_and_value && keys > 0) store_key_and_value(item, keys, s);
}

void Backward::add_key_and_value(const QueryTile& tile, int64_t keys, const Scratch& s) const {
  if (p_.grad_key) {
    kernels_.multiply(keys, p_.head_dim, tile.rows, s.grad, 1, kTile, s.query, row_, s.grad_key, row_, true);
  }
  if (p_.grad_value) {
    kernels_.multiply(keys, p_.head_dim, tile.rows, s.scores, 1, kTile, s.grad_out, row_, s.grad_value, row_, true);
  }
}

void Backward::store_key_and_value(const KeyItem& item, int64_t keys, const Scratch& s) const {
  const auto store = [&](const View4& view, const float* tile, float scale) {
    if (!view) return;
    float scales[kTile];
    std::fill_n(scales, kTile, scale);
    kernels_.store_rows(tile, row_, scales, p_.head_dim,
                        key_rows(p_, view, item.sequence, item.k_tile * kTile, item.kv_head, keys));
  };
  store(p_.grad_key, s.grad_key, p_.scale);
  store(p_.grad_value, s.grad_value, 1.0f);
}

void Backward::by_queries(const QueryBlock& block, const Scratch& s) const {
  for (int64_t i = 0; i < block.count; ++i) load_query_tile(block.sequence, block.tiles[i], s);
  std::fill_n(s.grad_query, block.rows() * row_, 0.0f);
  const int64_t key_tiles = visibility_.key_tiles(block.sequence, block.tiles[block.count - 1].index);
  for (int64_t k_tile = 0; k_tile < key_tiles; ++k_tile) {
    const int64_t keys = min_of(kTile, block.sequence.len_k - k_tile * kTile);
    bool loaded = false;
    for (int64_t i = 0; i < block.count; ++i) {
      const QueryTile& tile = block.tiles[i];
      if (!visibility_.tile(block.sequence, tile.head, tile.index, k_tile)) continue;
      if (!loaded) {
        load_key_tile(block.sequence, block.kv_head, k_tile, s);
        kernels_.load_rows(key_rows(p_, p_.key, block.sequence, k_tile * kTile, block.kv_head, keys), p_.head_dim,
                           s.key, row_);
        loaded = true;
      }
      tile_gradients(block.sequence, tile, k_tile, s, nullptr);
      kernels_.multiply(tile.rows, p_.head_dim, keys, s.grad + tile.first_row * kTile, kTile, 1, s.key, row_,
                        s.grad_query + tile.first_row * row_, row_, true);
    }
  }
  float scales[kTile];
  std::fill_n(scales, kTile, p_.scale);
  for (int64_t i = 0; i < block.count; ++i) {
    const QueryTile& tile = block.tiles[i];
    kernels_.store_rows(s.grad_query + tile.first_row * row_, row_, scales, p_.head_dim,
                        query_rows(p_, p_.grad_query, block.sequence, tile.index * kTile, tile.head, tile.rows));
  }
}

// True when each tile of the bias takes gradients from one (batch, kv head, key tile) only.
bool Backward::bias_tiles_belong_to_key_tiles() const {
  const BiasProblem& bias = p_.bias;
  return p_.len_q > 0 && bias.batch == p_.batch && bias.keys == p_.len_k && p_.heads_kv <= bias.heads;
}

int64_t Backward::bias_items() const {
  return p_.bias.batch * p_.bias.heads * ceil_div(p_.bias.rows, kTile) * ceil_div(p_.bias.keys, kTile);
}

void Backward::by_bias(int64_t item, const Scratch& s) const {
  const BiasProblem& bias = p_.bias;
  const int64_t k_tiles = ceil_div(bias.keys, kTile);
  const int64_t q_tiles = ceil_div(bias.rows, kTile);
  const int64_t k_tile = item % k_tiles;
  const int64_t q_tile = item / k_tiles % q_tiles;
  const int64_t bias_head = item / k_tiles / q_tiles % bias.heads;
  const int64_t batch = item / k_tiles / q_tiles / bias.heads;

  BiasGradTile sums(p_, s.bias_sums);
  sums.begin(batch, bias_head, q_tile, k_tile);
  const int64_t heads = p_.heads_q / bias.heads;  // that share this tile
  const int64_t head_begin = bias_head * heads;
  for (int64_t b = bias.batch == 1 ? 0 : batch; b < (bias.batch == 1 ? p_.batch : batch + 1); ++b) {
    const SequenceExtents sequence = p_.extents(b);
    const int64_t key_tiles = ceil_div(sequence.len_k, kTile), query_tiles = ceil_div(sequence.len_q, kTile);
    for (int64_t kv_head = head_begin / p_.group(); kv_head * p_.group() < head_begin + heads; ++kv_head) {
      for (int64_t k = bias.keys == 1 ? 0 : k_tile; k < (bias.keys == 1 ? key_tiles : k_tile + 1); ++k) {
        const KeyItem tiles = {sequence,
                               kv_head,
                               k,
                               max_of(head_begin, kv_head * p_.group()),
                               min_of(head_begin + heads, (kv_head + 1) * p_.group()),
                               bias.rows == 1 ? 0 : q_tile,
                               bias.rows == 1 ? query_tiles : q_tile + 1};
        by_keys(tiles, false, &sums, s);
      }
    }
  }
  sums.finish();
}

// The call as it is described: keys have been put in order where the mask asks for it.
void run_backward(const BackwardProblem& problem, Workspace& workspace) {
  const void* mask = packed_mask(problem, workspace);
  const QueryBlocks blocks(problem, 14.0 * static_cast<double>(problem.head_dim));
  const int64_t rows = max_of(blocks.max_rows(), kTile);
  const int64_t row = padded_head_dim(problem.head_dim);
  float* delta = workspace.take<float>(problem.batches() * problem.heads_q * problem.rows_q());
  std::vector<Scratch> scratch(static_cast<size_t>(blocks.threads()));
  for (Scratch& s : scratch) {
    s.query = workspace.take<float>(rows * row);
    s.grad_out = workspace.take<float>(rows * row);
    s.grad_query = workspace.take<float>(rows * row);
    s.scores = workspace.take<float>(rows * kTile);
    s.grad = workspace.take<float>(rows * kTile);
    s.key_t = workspace.take<float>(problem.head_dim * kTile);
    s.value_t = workspace.take<float>(problem.head_dim * kTile);
    s.key = workspace.take<float>(kTile * row);
    s.grad_key = workspace.take<float>(kTile * row);
    s.grad_value = workspace.take<float>(kTile * row);
    s.bias_sums = workspace.take<float>(BiasGradTile::kScratchFloats);
    s.visible = workspace.take<uint64_t>(kTile);
  }
  if (workspace.counting()) return;
  Backward(problem, mask, delta).run(blocks, scratch);
}

}  // namespace

void backward(const BackwardProblem& problem, Workspace& workspace) {
  if (!problem.runs_on_slots() && !problem.compacts()) return run_backward(problem, workspace);
  SlotCall slots(problem, workspace);
  slots.take_gradients(problem, workspace);
  if (!workspace.counting()) slots.gather(problem);
  run_backward(slots.on_slots(problem), workspace);
  if (!workspace.counting()) slots.scatter(problem);
}

}  // namespace fdma::cpu
