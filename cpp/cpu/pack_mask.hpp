#pragma once

#include <algorithm>

#include "cpu/parallel.hpp"
#include "host/problem.hpp"
#include "host/workspace.hpp"

namespace fdma::cpu {

// Tiles of 64 rows in all heads of a packed mask: the items of write_packed_mask.
inline int64_t mask_row_tiles(const PackedMaskLayout& layout) {
  return layout.batch * layout.heads * layout.row_tiles();
}

// Threads for writing a packed mask.
int pack_threads(int requested, const PackedMaskLayout& layout);

// Writes all of a packed mask. write_row(worker, batch, head, row, words) fills the words of one row, padding included;
// the bits of tiles follow from them. Tiles of rows run in parallel.
template <typename WriteRow>
void write_packed_mask(const PackedMaskLayout& layout, uint32_t* packed, int threads, const WriteRow& write_row) {
  parallel_for(threads, mask_row_tiles(layout), [&](int worker, int64_t item) {
    const int64_t head = item / layout.row_tiles();
    const int64_t begin = item % layout.row_tiles() * kMaskTile;
    uint32_t* tiles = packed + layout.rows_bytes() / 4 + item * layout.tile_words();
    std::fill_n(tiles, layout.tile_words(), 0u);
    for (int64_t row = begin; row < min_of(begin + kMaskTile, layout.rows); ++row) {
      uint32_t* words = packed + (head * layout.rows + row) * layout.row_words();
      write_row(worker, head / layout.heads, head % layout.heads, row, words);
      for (int64_t t = 0; t < layout.key_tiles(); ++t) {
        tiles[t / 32] |= static_cast<uint32_t>((words[2 * t] | words[2 * t + 1]) != 0) << (t % 32);
      }
    }
  });
}

// The packed mask of a problem, or null when it has none. A dense mask is packed into problem.mask.packed_out or, when
// the caller does not want to keep it, into `workspace`; nothing is packed while the workspace only counts.
const void* packed_mask(const AttentionProblem& problem, Workspace& workspace);

}  // namespace fdma::cpu
