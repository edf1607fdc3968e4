// Keys that a mask has chosen, in the order in which kernels walk them.
//
// A mask that keeps w of N keys for each query, the same w for neighbouring queries up to a few, leaves nearly every
// tile of keys with some visible score. So the keys are put into an order of their own: a slot is a place in it. Keys
// and values are copied into that order, keys that no query sees are left out, and each slot has the positions [begin,
// end) that see it. Slots whose spans are alike are neighbours, so that whole tiles of slots are passed over.
//
// Order of an interval mask: by epochs of kSlotEpoch keys that are seen, in an epoch by the end of the span. A tile of
// 128 slots then covers 1.3 to 1.5 times the spans of its keys for w = 2048, one of 64 slots 1.22 to 1.33 times,
// whatever N is; in the natural order it would be 2 to 3.5 times and grow with N (simulated, biases with and without
// drift).
#pragma once

#include <cstdint>

#include "kernels/core/math.hpp"

namespace fdma {

inline constexpr int kSlotGroup = 32;     // slots that share a summary of their spans
inline constexpr int kSlotPadding = 128;  // lists of slots have a multiple of it: the widest key tile
inline constexpr int kSlotEpoch = 1024;   // keys that are seen

// Positions that see a key. The position of query q is q + Lk - Lq.
struct Span {
  int32_t begin, end;
};
inline constexpr Span kNoSpan{INT32_MAX, INT32_MIN};

// Epoch and end of a span as one number. Where the two need more than 32 bits, epochs grow.
struct SlotOrder {
  int bits = 1;  // of a number, or of the mark of hidden keys, which has all of them
  int end_bits = 1, epoch_shift = 0;

  FDMA_HOST_DEVICE explicit SlotOrder(int32_t keys) : SlotOrder(keys, keys) {}
  FDMA_HOST_DEVICE SlotOrder(int32_t keys, int32_t last_end) {
    while (end_bits < 31 && (1 << end_bits) <= last_end) ++end_bits;
    while ((1 << epoch_shift) < kSlotEpoch || (keys >> epoch_shift) >= (1 << (31 - end_bits))) ++epoch_shift;
    bits = end_bits;
    while (((keys >> epoch_shift) >> (bits - end_bits)) != 0) ++bits;
    ++bits;  // no number has all bits set
  }
  // `rank`: seen keys before this one.
  FDMA_HOST_DEVICE uint32_t place(int rank, int end) const {
    return static_cast<uint32_t>(rank >> epoch_shift) << end_bits | static_cast<uint32_t>(end);
  }
  // Behind all places.
  FDMA_HOST_DEVICE uint32_t hidden() const { return 0xffffffffu >> (32 - bits); }
};

// Of several spans.
struct SpanSummary {
  int32_t first_begin, last_end;  // no position outside [first_begin, last_end) sees any
  int32_t last_begin, first_end;  // every position of [last_begin, first_end) sees all

  FDMA_HOST_DEVICE void add(const SpanSummary& other) {
    first_begin = min_of(first_begin, other.first_begin);
    last_end = max_of(last_end, other.last_end);
    last_begin = max_of(last_begin, other.last_begin);
    first_end = min_of(first_end, other.first_end);
  }
  // For positions [first, last].
  FDMA_HOST_DEVICE bool any(int first, int last) const { return first_begin <= last && last_end > first; }
  FDMA_HOST_DEVICE bool all(int first, int last) const { return last_begin <= first && first_end > last; }
};

// The slots of a call: one list for each (batch, head) of the mask. Without spans they are the order of keys under a
// packed mask (policy/compact.hpp), and only `slots` and the strides of lists are set.
struct SlotView {
  const Span* spans = nullptr;                          // [list][slots]
  const SpanSummary* groups = nullptr;                  // [list][slots / kSlotGroup]
  const float* bias = nullptr;                          // [bias row][slots], in bits; or null
  int32_t slots = 0;                                    // of a list, padding included
  int32_t shift = 0;                                    // Lk - Lq
  int32_t list_stride_batch = 0, list_stride_head = 0;  // lists; head: kv head. 0 where the mask broadcasts
  int32_t bias_stride_batch = 0, bias_stride_head = 0;  // bias rows; head: query head / heads_per_bias_head
  int32_t heads_per_bias_head = 1;

  FDMA_HOST_DEVICE int64_t list(int b, int kv_head) const {
    return static_cast<int64_t>(b) * list_stride_batch + kv_head * list_stride_head;
  }
  FDMA_HOST_DEVICE int64_t bias_row(int b, int h) const {
    return static_cast<int64_t>(b) * bias_stride_batch + h / heads_per_bias_head * bias_stride_head;
  }
};

}  // namespace fdma
