// What the selection kernels are launched with.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/core/params.hpp"

namespace fdma {

// Selection from a bias that is the same for all queries. A row is a (batch, head).
struct SelectParams {
  int32_t rows = 0, heads = 0, keys = 0, keep = 0;
  const void* bias = nullptr;
  ElementType type = ElementType::kFloat32;
  int64_t bias_stride_batch = 0, bias_stride_head = 0;  // elements
  const void* key_mask = nullptr;                       // or null
  int64_t key_mask_stride = 0;                          // elements, batch
  int32_t key_mask_bytes = 1;                           // of an element
  bool key_mask_is_float = false;                       // -0.0 counts as zero
  int32_t* end = nullptr;                               // (rows, keys), or null and
  int32_t* columns = nullptr;                           // (rows, keep)
  int32_t* counts = nullptr;                            // (rows)
};

// Selection from a bias that every query has of its own, straight to a packed mask. A row is a (batch, head, query); it
// keeps the `keep` keys of largest bias among those that it sees.
struct SelectRowsParams {
  int32_t batch = 0, heads = 0, len_q = 0, len_k = 0, keep = 0;
  bool is_causal = false;  // query q sees the keys up to q + len_k - len_q
  const void* bias = nullptr;
  ElementType type = ElementType::kFloat32;
  int64_t bias_stride_batch = 0, bias_stride_head = 0, bias_stride_row = 0;  // elements
  bool vector_rows = false;                                                  // rows start at multiples of 16 bytes
  const void* key_mask = nullptr;                                            // (batch, len_k), or null
  int64_t key_mask_stride = 0;                                               // elements, batch
  int32_t key_mask_bytes = 1;                                                // of an element
  bool key_mask_is_float = false;                                            // -0.0 counts as zero
  PackedMaskLayout layout;
  uint32_t* rows = nullptr;   // every word is written
  uint32_t* tiles = nullptr;  // the launcher clears them first
};

// Scratch of a selection. All arrays of ranks and keys are (rows, keys).
struct SelectScratch {
  uint32_t* ranks[2] = {};
  uint32_t* order[2] = {};     // keys, best first once sorted
  uint2* planes = nullptr;     // (rows, levels, words + 1), interval form; see select_keys.cu
  uint32_t* bitmap = nullptr;  // (rows, words), columns form
  int32_t* kept = nullptr;     // (rows): keys that may be kept
  void* sort = nullptr;
  size_t sort_bytes = 0;
};

// A mask as lists of keys. Interval: end of every key. Columns: the keys that are kept, other values hold a place. An
// order is made for each (batch entry, mask head); its keys are the rows of the entry.
struct KeyListView : KeyLists {
  KeyRows keys;
  int32_t width = 0;  // entries of a list
  bool is_interval = false;
  bool is_causal = false;
  uint8_t* listed = nullptr;  // columns, scratch [order][keys.rows]: 1 where a list has the key

  FDMA_HOST_DEVICE int64_t orders() const { return keys.entries() * heads; }
  FDMA_HOST_DEVICE int64_t all_keys() const { return orders() * keys.rows; }
  // Of key k of sequence b in `listed`.
  FDMA_HOST_DEVICE int64_t place(int64_t b, int64_t head, const Sequence& sequence, int32_t k) const {
    return (keys.entry(b) * heads + head) * keys.rows + sequence.k_begin + k;
  }
  FDMA_HOST_DEVICE Span span(int64_t order, int32_t key_row) const {
    const KeyRows::Key key = keys.at(order / heads, key_row);
    if (key.k < 0) return kNoSpan;
    if (is_interval) return interval_rows(key.sequence, key.k, row(list(key.b, order % heads))[key.k]);
    return listed[order * keys.rows + key_row] != 0 ? column_rows(key.sequence, key.k, is_causal) : kNoSpan;
  }
};

// What launch_fill_slots writes. `slots`: of an order, a multiple of kSlotPadding.
struct SlotTables {
  int32_t slots = 0;
  int32_t* keys = nullptr;         // [order][slots]: rows of keys, -1 where there is none
  Span* spans = nullptr;           // [order][slots]
  SpanSummary* groups = nullptr;   // [order][slots / kSlotGroup]
  SpanSummary* regions = nullptr;  // [order][slot_regions(slots)]
  int32_t* slot_of_key = nullptr;  // [order][keys]: -1 for a hidden key
  int32_t* used = nullptr;         // [order]: no slot from this one on has a key
};
struct SlotScratch {
  int32_t* seen = nullptr;   // [order][keys]: the keys that are seen, ascending
  int32_t* order = nullptr;  // [order][keys]: interval form: the same in the order of their slots
  int32_t* sums = nullptr;   // [order][ceil(keys / kRowThreads)]: those of each block of keys
};

// The order in which the blocks of a kernel with a block for each (tile of slots, kv head, batch entry) start: the
// longest walks over query tiles first.
struct BlockOrderParams {
  SlotView slots;
  int32_t batch = 0, heads_kv = 0, len_q = 0;
  int32_t tile_slots = 0, tile_queries = 0;  // tile_slots: a multiple of kSlotGroup
  int32_t* order = nullptr;                  // [blocks()]: (b * heads_kv + kv_head) * tiles() + tile

