// Refusals of selection.
#include "calls.hpp"
#include "fdma/select.h"
#include "host/select_problem.hpp"
#include "refusal.hpp"

namespace fdma::testing {
namespace {

constexpr int64_t kKeep = 2;

// Selection from a key-only bias (2, 4, 5): the interval form.
struct SelectCall {
  SelectCall() {
    fdma_select_params_init(&params);
    params.bias = memory.tensor(FDMA_FLOAT32, {kB, kH, kLk});
    params.keep_window_size = kKeep;
    params.end = memory.tensor(FDMA_INT32, {kB, kH, kLk});
  }

  void ask_for_columns() {
    params.end = {};
    params.columns = memory.tensor(FDMA_INT32, {kB, kH, kKeep});
    params.counts = memory.tensor(FDMA_INT32, {kB, kH});
  }

  // From the full bias (2, 4, 3, 5).
  void ask_for_bits() {
    params.end = {};
    params.bias = memory.tensor(FDMA_FLOAT32, {kB, kH, kLq, kLk});
    params.packed_mask = memory.tensor(FDMA_UINT8, {kPackedBytes});
    params.is_causal = 1;
  }

  Memory memory;
  fdma_select_params params;
};

using Row = Refusal<SelectCall>;
class SelectRefusals : public ::testing::TestWithParam<Row> {};

TEST_P(SelectRefusals, SaysArgumentValueAndWhatIsAccepted) {
  SelectCall call;
  GetParam().break_it(call);
  EXPECT_EQ(fdma_select(&call.params, nullptr, 0, nullptr), GetParam().status);
  EXPECT_STREQ(fdma_last_error_message(), GetParam().message);
}

const Row kArguments[] = {
    {"Reserved", [](SelectCall& c) { c.params.reserved = 1; }, FDMA_INVALID_ARGUMENT, "reserved is 1; accepted: 0"},
    {"Reserved1", [](SelectCall& c) { c.params.reserved1 = 1; }, FDMA_INVALID_ARGUMENT, "reserved1 is 1; accepted: 0"},
    {"Reserved2", [](SelectCall& c) { c.params.reserved2 = 1; }, FDMA_INVALID_ARGUMENT, "reserved2 is 1; accepted: 0"},
    {"Device",
     [](SelectCall& c) {
       c.params.device = {FDMA_DEVICE_CUDA, -1};
     },
     FDMA_INVALID_ARGUMENT, "device.index is -1; accepted for CUDA: a device ordinal, 0 or more"},
    {"Threads", [](SelectCall& c) { c.params.num_threads = -1; }, FDMA_INVALID_ARGUMENT,
     "num_threads is -1; accepted: 0 (all available) or a positive number"},
    {"Window", [](SelectCall& c) { c.params.keep_window_size = 0; }, FDMA_INVALID_ARGUMENT,
     "keep_window_size is 0; accepted: 1 or more"},
    {"BiasAbsent", [](SelectCall& c) { c.params.bias = {}; }, FDMA_INVALID_ARGUMENT,
     "bias is not given (rank 0); accepted: a tensor (B, H, Lk) with end or columns"},
    {"BiasDtype", [](SelectCall& c) { c.params.bias.dtype = FDMA_INT32; }, FDMA_INVALID_DTYPE,
     "bias.dtype is int32; accepted: float16, bfloat16, float32"},
    {"BiasStride", [](SelectCall& c) { c.params.bias.stride[2] = 2; }, FDMA_INVALID_LAYOUT,
     "bias.stride is (20, 5, 2) for shape (2, 4, 5); accepted: a stride of 1 in the last dimension"},
    {"BiasData", [](SelectCall& c) { c.params.bias.data = nullptr; }, FDMA_INVALID_ARGUMENT,
     "bias.data is NULL; accepted: a pointer to its elements"},
    {"KeysPast31Bits",
     [](SelectCall& c) {
       for (fdma_tensor* tensor : {&c.params.bias, &c.params.end}) {
         tensor->shape[0] = tensor->shape[1] = 1;
         tensor->shape[2] = int64_t{1} << 31;
       }
     },
     FDMA_UNSUPPORTED, "bias has 2147483648 keys; accepted: less than 2147479552"},
    {"KeyMaskRank", [](SelectCall& c) { c.params.key_mask = c.memory.tensor(FDMA_BOOL, {kLk}); }, FDMA_INVALID_SHAPE,
     "key_mask.rank is 1; accepted: 2, (B, Lk)"},
    {"KeyMaskShape",
     [](SelectCall& c) {
       c.params.key_mask = c.memory.tensor(FDMA_BOOL, {kB, 6});
     },
     FDMA_INVALID_SHAPE, "key_mask.shape is (2, 6); accepted: (B, Lk) = (2, 5)"},
};

const Row kForms[] = {
    {"NoOutput", [](SelectCall& c) { c.params.end = {}; }, FDMA_INVALID_ARGUMENT,
     "outputs given: none; accepted: end, or columns and counts, or packed_mask"},
    {"EndAndColumns",
     [](SelectCall& c) {
       c.params.columns = c.memory.tensor(FDMA_INT32, {kB, kH, kKeep});
     },
     FDMA_INVALID_ARGUMENT, "outputs given: end columns; accepted: end, or columns and counts, or packed_mask"},
    {"EndAndBits", [](SelectCall& c) { c.params.packed_mask = c.memory.tensor(FDMA_UINT8, {kPackedBytes}); },
     FDMA_INVALID_ARGUMENT, "outputs given: end packed_mask; accepted: end, or columns and counts, or packed_mask"},
    {"CountsAndBits",
     [](SelectCall& c) {
       c.ask_for_bits();
       c.params.counts = c.memory.tensor(FDMA_INT32, {kB, kH});
     },
     FDMA_INVALID_ARGUMENT, "outputs given: counts packed_mask; accepted: end, or columns and counts, or packed_mask"},
    {"ColumnsWithoutCounts",
     [](SelectCall& c) {
       c.ask_for_columns();
       c.params.counts = {};
     },
     FDMA_INVALID_ARGUMENT, "counts is not given (rank 0); accepted: a tensor (B, H)"},
    {"CausalInterval", [](SelectCall& c) { c.params.is_causal = 1; }, FDMA_INVALID_ARGUMENT,
     "is_causal is 1; accepted: 0 with end, which is causal, and with columns, which are not"},
    {"CausalColumns",
     [](SelectCall& c) {
       c.ask_for_columns();
       c.params.is_causal = 1;
     },
     FDMA_INVALID_ARGUMENT, "is_causal is 1; accepted: 0 with end, which is causal, and with columns, which are not"},
    {"IntervalOfFullBias",
     [](SelectCall& c) {
       c.params.bias = c.memory.tensor(FDMA_FLOAT32, {kB, kH, kLq, kLk});
     },
     FDMA_INVALID_SHAPE, "bias.rank is 4; accepted: 3, (B, H, Lk) with end or columns"},
    {"EndShape",
     [](SelectCall& c) {
       c.params.end = c.memory.tensor(FDMA_INT32, {kB, kH, 4});
     },
     FDMA_INVALID_SHAPE, "end.shape is (2, 4, 4); accepted: (B, H, Lk) = (2, 4, 5)"},
    {"EndDtype",
     [](SelectCall& c) {
       c.params.end = c.memory.tensor(FDMA_INT64, {kB, kH, kLk});
     },
     FDMA_INVALID_DTYPE, "end.dtype is int64; accepted: int32"},
    {"ColumnsShape",
     [](SelectCall& c) {
       c.ask_for_columns();
       c.params.columns = c.memory.tensor(FDMA_INT32, {kB, kH, kLk});
     },
     FDMA_INVALID_SHAPE, "columns.shape is (2, 4, 5); accepted: (B, H, min(keep_window_size, Lk)) = (2, 4, 2)"},
};

// What is broken in a call for bits.
const Row kBits[] = {
    {"BitsOfKeyBias",
     [](SelectCall& c) {
       c.params.bias = c.memory.tensor(FDMA_FLOAT32, {kB, kH, kLk});
     },
     FDMA_INVALID_SHAPE, "bias.rank is 3; accepted: 4, (B, H, Lq, Lk) with packed_mask"},
    {"Causal", [](SelectCall& c) { c.params.is_causal = 2; }, FDMA_INVALID_ARGUMENT,
     "is_causal is 2; accepted: 0 or 1"},
    {"PackedRank",
     [](SelectCall& c) {
       c.params.packed_mask = c.memory.tensor(FDMA_UINT8, {2, kPackedBytes / 2});
     },
     FDMA_INVALID_SHAPE, "packed_mask.rank is 2; accepted: 1, (bytes,)"},
    {"PackedShape", [](SelectCall& c) { c.params.packed_mask.shape[0] = 16; }, FDMA_INVALID_SHAPE,
     "packed_mask.shape is (16,); accepted: (fdma_mask_packed_size bytes,) = (416,)"},
    {"PackedDtype", [](SelectCall& c) { c.params.packed_mask.dtype = FDMA_BOOL; }, FDMA_INVALID_DTYPE,
     "packed_mask.dtype is bool; accepted: uint8"},
    {"PackedStride", [](SelectCall& c) { c.params.packed_mask.stride[0] = 2; }, FDMA_INVALID_LAYOUT,
     "packed_mask.stride is (2,) for shape (416,); accepted: a contiguous tensor"},
    {"PackedData", [](SelectCall& c) { c.params.packed_mask.data = nullptr; }, FDMA_INVALID_ARGUMENT,
     "packed_mask.data is NULL; accepted: a pointer to its elements"},
    {"PackedTooLarge",
     [](SelectCall& c) {
       c.params.bias.shape[2] = int64_t{1} << 62;
       c.params.bias.stride[2] = 0;
     },
     FDMA_INVALID_SHAPE, "bias.shape is (2, 4, 4611686018427387904, 5); accepted: below 2^63 bytes of packed mask"},
};

class BitsRefusals : public ::testing::TestWithParam<Row> {};

TEST_P(BitsRefusals, SaysArgumentValueAndWhatIsAccepted) {
  SelectCall call;
  call.ask_for_bits();
  ASSERT_EQ(fdma_select_supported(&call.params), FDMA_SUCCESS) << fdma_last_error_message();
  GetParam().break_it(call);
  EXPECT_EQ(fdma_select(&call.params, nullptr, 0, nullptr), GetParam().status);
  EXPECT_STREQ(fdma_last_error_message(), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(Arguments, SelectRefusals, ::testing::ValuesIn(kArguments), RefusalName());
INSTANTIATE_TEST_SUITE_P(Forms, SelectRefusals, ::testing::ValuesIn(kForms), RefusalName());
INSTANTIATE_TEST_SUITE_P(Bits, BitsRefusals, ::testing::ValuesIn(kBits), RefusalName());

TEST(Select, EveryFormIsSupported) {
  SelectCall interval;
  EXPECT_EQ(fdma_select_supported(&interval.params), FDMA_SUCCESS) << fdma_last_error_message();
  SelectCall columns;
  columns.ask_for_columns();
  EXPECT_EQ(fdma_select_supported(&columns.params), FDMA_SUCCESS) << fdma_last_error_message();
}

TEST(Select, PackedMaskIsAligned) {
  SelectCall call;
  call.ask_for_bits();
  call.params.packed_mask.data = static_cast<char*>(call.params.packed_mask.data) + 1;
  EXPECT_EQ(fdma_select(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("packed_mask.data is 0x", "; accepted: a multiple of 16 bytes");
}

TEST(Select, PackedMaskHasMemoryOfItsOwn) {
  SelectCall call;
  call.ask_for_bits();
  call.params.packed_mask.data = call.params.bias.data;
  EXPECT_EQ(fdma_select(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("packed_mask.data is 0x", ", which is bias.data too; accepted: memory of its own");
}

TEST(Select, BitsTakeTheStridesOfTheBias) {
  SelectCall call;
  call.ask_for_bits();
  call.params.bias.stride[0] = 0;  // all batches are one
  const SelectProblem problem = make_select_problem(call.params, true);
  EXPECT_EQ(problem.bias_stride, (std::array<int64_t, 3>{0, kLq * kLk, kLk}));
  EXPECT_EQ(problem.queries, kLq);
  EXPECT_TRUE(problem.is_bits() && problem.is_causal && !problem.is_interval());
}

}  // namespace
}  // namespace fdma::testing
