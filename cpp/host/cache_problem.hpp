// Operations on the bounded cache, checked and normalised: what the backends are given.
#pragma once

#include <cstdint>

#include "fdma/cache.h"
#include "host/problem.hpp"

namespace fdma {

// Base pointer and element strides of a (B, H_kv, K) tensor; dimensions of extent 1 have stride 0.
template <typename T>
struct HeadRows {
  T* data = nullptr;
  int64_t stride_batch = 0, stride_head = 0;
  explicit operator bool() const { return data != nullptr; }
};

struct CacheSlots {
  View4 key, value;            // (B, w, H_kv, D)
  HeadRows<void> bias;         // (B, H_kv, w)
  HeadRows<int64_t> position;  // likewise
};

// What the operations share.
struct CacheProblem {
  fdma_device device{};
  fdma_dtype dtype = FDMA_DTYPE_NONE;       // of key and value
  fdma_dtype bias_dtype = FDMA_DTYPE_NONE;  // of the bias
  int64_t batch = 0, heads = 0, head_dim = 0;
  int64_t slots = 0;  // w
  int num_threads = 0;
  CacheSlots cache;

  int64_t rows() const { return batch * heads; }  // a row of slots is a (batch, kv head)
};

struct CacheAppendProblem : CacheProblem {
  int64_t tokens = 0;   // T
  View4 key, value;     // (B, T, H_kv, D)
  HeadRows<void> bias;  // (B, H_kv, T)
  int64_t first_position = 0;
  int64_t* next_position = nullptr;  // (B), or null: first_position
};

struct CacheGatherProblem : CacheProblem {
  CacheSlots sorted;  // outputs; position may be null
};

// As make_forward_problem, see host/problem.hpp.
CacheAppendProblem make_cache_append_problem(const fdma_cache_append_params& params, bool with_data);
CacheGatherProblem make_cache_gather_problem(const fdma_cache_gather_params& params, bool with_data);

}  // namespace fdma
