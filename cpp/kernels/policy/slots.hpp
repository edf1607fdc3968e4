// Keys that a mask has chosen, in the order in which kernels walk them.
//
// A mask that keeps w of N keys for each query, the same w for neighbouring queries up to a few, leaves nearly every
// tile of keys with some visible score. So the keys are put into an order of their own: a slot is a place in it. Keys
// and values are copied into that order, keys that no query sees are left out, and each slot has the query rows [begin,
// end) that see it. Slots whose spans are alike are neighbours, so that whole tiles of slots are passed over.
//
// Rows are those of the tensors, so that packed sequences are one sequence to the kernels: the span of a key ends with
// its sequence, and neighbours share tiles.
//
// Order of an interval mask: by epochs of slot_epoch() keys that are seen, in an epoch by the end of the span, among
// equal ends by the key. A tile of 128 slots then covers 1.3 to 1.4 times the spans of its keys for w = 2048, one of 64
// slots 1.2 to 1.26 times, from 16K to 128K keys; in the natural order it would be 2 to 3.5 times and grow with N
// (simulated, biases without drift).
#pragma once

#include <cstdint>

#include "kernels/core/math.hpp"
#include "kernels/policy/sequence.hpp"

namespace fdma {

inline constexpr int kSlotGroup = 32;     // slots that share a summary of their spans
inline constexpr int kSlotRegion = 1024;  // the same, for walks that pass over many groups at a time
inline constexpr int kSlotPadding = 128;  // lists of slots have a multiple of it: the widest key tile

// Where the lists of a mask lie: INT32, one for each (batch, head) of the mask.
struct KeyLists {
  const int32_t* data = nullptr;
  int64_t stride_batch = 0, stride_head = 0;  // elements
  int64_t batch = 1, heads = 1;               // of the mask: 1 = broadcast

  // `head`: of the mask.
  FDMA_HOST_DEVICE int64_t list(int64_t b, int64_t head) const {
    return (batch == 1 ? 0 : b) * heads + (heads == 1 ? 0 : head);
  }
  FDMA_HOST_DEVICE const int32_t* row(int64_t list) const {
    return data + list / heads * stride_batch + list % heads * stride_head;
  }
};

// Query rows that see a key.
struct Span {
  int32_t begin, end;
};
inline constexpr Span kNoSpan{INT32_MAX, INT32_MIN};

// Of a sequence, the rows at the positions [begin, end). The position of query q is q + len_k - len_q.
FDMA_HOST_DEVICE Span rows_at(const Sequence& sequence, int64_t begin, int64_t end) {
  const int64_t shift = sequence.len_k - sequence.len_q;
  const int64_t first = max_of<int64_t>(0, begin - shift), last = min_of<int64_t>(sequence.len_q, end - shift);
  if (first >= last) return kNoSpan;
  return {static_cast<int32_t>(sequence.q_begin + first), static_cast<int32_t>(sequence.q_begin + last)};
}
// Interval mask: key k is pushed out at the position `end`.
FDMA_HOST_DEVICE Span interval_rows(const Sequence& sequence, int32_t k, int32_t end) {
  return rows_at(sequence, k, end);
}
// Columns: key k is listed.
FDMA_HOST_DEVICE Span column_rows(const Sequence& sequence, int32_t k, bool is_causal) {
  return rows_at(sequence, is_causal ? k : sequence.len_k - sequence.len_q, sequence.len_k);
}

// Keys that are seen in an epoch. Short epochs spread the begins of a tile's spans less, long ones their ends; the ends
// of a long list lie further apart.
FDMA_HOST_DEVICE int slot_epoch(int64_t keys) { return keys <= 32768 ? 1024 : 1536; }
inline constexpr int kLongestSlotEpoch = 1536;

// Of several spans.
struct SpanSummary {
  int32_t first_begin, last_end;  // no row outside [first_begin, last_end) sees any
  int32_t last_begin, first_end;  // every row of [last_begin, first_end) sees all

