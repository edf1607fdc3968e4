// What the decode kernels are launched with.
#pragma once

#include <cstdint>

#include "kernels/core/params.hpp"

namespace fdma {

// A key that a query attends to, and its bias.
struct KeptKey {
  int32_t key;
  float bias;
};

// Keys in use of each batch entry.
struct CacheLengths {
  const void* values = nullptr;  // or null: all
  bool is_64bit = false;
  int32_t max = 0;

  // Cut to what the cache holds: nobody has checked values that lie on a device.
  FDMA_HOST_DEVICE int32_t at(int64_t b) const {
    if (values == nullptr) return max;
    const int64_t length = is_64bit ? static_cast<const int64_t*>(values)[b] : static_cast<const int32_t*>(values)[b];
    return static_cast<int32_t>(max_of<int64_t>(0, min_of<int64_t>(length, max)));
  }
};

// Selections, each from a row of the bias: row = (b * heads + bias head) * queries + q.
struct DecodeSelectParams {
  int32_t batch = 0, heads = 0, keep = 0;  // heads: of the bias
  int32_t queries = 1;                     // that choose for themselves: 1, or len_q with causality
  int32_t len_q = 1;
  bool is_causal = false;
  CacheLengths lengths;
  BiasView bias;
  KeptKey* kept = nullptr;         // (rows, keep), in rising order of keys
  int32_t* counts = nullptr;       // (rows): how many are kept
  uint32_t* histograms = nullptr;  // (levels, rows, chunks, 256), long rows only
  int32_t chunks = 0;              // 0: a block has a whole row
  int32_t level = 0;               // digit of the ranks that a launch counts

  FDMA_HOST_DEVICE int64_t rows() const { return static_cast<int64_t>(batch) * heads * queries; }
};

struct DecodeParams {
  TensorView query, key, value, out;
  int32_t batch = 0, heads_q = 0, heads_kv = 0, group = 1, len_q = 1, head_dim = 0;
  // Units, as host/decode_problem.hpp has them: those of a (batch, kv head), and rows of one.
  int32_t head_units = 1, query_units = 1, unit_rows = 1;
  int32_t row_tiles = 1, splits = 1;  // of a unit
  CacheLengths lengths;
  PageView pages;
  BiasView bias;
  bool hides_nan = false;         // a bias of NaN hides its key
  bool is_causal = false;         // of all keys; a selection has seen to causality
  const KeptKey* kept = nullptr;  // selections, or null: all keys
  const int32_t* counts = nullptr;
  int32_t keep = 0, list_heads = 1;  // list_heads: heads of the bias
  float scale = 1, softcap = 0;
  bool vector_rows = false;  // every row of query, key and value starts at a multiple of 16 bytes
  bool vector_out = false;
  float* lse = nullptr;  // (B, H, Lq), or null
  SplitParts parts;      // with more than one split: of all rows

  FDMA_HOST_DEVICE int64_t rows() const { return static_cast<int64_t>(batch) * heads_q * len_q; }
  FDMA_HOST_DEVICE int64_t row(int64_t b, int64_t h, int64_t q) const { return (b * heads_q + h) * len_q + q; }
  FDMA_HOST_DEVICE int64_t units() const { return static_cast<int64_t>(batch) * heads_kv * head_units * query_units; }
};

// Keys that a block takes in one step; a split has a multiple of them.
constexpr int decode_warps(int head_dim) { return head_dim <= 128 ? 4 : 2; }
constexpr int decode_stages(int head_dim) { return head_dim <= 64 ? 4 : 2; }
inline constexpr int kDecodeWarpKeys = 16;  // of a warp
inline constexpr int kDecodeRows = 16;      // of a tile
inline constexpr int kDecodeBlocksPerSm = 3;

}  // namespace fdma
