// What the outputs of an AttentionCall have to be.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "tests/support/attention_case.hpp"
#include "tests/support/compare.hpp"
#include "tests/support/dtype.hpp"

namespace fdma::test {

ReferenceProblem AttentionCall::reference_layout() const {
  ReferenceProblem problem{};
  problem.sequences = places_;
  problem.max_q = c_.len_q;
  problem.max_k = c_.len_k;
  problem.lse_rows = c_.rows_q();
  problem.heads_q = c_.heads_q;
  problem.heads_kv = c_.heads_kv;
  problem.head_dim = c_.head_dim;
  return problem;
}

// Values of key or value with the keys of each sequence from its k_begin on.
std::vector<double> AttentionCall::key_values(const Tensor& tensor) const {
  if (!c_.paged()) return tensor.values();
  std::vector<double> values;
  const int64_t width = c_.heads_kv * c_.head_dim;
  for (int64_t b = 0; b < c_.batch; ++b) {
    for (int64_t k = 0; k < places_[static_cast<size_t>(b)].len_k; ++k) {
      for (int64_t i = 0; i < width; ++i) values.push_back(tensor.get(key_row(b, k) * width + i));
    }
  }
  return values;
}

ReferenceProblem AttentionCall::reference_problem() const {
  ReferenceProblem problem = reference_layout();
  problem.query = query_.values();
  problem.key = key_values(key_);
  problem.value = key_values(value_);
  if (mask_.given()) {
    problem.mask = [this](int64_t b, int64_t h, int64_t q, int64_t k) {
      return mask_.get(score_index(mask_, b, h, q, k)) != 0;
    };
  }
  if (bias_.given()) {
    problem.bias = [this](int64_t b, int64_t h, int64_t q, int64_t k) {
      return bias_.get(score_index(bias_, b, h, q, k));
    };
  }
  problem.scale = c_.scale == FDMA_SCALE_DEFAULT ? 1.0 / std::sqrt(static_cast<double>(c_.head_dim)) : c_.scale;
  problem.softcap = c_.softcap;
  problem.is_causal = c_.is_causal;
  return problem;
}

std::vector<double> AttentionCall::bias_gradient(const std::vector<double>& score_gradient) const {
  std::vector<double> sums(static_cast<size_t>(bias_.size()));
  size_t i = 0;
  for (int64_t b = 0; b < c_.batch; ++b) {
    for (int64_t h = 0; h < c_.heads_q; ++h) {
      for (int64_t q = 0; q < c_.len_q; ++q) {
        for (int64_t k = 0; k < c_.len_k; ++k) {
          sums[static_cast<size_t>(score_index(bias_, b, h, q, k))] += score_gradient[i++];
        }
      }
    }
  }
  return sums;
}

void AttentionCall::expect_forward_matches() const {
  const ReferenceProblem problem = reference_problem();
  const ReferenceOutput exact = Reference<double>(problem, FDMA_FLOAT64).forward();
  const ReferenceOutput eager = Reference<float>(problem, dtype_).forward();
  expect_close("out", out_, exact.out, eager.out);
  expect_close("lse", lse_, exact.lse, eager.lse);
}

void AttentionCall::expect_backward_matches() const {
  const ReferenceProblem problem = reference_problem();
  const std::vector<double> grad_out = grad_out_.values();
  const std::vector<double> grad_lse = grad_lse_.given() ? grad_lse_.values() : std::vector<double>();
  const ReferenceGradients exact = Reference<double>(problem, FDMA_FLOAT64).backward(grad_out, grad_lse);
  const ReferenceGradients eager = Reference<float>(problem, dtype_).backward(grad_out, grad_lse);
  // A fused kernel subtracts delta, a sum over the rounded output, where eager code subtracts a sum that cancels
  // exactly: terms that add up to nothing leave their roundings behind.
  const auto noise = [&](const std::vector<double>& squares) {
    const double largest = squares.empty() ? 0.0 : *std::max_element(squares.begin(), squares.end());
    return 8.0 * unit_roundoff(dtype_) * std::sqrt(largest);
  };
  expect_close("grad_query", grad_query_, exact.query, eager.query, noise(exact.query_squares));
  expect_close("grad_key", grad_key_, exact.key, eager.key, noise(exact.key_squares));
  expect_close("grad_value", grad_value_, exact.value, eager.value);
  if (grad_bias_.given()) {
    expect_close("grad_bias", grad_bias_, bias_gradient(exact.score), bias_gradient(eager.score),
                 noise(bias_gradient(exact.score_squares)));
  }
}

// Bits of scores that no sequence has may be anything, as may those that causality hides in one of several sequences
// that share the mask. Bits behind the last key are clear.
std::vector<AttentionCall::Bit> AttentionCall::expected_bits(const PackedMaskLayout& layout) const {
  const int64_t row_bits = layout.row_words() * 32, mask_keys = mask_.shape()[3];
  std::vector<Bit> bits(static_cast<size_t>(layout.batch * layout.heads * layout.rows * row_bits), Bit::kAny);
  const bool shared = c_.has_sequences && layout.batch != c_.batch;
  for (int64_t i = 0; i < c_.batch * layout.heads * layout.rows; ++i) {
    const int64_t b = i / layout.rows / layout.heads;
    const ReferenceSequence& s = places_[static_cast<size_t>(b)];
    // A row for all queries keeps what the last of them sees.
    const int64_t q = layout.rows == 1 ? s.len_q - 1 : i % layout.rows;
    if (q < 0 || q >= s.len_q) continue;
    const int64_t row = layout.batch == 1 ? i % (layout.heads * layout.rows) : i;
    for (int64_t k = 0; k < row_bits; ++k) {
      Bit& bit = bits[static_cast<size_t>(row * row_bits + k)];
      const bool future = c_.is_causal && k > q + s.len_k - s.len_q;
      if (k >= layout.keys) {
        bit = Bit::kClear;
      } else if (k < s.len_k && !future) {
        bit = mask_.get(row * mask_keys + (mask_keys == 1 ? 0 : k)) != 0 ? Bit::kSet : Bit::kClear;
      } else if (k < s.len_k && !shared) {
        bit = Bit::kClear;
      }
    }
  }
  return bits;
}

void AttentionCall::expect_packed_mask_matches() {
  if (!mask_.given()) return;
  const Shape& s = mask_.shape();
  const PackedMaskLayout layout{s[0], s[1], s[2], c_.len_k};
  ASSERT_EQ(layout.bytes(), packed_mask_.size());
  const auto* words = reinterpret_cast<const uint32_t*>(packed_mask_.bytes());
  const uint32_t* tiles = words + layout.rows_bytes() / 4;
  std::vector<uint32_t> expected_tiles(static_cast<size_t>(layout.tiles_bytes() / 4));
  const std::vector<Bit> expected = expected_bits(layout);
  const int64_t row_bits = layout.row_words() * 32;
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool is_set = (words[i / 32] >> (i % 32) & 1) != 0;
    const int64_t row = static_cast<int64_t>(i) / row_bits, k = static_cast<int64_t>(i) % row_bits;
    ASSERT_TRUE(expected[i] == Bit::kAny || is_set == (expected[i] == Bit::kSet))
        << "packed_mask, row " << row << ", key " << k << " is " << is_set;
    if (!is_set) continue;
    const int64_t head = row / layout.rows, row_tile = row % layout.rows / 64;
    const int64_t tile = (head * layout.row_tiles() + row_tile) * layout.tile_words() * 32 + k / 64;
    expected_tiles[static_cast<size_t>(tile / 32)] |= 1u << (tile % 32);
  }
  EXPECT_TRUE(std::equal(expected_tiles.begin(), expected_tiles.end(), tiles)) << "tile bits of packed_mask";
}