  FDMA_HOST_DEVICE int tiles() const { return ceil_div(slots.slots, tile_slots); }
  FDMA_HOST_DEVICE int64_t blocks() const { return static_cast<int64_t>(batch) * heads_kv * tiles(); }
};

// A key-like tensor in natural order, (B, rows, heads, D), and in the order of slots, (B, slots, heads * copies, D),
// whose rows are aligned. Query heads with lists of their own have copies of their own of the keys that they share.
struct SlotRowsParams {
  TensorView natural, slotted;
  ElementType type = ElementType::kFloat16;
  int32_t batch = 0, heads = 0, copies = 1, slots = 0, rows = 0, head_dim = 0;
  int32_t list_stride_batch = 0, list_stride_head = 0;
  const int32_t* keys = nullptr;         // gather
  const int32_t* slot_of_key = nullptr;  // scatter
  bool vector = false;                   // natural rows start at multiples of 16 bytes
};

struct SlotBiasParams {
  BiasView bias;
  KeyRows rows;                  // where the keys lie that the bias counts in their sequences
  float* target = nullptr;       // (batch, heads, slots)
  int32_t batch = 1, heads = 1;  // rows of the target
  int32_t heads_per_row = 1;     // query heads that share a row of the target
  int32_t group = 1, slots = 0;
  int32_t list_stride_batch = 0, list_stride_head = 0;
  const int32_t* keys = nullptr;
};

// A packed mask, and what launch_compact_mask makes of it. A list is a (batch, head) of the mask; query words are of 32
// query tiles of 64 rows.
struct CompactParams {
  PackedMaskLayout layout;  // has a row for every query
  bool is_causal = false;
  const uint32_t* natural_rows = nullptr;
  const uint32_t* natural_tiles = nullptr;
  // Written: the mask in the order of the slots, causality included, and the order.
  uint32_t* rows = nullptr;
  uint32_t* tiles_of_rows = nullptr;
  int32_t* keys = nullptr;         // [list][keys]: of each slot
  int32_t* slot_of_key = nullptr;  // [list][keys]
  // Scratch.
  uint32_t* seen = nullptr;              // [list][query words][row_words * 32]: the query tiles that see each key
  int32_t* bins = nullptr;               // [list][CompactOrder::kBins]
  uint64_t* places[2] = {};              // [list][keys]
  int32_t* order[2] = {};                // [list][keys]
  uint32_t* natural_live = nullptr;      // [list][query words][tiles()]: the query tiles that see each tile of slots
  uint32_t* ordered_live = nullptr;      // the same
  unsigned long long* counts = nullptr;  // [list][2]: live tiles, natural and ordered
  void* sort = nullptr;
  size_t sort_bytes = 0;

  FDMA_HOST_DEVICE int64_t lists() const { return layout.batch * layout.heads; }
  FDMA_HOST_DEVICE int64_t tiles() const { return layout.row_words() / 2; }  // of slots, padding included
};

// A packed mask from lists of keys.
struct ExpandParams {
  PackedMaskLayout layout;
  KeyListView mask;
  uint32_t* rows = nullptr;
  uint32_t* tiles = nullptr;
};

}  // namespace fdma
