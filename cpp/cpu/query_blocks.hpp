// How the query rows of a problem are cut into work items.
#pragma once

#include <algorithm>
#include <cstdint>

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
  int64_t batch, kv_head;
  int64_t count;
  QueryTile tiles[kMaxTiles];

  int64_t rows() const { return tiles[count - 1].first_row + tiles[count - 1].rows; }
};

class QueryBlocks {
 public:
  // `flops_per_score`: the work of one (query, key) pair, which decides how many threads are worth starting.
  QueryBlocks(const AttentionProblem& p, double flops_per_score)
      : len_q_(p.len_q),
        heads_kv_(p.heads_kv),
        group_(p.group()),
        head_tiles_(p.group() * ceil_div(p.len_q, kTile)),
        tile_rows_(min_of(p.len_q, kTile)) {
    const int64_t tiles = p.batch * heads_kv_ * head_tiles_;
    const double scores = static_cast<double>(p.batch * p.heads_q) * static_cast<double>(p.len_q * p.len_k);
    threads_ = thread_count(p.num_threads, tiles, flops_per_score * scores);
    // Large blocks read keys and values less often, small ones leave every thread a share. When queries are few
    // (decoding), a block holds more heads.
    const int64_t fit = (p.head_dim <= 128 ? 256 : 128) / max_of<int64_t>(tile_rows_, 1);
    const int64_t share = threads_ == 1 ? fit : tiles / (4 * threads_);
    block_tiles_ = max_of<int64_t>(1, std::min({fit, share, head_tiles_, QueryBlock::kMaxTiles}));
    head_blocks_ = ceil_div(head_tiles_, block_tiles_);
    items_ = p.batch * heads_kv_ * head_blocks_;
  }

  int threads() const { return threads_; }
  int64_t items() const { return items_; }
  int64_t max_rows() const { return block_tiles_ * tile_rows_; }

  QueryBlock block(int64_t item) const {
    QueryBlock block{};
    block.kv_head = item / head_blocks_ % heads_kv_;
    block.batch = item / head_blocks_ / heads_kv_;
    const int64_t begin = item % head_blocks_ * block_tiles_;
    int64_t rows = 0;
    for (int64_t i = begin; i < min_of(head_tiles_, begin + block_tiles_); ++i) {
      const int64_t index = i / group_;
      QueryTile& tile = block.tiles[block.count++];
      tile = {block.kv_head * group_ + i % group_, index, min_of(kTile, len_q_ - index * kTile), rows};
      rows += tile.rows;
    }
    return block;
  }

 private:
  int64_t len_q_, heads_kv_, group_;
  int64_t head_tiles_;  // query tiles of all heads that share a kv head
  int64_t tile_rows_;   // of a full tile
  int64_t block_tiles_, head_blocks_, items_;
  int threads_;
};

}  // namespace fdma::cpu
