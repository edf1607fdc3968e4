// What the selection kernels are launched with.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/core/params.hpp"

namespace fdma {

// Selection from a bias that is the same for all queries. A row is a (batch, head).
struct SelectParams {
  int32_t rows = 0, heads = 0, keys = 0, keep = 0;
  const void* bias = nullptr;
  ElementType type = ElementType::kFloat32;
  int64_t bias_stride_batch = 0, bias_stride_head = 0;  // elements
  const void* key_mask = nullptr;                       // or null
  int64_t key_mask_stride = 0;                          // elements, batch
  int32_t key_mask_bytes = 1;                           // of an element
  bool key_mask_is_float = false;                       // -0.0 counts as zero
  int32_t* end = nullptr;                               // (rows, keys), or null and
  int32_t* columns = nullptr;                           // (rows, keep)
  int32_t* counts = nullptr;                            // (rows)
};

// Scratch of a selection. All arrays of ranks and keys are (rows, keys).
struct SelectScratch {
  uint32_t* ranks[2] = {};
  uint32_t* order[2] = {};     // keys, best first once sorted
  uint2* planes = nullptr;     // (rows, levels, words + 1), interval form; see select_keys.cu
  uint32_t* bitmap = nullptr;  // (rows, words), columns form
  int32_t* kept = nullptr;     // (rows): keys that may be kept
  void* sort = nullptr;
  size_t sort_bytes = 0;
};

}  // namespace fdma
