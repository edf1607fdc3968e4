// Sequences of different lengths in one batch: where each lies and how long it is.
#pragma once

#include <cstdint>

#include "kernels/core/math.hpp"

namespace fdma {

// Lengths of tensors stay clear of 2^31 by more than a tile, so that kernels may round them up in 32 bits.
inline constexpr int64_t kLengthLimit = (int64_t{1} << 31) - 4096;

// The rows of one sequence in a tensor, behind the batch stride.
struct RowSpan {
  int32_t len;
  int64_t begin;
};

// One sequence of a batch. Kernels keep it in shared memory: main loops have no registers to spare for it, and read it
// again behind every barrier.
struct Sequence {
  int32_t len_q, len_k;
  int64_t q_begin, k_begin;
};

// All sequences of a call.
struct SequenceView {
  const void* cu_q = nullptr;  // batch + 1 values each; null: all sequences have the maximal lengths
  const void* cu_k = nullptr;  // null alone: that is so of the keys
  bool is_64bit = false;
  int64_t joined = 0;   // packed sequences that are one, from the first row to the end of the last of them; 0: none
  bool packed = false;  // rows of all sequences follow each other; otherwise each has a batch entry
  bool paged = false;   // except the keys, which count from the sequence's first page
  int32_t max_q = 0, max_k = 0;
  int64_t rows_q = 0, rows_k = 0;  // of the tensors: the total when packed, else of one sequence

  FDMA_HOST_DEVICE bool varies() const { return cu_q != nullptr; }

  FDMA_HOST_DEVICE Sequence at(int64_t b) const {
    const RowSpan q = span(cu_q, b, max_q, rows_q, packed), k = span(cu_k, b, max_k, rows_k, packed && !paged);
    return {q.len, k.len, q.begin, k.begin};
  }

  FDMA_HOST_DEVICE int64_t boundary(const void* cu, int64_t b) const {
    return is_64bit ? static_cast<const int64_t*>(cu)[b] : static_cast<const int32_t*>(cu)[b];
  }
  // Of `count` packed sequences the one that has this row of a key-like tensor, if any has it.
  FDMA_HOST_DEVICE int64_t sequence_of_key(int64_t row, int64_t count) const {
    int64_t first = 0, last = count - 1;
    while (first < last) {
      const int64_t middle = (first + last + 1) / 2;
      if (boundary(cu_k, middle) <= row) {
        first = middle;
      } else {
        last = middle - 1;
      }
    }
    return first;
  }

 private:
  // Cut to what the maximal length and the tensor hold: nobody has checked values that lie on a device.
  FDMA_HOST_DEVICE RowSpan span(const void* cu, int64_t b, int32_t max, int64_t rows, bool in_a_row) const {
    if (cu == nullptr) return {max, 0};
    const int64_t first = joined > 0 ? 0 : boundary(cu, b), end = boundary(cu, joined > 0 ? joined : b + 1);
    const int64_t begin = in_a_row ? max_of<int64_t>(0, min_of(first, rows)) : 0;
    const int64_t longest = min_of<int64_t>(max, rows - begin);
    return {static_cast<int32_t>(max_of<int64_t>(0, min_of(end - first, longest))), begin};
  }
};

// Rows of key-like tensors without pages, and the sequences whose keys they are. Packed tensors have one batch entry.
struct KeyRows {
  SequenceView sequences;
  int64_t batch = 0;  // sequences, at least one
  int64_t rows = 0;   // of a batch entry

  struct Key {
    int64_t b;  // the sequence
    int32_t k;  // in the sequence; -1 where the row belongs to none
    Sequence sequence;
  };
  FDMA_HOST_DEVICE bool packed() const { return sequences.packed && !sequences.paged; }
  FDMA_HOST_DEVICE int64_t entries() const { return packed() ? 1 : batch; }
  FDMA_HOST_DEVICE int64_t entry(int64_t b) const { return packed() ? 0 : b; }
  FDMA_HOST_DEVICE Key at(int64_t entry, int64_t row) const {
    const int64_t b = packed() ? sequences.sequence_of_key(row, batch) : entry;
    const Sequence sequence = sequences.at(b);
    const int64_t k = row - sequence.k_begin;
    return {b, k >= 0 && k < sequence.len_k ? static_cast<int32_t>(k) : -1, sequence};
  }
};

// Scratch with rows in tiles of `tile` query rows, for all sequences one behind the other.
struct RowTiles {
  int32_t tile = 64;
  int64_t per_sequence = 0;  // tiles of the longest sequence
  bool packed = false;

  // The first tile of sequence b. Packed sequences need begin / tile + b: from one to the next that leaves room for the
  // tiles of the sequence, a ragged last one included.
  FDMA_HOST_DEVICE int64_t first(int64_t b, int64_t q_begin) const {
    return packed ? q_begin / tile + b : b * per_sequence;
  }
};
inline int64_t row_tile_total(const RowTiles& tiles, int64_t batch, int64_t rows_q) {
  return tiles.packed ? rows_q / tiles.tile + batch : batch * tiles.per_sequence;
}

}  // namespace fdma
