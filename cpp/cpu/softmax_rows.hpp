// The online softmax of a few query rows: what one thread holds of them while they walk keys, kTile at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>

#include "cpu/tile_kernels.hpp"
#include "host/workspace.hpp"

namespace fdma::cpu {

struct SoftmaxRows {
  static constexpr int64_t kPartialSums = 16;

  int64_t row;     // floats to a row of a query, value or output tile
  float* query;    // [rows][row]
  float* acc;      // [rows][row]
  float* scores;   // [rows][kTile], then probabilities
  float* key;      // [D][kTile], transposed
  float* value;    // [kTile][row]
  float* row_max;  // [rows]
  float* row_sum;  // [rows][kPartialSums]

  SoftmaxRows() = default;
  SoftmaxRows(int64_t rows, int64_t head_dim, Workspace& workspace)
      : row(padded_head_dim(head_dim)),
        query(workspace.take<float>(rows * row)),
        acc(workspace.take<float>(rows * row)),
        scores(workspace.take<float>(rows * kTile)),
        key(workspace.take<float>(head_dim * kTile)),
        value(workspace.take<float>(kTile * row)),
        row_max(workspace.take<float>(rows)),
        row_sum(workspace.take<float>(rows * kPartialSums)) {}

  // No key has been seen.
  void begin(int64_t rows) const {
    std::fill_n(acc, rows * row, 0.0f);
    std::fill_n(row_sum, rows * kPartialSums, 0.0f);
    std::fill_n(row_max, rows, -std::numeric_limits<float>::infinity());
  }

  // Every key has been seen: the factor that makes acc[r] the output, 0 where the row sees nothing. Unless null, `lse`
  // becomes the row's, -inf for such a row.
  float finish(int64_t r, float* lse) const {
    const float* partial = row_sum + r * kPartialSums;
    const float sum = std::accumulate(partial, partial + kPartialSums, 0.0f);
    if (lse != nullptr) *lse = row_max[r] + std::log(sum);
    return sum == 0.0f ? 0.0f : 1.0f / sum;
  }
};

}  // namespace fdma::cpu
