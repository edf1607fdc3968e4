// Attention as the contract in fdma/attention.h states it, one score at a time: the truth that every backend is held
// to.
//
// Two precisions run the same code. Exact: double throughout. Eager: what a framework computes operation by operation
// in the dtype of the query, float sums, each result rounded to that dtype; its error is the yardstick for a fused one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/support/dtype.hpp"

namespace fdma::test {

// One sequence: its lengths, and where its rows begin among the rows of all sequences.
struct ReferenceSequence {
  int64_t len_q, len_k, q_begin, k_begin;
};

// Query-like values are (rows, heads, D), the rows of all batch entries one behind the other; score-like ones functions
// of (b, h, q, k), where q and k count from the first row of sequence b and h is a query head.
struct ReferenceProblem {
  std::vector<ReferenceSequence> sequences;  // one a batch entry, equal lengths in a dense batch
  int64_t max_q, max_k;                      // extents of the scores
  int64_t lse_rows;                          // extent of lse: (rows / lse_rows, H, lse_rows)
  int64_t heads_q, heads_kv, head_dim;
  std::vector<double> query, key, value;
  std::function<bool(int64_t, int64_t, int64_t, int64_t)> mask;    // empty = all visible
  std::function<double(int64_t, int64_t, int64_t, int64_t)> bias;  // empty = 0
  double scale, softcap;
  bool is_causal;

  int64_t batch() const { return static_cast<int64_t>(sequences.size()); }
  int64_t q_row(int64_t b, int64_t q, int64_t h) const { return ((sequences[b].q_begin + q) * heads_q + h) * head_dim; }
  int64_t kv_row(int64_t b, int64_t k, int64_t h) const {
    return ((sequences[b].k_begin + k) * heads_kv + h / (heads_q / heads_kv)) * head_dim;
  }
  int64_t lse_row(int64_t b, int64_t h, int64_t q) const {
    const int64_t row = sequences[b].q_begin + q;
    return (row / lse_rows * heads_q + h) * lse_rows + row % lse_rows;
  }
  int64_t score_row(int64_t b, int64_t h, int64_t q) const { return ((b * heads_q + h) * max_q + q) * max_k; }
};

// Rows of no sequence have out = 0, lse = -inf and gradients of zero.
struct ReferenceOutput {
  std::vector<double> out, lse;
};

struct ReferenceGradients {
  std::vector<double> query, key, value;
  std::vector<double> score;  // (B, H, max_q, max_k): of what the bias is added to; its sums are gradients of the bias
  // Sums of squares of the terms of query, key and score before p * (dp - delta) cancels: how far rounding can move
  // them.
  std::vector<double> query_squares, key_squares, score_squares;
};

// `Sum` accumulates; results are rounded to `dtype`.
template <typename Sum>
class Reference {
 public:
  Reference(const ReferenceProblem& problem, fdma_dtype dtype) : p_(problem), dtype_(dtype) {}

  ReferenceOutput forward() const {
    ReferenceOutput result;
    result.out.assign(p_.query.size(), 0.0);
    result.lse.assign(p_.query.size() / static_cast<size_t>(p_.head_dim), -std::numeric_limits<double>::infinity());
    for_each_row([&](int64_t b, int64_t h, int64_t q) {
      const Row row = probabilities(b, h, q);
      result.lse[p_.lse_row(b, h, q)] = row.lse;
      std::vector<Sum> sums(p_.head_dim);
      for (int64_t k = 0; k < len_k(b); ++k) {
        if (row.seen[k]) add_scaled(sums.data(), Sum(row.p[k]), &p_.value[p_.kv_row(b, k, h)]);
      }
      for (int64_t d = 0; d < p_.head_dim; ++d) result.out[p_.q_row(b, q, h) + d] = round(sums[d]);
    });
    return result;
  }

