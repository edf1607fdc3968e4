#include "cpu/pack_mask.hpp"

#include <algorithm>

#include "cpu/tile_kernels.hpp"
#include "host/backend.hpp"
#include "host/dtype.hpp"
#include "kernels/policy/range.hpp"

namespace fdma::cpu {
namespace {

// Words of one packed row of the dense mask: its bits for the keys before `limit`, zero after them.
void pack_row(const MaskProblem& mask, int64_t b, int64_t h, int64_t q, int64_t limit, uint32_t* words) {
  const int64_t offset = b * mask.dense.stride[0] + h * mask.dense.stride[1] + q * mask.dense.stride[2];
  const void* row = static_cast<const char*>(mask.dense.data) + offset * dtype_size(mask.dtype);
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
void expand_lists(const AttentionProblem& problem, uint32_t* packed) {
  const PackedMaskLayout& layout = problem.mask.layout;
  const KeyListProblem& lists = problem.mask.lists;
  write_packed_mask(layout, packed, pack_threads(problem.num_threads, layout),
                    [&](int, int64_t b, int64_t h, int64_t q, uint32_t* words) {
                      std::fill_n(words, layout.row_words(), 0u);
                      const SequenceExtents sequence = problem.extents(b);
                      if (q < sequence.len_q) {
                        expand_row(problem, sequence, lists.row(lists.list(b, h)), q, words);
                      }
                    });
}

}  // namespace

int pack_threads(int requested, const PackedMaskLayout& layout) {
  constexpr double kFlopsAScore = 16;
  const double scores =
      static_cast<double>(layout.batch * layout.heads * layout.rows) * static_cast<double>(layout.keys);
  return thread_count(requested, mask_row_tiles(layout), kFlopsAScore * scores);
}

const void* packed_mask(const AttentionProblem& problem, Workspace& workspace) {
  const MaskProblem& mask = problem.mask;
  if (mask.kind == FDMA_MASK_NONE) return nullptr;
  if (mask.kind == FDMA_MASK_BITS) return mask.packed;

  const PackedMaskLayout& layout = mask.layout;
  uint32_t* packed = static_cast<uint32_t*>(mask.packed_out);
  if (packed == nullptr) packed = workspace.take<uint32_t>(layout.bytes() / 4);
  if (workspace.counting()) return nullptr;
  if (mask.kind != FDMA_MASK_DENSE) {
    expand_lists(problem, packed);
    return packed;
  }
  write_packed_mask(layout, packed, pack_threads(problem.num_threads, layout),
                    [&](int, int64_t b, int64_t h, int64_t q, uint32_t* words) {
                      pack_row(mask, b, h, q, mask_row_limit(problem, b, q), words);
                    });
  return packed;
}

void pack_mask(const PackMaskProblem& problem, Workspace& workspace) {
  if (workspace.counting()) return;  // needs no scratch
  const MaskProblem& mask = problem.mask;
  write_packed_mask(
      mask.layout, static_cast<uint32_t*>(mask.packed_out), pack_threads(problem.num_threads, mask.layout),
      [&](int, int64_t b, int64_t h, int64_t q, uint32_t* words) { pack_row(mask, b, h, q, mask.layout.keys, words); });
}

}  // namespace fdma::cpu
