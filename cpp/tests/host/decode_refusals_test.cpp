// Refusals of decode, and what backends are given of it.
#include <cstring>

#include "calls.hpp"
#include "fdma/decode.h"
#include "host/decode_problem.hpp"
#include "refusal.hpp"

namespace fdma::testing {
namespace {

constexpr int64_t kPages = 6, kPageSize = 16, kKeep = 2;

// Three queries on a cache of five keys on the CPU in float32: B 2, H 4, H_kv 2, D 16; a bias a kv head.
struct DecodeCall {
  DecodeCall() {
    fdma_decode_params_init(&params);
    params.query = memory.tensor(FDMA_FLOAT32, {kB, kLq, kH, kD});
    params.key = memory.tensor(FDMA_FLOAT32, {kB, kLk, kHkv, kD});
    params.value = memory.tensor(FDMA_FLOAT32, {kB, kLk, kHkv, kD});
    params.bias = {FDMA_BIAS_DENSE, memory.tensor(FDMA_FLOAT32, {kB, kHkv, kLk})};
    params.seqlens_k = memory.tensor(FDMA_INT32, {kB});
    const int32_t lengths[] = {5, 3};
    std::memcpy(params.seqlens_k.data, lengths, sizeof lengths);
    params.out = memory.tensor(FDMA_FLOAT32, {kB, kLq, kH, kD});
  }

  // Two of six pages of 16 keys for each batch entry, the second of the last not used.
  void page() {
    params.key = memory.tensor(FDMA_FLOAT32, {kPages, kPageSize, kHkv, kD});
    params.value = memory.tensor(FDMA_FLOAT32, {kPages, kPageSize, kHkv, kD});
    params.bias = {FDMA_BIAS_DENSE, memory.tensor(FDMA_FLOAT32, {kB, kHkv, 2 * kPageSize})};
    params.block_table = memory.tensor(FDMA_INT32, {kB, 2});
    const int32_t table[] = {5, 0, 3, -1};
    std::memcpy(params.block_table.data, table, sizeof table);
    lengths()[0] = 20;
  }

  int32_t* lengths() { return static_cast<int32_t*>(params.seqlens_k.data); }
  int32_t* table() { return static_cast<int32_t*>(params.block_table.data); }