  // `grad_lse` may be empty.
  ReferenceGradients backward(const std::vector<double>& grad_out, const std::vector<double>& grad_lse) const {
    std::vector<Sum> grad_query(p_.query.size()), grad_key(p_.key.size()), grad_value(p_.value.size());
    ReferenceGradients result;
    result.score.assign(static_cast<size_t>(p_.score_row(p_.batch(), 0, 0)), 0.0);
    result.score_squares = result.score;
    result.query_squares.assign(p_.query.size(), 0.0);
    result.key_squares.assign(p_.key.size(), 0.0);
    for_each_row([&](int64_t b, int64_t h, int64_t q) {
      const Row row = probabilities(b, h, q);
      const double* go = &grad_out[p_.q_row(b, q, h)];
      std::vector<double> grad_p(len_k(b));
      Sum delta = grad_lse.empty() ? Sum(0) : -Sum(grad_lse[p_.lse_row(b, h, q)]);
      for (int64_t k = 0; k < len_k(b); ++k) {
        if (!row.seen[k]) continue;
        grad_p[k] = round(dot(go, &p_.value[p_.kv_row(b, k, h)]));
        delta += Sum(row.p[k]) * Sum(grad_p[k]);
      }
      for (int64_t k = 0; k < len_k(b); ++k) {
        if (!row.seen[k]) continue;
        const double grad_score = round(row.p[k] * (grad_p[k] - double(delta)));
        const int64_t score = p_.score_row(b, h, q) + k;
        const double term = row.p[k] * (std::fabs(grad_p[k]) + std::fabs(double(delta)));
        result.score[score] = grad_score;
        result.score_squares[score] = term * term;
        const double grad_product = round(grad_score * (1.0 - row.tanh[k] * row.tanh[k]) * p_.scale);
        const int64_t i = p_.q_row(b, q, h), j = p_.kv_row(b, k, h);
        add_scaled(&grad_query[i], Sum(grad_product), &p_.key[j]);
        add_scaled(&grad_key[j], Sum(grad_product), &p_.query[i]);
        add_scaled(&grad_value[j], Sum(row.p[k]), go);
        add_squares(&result.query_squares[i], term * p_.scale, &p_.key[j]);
        add_squares(&result.key_squares[j], term * p_.scale, &p_.query[i]);
      }
    });
    for (Sum x : grad_query) result.query.push_back(round(x));
    for (Sum x : grad_key) result.key.push_back(round(x));
    for (Sum x : grad_value) result.value.push_back(round(x));
    return result;
  }

 private:
  struct Row {
    std::vector<char> seen;
    std::vector<double> p, tanh;  // of seen keys; tanh is of the soft-capped score, 0 without a cap
    double lse;
  };

  int64_t len_k(int64_t b) const { return p_.sequences[b].len_k; }

  double round(Sum x) const { return sizeof(Sum) == sizeof(double) ? double(x) : rounded(double(x), dtype_); }

  // Over rows of head_dim elements, in loops that a compiler makes vectors of: tables have thousands of cases. A dot
  // product in float stays one sum after the other, since its error is the yardstick.
  Sum dot(const double* a, const double* b) const {
    constexpr int kLanes = sizeof(Sum) == sizeof(double) ? 8 : 1;  // head dims are multiples of 8
    Sum lanes[kLanes] = {};
    for (int64_t d = 0; d < p_.head_dim; d += kLanes) {
      for (int i = 0; i < kLanes; ++i) lanes[i] += Sum(a[d + i]) * Sum(b[d + i]);
    }
    return std::accumulate(lanes, lanes + kLanes, Sum(0));
  }
  void add_scaled(Sum* __restrict sums, Sum factor, const double* __restrict x) const {
    for (int64_t d = 0; d < p_.head_dim; ++d) sums[d] += factor * Sum(x[d]);
  }
  void add_squares(double* __restrict sums, double factor, const double* __restrict x) const {
    for (int64_t d = 0; d < p_.head_dim; ++d) sums[d] += factor * x[d] * (factor * x[d]);
  }

  template <typename Body>
  void for_each_row(const Body& body) const {
    for (int64_t b = 0; b < p_.batch(); ++b) {
      for (int64_t h = 0; h < p_.heads_q; ++h) {
        for (int64_t q = 0; q < p_.sequences[b].len_q; ++q) body(b, h, q);
      }
    }
  }

  Row probabilities(int64_t b, int64_t h, int64_t q) const {
    const double infinity = std::numeric_limits<double>::infinity();
    Row row{std::vector<char>(len_k(b)), std::vector<double>(len_k(b)), std::vector<double>(len_k(b)), -infinity};
    double top = -infinity;
    for (int64_t k = 0; k < len_k(b); ++k) {
      if (p_.is_causal && k > q + len_k(b) - p_.sequences[b].len_q) continue;
      if (p_.mask && !p_.mask(b, h, q, k)) continue;
      double score = round(dot(&p_.query[p_.q_row(b, q, h)], &p_.key[p_.kv_row(b, k, h)]));
      score = round(score * p_.scale);
      if (p_.softcap != 0) {
        row.tanh[k] = round(std::tanh(score / p_.softcap));
        score = round(p_.softcap * row.tanh[k]);
      }
      if (p_.bias) score = round(score + p_.bias(b, h, q, k));
      if (score == -infinity) continue;
      row.seen[k] = true;
      row.p[k] = score;
      top = std::max(top, score);
    }
    Sum sum = 0;
    for (int64_t k = 0; k < len_k(b); ++k) {
      if (row.seen[k]) sum += Sum(std::exp(row.p[k] - top));
    }
    if (sum == 0) return row;  // sees nothing
    row.lse = top + std::log(double(sum));
    for (int64_t k = 0; k < len_k(b); ++k) {
      if (row.seen[k]) row.p[k] = round(Sum(std::exp(row.p[k] - top) / double(sum)));
    }
    return row;
  }

  const ReferenceProblem& p_;
  fdma_dtype dtype_;
};

}  // namespace fdma::test
