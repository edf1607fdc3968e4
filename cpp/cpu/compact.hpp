// A dense or packed mask, on the CPU, with its keys in an order that follows from it (policy/compact.hpp).
#pragma once

#include "host/problem.hpp"

namespace fdma::cpu {

// The order of the keys under one (batch, head) of a mask: keys[slot], Lk of them. Natural where another does not pay.
void order_keys(const PackedMaskLayout& layout, const uint32_t* packed, int64_t mask_head, int64_t len_q,
                bool is_causal, int threads, int32_t* keys);

// The mask of a problem that compacts with its keys in their order, causality included. slot_of_key: (heads of the
// mask, Lk).
void permute_mask(const AttentionProblem& problem, const uint32_t* packed, const int32_t* slot_of_key,
                  uint32_t* permuted);

}  // namespace fdma::cpu
