// What backends are given: extents, strides of broadcast and trivial dimensions, defaults.
#include "host/problem.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "calls.hpp"

namespace fdma::testing {
namespace {

using Strides = std::array<int64_t, 4>;

TEST(Problem, ExtentsStridesAndDefaults) {
  ForwardCall call;
  call.params.lse = call.memory.tensor(FDMA_FLOAT32, {kB, kH, kLq});
  const ForwardProblem problem = make_forward_problem(call.params, true);
  EXPECT_EQ(problem.device.type, FDMA_DEVICE_CPU);
  EXPECT_EQ(problem.dtype, FDMA_FLOAT32);
  EXPECT_EQ(problem.batch, kB);
  EXPECT_EQ(problem.len_q, kLq);
  EXPECT_EQ(problem.len_k, kLk);
  EXPECT_EQ(problem.heads_q, kH);
  EXPECT_EQ(problem.heads_kv, kHkv);
  EXPECT_EQ(problem.group(), kH / kHkv);
  EXPECT_EQ(problem.head_dim, kD);
  EXPECT_EQ(problem.query.data, call.params.query.data);
  EXPECT_EQ(problem.query.stride, (Strides{kLq * kH * kD, kH * kD, kD, 1}));
  EXPECT_EQ(problem.key.stride, (Strides{kLk * kHkv * kD, kHkv * kD, kD, 1}));
  EXPECT_EQ(problem.lse, call.params.lse.data);
  EXPECT_FLOAT_EQ(problem.scale, 1.0f / std::sqrt(static_cast<float>(kD)));
  EXPECT_EQ(problem.softcap, 0.0f);
  EXPECT_FALSE(problem.is_causal);
  EXPECT_EQ(problem.mask.kind, FDMA_MASK_NONE);
  EXPECT_EQ(problem.bias.kind, FDMA_BIAS_NONE);
}

TEST(Problem, EveryFiniteScaleIsUsedAsItIs) {
  ForwardCall call;
  for (const float scale : {0.0f, -2.0f, 1e30f}) {
    call.params.scale = scale;
    EXPECT_EQ(make_forward_problem(call.params, true).scale, scale);
  }
}

TEST(Problem, StridesOfExtentOneAreIgnored) {
  ForwardCall call;
  call.params.query = call.memory.tensor(FDMA_FLOAT32, {1, 1, kH, kD});
  call.params.out = call.memory.tensor(FDMA_FLOAT32, {1, 1, kH, kD});
  call.params.key.shape[0] = call.params.value.shape[0] = 1;
  call.params.query.stride[0] = -99990001;
  call.params.query.stride[1] = int64_t{1} << 62;
  const ForwardProblem problem = make_forward_problem(call.params, true);
  EXPECT_EQ(problem.query.stride, (Strides{0, 0, kD, 1}));
}

TEST(Problem, MaskBroadcasts) {
  for (const int64_t heads : {kH, kHkv, int64_t{1}}) {
    ForwardCall call;
    call.params.mask = {FDMA_MASK_DENSE, call.memory.tensor(FDMA_INT64, {1, heads, kLq, 1})};
    const ForwardProblem problem = make_forward_problem(call.params, true);
    EXPECT_EQ(problem.mask.dtype, FDMA_INT64);
    EXPECT_EQ(problem.mask.dense.stride, (Strides{0, heads == 1 ? 0 : kLq, 1, 0}));
    EXPECT_EQ(problem.mask.layout.batch, 1);
    EXPECT_EQ(problem.mask.layout.heads, heads);
    EXPECT_EQ(problem.mask.layout.rows, kLq);
    EXPECT_EQ(problem.mask.layout.keys, kLk);
    EXPECT_EQ(problem.mask.packed, nullptr);
    EXPECT_EQ(problem.mask.packed_out, nullptr);
  }
}

TEST(Problem, ExpandedMaskKeepsItsExtents) {
  ForwardCall call;
  call.add_mask();
  call.params.mask.tensor.stride[1] = 0;
  const ForwardProblem problem = make_forward_problem(call.params, true);
  EXPECT_EQ(problem.mask.dense.stride, (Strides{kH * kLq * kLk, 0, kLk, 1}));
  EXPECT_EQ(problem.mask.layout.heads, kH);
}

TEST(Problem, PackedMaskInAndOut) {
  ForwardCall dense;
  dense.add_mask();
  dense.params.packed_mask = dense.memory.tensor(FDMA_UINT8, {kPackedBytes});
  EXPECT_EQ(make_forward_problem(dense.params, true).mask.packed_out, dense.params.packed_mask.data);

  ForwardCall bits;
  bits.add_bits();
  std::fill(bits.params.mask.tensor.stride, bits.params.mask.tensor.stride + 4, -1);
  const ForwardProblem problem = make_forward_problem(bits.params, true);
  EXPECT_EQ(problem.mask.packed, bits.params.mask.tensor.data);
  EXPECT_FALSE(problem.mask.dense);
  EXPECT_EQ(problem.mask.layout.bytes(), kPackedBytes);
}

TEST(Problem, BiasBroadcasts) {
  ForwardCall call;
  call.params.bias = {FDMA_BIAS_DENSE, call.memory.tensor(FDMA_BFLOAT16, {kB, kHkv, 1, kLk})};
  const BiasProblem bias = make_forward_problem(call.params, true).bias;
  EXPECT_EQ(bias.kind, FDMA_BIAS_DENSE);
  EXPECT_EQ(bias.dtype, FDMA_BFLOAT16);
  EXPECT_EQ(bias.view.stride, (Strides{kHkv * kLk, kLk, 0, 1}));
  EXPECT_EQ((Strides{bias.batch, bias.heads, bias.rows, bias.keys}), (Strides{kB, kHkv, 1, kLk}));
}

TEST(Problem, OutputsMayBePermutedAndSliced) {
  BackwardCall call;
  // (B, H, L, D) in memory, as callers of other libraries keep it.
  call.params.grad_query.stride[1] = kD;
  call.params.grad_query.stride[2] = kLq * kD;
  // Gradients of key and value side by side in one buffer of (B, Lk, 2, H_kv, D).
  const fdma_tensor packed = call.memory.tensor(FDMA_FLOAT32, {kB, kLk, 2, kHkv, kD});
  for (fdma_tensor* grad : {&call.params.grad_key, &call.params.grad_value}) {
    grad->stride[0] = packed.stride[0];
    grad->stride[1] = packed.stride[1];
    grad->data = packed.data;
  }
  call.params.grad_value.data = static_cast<float*>(packed.data) + kHkv * kD;
  const BackwardProblem problem = make_backward_problem(call.params, true);
  EXPECT_EQ(problem.grad_query.stride, (Strides{kLq * kH * kD, kD, kLq * kD, 1}));
  EXPECT_EQ(problem.grad_value.stride, (Strides{kLk * 2 * kHkv * kD, 2 * kHkv * kD, kD, 1}));
}

TEST(Problem, BackwardTakesOnlyWhatIsGiven) {
  BackwardCall call;
  call.add_bias(FDMA_FLOAT16);
  call.params.grad_query = call.params.grad_key = call.params.grad_value = fdma_tensor{};
  call.params.deterministic = 1;
  const BackwardProblem problem = make_backward_problem(call.params, true);
  EXPECT_TRUE(problem.deterministic);
  EXPECT_EQ(problem.lse, call.params.lse.data);
  EXPECT_EQ(problem.grad_lse, nullptr);
  EXPECT_FALSE(problem.grad_query || problem.grad_key || problem.grad_value);
  EXPECT_EQ(problem.grad_bias, call.params.grad_bias.data);
}

TEST(Problem, GivenWithoutDataIsNotNull) {
  BackwardCall call;
  for (fdma_tensor* tensor : {&call.params.query, &call.params.lse, &call.params.grad_key}) tensor->data = nullptr;
  call.params.grad_value = {};
  const BackwardProblem problem = make_backward_problem(call.params, false);
  EXPECT_TRUE(problem.query && problem.grad_key);
  EXPECT_NE(problem.lse, nullptr);
  EXPECT_FALSE(problem.grad_value);
}

TEST(Problem, EmptyTensorsNeedNoDataAndNoStrides) {
  ForwardCall call;
  for (fdma_tensor* tensor : {&call.params.key, &call.params.value}) {
    tensor->shape[1] = 0;
    tensor->data = nullptr;
    std::fill(tensor->stride, tensor->stride + 4, -1);
  }
  const ForwardProblem problem = make_forward_problem(call.params, true);
  EXPECT_EQ(problem.len_k, 0);
  EXPECT_EQ(problem.len_q, kLq);
}

TEST(Problem, DescribesItself) {
  ForwardCall call;
  call.add_mask(FDMA_BFLOAT16);
  call.params.is_causal = 1;
  EXPECT_EQ(make_forward_problem(call.params, true).describe(),
            "cpu float32 B=2 Lq=3 Lk=5 H=4 H_kv=2 D=16 mask=dense bfloat16 (2, 4, 3, 5) bias=none scale=0.25 softcap=0 "
            "causal=1");
}

}  // namespace
}  // namespace fdma::testing