void AttentionCall::expect_surroundings_untouched() const {
  const std::pair<const char*, const Tensor*> outputs[] = {{"out", &out_},
                                                           {"lse", &lse_},
                                                           {"packed_mask", &packed_mask_},
                                                           {"grad_query", &grad_query_},
                                                           {"grad_key", &grad_key_},
                                                           {"grad_value", &grad_value_},
                                                           {"grad_bias", &grad_bias_}};
  for (const auto& [name, tensor] : outputs) {
    if (!tensor->given()) continue;
    EXPECT_TRUE(tensor->surroundings_untouched()) << "something was written around " << name;
  }
  const std::pair<const char*, const Tensor*> inputs[] = {{"query", &query_},
                                                          {"key", &key_},
                                                          {"value", &value_},
                                                          {"mask", &mask_},
                                                          {"bias", &bias_},
                                                          {"cu_seqlens_q", &cu_seqlens_q_},
                                                          {"grad_out", &grad_out_},
                                                          {"grad_lse", &grad_lse_},
                                                          {"cu_seqlens_k", &cu_seqlens_k_},
                                                          {"block_table", &block_table_}};
  for (const auto& [name, tensor] : inputs) {
    EXPECT_TRUE(!tensor->given() || tensor->unchanged_on_device()) << name << " was written";
  }
}

}  // namespace fdma::test
