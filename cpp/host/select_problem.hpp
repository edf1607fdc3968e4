// One selection, checked and normalised: what the backends are given.
#pragma once

#include <array>
#include <cstdint>

#include "fdma/select.h"
#include "kernels/policy/mask_bits.hpp"

namespace fdma {

struct SelectProblem {
  fdma_device device{};
  fdma_dtype dtype = FDMA_DTYPE_NONE;  // of the bias
  int64_t batch = 0, heads = 0, keys = 0;
  int64_t queries = 1;     // rows of the bias in a head: 1 where it is the same for all queries
  int64_t keep = 0;        // min(keep_window_size, keys)
  bool is_causal = false;  // bits form
  int num_threads = 0;

  const void* bias = nullptr;
  std::array<int64_t, 3> bias_stride{};  // elements, (batch, head, query)
  const void* key_mask = nullptr;        // or null
  fdma_dtype key_mask_dtype = FDMA_DTYPE_NONE;
  int64_t key_mask_stride = 0;  // elements, batch

  // Outputs of one form, the others are null.
  int32_t* end = nullptr;           // (B, H, Lk), interval
  int32_t* columns = nullptr;       // (B, H, keep), columns
  int32_t* counts = nullptr;        // (B, H), columns
  uint32_t* packed_mask = nullptr;  // layout(), bits

  int64_t rows() const { return batch * heads * queries; }
  bool is_interval() const { return end != nullptr; }
  bool is_bits() const { return packed_mask != nullptr; }
  PackedMaskLayout layout() const { return {batch, heads, queries, keys}; }  // bits form
};

// As make_forward_problem, see host/problem.hpp.
SelectProblem make_select_problem(const fdma_select_params& params, bool with_data);

}  // namespace fdma