  Memory memory;
  fdma_decode_params params;
};

using Row = Refusal<DecodeCall>;
class DecodeRefusals : public ::testing::TestWithParam<Row> {};

TEST_P(DecodeRefusals, SaysArgumentValueAndWhatIsAccepted) {
  DecodeCall call;
  ASSERT_EQ(fdma_decode_supported(&call.params), FDMA_SUCCESS) << fdma_last_error_message();
  GetParam().break_it(call);
  EXPECT_EQ(fdma_decode(&call.params, nullptr, 0, nullptr), GetParam().status);
  EXPECT_STREQ(fdma_last_error_message(), GetParam().message);
}

const Row kArguments[] = {
    {"Reserved", [](DecodeCall& c) { c.params.reserved = 1; }, FDMA_INVALID_ARGUMENT, "reserved is 1; accepted: 0"},
    {"Device",
     [](DecodeCall& c) {
       c.params.device = {FDMA_DEVICE_CUDA, -1};
       c.params.query.dtype = c.params.key.dtype = c.params.value.dtype = c.params.out.dtype = FDMA_FLOAT16;
     },
     FDMA_INVALID_ARGUMENT, "device.index is -1; accepted for CUDA: a device ordinal, 0 or more"},
    {"Threads", [](DecodeCall& c) { c.params.num_threads = -1; }, FDMA_INVALID_ARGUMENT,
     "num_threads is -1; accepted: 0 (all available) or a positive number"},
    {"QueryAbsent", [](DecodeCall& c) { c.params.query = {}; }, FDMA_INVALID_ARGUMENT,
     "query is not given (rank 0); accepted: a tensor (B, Lq, H, D)"},
    {"NoQueries", [](DecodeCall& c) { c.params.query.shape[1] = c.params.out.shape[1] = 0; }, FDMA_INVALID_SHAPE,
     "query.shape is (2, 0, 4, 16), Lq = 0; accepted: 1 to 16"},
    {"ManyQueries",
     [](DecodeCall& c) {
       for (fdma_tensor* t : {&c.params.query, &c.params.out}) *t = c.memory.tensor(FDMA_FLOAT32, {kB, 17, kH, kD});
     },
     FDMA_INVALID_SHAPE, "query.shape is (2, 17, 4, 16), Lq = 17; accepted: 1 to 16"},
    {"QueryDtype", [](DecodeCall& c) { c.params.query.dtype = c.params.out.dtype = FDMA_FLOAT64; }, FDMA_INVALID_DTYPE,
     "query.dtype is float64; accepted on the CPU: float16, bfloat16, float32\n"
     "key.dtype is float32; accepted: float64, the dtype of query\n"
     "value.dtype is float32; accepted: float64, the dtype of query"},
    {"HeadDim",
     [](DecodeCall& c) {
       for (fdma_tensor* t : {&c.params.query, &c.params.key, &c.params.value, &c.params.out}) t->shape[3] = 12;
     },
     FDMA_INVALID_SHAPE, "query.shape is (2, 3, 4, 12), head_dim 12; accepted: multiples of 8 from 8 to 256"},
    {"KeyRank", [](DecodeCall& c) { c.params.key.rank = 3; }, FDMA_INVALID_SHAPE,
     "key.rank is 3; accepted: 4, (B, Lk, H_kv, D)"},
    {"KeyHeads", [](DecodeCall& c) { c.params.key.shape[2] = c.params.value.shape[2] = 3; }, FDMA_INVALID_SHAPE,
     "key.shape is (2, 5, 3, 16), H_kv = 3; accepted: a divisor of the 4 heads of query"},
    {"ValueShape", [](DecodeCall& c) { c.params.value.shape[1] = 4; }, FDMA_INVALID_SHAPE,
     "value.shape is (2, 4, 2, 16); accepted: (B, Lk, H_kv, D) = (2, 5, 2, 16)"},
    {"KeysPast31Bits",
     [](DecodeCall& c) {
       for (fdma_tensor* t : {&c.params.key, &c.params.value}) t->shape[1] = int64_t{1} << 31, t->stride[1] = 0;
       c.params.bias = {};
     },
     FDMA_UNSUPPORTED, "the cache has 2147483648 keys; accepted: less than 2147479552"},
    {"BiasKind", [](DecodeCall& c) { c.params.bias.kind = static_cast<fdma_bias_kind>(2); }, FDMA_INVALID_ARGUMENT,
     "bias.kind is 2; accepted: FDMA_BIAS_NONE (0), FDMA_BIAS_DENSE (1)"},
    {"BiasWithoutKind", [](DecodeCall& c) { c.params.bias.kind = FDMA_BIAS_NONE; }, FDMA_INVALID_ARGUMENT,
     "bias.kind is FDMA_BIAS_NONE, but bias.tensor has rank 3; accepted: rank 0, or FDMA_BIAS_DENSE"},
    {"BiasRank", [](DecodeCall& c) { c.params.bias.tensor.rank = 2; }, FDMA_INVALID_SHAPE,
     "bias.tensor.rank is 2; accepted: 3, ({B|1}, {H|H_kv|1}, Lk), or 4, ({B|1}, {H|H_kv|1}, 1, Lk)"},
    {"BiasKeys", [](DecodeCall& c) { c.params.bias.tensor.shape[2] = 1; }, FDMA_INVALID_SHAPE,
     "bias.tensor.shape is (2, 2, 1); accepted: ({B|1}, {H|H_kv|1}, Lk), or 4, ({B|1}, {H|H_kv|1}, 1, Lk) with B = 2, "
     "H = 4, H_kv = 2, Lk = 5"},
    {"BiasOfQueries",
     [](DecodeCall& c) {
       c.params.bias.tensor = c.memory.tensor(FDMA_FLOAT32, {kB, kH, kLq, kLk});
     },
     FDMA_INVALID_SHAPE,
     "bias.tensor.shape is (2, 4, 3, 5); accepted: ({B|1}, {H|H_kv|1}, Lk), or 4, ({B|1}, {H|H_kv|1}, 1, Lk) with "
     "B = 2, H = 4, H_kv = 2, Lk = 5"},
    {"BiasDtype", [](DecodeCall& c) { c.params.bias.tensor.dtype = FDMA_INT32; }, FDMA_INVALID_DTYPE,
     "bias.tensor.dtype is int32; accepted: float16, bfloat16, float32"},
    {"BiasStride", [](DecodeCall& c) { c.params.bias.tensor.stride[2] = 2; }, FDMA_INVALID_LAYOUT,
     "bias.tensor.stride is (10, 5, 2) for shape (2, 2, 5); accepted: a stride of 1 in the last dimension"},
    {"WindowNegative", [](DecodeCall& c) { c.params.keep_window_size = -1; }, FDMA_INVALID_ARGUMENT,
     "keep_window_size is -1; accepted: 1 or more, or 0 (every key)"},
    {"WindowWithoutBias",
     [](DecodeCall& c) {
       c.params.keep_window_size = kKeep;
       c.params.bias = {};
     },
     FDMA_INVALID_ARGUMENT,
     "keep_window_size is 2 without bias.tensor; accepted: 0, or a bias that keys are chosen by"},
    {"Causal", [](DecodeCall& c) { c.params.is_causal = 2; }, FDMA_INVALID_ARGUMENT,
     "is_causal is 2; accepted: 0 or 1"},
    {"Softcap", [](DecodeCall& c) { c.params.softcap = -1; }, FDMA_INVALID_ARGUMENT,
     "softcap is -1; accepted: 0 (off) or a positive finite value"},
    {"LengthsRank",
     [](DecodeCall& c) {
       c.params.seqlens_k = c.memory.tensor(FDMA_INT32, {kB, 1});
     },
     FDMA_INVALID_SHAPE, "seqlens_k.rank is 2; accepted: 1, (B,)"},
    {"LengthsShape", [](DecodeCall& c) { c.params.seqlens_k.shape[0] = 3; }, FDMA_INVALID_SHAPE,
     "seqlens_k.shape is (3,); accepted: (B,) = (2,)"},
    {"LengthsDtype", [](DecodeCall& c) { c.params.seqlens_k.dtype = FDMA_FLOAT32; }, FDMA_INVALID_DTYPE,
     "seqlens_k.dtype is float32; accepted: int32, int64"},
    {"LengthsStride", [](DecodeCall& c) { c.params.seqlens_k.stride[0] = 2; }, FDMA_INVALID_LAYOUT,
     "seqlens_k.stride is (2,) for shape (2,); accepted: a contiguous tensor"},
    {"LengthAbove", [](DecodeCall& c) { c.lengths()[1] = 6; }, FDMA_INVALID_ARGUMENT,
     "seqlens_k[1] is 6; accepted: 0 to Lk = 5"},
    {"LengthBelow", [](DecodeCall& c) { c.lengths()[0] = -1; }, FDMA_INVALID_ARGUMENT,
     "seqlens_k[0] is -1; accepted: 0 to Lk = 5"},
    {"OutShape", [](DecodeCall& c) { c.params.out.shape[1] = 2; }, FDMA_INVALID_SHAPE,
     "out.shape is (2, 2, 4, 16); accepted: (B, Lq, H, D) = (2, 3, 4, 16)"},
    {"LseShape",
     [](DecodeCall& c) {
       c.params.lse = c.memory.tensor(FDMA_FLOAT32, {kB, kLq, kH});
     },
     FDMA_INVALID_SHAPE, "lse.shape is (2, 3, 4); accepted: (B, H, Lq) = (2, 4, 3)"},
};

INSTANTIATE_TEST_SUITE_P(Arguments, DecodeRefusals, ::testing::ValuesIn(kArguments), RefusalName());

// What is broken in a call on pages.
class DecodePageRefusals : public ::testing::TestWithParam<Row> {};

TEST_P(DecodePageRefusals, SaysArgumentValueAndWhatIsAccepted) {
  DecodeCall call;
  call.page();
  ASSERT_EQ(fdma_decode_supported(&call.params), FDMA_SUCCESS) << fdma_last_error_message();
  GetParam().break_it(call);
  EXPECT_EQ(fdma_decode(&call.params, nullptr, 0, nullptr), GetParam().status);
  EXPECT_STREQ(fdma_last_error_message(), GetParam().message);
}

const Row kPageRows[] = {
    {"TableRank", [](DecodeCall& c) { c.params.block_table.rank = 1; }, FDMA_INVALID_SHAPE,
     "block_table.rank is 1; accepted: 2, (B, pages of a sequence)"},
    {"TableShape",
     [](DecodeCall& c) {
       c.params.block_table = c.memory.tensor(FDMA_INT32, {3, 2});
     },
     FDMA_INVALID_SHAPE, "block_table.shape is (3, 2); accepted: (B, pages of a sequence) = (2, 2)"},
    {"TableDtype", [](DecodeCall& c) { c.params.block_table.dtype = FDMA_INT64; }, FDMA_INVALID_DTYPE,
     "block_table.dtype is int64; accepted: int32"},
    {"PageSize", [](DecodeCall& c) { c.params.key.shape[1] = c.params.value.shape[1] = 8; }, FDMA_INVALID_SHAPE,
     "key.shape is (6, 8, 2, 16), page_size 8; accepted: 16 or more"},
    {"ValuePages", [](DecodeCall& c) { c.params.value.shape[0] = 5; }, FDMA_INVALID_SHAPE,
     "value.shape is (5, 16, 2, 16); accepted: (pages, page_size, H_kv, D) = (6, 16, 2, 16)"},
    {"PageAbove", [](DecodeCall& c) { c.table()[1] = 6; }, FDMA_INVALID_ARGUMENT,
     "block_table[0][1] is 6; accepted: 0 to 5, the pages of key"},
    {"PageBelow", [](DecodeCall& c) { c.table()[2] = -1; }, FDMA_INVALID_ARGUMENT,
     "block_table[1][0] is -1; accepted: 0 to 5, the pages of key"},
    {"LengthAbove", [](DecodeCall& c) { c.lengths()[0] = 33; }, FDMA_INVALID_ARGUMENT,
     "seqlens_k[0] is 33; accepted: 0 to Lk = 32"},
    {"BiasKeys", [](DecodeCall& c) { c.params.bias.tensor.shape[2] = 16; }, FDMA_INVALID_SHAPE,
     "bias.tensor.shape is (2, 2, 16); accepted: ({B|1}, {H|H_kv|1}, Lk), or 4, ({B|1}, {H|H_kv|1}, 1, Lk) with B = 2, "
     "H = 4, H_kv = 2, Lk = 32"},
};

INSTANTIATE_TEST_SUITE_P(Pages, DecodePageRefusals, ::testing::ValuesIn(kPageRows), RefusalName());

TEST(Decode, OutputHasMemoryOfItsOwn) {
  DecodeCall call;
  call.params.out.data = call.params.query.data;
  EXPECT_EQ(fdma_decode(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("out.data is 0x", ", which is query.data too; accepted: memory of its own");
}

TEST(Decode, UnitsAreWhatSharesKeys) {
  DecodeCall call;
  const auto problem = [&] { return make_decode_problem(call.params, true); };
  EXPECT_EQ(problem().units(), kB * kHkv);
  EXPECT_EQ(problem().unit_rows(), kH / kHkv * kLq);
  EXPECT_EQ(problem().lists(), 0);

  call.params.keep_window_size = kKeep;
  EXPECT_EQ(problem().units(), kB * kHkv);
  EXPECT_EQ(problem().lists(), kB * kHkv);
  call.params.is_causal = 1;
  EXPECT_EQ(problem().units(), kB * kHkv * kLq);
  EXPECT_EQ(problem().lists(), kB * kHkv * kLq);
  call.params.bias.tensor = call.memory.tensor(FDMA_FLOAT32, {kB, kH, 1, kLk});
  EXPECT_EQ(problem().units(), kB * kH * kLq);
  EXPECT_EQ(problem().unit_rows(), 1);
  EXPECT_EQ(problem().lists(), kB * kH * kLq);
  call.params.bias.tensor = call.memory.tensor(FDMA_FLOAT32, {1, 1, kLk});
  EXPECT_EQ(problem().units(), kB * kHkv * kLq);
  EXPECT_EQ(problem().lists(), kB * kLq);
}

TEST(Decode, WindowOfAllKeysSelectsNothing) {
  DecodeCall call;
  call.params.keep_window_size = kLk;
  const DecodeProblem problem = make_decode_problem(call.params, true);
  EXPECT_EQ(problem.keep, 0);
  EXPECT_TRUE(problem.hides_nan);
}

}  // namespace
}  // namespace fdma::testing
