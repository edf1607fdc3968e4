// Rows of outputs that belong to no sequence: zeros in tensors, -inf in lse. Nothing to do without sequences.
#pragma once

#include "host/problem.hpp"

namespace fdma::cpu {

// `view` and `lse` may be null.
void clear_unreached_query_rows(const AttentionProblem& problem, const View4& view);
void clear_unreached_key_rows(const AttentionProblem& problem, const View4& view);
void clear_unreached_statistics(const AttentionProblem& problem, float* lse);

}  // namespace fdma::cpu
