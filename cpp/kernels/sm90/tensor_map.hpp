// Descriptions of tensors for the copy engine, made on the host.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "kernels/core/params.hpp"

namespace fdma::sm90 {

// A (batch, row, head, column) tensor of 16-bit elements in boxes of 64 columns. Elements outside read as zero and are
// not written.
struct TensorMap {
  CUtensorMap map;
  int32_t head_step = 1, batch_step = 1;  // 0 where the tensor broadcasts
};

struct TensorExtents {
  int64_t cols, rows, heads, batch;
};

// False where the copy engine cannot describe the tensor. Boxes of several heads have them one after another at each of
// their rows; row and head then change places in the map and in the arguments of load_box.
bool make_tensor_map(TensorMap& target, const TensorView& view, ElementType type, const TensorExtents& extents,
                     int box_rows, int box_heads = 1);

}  // namespace fdma::sm90
