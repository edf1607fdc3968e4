// One decode call, checked and normalised: what the backends are given.
#pragma once

#include "fdma/decode.h"
#include "host/problem.hpp"

namespace fdma {

// Key-like tensors have len_k rows a batch entry, in pages where there is a table; `mask` and `sequences` are not used.
struct DecodeProblem : AttentionProblem {
  View4 out;
  float* lse = nullptr;             // (B, H, Lq) contiguous, or null
  int64_t keep = 0;                 // keys to select, fewer than len_k; 0: all keys
  bool hides_nan = false;           // a key whose bias is NaN is hidden: a selection that would keep all keys
  const void* seqlens_k = nullptr;  // (B), on the call's device, or null
  bool seqlens_64bit = false;       // int64 values, else int32

  // Keys in use, of a value that the host can read.
  int64_t length_k(int64_t b) const {
    if (seqlens_k == nullptr) return len_k;
    return seqlens_64bit ? static_cast<const int64_t*>(seqlens_k)[b] : static_cast<const int32_t*>(seqlens_k)[b];
  }

  // Queries and heads that attend to the same keys with the same bias form a unit. A (batch, kv head) has more than one
  // where query heads have biases of their own, or where selection is causal for several queries.
  int64_t head_units() const { return bias.heads == heads_kv || bias.heads == 1 ? 1 : group(); }
  int64_t query_units() const { return keep > 0 && is_causal ? len_q : 1; }
  int64_t units() const { return batch * heads_kv * head_units() * query_units(); }
  int64_t unit_rows() const { return group() / head_units() * (len_q / query_units()); }
  // Selections: one for each (batch, head of the bias, query unit).
  int64_t lists() const { return keep > 0 ? batch * bias.heads * query_units() : 0; }
};

// As make_forward_problem, see host/problem.hpp.
DecodeProblem make_decode_problem(const fdma_decode_params& params, bool with_data);

}  // namespace fdma
