#include "cpu/unreached_rows.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "cpu/tensor_rows.hpp"

namespace fdma::cpu {
namespace {

// body(b, first) for each batch entry of the tensors: no sequence has its rows from `first` on. Packed sequences follow
// each other without gaps.
template <typename Body>
void for_each_end(const AttentionProblem& p, bool of_keys, const Body& body) {
  const SequenceProblem& s = p.sequences;
  if (!s) return;
  if (s.packed) return body(0, of_keys ? s.end_k(p.batch - 1) : s.end_q(p.batch - 1));
  for (int64_t b = 0; b < p.batch; ++b) body(b, of_keys ? s.length_k(b) : s.length_q(b));
}

void clear_rows(const AttentionProblem& p, const View4& view, bool of_keys) {
  if (!view) return;
  const int64_t rows = of_keys ? p.rows_k() : p.rows_q();
  const int64_t heads = of_keys ? p.heads_kv : p.heads_q;
  const size_t bytes = static_cast<size_t>(p.head_dim * dtype_size(p.dtype));
  for_each_end(p, of_keys, [&](int64_t b, int64_t first) {
    for (int64_t row = first; row < rows; ++row) {
      for (int64_t h = 0; h < heads; ++h) std::memset(tensor_rows(p, view, b, row, h, 1).data, 0, bytes);
    }
  });
}

}  // namespace

void clear_unreached_query_rows(const AttentionProblem& problem, const View4& view) {
  clear_rows(problem, view, false);
}

void clear_unreached_key_rows(const AttentionProblem& problem, const View4& view) { clear_rows(problem, view, true); }

void clear_unreached_statistics(const AttentionProblem& problem, float* lse) {
  if (lse == nullptr) return;
  for_each_end(problem, false, [&](int64_t b, int64_t first) {
    for (int64_t h = 0; h < problem.heads_q; ++h) {
      float* head = lse + (b * problem.heads_q + h) * problem.rows_q();
      std::fill(head + first, head + problem.rows_q(), -std::numeric_limits<float>::infinity());
    }
  });
}

}  // namespace fdma::cpu
