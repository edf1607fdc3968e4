// Where the rows of a sequence lie in the tensors of a call.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/tile_kernels.hpp"
#include "host/dtype.hpp"
#include "host/problem.hpp"

namespace fdma::cpu {

inline TensorRows tensor_rows(const AttentionProblem& problem, const View4& view, int64_t b, int64_t row, int64_t h,
                              int64_t count) {
  const int64_t offset = b * view.stride[0] + row * view.stride[1] + h * view.stride[2];
  return {static_cast<char*>(view.data) + offset * dtype_size(problem.dtype), problem.dtype, view.stride[1], count};
}

// `count` rows of head h from row q of the sequence, in a query-like tensor.
inline TensorRows query_rows(const AttentionProblem& problem, const View4& view, const SequenceExtents& sequence,
                             int64_t q, int64_t h, int64_t count) {
  return tensor_rows(problem, view, sequence.batch, sequence.q_begin + q, h, count);
}

// The same of a key-like tensor that has no pages.
inline TensorRows key_rows(const AttentionProblem& problem, const View4& view, const SequenceExtents& sequence,
                           int64_t k, int64_t h, int64_t count) {
  return tensor_rows(problem, view, sequence.batch, sequence.k_begin + k, h, count);
}

// Up to kTile rows of keys or values, wherever they are. Rows in pages are brought together in `paged`, which has room
// for paged_tile_bytes.
inline int64_t paged_tile_bytes(const AttentionProblem& problem) {
  return problem.pages ? kTile * problem.head_dim * dtype_size(problem.dtype) : 0;
}

inline TensorRows gathered_key_rows(const AttentionProblem& problem, const View4& view, const SequenceExtents& sequence,
                                    int64_t k, int64_t h, int64_t count, char* paged) {
  const PageProblem& pages = problem.pages;
  if (!pages) return key_rows(problem, view, sequence, k, h, count);
  const int64_t row_bytes = problem.head_dim * dtype_size(problem.dtype);
  const int32_t* table = pages.table + sequence.batch * pages.pages_per_sequence;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t page = table[(k + r) / pages.page_size];
    const TensorRows row = tensor_rows(problem, view, page, (k + r) % pages.page_size, h, 1);
    std::memcpy(paged + r * row_bytes, row.data, static_cast<size_t>(row_bytes));
  }
  return {paged, problem.dtype, problem.head_dim, count};
}

}  // namespace fdma::cpu
