// Which keys and query rows a tile has to visit. Pure index arithmetic, shared by kernels, the CPU backend and tests.
#pragma once

#include <cstdint>

#include "kernels/core/math.hpp"

namespace fdma {

// First key that query row q may not see: causality is aligned to the bottom-right corner. May be <= 0.
FDMA_HOST_DEVICE int64_t key_limit(int64_t q, int64_t len_q, int64_t len_k, bool is_causal) {
  return is_causal ? min_of(len_k, q + 1 + len_k - len_q) : len_k;
}

// First query row that may see key k (Lq when none can).
FDMA_HOST_DEVICE int64_t first_query_of_key(int64_t k, int64_t len_q, int64_t len_k, bool is_causal) {
  return is_causal ? min_of(len_q, max_of<int64_t>(0, k + len_q - len_k)) : 0;
}

// Number of key tiles of `tile_k` keys that the rows [q_begin, q_end) may see.
FDMA_HOST_DEVICE int64_t key_tile_count(int64_t q_end, int64_t len_q, int64_t len_k, bool is_causal, int64_t tile_k) {
  const int64_t limit = key_limit(min_of(q_end, len_q) - 1, len_q, len_k, is_causal);
  return limit <= 0 ? 0 : ceil_div(limit, tile_k);
}

}  // namespace fdma
