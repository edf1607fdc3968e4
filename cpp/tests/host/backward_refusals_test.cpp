// Refusals of attention backward. What it shares with forward is checked by the same code and tested there.
#include "calls.hpp"
#include "refusal.hpp"

namespace fdma::testing {
namespace {

using Row = Refusal<BackwardCall>;
class BackwardRefusals : public ::testing::TestWithParam<Row> {};

TEST_P(BackwardRefusals, SaysArgumentValueAndWhatIsAccepted) {
  BackwardCall call;
  GetParam().break_it(call);
  EXPECT_EQ(fdma_attention_backward(&call.params, nullptr, 0, nullptr), GetParam().status);
  EXPECT_STREQ(fdma_last_error_message(), GetParam().message);
}

const Row kRows[] = {
    {"StructNotInitialised", [](BackwardCall& c) { c.params.struct_size = 8; }, FDMA_INVALID_ARGUMENT,
     "params.struct_size is 8; accepted: 1304 or more, as fdma_attention_backward_params_init sets it"},
    {"Reserved", [](BackwardCall& c) { c.params.reserved = 1; }, FDMA_INVALID_ARGUMENT, "reserved is 1; accepted: 0"},
    {"Reserved1", [](BackwardCall& c) { c.params.reserved1 = -2; }, FDMA_INVALID_ARGUMENT,
     "reserved1 is -2; accepted: 0"},
    {"Deterministic", [](BackwardCall& c) { c.params.deterministic = 5; }, FDMA_INVALID_ARGUMENT,
     "deterministic is 5; accepted: 0 or 1"},
    {"KeyDtype", [](BackwardCall& c) { c.params.key.dtype = FDMA_FLOAT16; }, FDMA_INVALID_DTYPE,
     "key.dtype is float16; accepted: float32, the dtype of query"},
    {"OutAbsent", [](BackwardCall& c) { c.params.out = {}; }, FDMA_INVALID_ARGUMENT,
     "out is not given (rank 0); accepted: a tensor (B, Lq, H, D)"},
    {"LseAbsent", [](BackwardCall& c) { c.params.lse = {}; }, FDMA_INVALID_ARGUMENT,
     "lse is not given (rank 0); accepted: a tensor (B, H, Lq)"},
    {"GradOutShape", [](BackwardCall& c) { c.params.grad_out.shape[1] = 4; }, FDMA_INVALID_SHAPE,
     "grad_out.shape is (2, 4, 4, 16); accepted: (B, Lq, H, D) = (2, 3, 4, 16)"},
    {"GradOutDtype", [](BackwardCall& c) { c.params.grad_out.dtype = FDMA_FLOAT16; }, FDMA_INVALID_DTYPE,
     "grad_out.dtype is float16; accepted: float32, the dtype of query"},
    {"GradLseDtype",
     [](BackwardCall& c) {
       c.params.grad_lse = c.memory.tensor(FDMA_FLOAT16, {kB, kH, kLq});
     },
     FDMA_INVALID_DTYPE, "grad_lse.dtype is float16; accepted: float32"},
    {"GradQueryRank", [](BackwardCall& c) { c.params.grad_query.rank = 1; }, FDMA_INVALID_SHAPE,
     "grad_query.rank is 1; accepted: 4, (B, Lq, H, D)"},
    {"GradKeyShape", [](BackwardCall& c) { c.params.grad_key.shape[2] = kH; }, FDMA_INVALID_SHAPE,
     "grad_key.shape is (2, 5, 4, 16); accepted: (B, Lk, H_kv, D) = (2, 5, 2, 16)"},
    {"GradValueBroadcast", [](BackwardCall& c) { c.params.grad_value.stride[1] = 0; }, FDMA_INVALID_LAYOUT,
     "grad_value.stride is (160, 0, 16, 1) for shape (2, 5, 2, 16); accepted: an output in which no element is "
     "addressed twice and dimensions do not interleave"},
    {"NoGradient",
     [](BackwardCall& c) { c.params.grad_query = c.params.grad_key = c.params.grad_value = fdma_tensor{}; },
     FDMA_INVALID_ARGUMENT,
     "no gradient is given; accepted: at least one of grad_query, grad_key, grad_value, grad_bias"},
    {"GradBiasWithoutBias",
     [](BackwardCall& c) {
       c.params.grad_bias = c.memory.tensor(FDMA_FLOAT32, {1, 1, 1, kLk});
     },
     FDMA_INVALID_ARGUMENT, "grad_bias is given with bias.kind FDMA_BIAS_NONE (0); accepted with a bias only"},
    {"GradBiasShape",
     [](BackwardCall& c) {
       c.add_bias();
       c.params.grad_bias = c.memory.tensor(FDMA_FLOAT32, {1, kH, kLq, kLk});
     },
     FDMA_INVALID_SHAPE, "grad_bias.shape is (1, 4, 3, 5); accepted: the shape of bias = (2, 4, 3, 5)"},
    {"GradBiasDtype",
     [](BackwardCall& c) {
       c.add_bias();
       c.params.grad_bias.dtype = FDMA_BFLOAT16;
     },
     FDMA_INVALID_DTYPE, "grad_bias.dtype is bfloat16; accepted: float32, the dtype of bias"},
    {"GradBiasContiguous",
     [](BackwardCall& c) {
       c.add_bias();
       c.params.grad_bias.stride[2] = 8;
     },
     FDMA_INVALID_LAYOUT, "grad_bias.stride is (60, 15, 8, 1) for shape (2, 4, 3, 5); accepted: a contiguous tensor"},
    {"GradBiasNull",
     [](BackwardCall& c) {
       c.add_bias();
       c.params.grad_bias.data = nullptr;
     },
     FDMA_INVALID_ARGUMENT, "grad_bias.data is NULL; accepted: a pointer to its elements"},
};

INSTANTIATE_TEST_SUITE_P(Table, BackwardRefusals, ::testing::ValuesIn(kRows), RefusalName());

TEST(BackwardRefusal, TwoGradientsInOnePlace) {
  BackwardCall call;
  call.params.grad_value.data = call.params.grad_key.data;
  EXPECT_EQ(fdma_attention_backward(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("grad_value.data is 0x", ", which is grad_key.data too; accepted: memory of its own");
}

TEST(BackwardRefusal, NullPointers) {
  BackwardCall call;
  EXPECT_EQ(fdma_attention_backward_supported(nullptr), FDMA_INVALID_ARGUMENT);
  EXPECT_STREQ(fdma_last_error_message(), "params is NULL; accepted: fdma_attention_backward_params");
  EXPECT_EQ(fdma_attention_backward_workspace_size(&call.params, nullptr), FDMA_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace fdma::testing
