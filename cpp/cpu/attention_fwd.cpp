// Attention forward on the CPU: blocked attention with an online softmax.
//
// One work item is a block of query tiles that share a kv head. It walks the key tiles; a key tile that no row of the
// block sees is passed over before its keys, values and bias are touched, and a (query tile, key tile) pair without a
// visible score costs no arithmetic. How rows are grouped into blocks changes no bit of the result, so neither does the
// number of threads.
#include <vector>

#include "cpu/pack_mask.hpp"
#include "cpu/parallel.hpp"
#include "cpu/query_blocks.hpp"
#include "cpu/score_rule.hpp"
#include "cpu/slots.hpp"
#include "cpu/softmax_rows.hpp"
#include "cpu/tensor_rows.hpp"
#include "cpu/tile_kernels.hpp"
#include "cpu/unreached_rows.hpp"
#include "host/backend.hpp"

namespace fdma::cpu {
namespace {

// Scratch of one thread.
struct Scratch : SoftmaxRows {
  uint64_t* visible;  // [kTile]
  char* paged;        // rows of keys or values out of pages
};

class Forward {
 public:
  Forward(const ForwardProblem& problem, const void* packed_mask)
      : p_(problem), visibility_(problem, packed_mask), kernels_(tile_kernels()) {}

  void run(const QueryBlock& block, const Scratch& scratch) const;

 private:
  void load_queries(const QueryBlock& block, const Scratch& scratch) const;
  void step(const QueryBlock& block, int64_t k_tile, const Scratch& scratch) const;
  void store_output(const QueryBlock& block, const QueryTile& tile, const Scratch& scratch) const;

  const ForwardProblem& p_;
  Visibility visibility_;
  const TileKernels& kernels_;
};

void Forward::run(const QueryBlock& block, const Scratch& scratch) const {
  load_queries(block, scratch);
  // Tiles are in the order of their queries: the last one sees furthest.
  const int64_t key_tiles = visibility_.key_tiles(block.sequence, block.tiles[block.count - 1].index);
  for (int64_t k_tile = 0; k_tile < key_tiles; ++k_tile) step(block, k_tile, scratch);
  for (int64_t i = 0; i < block.count; ++i) store_output(block, block.tiles[i], scratch);
}

void Forward::load_queries(const QueryBlock& block, const Scratch& scratch) const {
  for (int64_t i = 0; i < block.count; ++i) {
    const QueryTile& tile = block.tiles[i];
    kernels_.load_rows(query_rows(p_, p_.query, block.sequence, tile.index * kTile, tile.head, tile.rows), p_.head_dim,
                       scratch.query + tile.first_row * scratch.row, scratch.row);
  }
  scratch.begin(block.rows());
}

// One key tile for all query tiles of the block that see something of it.
void Forward::step(const QueryBlock& block, int64_t k_tile, const Scratch& s) const {
  bool active[QueryBlock::kMaxTiles];
  bool any = false;
  for (int64_t i = 0; i < block.count; ++i) {
    active[i] = visibility_.tile(block.sequence, block.tiles[i].head, block.tiles[i].index, k_tile);
    any = any || active[i];
  }
  if (!any) return;

  const int64_t k0 = k_tile * kTile;
  const int64_t keys = min_of(kTile, block.sequence.len_k - k0);
  const auto rows_of = [&](const View4& view) {
    return gathered_key_rows(p_, view, block.sequence, k0, block.kv_head, keys, s.paged);
  };
  kernels_.load_transposed(rows_of(p_.key), p_.head_dim, s.key);
  kernels_.load_rows(rows_of(p_.value), p_.head_dim, s.value, s.row);

  for (int64_t begin = 0, end = 0; begin < block.count; begin = end + 1) {
    int64_t rows = 0;  // of neighbouring active tiles, which share the products; tile `end` is not active
    for (end = begin; end < block.count && active[end]; ++end) rows += block.tiles[end].rows;
    if (rows == 0) continue;
    const int64_t first = block.tiles[begin].first_row;

    kernels_.multiply(rows, kTile, p_.head_dim, s.query + first * s.row, s.row, 1, s.key, kTile,
                      s.scores + first * kTile, kTile, false);
    for (int64_t i = begin; i < end; ++i) {
      const QueryTile& tile = block.tiles[i];
      const ScoreRule rule = score_rule(p_, visibility_, block.sequence, tile, k_tile, s.visible);
      kernels_.softmax(rule, s.scores + tile.first_row * kTile, s.row_max + tile.first_row,
                       s.row_sum + tile.first_row * SoftmaxRows::kPartialSums, s.acc + tile.first_row * s.row, s.row,
                       p_.head_dim);
    }
    kernels_.multiply(rows, p_.head_dim, keys, s.scores + first * kTile, kTile, 1, s.value, s.row,
                      s.acc + first * s.row, s.row, true);
  }
}

void Forward::store_output(const QueryBlock& block, const QueryTile& tile, const Scratch& scratch) const {
  const int64_t q0 = tile.index * kTile;
  float* lse = p_.lse == nullptr ? nullptr : p_.lse + p_.row_statistic(block.sequence, tile.head, q0);
  float factors[kTile];
  for (int64_t r = 0; r < tile.rows; ++r) {
    factors[r] = scratch.finish(tile.first_row + r, lse == nullptr ? nullptr : lse + r);
  }
  const TensorRows out = query_rows(p_, p_.out, block.sequence, q0, tile.head, tile.rows);
  kernels_.store_rows(scratch.acc + tile.first_row * scratch.row, scratch.row, factors, p_.head_dim, out);
}

// The call as it is described: keys have been put in order where the mask asks for it.
void run_forward(const ForwardProblem& problem, Workspace& workspace) {
  const void* mask = packed_mask(problem, workspace);
  const QueryBlocks blocks(problem, 4.0 * static_cast<double>(problem.head_dim));
  std::vector<Scratch> scratch(static_cast<size_t>(blocks.threads()));
  for (Scratch& s : scratch) {
    s = {SoftmaxRows(blocks.max_rows(), problem.head_dim, workspace), workspace.take<uint64_t>(kTile),
         workspace.take<char>(paged_tile_bytes(problem))};
  }
  if (workspace.counting()) return;
  const Forward forward(problem, mask);
  const SequenceItems items = blocks.items();
  parallel_for(blocks.threads(), items.size(), [&](int worker, int64_t item) {
    forward.run(blocks.block(items.at(item)), scratch[static_cast<size_t>(worker)]);
  });
  clear_unreached_query_rows(problem, problem.out);
  clear_unreached_statistics(problem, problem.lse);
}

}  // namespace

void forward(const ForwardProblem& problem, Workspace& workspace) {
  if (!problem.runs_on_slots() && !problem.compacts()) return run_forward(problem, workspace);
  const SlotCall slots(problem, workspace);
  if (!workspace.counting()) slots.gather(problem);
  run_forward(slots.on_slots(problem), workspace);
}

}  // namespace fdma::cpu
