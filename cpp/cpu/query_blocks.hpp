// How the query rows of a problem are cut into work items.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/tile_kernels.hpp"
#include "host/problem.hpp"

namespace fdma::cpu {

// Up to 64 queries of one head.
struct QueryTile {
  int64_t head, index;  // query head, query tile of that head
  int64_t rows;
  int64_t first_row;  // in the block
};

// A block: a few query tiles that share a kv head, so that each key tile is brought into fp32 once for all of them.
struct QueryBlock {
  static constexpr int64_t kMaxTiles = 8;
  SequenceExtents sequence;
  int64_t kv_head;
  int64_t count;
  QueryTile tiles[kMaxTiles];

  int64_t rows() const { return tiles[count - 1].first_row + tiles[count - 1].rows; }
};

// Work items numbered through all (sequence, kv head) pairs, where each pair of a sequence has as many as the others.
class SequenceItems {
 public:
  struct Item {
    SequenceExtents sequence;
    int64_t kv_head, index;  // index: among the items of this pair
  };

  // `count(sequence)`: items of one pair.
  template <typename Count>
  SequenceItems(const AttentionProblem& p, const Count& count) : p_(p) {
    first_.push_back(0);
    const int64_t distinct = p.sequences ? p.batch : min_of<int64_t>(p.batch, 1);
    for (int64_t b = 0; b < distinct; ++b) {
      per_pair_.push_back(count(p.extents(b)));
      first_.push_back(first_.back() + p.heads_kv * per_pair_.back());
    }
  }

  int64_t size() const { return p_.sequences ? first_.back() : p_.batch * first_.back(); }

  Item at(int64_t item) const {
    // Sequences of one length share the only entry of the table.
    int64_t b =
        p_.sequences ? std::upper_bound(first_.begin(), first_.end(), item) - first_.begin() - 1 : item / first_.back();
    const size_t entry = static_cast<size_t>(p_.sequences ? b : 0);
    const int64_t rest = p_.sequences ? item - first_[entry] : item % first_.back();
    return {p_.extents(b), rest / per_pair_[entry], rest % per_pair_[entry]};
  }

 private:
  const AttentionProblem& p_;
  std::vector<int64_t> per_pair_, first_;
};

class QueryBlocks {
 public:
  // `flops_per_score`: the work of one (query, key) pair, which decides how many threads are worth starting. Lengths of
  // sequences count with their upper bounds: sizes of scratch follow, and are asked for before there are lengths.
  QueryBlocks(const AttentionProblem& p, double flops_per_score)
      : p_(p), group_(p.group()), tile_rows_(min_of(p.len_q, kTile)) {
    const int64_t head_tiles = this->head_tiles(p.len_q);
    const int64_t tiles = p.batch * p.heads_kv * head_tiles;
    const double scores =
        static_cast<double>(p.batch * p.heads_q) * static_cast<double>(p.len_q) * static_cast<double>(p.len_k);
    threads_ = thread_count(p.num_threads, tiles, flops_per_score * scores);
    // Large blocks read keys and values less often, small ones leave every thread a share. When queries are few
    // (decoding), a block holds more heads.
    const int64_t fit = (p.head_dim <= 128 ? 256 : 128) / max_of<int64_t>(tile_rows_, 1);
    const int64_t share = threads_ == 1 ? fit : tiles / (int64_t{4} * threads_);
    block_tiles_ = max_of<int64_t>(1, std::min({fit, share, head_tiles, QueryBlock::kMaxTiles}));
  }

  int threads() const { return threads_; }
  int64_t max_rows() const { return block_tiles_ * tile_rows_; }

  // One item a block.
  SequenceItems items() const {
    return {p_, [&](const SequenceExtents& s) { return ceil_div(head_tiles(s.len_q), block_tiles_); }};
  }

  QueryBlock block(const SequenceItems::Item& item) const {
    QueryBlock block{};
    block.sequence = item.sequence;
    block.kv_head = item.kv_head;
    const int64_t len_q = item.sequence.len_q;
    const int64_t begin = item.index * block_tiles_;
    int64_t rows = 0;
    for (int64_t i = begin; i < min_of(head_tiles(len_q), begin + block_tiles_); ++i) {
      const int64_t index = i / group_;
      QueryTile& tile = block.tiles[block.count++];
      tile = {block.kv_head * group_ + i % group_, index, min_of(kTile, len_q - index * kTile), rows};
      rows += tile.rows;
    }
    return block;
  }

 private:
  // Query tiles of all heads that share a kv head.
  int64_t head_tiles(int64_t len_q) const { return group_ * ceil_div(len_q, kTile); }

  const AttentionProblem& p_;
  int64_t group_;
  int64_t tile_rows_;  // of a full tile
  int64_t block_tiles_;
  int threads_;
};

}  // namespace fdma::cpu
