// What the kernels of the bounded cache are launched with.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/core/params.hpp"

namespace fdma {

inline constexpr int kFewTokens = 16;      // appends of up to so many go one token after another
inline constexpr int kSortedSlots = 1024;  // a block sorts so many slots by position

// A (batch, kv head, K) tensor whose last stride is 1.
template <typename T>
struct HeadRowsView {
  T* data = nullptr;
  int64_t stride_batch = 0, stride_head = 0;

  FDMA_HOST_DEVICE int64_t row(int64_t b, int64_t h) const { return b * stride_batch + h * stride_head; }
};

// Slots of a cache or new tokens, of which only the cache has positions. Keys and values have 16-bit elements.
struct TokenArrays {
  TensorView key, value;
  HeadRowsView<void> bias;
  HeadRowsView<int64_t> position;
};

struct CacheParams {
  int32_t batch = 0, heads = 0, slots = 0, head_dim = 0;
  ElementType type = ElementType::kFloat32;  // of the biases
  bool vector = false;                       // every row of keys and values is whole aligned chunks of 16 bytes
  TokenArrays cache;

  FDMA_HOST_DEVICE int64_t rows() const { return static_cast<int64_t>(batch) * heads; }
};

struct CacheAppendParams : CacheParams {
  int32_t tokens = 0;
  TokenArrays added;
  int64_t first_position = 0;
  int64_t* next_position = nullptr;  // (batch), or null: first_position
  // Scratch of an append of more than kFewTokens: new token entrants[i] takes slot free_slots[i].
  int32_t* free_slots = nullptr;  // (rows, slots)
  int32_t* entrants = nullptr;    // (rows, slots)
  int32_t* counts = nullptr;      // (rows): entrants
};

struct CacheGatherParams : CacheParams {
  TokenArrays sorted;  // position may be null
  // Scratch: blocks of kSortedSlots slots in order of age.
  int64_t* ages = nullptr;        // (rows, padded_slots())
  int32_t* aged_slots = nullptr;  // (rows, padded_slots())

  FDMA_HOST_DEVICE int blocks() const { return (slots + kSortedSlots - 1) / kSortedSlots; }
  FDMA_HOST_DEVICE int padded_slots() const { return blocks() * kSortedSlots; }
};

}  // namespace fdma
