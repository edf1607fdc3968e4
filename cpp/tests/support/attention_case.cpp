#include "tests/support/attention_case.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "host/backend.hpp"
#include "kernels/policy/mask_bits.hpp"
#include "tests/support/compare.hpp"
#include "tests/support/dtype.hpp"

namespace fdma::test {
namespace {

void fill_mask(Tensor& mask, MaskPattern pattern, std::mt19937_64& random) {
  const Shape& s = mask.shape();
  const int64_t row_tiles = (s[2] + 63) / 64, key_tiles = (s[3] + 63) / 64;
  std::vector<bool> tile_visible(static_cast<size_t>(s[0] * s[1] * row_tiles * key_tiles));
  for (size_t i = 0; i < tile_visible.size(); ++i) tile_visible[i] = random() % 5 == 0;
  for (int64_t i = 0; i < mask.size(); ++i) {
    const int64_t k = i % s[3], q = i / s[3] % s[2], head = i / s[3] / s[2];
    bool visible = pattern == MaskPattern::kEverything;
    if (pattern == MaskPattern::kRandom) visible = random() % 2 == 0 && q % 16 != 3;
    if (pattern == MaskPattern::kBlocks) {
      visible =
          tile_visible[static_cast<size_t>((head * row_tiles + q / 64) * key_tiles + k / 64)] && random() % 4 != 0;
    }
    mask.set(i, visible ? 1.0 : 0.0);
  }
}

void expect_success(fdma_status status, const char* what) {
  ASSERT_EQ(status, FDMA_SUCCESS) << what << ": " << fdma_status_name(status) << ": " << fdma_last_error_message();
}

}  // namespace

AttentionCall::AttentionCall(const AttentionCase& c, fdma_dtype dtype, fdma_device device)
    : c_(c), dtype_(dtype), device_(device) {
  std::mt19937_64 random(static_cast<uint64_t>(c.len_q * 1000003 + c.len_k * 1009 + c.heads_q * 31 + c.head_dim));
  const Shape query_shape = {c.batch, c.len_q, c.heads_q, c.head_dim};
  const Shape kv_shape = {c.batch, c.len_k, c.heads_kv, c.head_dim};
  const Shape row_shape = {c.batch, c.heads_q, c.len_q};
  query_ = Tensor(dtype, query_shape, c.query_layout);
  key_ = Tensor(dtype, kv_shape, c.kv_layout);
  value_ = Tensor(dtype, kv_shape, c.kv_layout);
  grad_out_ = Tensor(dtype, query_shape, c.query_layout);
  for (Tensor* tensor : {&query_, &key_, &value_, &grad_out_}) fill_normal(*tensor, random);
  if (c.mask_dtype != FDMA_DTYPE_NONE) {
    mask_ = score_tensor(c.mask_dtype, c.mask_shape);
    fill_mask(mask_, c.mask_pattern, random);
  }
  if (c.bias_dtype != FDMA_DTYPE_NONE) {
    bias_ = score_tensor(c.bias_dtype, c.bias_shape);
    fill_normal(bias_, random);
    for (int64_t i = 0; c.bias_hides && i < bias_.size(); ++i) {
      if (random() % 8 == 0) bias_.set(i, -std::numeric_limits<double>::infinity());
    }
  }
  if (c.with_grad_lse) {
    grad_lse_ = Tensor(FDMA_FLOAT32, row_shape);
    fill_normal(grad_lse_, random);
  }

  const auto writable = [](Layout layout) { return layout == Layout::kExpanded ? Layout::kContiguous : layout; };
  out_ = Tensor(dtype, query_shape, writable(c.query_layout));
  lse_ = Tensor(FDMA_FLOAT32, row_shape);
  if (mask_.given()) {
    size_t bytes = 0;
    fdma_tensor dense{};
    dense.rank = 4;
    std::copy(mask_.shape().begin(), mask_.shape().end(), dense.shape);
    expect_success(fdma_mask_packed_size(&dense, c.len_k, &bytes), "fdma_mask_packed_size");
    packed_mask_ = Tensor(FDMA_UINT8, {static_cast<int64_t>(bytes)});
  }
  if (c.query_grad) grad_query_ = Tensor(dtype, query_shape, writable(c.query_layout));
  if (c.key_grad) grad_key_ = Tensor(dtype, kv_shape, writable(c.kv_layout));
  if (c.value_grad) grad_value_ = Tensor(dtype, kv_shape, writable(c.kv_layout));
  if (c.bias_grad && bias_.given()) grad_bias_ = Tensor(c.bias_dtype, bias_.shape());
  for (Tensor* tensor : {&query_, &key_, &value_, &mask_, &bias_, &grad_out_, &grad_lse_}) tensor->upload(device);
  for (Tensor* tensor : all_outputs()) tensor->upload(device);
}

std::vector<Tensor*> AttentionCall::all_outputs() {
  return {&out_, &lse_, &packed_mask_, &grad_query_, &grad_key_, &grad_value_, &grad_bias_};
}

Tensor AttentionCall::score_tensor(fdma_dtype dtype, const ScoreShape& shape) const {
  const auto extent = [&](Extent e, int64_t full) {
    return e == Extent::kOne ? 1 : e == Extent::kKvHeads ? c_.heads_kv : full;
  };
  return Tensor(dtype, {extent(shape.batch, c_.batch), extent(shape.heads, c_.heads_q), extent(shape.rows, c_.len_q),
                        extent(shape.keys, c_.len_k)});
}

int64_t AttentionCall::score_index(const Tensor& tensor, int64_t b, int64_t h, int64_t q, int64_t k) const {
  const Shape& s = tensor.shape();
  const int64_t head = h / (c_.heads_q / s[1]);
  return (((s[0] == 1 ? 0 : b) * s[1] + head) * s[2] + (s[2] == 1 ? 0 : q)) * s[3] + (s[3] == 1 ? 0 : k);
}

bool AttentionCall::mask_visible(int64_t b, int64_t h, int64_t q, int64_t k) const {
  return !mask_.given() || mask_.get(score_index(mask_, b, h, q, k)) != 0;
}

template <typename Params>
void AttentionCall::fill_inputs(Params& params) const {
  params.device = device_;
  params.query = query_.describe();
  params.key = key_.describe();
  params.value = value_.describe();
  if (mask_.given()) params.mask = {FDMA_MASK_DENSE, mask_.describe()};
  if (bias_.given()) params.bias = {FDMA_BIAS_DENSE, bias_.describe()};
  params.scale = c_.scale;
  params.softcap = c_.softcap;
  params.is_causal = c_.is_causal ? 1 : 0;
  params.out = out_.describe();
  params.lse = lse_.describe();
}

void AttentionCall::forward(int num_threads, fdma_stream stream) {
  fdma_attention_forward_params params;
  fdma_attention_forward_params_init(&params);
  fill_inputs(params);
  params.num_threads = num_threads;
  params.packed_mask = packed_mask_.describe();
  expect_success(fdma_attention_forward_supported(&params), "supported");
  size_t bytes = 0;
  expect_success(fdma_attention_forward_workspace_size(&params, &bytes), "workspace_size");
  if (bytes > forward_bytes_ || forward_workspace_.data() == nullptr) {
    forward_workspace_ = DeviceMemory(device_, bytes);
    forward_bytes_ = bytes;
  }
  expect_success(fdma_attention_forward(&params, forward_workspace_.data(), bytes, stream), "forward");
}

fdma_attention_backward_params AttentionCall::backward_params(bool deterministic, int num_threads) {
  fdma_attention_backward_params params;
  fdma_attention_backward_params_init(&params);
  fill_inputs(params);
  if (c_.keep_bits) {
    const fdma_tensor packed = packed_mask_.describe();
    fdma_tensor& bits = params.mask.tensor;
    params.mask.kind = FDMA_MASK_BITS;
    bits.data = packed.data;
    bits.dtype = FDMA_UINT8;
    bits.shape[3] = c_.len_k;
  }
  params.num_threads = num_threads;
  params.deterministic = deterministic ? 1 : 0;
  params.grad_out = grad_out_.describe();
  params.grad_lse = grad_lse_.describe();
  params.grad_query = grad_query_.describe();
  params.grad_key = grad_key_.describe();
  params.grad_value = grad_value_.describe();
  params.grad_bias = grad_bias_.describe();
  return params;
}

void AttentionCall::reserve_backward_workspace(size_t bytes) {
  if (bytes > backward_bytes_ || backward_workspace_.data() == nullptr) {
    backward_workspace_ = DeviceMemory(device_, bytes);
    backward_bytes_ = bytes;
  }
}

void AttentionCall::backward(bool deterministic, int num_threads, fdma_stream stream) {
  const fdma_attention_backward_params params = backward_params(deterministic, num_threads);
  expect_success(fdma_attention_backward_supported(&params), "supported");
  size_t bytes = 0;
  expect_success(fdma_attention_backward_workspace_size(&params, &bytes), "workspace_size");
  reserve_backward_workspace(bytes);
  expect_success(fdma_attention_backward(&params, backward_workspace_.data(), bytes, stream), "backward");
}

#if defined(FDMA_WITH_CUDA)
void AttentionCall::backward_in_small_tiles(bool deterministic) {
  const BackwardProblem problem = make_backward_problem(backward_params(deterministic, 0), true);
  Workspace size;
  cuda::backward_with_tiles(problem, size, nullptr, false);
  reserve_backward_workspace(size.used());
  Workspace workspace(backward_workspace_.data());
  cuda::backward_with_tiles(problem, workspace, nullptr, false);
}
#endif

void AttentionCall::download() {
  synchronize(device_);
  for (Tensor* tensor : all_outputs()) tensor->download();
}

void AttentionCall::refill() {
  for (Tensor* tensor : all_outputs()) {
    if (tensor->given()) tensor->refill(device_);
  }
}

std::vector<double> AttentionCall::outputs() {
  download();
  std::vector<double> all;
  for (Tensor* tensor : all_outputs()) {
    if (!tensor->given()) continue;
    const std::vector<double> values = tensor->values();
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

ReferenceProblem AttentionCall::reference_problem() const {
  ReferenceProblem problem{};
  problem.batch = c_.batch;
  problem.len_q = c_.len_q;
  problem.len_k = c_.len_k;
  problem.heads_q = c_.heads_q;
  problem.heads_kv = c_.heads_kv;
  problem.head_dim = c_.head_dim;
  problem.query = query_.values();
  problem.key = key_.values();
  problem.value = value_.values();
  if (mask_.given()) {
    problem.mask = [this](int64_t b, int64_t h, int64_t q, int64_t k) { return mask_visible(b, h, q, k); };
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

void AttentionCall::expect_packed_mask_matches() {
  if (!mask_.given()) return;
  const Shape& s = mask_.shape();
  const PackedMaskLayout layout{s[0], s[1], s[2], c_.len_k};
  ASSERT_EQ(layout.bytes(), packed_mask_.size());
  const auto* words = reinterpret_cast<const uint32_t*>(packed_mask_.bytes());
  std::vector<uint32_t> expected(static_cast<size_t>(layout.bytes() / 4));
  const bool drop_future = c_.is_causal && layout.rows == c_.len_q;
  for (int64_t head = 0; head < layout.batch * layout.heads; ++head) {
    for (int64_t q = 0; q < layout.rows; ++q) {
      for (int64_t k = 0; k < layout.keys; ++k) {
        const bool future = drop_future && k > q + c_.len_k - c_.len_q;
        if (future || mask_.get((head * layout.rows + q) * s[3] + (s[3] == 1 ? 0 : k)) == 0) continue;
        const int64_t row = (head * layout.rows + q) * layout.row_words();
        const int64_t tile = layout.rows_bytes() / 4 + (head * layout.row_tiles() + q / 64) * layout.tile_words();
        expected[static_cast<size_t>(row + k / 32)] |= 1u << (k % 32);
        expected[static_cast<size_t>(tile + k / 64 / 32)] |= 1u << (k / 64 % 32);
      }
    }
  }
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), words)) << "packed_mask";
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
}

}  // namespace fdma::test
