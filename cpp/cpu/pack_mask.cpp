#include "cpu/pack_mask.hpp"

#include <cstring>

#include "cpu/parallel.hpp"
#include "cpu/tile_kernels.hpp"
#include "host/dtype.hpp"
#include "kernels/policy/range.hpp"

namespace fdma::cpu {
namespace {

// Words of one packed row: the mask's bits for the keys before `limit`, zero after them.
void pack_row(const AttentionProblem& problem, const void* row, int64_t limit, uint32_t* words) {
  const MaskProblem& mask = problem.mask;
  const int64_t word_count = mask.layout.row_words();
  const bool one_key = mask.dense.stride[3] == 0 && mask.layout.keys > 1;  // one element for all keys
  if (!one_key) return tile_kernels().pack_mask_row(row, mask.dtype, limit, words, word_count);
  uint32_t first = 0;
  tile_kernels().pack_mask_row(row, mask.dtype, 1, &first, 1);
  for (int64_t w = 0; w < word_count; ++w) {
    const int64_t bits = max_of<int64_t>(0, min_of<int64_t>(32, limit - w * 32));
    words[w] = first == 0 ? 0 : bits == 32 ? ~0u : (1u << bits) - 1u;
  }
}

// The first key that no query behind this row of the mask sees. A row that stands for all queries keeps what the last
// of them may see, one that stands for sequences of several lengths every key.
int64_t mask_row_limit(const AttentionProblem& problem, int64_t b, int64_t row) {
  const PackedMaskLayout& layout = problem.mask.layout;
  if (problem.sequences && layout.batch != problem.batch) return layout.keys;
  const SequenceExtents sequence = problem.extents(b);
  const bool is_causal = problem.is_causal && layout.rows == problem.len_q;
  return max_of<int64_t>(0, key_limit(row, sequence.len_q, sequence.len_k, is_causal));
}

// Rows [row_tile * 64, ...) of one mask head, and the tile bits of that row tile.
void pack_row_tile(const AttentionProblem& problem, int64_t b, int64_t h, int64_t row_tile, uint32_t* packed) {
  const MaskProblem& mask = problem.mask;
  const PackedMaskLayout& layout = mask.layout;
  uint32_t* tiles =
      packed + layout.rows_bytes() / 4 + ((b * layout.heads + h) * layout.row_tiles() + row_tile) * layout.tile_words();
  std::memset(tiles, 0, static_cast<size_t>(layout.tile_words()) * sizeof(uint32_t));
  const int64_t end = min_of(layout.rows, (row_tile + 1) * kMaskTile);
  for (int64_t row = row_tile * kMaskTile; row < end; ++row) {
    uint32_t* words = packed + ((b * layout.heads + h) * layout.rows + row) * layout.row_words();
    const int64_t offset = b * mask.dense.stride[0] + h * mask.dense.stride[1] + row * mask.dense.stride[2];
    const void* source = static_cast<const char*>(mask.dense.data) + offset * dtype_size(mask.dtype);
    pack_row(problem, source, mask_row_limit(problem, b, row), words);
    for (int64_t t = 0; t < layout.key_tiles(); ++t) {
      const bool any = (words[2 * t] | words[2 * t + 1]) != 0;
      tiles[t / 32] |= static_cast<uint32_t>(any) << (t % 32);
    }
  }
}

}  // namespace

const void* packed_mask(const AttentionProblem& problem, Workspace& workspace) {
  const MaskProblem& mask = problem.mask;
  if (mask.kind == FDMA_MASK_NONE) return nullptr;
  if (mask.kind == FDMA_MASK_BITS) return mask.packed;

  const PackedMaskLayout& layout = mask.layout;
  uint32_t* packed = static_cast<uint32_t*>(mask.packed_out);
  if (packed == nullptr) packed = workspace.take<uint32_t>(layout.bytes() / 4);
  if (workspace.counting()) return nullptr;

  const int64_t items = layout.batch * layout.heads * layout.row_tiles();
  const double elements = static_cast<double>(layout.batch * layout.heads * layout.rows) * layout.keys;
  parallel_for(thread_count(problem.num_threads, items, 16 * elements), items, [&](int, int64_t item) {
    const int64_t head = item / layout.row_tiles();
    pack_row_tile(problem, head / layout.heads, head % layout.heads, item % layout.row_tiles(), packed);
  });
  return packed;
}

}  // namespace fdma::cpu
