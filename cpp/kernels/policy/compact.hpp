// A mask with a row for every query, on keys that are put into an order of their own.
//
// Tiles of a mask without a visible score are passed over. When the keys that queries see lie scattered there is hardly
// such a tile, although most scores are hidden: of the causal 2048 best keys of 16384, 23 % of the scores under the
// diagonal are visible and every tile is live. In an order that brings keys with the same queries together 29 % of the
// tiles are (simulated; L 32768: 16 %, 65536: 9 %). So keys, values, biases and the bits of the mask are brought into
// such an order, and the call runs on them as on any other mask.
//
// The order is that of slots (policy/slots.hpp) at the grain of query tiles: by epochs of kCompactEpoch keys in the
// order in which query tiles first see them, inside an epoch by the last query tile that does. Keys that no query sees
// come last. It is used where it leaves enough fewer live tiles; otherwise keys stay in their natural order, which is
// decided where the mask is: the host does not wait for it.
#pragma once

#include <cstdint>

#include "kernels/core/math.hpp"
#include "kernels/policy/mask_bits.hpp"
#include "kernels/policy/slots.hpp"

namespace fdma {

// Shorter calls have few tiles to lose: at 512 queries a tile of keys has 8 rows of tiles, and ordering costs as much
// as that.
inline constexpr int64_t kCompactMinQueries = 512, kCompactMinKeys = 2048;
// The bits of a query's keys have to fit into the shared memory of a block.
inline constexpr int64_t kCompactMaxKeys = int64_t{1} << 18;
// A pass over a mask, a sort and a copy take about 0.1 ms on an H100 whatever the size. So on CUDA the products of the
// whole mask have to take 0.5 ms at 500 TFLOP/s: 4 FLOP to each of these.
inline constexpr double kCompactMinProducts = 68719476736.0;

// Whether the order pays. An H100 spends 2.1 ns on a live tile of one query head of dim 64 (1 MFLOP at 500 TFLOP/s),
// and about 1.4 ns on bringing its bits into the order: even at 0.6 of the tiles. Wider heads, more of them on the same
// mask, and backward gain earlier.
FDMA_HOST_DEVICE bool compaction_pays(uint64_t natural_tiles, uint64_t ordered_tiles) {
  return 5 * ordered_tiles <= 3 * natural_tiles;
}

// Bits of the keys of a word that lie before `limit`.
FDMA_HOST_DEVICE uint32_t keys_before(int64_t limit, int64_t word) {
  const int64_t keys = limit - word * 32;
  return keys >= 32 ? ~0u : keys <= 0 ? 0u : (1u << keys) - 1u;
}

// Query tiles (64 rows) that see a key: one bit each, in words of 32 tiles.
FDMA_HOST_DEVICE int64_t query_words(const PackedMaskLayout& layout) {
  return ceil_div<int64_t>(layout.row_tiles(), 32);
}

FDMA_HOST_DEVICE int lowest_bit(uint32_t word) {
#if defined(__CUDA_ARCH__)
  return __ffs(static_cast<int>(word)) - 1;
#else
  return __builtin_ctz(word);
#endif
}
FDMA_HOST_DEVICE int highest_bit(uint32_t word) {
#if defined(__CUDA_ARCH__)
  return 31 - __clz(static_cast<int>(word));
#else
  return 31 - __builtin_clz(word);
#endif
}

// The first query tile that sees a key, and the one behind the last. Word i of the key lies at words[i * stride].
FDMA_HOST_DEVICE Span query_tile_span(const uint32_t* words, int64_t stride, int64_t count) {
  Span span = kNoSpan;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t word = words[i * stride];
    if (word == 0) continue;
    if (span.end < 0) span.begin = static_cast<int32_t>(i) * 32 + lowest_bit(word);
    span.end = static_cast<int32_t>(i) * 32 + highest_bit(word) + 1;
  }
  return span;
}

inline constexpr int kCompactEpoch = 1024;  // keys, see policy/slots.hpp

// Epoch and end of a span as one number. Where the two need more than 32 bits, epochs grow.
struct EpochOrder {
  int bits = 1;  // of a number, or of the mark of hidden keys, which has all of them
  int end_bits = 1, epoch_shift = 0;

  FDMA_HOST_DEVICE EpochOrder(int32_t keys, int32_t last_end) {
    while (end_bits < 31 && (1 << end_bits) <= last_end) ++end_bits;
    while ((1 << epoch_shift) < kCompactEpoch || (keys >> epoch_shift) >= (1 << (31 - end_bits))) ++epoch_shift;
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

// Where a key goes. Keys are counted by the query tile that first sees them, in at most kBins bins of tiles; the keys
// of earlier bins decide the epoch. Keys of the same place stay in their natural order.
struct CompactOrder {
  static constexpr int kBins = 1024;
  EpochOrder order;
  int bin_shift = 0;

  FDMA_HOST_DEVICE explicit CompactOrder(const PackedMaskLayout& layout)
      : order(static_cast<int32_t>(layout.keys), static_cast<int32_t>(layout.row_tiles())) {
    while (((layout.row_tiles() - 1) >> bin_shift) >= kBins) ++bin_shift;
  }
  FDMA_HOST_DEVICE int bin(const Span& tiles) const { return tiles.begin >> bin_shift; }
  FDMA_HOST_DEVICE uint32_t place(int keys_of_earlier_bins, const Span& tiles) const {
    return order.place(keys_of_earlier_bins, tiles.end);
  }
  FDMA_HOST_DEVICE uint32_t hidden() const { return order.hidden(); }
};

}  // namespace fdma
