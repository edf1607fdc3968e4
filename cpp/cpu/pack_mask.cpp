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

// Row q of the packed mask that a list stands for, for a sequence.
void expand_row(const AttentionProblem& problem, const SequenceExtents& sequence, const int32_t* list, int64_t q,
                uint32_t* words) {
  const int64_t position = q + sequence.len_k - sequence.len_q;
  const auto show = [&](int64_t k) { words[k / 32] |= 1u << (k % 32); };
  if (problem.mask.kind == FDMA_MASK_INTERVAL) {
    for (int64_t k = 0; k <= min_of(position, sequence.len_k - 1); ++k) {
      if (position < list[k]) show(k);
    }
    return;
  }
  const int64_t limit = key_limit(q, sequence.len_q, sequence.len_k, problem.is_causal);
  for (int64_t column = 0; column < problem.mask.lists.width; ++column) {
    if (list[column] >= 0 && list[column] < limit) show(list[column]);
  }
}

// Lists of keys as a packed mask.
const void* expanded_lists(const AttentionProblem& problem, Workspace& workspace) {
  const PackedMaskLayout& layout = problem.mask.layout;
  const KeyListProblem& lists = problem.mask.lists;
  uint32_t* packed = workspace.take<uint32_t>(layout.bytes() / 4);
  if (workspace.counting()) return nullptr;
  std::memset(packed, 0, static_cast<size_t>(layout.bytes()));
  uint32_t* tiles = packed + layout.rows_bytes() / 4;
  for (int64_t head = 0; head < layout.batch * layout.heads; ++head) {
    const int64_t b = head / layout.heads, h = head % layout.heads;
    const SequenceExtents sequence = problem.extents(b);
    const int32_t* list = lists.data + (lists.batch == 1 ? 0 : b) * lists.stride_batch + h * lists.stride_head;
    for (int64_t q = 0; q < sequence.len_q; ++q) {
      uint32_t* words = packed + (head * layout.rows + q) * layout.row_words();
      expand_row(problem, sequence, list, q, words);
      uint32_t* tile_row = tiles + (head * layout.row_tiles() + q / kMaskTile) * layout.tile_words();
      for (int64_t t = 0; t < layout.key_tiles(); ++t) {
        tile_row[t / 32] |= static_cast<uint32_t>((words[2 * t] | words[2 * t + 1]) != 0) << (t % 32);
      }
    }
  }
  return packed;
}

}  // namespace

const void* packed_mask(const AttentionProblem& problem, Workspace& workspace) {
  const MaskProblem& mask = problem.mask;
  if (mask.kind == FDMA_MASK_NONE) return nullptr;
  if (mask.kind == FDMA_MASK_BITS) return mask.packed;
  if (mask.kind != FDMA_MASK_DENSE) return expanded_lists(problem, workspace);

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
