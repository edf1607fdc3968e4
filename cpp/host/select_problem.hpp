// One selection, checked and normalised: what the backends are given.
#pragma once

#include <array>
#include <cstdint>

#include "fdma/select.h"

namespace fdma {

struct SelectProblem {
  fdma_device device{};
  fdma_dtype dtype = FDMA_DTYPE_NONE;  // of the bias
  int64_t batch = 0, heads = 0, keys = 0;
  int64_t keep = 0;  // min(keep_window_size, keys)
  int num_threads = 0;

  const void* bias = nullptr;
  std::array<int64_t, 2> bias_stride{};  // elements, (batch, head)
  const void* key_mask = nullptr;        // or null
  fdma_dtype key_mask_dtype = FDMA_DTYPE_NONE;
  int64_t key_mask_stride = 0;  // elements, batch

  int32_t* end = nullptr;      // (B, H, Lk), interval form; else null and
  int32_t* columns = nullptr;  // (B, H, keep)
  int32_t* counts = nullptr;   // (B, H)

  int64_t rows() const { return batch * heads; }
  bool is_interval() const { return end != nullptr; }
};

// As make_forward_problem, see host/problem.hpp.
SelectProblem make_select_problem(const fdma_select_params& params, bool with_data);

}  // namespace fdma
