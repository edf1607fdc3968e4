#include "cpu/compact.hpp"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "cpu/pack_mask.hpp"
#include "kernels/policy/compact.hpp"
#include "kernels/policy/range.hpp"

namespace fdma::cpu {
namespace {

// Calls show(key) for each key of a row of bits before `limit`.
template <typename Show>
void for_each_key(const uint32_t* words, int64_t limit, const Show& show) {
  for (int64_t w = 0; w * 32 < limit; ++w) {
    for (uint32_t rest = words[w] & keys_before(limit, w); rest != 0; rest &= rest - 1) show(w * 32 + lowest_bit(rest));
  }
}

// [query word][key]: the query tiles that see each key.
std::vector<uint32_t> query_tiles_of_keys(const PackedMaskLayout& layout, const uint32_t* rows, int64_t len_q,
                                          bool is_causal, int threads) {
  std::vector<uint32_t> seen(static_cast<size_t>(query_words(layout) * layout.keys));
  std::vector<uint32_t> any(static_cast<size_t>(threads * layout.row_words()));
  parallel_for(threads, query_words(layout), [&](int worker, int64_t word) {
    uint32_t* words = any.data() + worker * layout.row_words();
    for (int64_t bit = 0; bit < min_of<int64_t>(32, layout.row_tiles() - word * 32); ++bit) {
      const int64_t tile = word * 32 + bit;
      std::fill_n(words, layout.row_words(), 0u);
      for (int64_t q = tile * kMaskTile; q < min_of((tile + 1) * kMaskTile, layout.rows); ++q) {
        const uint32_t* row = rows + q * layout.row_words();
        const int64_t limit = key_limit(q, len_q, layout.keys, is_causal);
        for (int64_t w = 0; w * 32 < limit; ++w) words[w] |= row[w] & keys_before(limit, w);
      }
      uint32_t* of_keys = seen.data() + word * layout.keys;
      for_each_key(words, layout.keys, [&](int64_t k) { of_keys[k] |= 1u << bit; });
    }
  });
  return seen;
}

uint64_t live_tiles(const PackedMaskLayout& layout, const std::vector<uint32_t>& seen,
                    const std::vector<int32_t>& order) {
  uint64_t live = 0;
  for (int64_t word = 0; word < query_words(layout); ++word) {
    for (int64_t begin = 0; begin < layout.keys; begin += kMaskTile) {
      uint32_t any = 0;
      for (int64_t slot = begin; slot < min_of(begin + kMaskTile, layout.keys); ++slot) {
        any |= seen[static_cast<size_t>(word * layout.keys + order[static_cast<size_t>(slot)])];
      }
      for (; any != 0; any &= any - 1) ++live;
    }
  }
  return live;
}

}  // namespace

void order_keys(const PackedMaskLayout& layout, const uint32_t* packed, int64_t mask_head, int64_t len_q,
                bool is_causal, int threads, int32_t* keys) {
  const uint32_t* rows = packed + mask_head * layout.rows * layout.row_words();
  const std::vector<uint32_t> seen = query_tiles_of_keys(layout, rows, len_q, is_causal, threads);
  const auto span_of = [&](int64_t k) { return query_tile_span(seen.data() + k, layout.keys, query_words(layout)); };
  const CompactOrder order(layout);
  int32_t earlier[CompactOrder::kBins + 1] = {};  // keys of the bins before
  for (int64_t k = 0; k < layout.keys; ++k) {
    const Span span = span_of(k);
    if (span.end >= 0) ++earlier[order.bin(span) + 1];
  }
  std::partial_sum(earlier, earlier + CompactOrder::kBins + 1, earlier);

  std::vector<std::pair<uint32_t, int32_t>> places;
  for (int64_t k = 0; k < layout.keys; ++k) {
    const Span span = span_of(k);
    places.emplace_back(span.end < 0 ? order.hidden() : order.place(earlier[order.bin(span)], span),
                        static_cast<int32_t>(k));
  }
  std::sort(places.begin(), places.end());
  std::vector<int32_t> natural(places.size()), ordered(places.size());
  std::iota(natural.begin(), natural.end(), 0);
  std::transform(places.begin(), places.end(), ordered.begin(), [](const auto& place) { return place.second; });
  const bool pays = compaction_pays(live_tiles(layout, seen, natural), live_tiles(layout, seen, ordered));
  std::copy_n(pays ? ordered.data() : natural.data(), layout.keys, keys);
}

void permute_mask(const AttentionProblem& problem, const uint32_t* packed, const int32_t* slot_of_key,
                  uint32_t* permuted) {
  const PackedMaskLayout& layout = problem.mask.layout;
  write_packed_mask(layout, permuted, pack_threads(problem.num_threads, layout),
                    [&](int, int64_t b, int64_t h, int64_t q, uint32_t* words) {
                      const int64_t head = b * layout.heads + h;
                      const uint32_t* row = packed + (head * layout.rows + q) * layout.row_words();
                      const int32_t* slots = slot_of_key + head * layout.keys;
                      std::fill_n(words, layout.row_words(), 0u);
                      for_each_key(row, key_limit(q, problem.len_q, layout.keys, problem.is_causal),
                                   [&](int64_t k) { words[slots[k] / 32] |= 1u << (slots[k] % 32); });
                    });
}

}  // namespace fdma::cpu