  FDMA_HOST_DEVICE void add(const SpanSummary& other) {
    first_begin = min_of(first_begin, other.first_begin);
    last_end = max_of(last_end, other.last_end);
    last_begin = max_of(last_begin, other.last_begin);
    first_end = min_of(first_end, other.first_end);
  }
  // For rows [first, last].
  FDMA_HOST_DEVICE bool any(int first, int last) const { return first_begin <= last && last_end > first; }
  FDMA_HOST_DEVICE bool all(int first, int last) const { return last_begin <= first && first_end > last; }
};

FDMA_HOST_DEVICE int slot_regions(int slots) { return ceil_div(slots, kSlotRegion); }

// Tiles of `tile` query rows, [first, end), in which some row may see one of the spans.
struct QueryTiles {
  int first, end;
};
FDMA_HOST_DEVICE QueryTiles query_tiles(const SpanSummary& spans, int len_q, int tile) {
  // Begin and end may be the ends of 32 bits.
  const auto row = [&](int32_t position) { return min_of(len_q, max_of(0, position)); };
  const int begin = row(spans.first_begin), end = row(spans.last_end);
  return {begin / tile, begin < end ? ceil_div(end, tile) : begin / tile};
}

// Rows of a query tile of `1 << shift` query heads of one group, which follow each other at each position. Heads of a
// group see the same slots: a tile of fewer positions walks fewer of them.
struct PackedHeads {
  int32_t shift = 0;

  // As many as divide the group, and `kMost` at most: a pass of threads that copy rows covers whole positions.
  FDMA_HOST_DEVICE static PackedHeads of_group(int32_t group) {
    constexpr int32_t kMost = 2;
    PackedHeads packed;
    while (packed.shift < kMost && group % (2 << packed.shift) == 0) ++packed.shift;
    return packed;
  }
  FDMA_HOST_DEVICE int count() const { return 1 << shift; }
  FDMA_HOST_DEVICE int position(int row) const { return row >> shift; }
  FDMA_HOST_DEVICE int head(int row) const { return row & (count() - 1); }
};

// The slots of a call: one list for each (batch, head) of the mask, with sequences for each (batch entry, head).
// Without spans they are the order of keys under a packed mask (policy/compact.hpp), and only `slots` and the strides
// of lists are set.
struct SlotView {
  const Span* spans = nullptr;                          // [list][slots]
  const SpanSummary* groups = nullptr;                  // [list][slots / kSlotGroup]
  const SpanSummary* regions = nullptr;                 // [list][slot_regions(slots)]; CUDA
  const int32_t* used = nullptr;                        // [list]: no slot from this one on has a key; or null
  const float* bias = nullptr;                          // [bias row][slots], in bits; or null
  int32_t slots = 0;                                    // of a list, padding included
  int32_t list_stride_batch = 0, list_stride_head = 0;  // lists; head: of slotted keys. 0 where the mask broadcasts
  int32_t bias_stride_batch = 0, bias_stride_head = 0;  // bias rows; head: query head / heads_per_bias_head
  int32_t heads_per_bias_head = 1;
  PackedHeads packed;  // forward: heads of a group that share a query tile

  FDMA_HOST_DEVICE int64_t list(int b, int kv_head) const {
    return static_cast<int64_t>(b) * list_stride_batch + kv_head * list_stride_head;
  }
  FDMA_HOST_DEVICE const SpanSummary* groups_of(int64_t list) const { return groups + list * (slots / kSlotGroup); }
  FDMA_HOST_DEVICE const SpanSummary* regions_of(int64_t list) const { return regions + list * slot_regions(slots); }
  FDMA_HOST_DEVICE int used_slots(int64_t list) const { return used == nullptr ? slots : used[list]; }
  FDMA_HOST_DEVICE int64_t bias_row(int b, int h) const {
    return static_cast<int64_t>(b) * bias_stride_batch + h / heads_per_bias_head * bias_stride_head;
  }
};

}  // namespace fdma
