// Refusals of the operations on the bounded cache.
#include "calls.hpp"
#include "fdma/cache.h"
#include "host/cache_problem.hpp"
#include "refusal.hpp"

namespace fdma::testing {
namespace {

constexpr int64_t kW = 4, kT = 3;

// Three new tokens for a cache of four slots: B 2, H_kv 2, D 16.
struct AppendCall {
  AppendCall() {
    fdma_cache_append_params_init(&params);
    params.cache = {memory.tensor(FDMA_FLOAT32, {kB, kW, kHkv, kD}), memory.tensor(FDMA_FLOAT32, {kB, kW, kHkv, kD}),
                    memory.tensor(FDMA_BFLOAT16, {kB, kHkv, kW}), memory.tensor(FDMA_INT64, {kB, kHkv, kW})};
    params.key = memory.tensor(FDMA_FLOAT32, {kB, kT, kHkv, kD});
    params.value = memory.tensor(FDMA_FLOAT32, {kB, kT, kHkv, kD});
    params.bias = memory.tensor(FDMA_BFLOAT16, {kB, kHkv, kT});
    params.first_position = 0;
  }

  void count_on_device() {
    params.first_position = FDMA_POSITION_NONE;
    params.next_position = memory.tensor(FDMA_INT64, {kB});
  }

  Memory memory;
  fdma_cache_append_params params;
};

struct GatherCall {
  GatherCall() {
    fdma_cache_gather_params_init(&params);
    params.cache = {memory.tensor(FDMA_FLOAT32, {kB, kW, kHkv, kD}), memory.tensor(FDMA_FLOAT32, {kB, kW, kHkv, kD}),
                    memory.tensor(FDMA_BFLOAT16, {kB, kHkv, kW}), memory.tensor(FDMA_INT64, {kB, kHkv, kW})};
    params.key = memory.tensor(FDMA_FLOAT32, {kB, kW, kHkv, kD});
    params.value = memory.tensor(FDMA_FLOAT32, {kB, kW, kHkv, kD});
    params.bias = memory.tensor(FDMA_BFLOAT16, {kB, kHkv, kW});
    params.position = memory.tensor(FDMA_INT64, {kB, kHkv, kW});
  }

  Memory memory;
  fdma_cache_gather_params params;
};

using AppendRow = Refusal<AppendCall>;
using GatherRow = Refusal<GatherCall>;
class CacheAppendRefusals : public ::testing::TestWithParam<AppendRow> {};
class CacheGatherRefusals : public ::testing::TestWithParam<GatherRow> {};

TEST_P(CacheAppendRefusals, SaysArgumentValueAndWhatIsAccepted) {
  AppendCall call;
  GetParam().break_it(call);
  EXPECT_EQ(fdma_cache_append(&call.params, nullptr, 0, nullptr), GetParam().status);
  EXPECT_STREQ(fdma_last_error_message(), GetParam().message);
}

TEST_P(CacheGatherRefusals, SaysArgumentValueAndWhatIsAccepted) {
  GatherCall call;
  GetParam().break_it(call);
  EXPECT_EQ(fdma_cache_gather(&call.params, nullptr, 0, nullptr), GetParam().status);
  EXPECT_STREQ(fdma_last_error_message(), GetParam().message);
}

const AppendRow kOfTheCall[] = {
    {"Reserved", [](AppendCall& c) { c.params.reserved = 1; }, FDMA_INVALID_ARGUMENT, "reserved is 1; accepted: 0"},
    {"Reserved1", [](AppendCall& c) { c.params.reserved1 = 1; }, FDMA_INVALID_ARGUMENT, "reserved1 is 1; accepted: 0"},
    {"Device", [](AppendCall& c) { c.params.device.type = static_cast<fdma_device_type>(0); }, FDMA_INVALID_ARGUMENT,
     "device.type is 0; accepted: FDMA_DEVICE_CPU (1), FDMA_DEVICE_CUDA (2)"},
    {"Threads", [](AppendCall& c) { c.params.num_threads = -1; }, FDMA_INVALID_ARGUMENT,
     "num_threads is -1; accepted: 0 (all available) or a positive number"},
    {"NoPosition", [](AppendCall& c) { c.params.first_position = FDMA_POSITION_NONE; }, FDMA_INVALID_ARGUMENT,
     "first_position is -1 and next_position is not given; accepted: one of them"},
    {"TwoPositions",
     [](AppendCall& c) {
       c.count_on_device();
       c.params.first_position = 7;
     },
     FDMA_INVALID_ARGUMENT, "first_position is 7 and next_position is given; accepted: one of them"},
    {"NegativePosition", [](AppendCall& c) { c.params.first_position = -2; }, FDMA_INVALID_ARGUMENT,
     "first_position is -2 for 3 tokens; accepted: positions from 0 to 2^63 - 1"},
    {"LargePosition", [](AppendCall& c) { c.params.first_position = INT64_MAX - 2; }, FDMA_INVALID_ARGUMENT,
     "first_position is 9223372036854775805 for 3 tokens; accepted: positions from 0 to 2^63 - 1"},
    {"NextPositionShape",
     [](AppendCall& c) {
       c.count_on_device();
       c.params.next_position.shape[0] = 1;
     },
     FDMA_INVALID_SHAPE, "next_position.shape is (1,); accepted: (B) = (2,)"},
    {"NextPositionDtype",
     [](AppendCall& c) {
       c.count_on_device();
       c.params.next_position.dtype = FDMA_INT32;
     },
     FDMA_INVALID_DTYPE, "next_position.dtype is int32; accepted: int64"},
    {"NextPositionStride",
     [](AppendCall& c) {
       c.count_on_device();
       c.params.next_position.stride[0] = 2;
     },
     FDMA_INVALID_LAYOUT, "next_position.stride is (2,) for shape (2,); accepted: a contiguous tensor"},
};

const AppendRow kOfTheCache[] = {
    {"NoCache", [](AppendCall& c) { c.params.cache.key = {}; }, FDMA_INVALID_ARGUMENT,
     "cache.key is not given (rank 0); accepted: a tensor (B, w, H_kv, D)"},
    {"NoSlots",
     [](AppendCall& c) {
       for (fdma_tensor* tensor : {&c.params.cache.key, &c.params.cache.value}) tensor->shape[1] = 0;
       for (fdma_tensor* tensor : {&c.params.cache.bias, &c.params.cache.position}) tensor->shape[2] = 0;
     },
     FDMA_INVALID_SHAPE, "cache.key.shape is (2, 0, 2, 16); accepted: (B, w, H_kv, D) with w of 1 or more"},
    {"ValueShape", [](AppendCall& c) { c.params.cache.value.shape[1] = 3; }, FDMA_INVALID_SHAPE,
     "cache.value.shape is (2, 3, 2, 16); accepted: (B, w, H_kv, D) = (2, 4, 2, 16)"},
    {"ValueDtype", [](AppendCall& c) { c.params.cache.value.dtype = FDMA_FLOAT16; }, FDMA_INVALID_DTYPE,
     "cache.value.dtype is float16; accepted: float32, the dtype of cache.key"},
    {"KeyDtype",
     [](AppendCall& c) {
       for (fdma_tensor* tensor : {&c.params.cache.key, &c.params.cache.value, &c.params.key, &c.params.value}) {
         tensor->dtype = FDMA_FLOAT64;
       }
     },
     FDMA_INVALID_DTYPE, "cache.key.dtype is float64; accepted on the CPU: float16, bfloat16, float32"},
    {"BiasShape", [](AppendCall& c) { c.params.cache.bias.shape[2] = 3; }, FDMA_INVALID_SHAPE,
     "cache.bias.shape is (2, 2, 3); accepted: (B, H_kv, w) = (2, 2, 4)"},
    {"BiasDtype", [](AppendCall& c) { c.params.cache.bias.dtype = c.params.bias.dtype = FDMA_INT8; },
     FDMA_INVALID_DTYPE, "cache.bias.dtype is int8; accepted: float16, bfloat16, float32"},
    {"PositionDtype", [](AppendCall& c) { c.params.cache.position.dtype = FDMA_INT32; }, FDMA_INVALID_DTYPE,
     "cache.position.dtype is int32; accepted: int64"},
    {"PositionData", [](AppendCall& c) { c.params.cache.position.data = nullptr; }, FDMA_INVALID_ARGUMENT,
     "cache.position.data is NULL; accepted: a pointer to its elements"},
    {"SlotsShared", [](AppendCall& c) { c.params.cache.value.stride[1] = 0; }, FDMA_INVALID_LAYOUT,
     "cache.value.stride is (128, 0, 16, 1) for shape (2, 4, 2, 16); accepted: an output in which no element is "
     "addressed twice and dimensions do not interleave"},
};

const AppendRow kOfTheTokens[] = {
    {"KeyAbsent", [](AppendCall& c) { c.params.key = {}; }, FDMA_INVALID_ARGUMENT,
     "key is not given (rank 0); accepted: a tensor (B, T, H_kv, D)\n"
     "value.shape is (2, 3, 2, 16); accepted: (B, T, H_kv, D) = (2, 0, 2, 16)\n"
     "bias.shape is (2, 2, 3); accepted: (B, H_kv, T) = (2, 2, 0)"},
    {"KeyHeads", [](AppendCall& c) { c.params.key.shape[2] = 4; }, FDMA_INVALID_SHAPE,
     "key.shape is (2, 3, 4, 16); accepted: (B, T, H_kv, D) = (2, 3, 2, 16)"},
    {"KeyDtype", [](AppendCall& c) { c.params.key.dtype = FDMA_BFLOAT16; }, FDMA_INVALID_DTYPE,
     "key.dtype is bfloat16; accepted: float32, the dtype of cache.key"},
    {"ValueShape", [](AppendCall& c) { c.params.value.shape[1] = 2; }, FDMA_INVALID_SHAPE,
     "value.shape is (2, 2, 2, 16); accepted: (B, T, H_kv, D) = (2, 3, 2, 16)"},
    {"ValueStride", [](AppendCall& c) { c.params.value.stride[3] = 2; }, FDMA_INVALID_LAYOUT,
     "value.stride is (96, 32, 16, 2) for shape (2, 3, 2, 16); accepted: a stride of 1 in the last dimension"},
    {"BiasRank",
     [](AppendCall& c) {
       c.params.bias = c.memory.tensor(FDMA_BFLOAT16, {kB, kHkv, 1, kT});
     },
     FDMA_INVALID_SHAPE, "bias.rank is 4; accepted: 3, (B, H_kv, T)"},
    {"BiasShape", [](AppendCall& c) { c.params.bias.shape[2] = 4; }, FDMA_INVALID_SHAPE,
     "bias.shape is (2, 2, 4); accepted: (B, H_kv, T) = (2, 2, 3)"},
    {"BiasDtype", [](AppendCall& c) { c.params.bias.dtype = FDMA_FLOAT16; }, FDMA_INVALID_DTYPE,
     "bias.dtype is float16; accepted: bfloat16, the dtype of cache.bias"},
};

const GatherRow kGather[] = {
    {"Reserved", [](GatherCall& c) { c.params.reserved = 1; }, FDMA_INVALID_ARGUMENT, "reserved is 1; accepted: 0"},
    {"Reserved1", [](GatherCall& c) { c.params.reserved1 = 1; }, FDMA_INVALID_ARGUMENT, "reserved1 is 1; accepted: 0"},
    {"CacheShape", [](GatherCall& c) { c.params.cache.position.shape[2] = 1; }, FDMA_INVALID_SHAPE,
     "cache.position.shape is (2, 2, 1); accepted: (B, H_kv, w) = (2, 2, 4)"},
    {"KeyShape", [](GatherCall& c) { c.params.key.shape[1] = 3; }, FDMA_INVALID_SHAPE,
     "key.shape is (2, 3, 2, 16); accepted: (B, w, H_kv, D) = (2, 4, 2, 16)"},
    {"ValueDtype", [](GatherCall& c) { c.params.value.dtype = FDMA_FLOAT16; }, FDMA_INVALID_DTYPE,
     "value.dtype is float16; accepted: float32, the dtype of cache.key"},
    {"ValueShared", [](GatherCall& c) { c.params.value.stride[0] = 0; }, FDMA_INVALID_LAYOUT,
     "value.stride is (0, 32, 16, 1) for shape (2, 4, 2, 16); accepted: an output in which no element is addressed "
     "twice and dimensions do not interleave"},
    {"BiasAbsent", [](GatherCall& c) { c.params.bias = {}; }, FDMA_INVALID_ARGUMENT,
     "bias is not given (rank 0); accepted: a tensor (B, H_kv, w)"},
    {"BiasDtype", [](GatherCall& c) { c.params.bias.dtype = FDMA_FLOAT32; }, FDMA_INVALID_DTYPE,
     "bias.dtype is float32; accepted: bfloat16, the dtype of cache.bias"},
    {"PositionDtype", [](GatherCall& c) { c.params.position.dtype = FDMA_INT32; }, FDMA_INVALID_DTYPE,
     "position.dtype is int32; accepted: int64"},
};

INSTANTIATE_TEST_SUITE_P(OfTheCall, CacheAppendRefusals, ::testing::ValuesIn(kOfTheCall), RefusalName());
INSTANTIATE_TEST_SUITE_P(OfTheCache, CacheAppendRefusals, ::testing::ValuesIn(kOfTheCache), RefusalName());
INSTANTIATE_TEST_SUITE_P(OfTheTokens, CacheAppendRefusals, ::testing::ValuesIn(kOfTheTokens), RefusalName());
INSTANTIATE_TEST_SUITE_P(Arguments, CacheGatherRefusals, ::testing::ValuesIn(kGather), RefusalName());

TEST(CacheAppend, PositionsAreGivenOneWayOrTheOther) {
  AppendCall call;
  EXPECT_EQ(fdma_cache_append_supported(&call.params), FDMA_SUCCESS) << fdma_last_error_message();
  call.params.first_position = INT64_MAX - 3;
  EXPECT_EQ(make_cache_append_problem(call.params, true).first_position, INT64_MAX - 3);
  call.count_on_device();
  const CacheAppendProblem problem = make_cache_append_problem(call.params, true);
  EXPECT_EQ(problem.next_position, call.params.next_position.data);
  EXPECT_EQ(problem.first_position, 0);
}

TEST(CacheAppend, TokensMayShareMemoryTheCacheMayNot) {
  AppendCall call;
  call.params.value.data = call.params.key.data;
  call.params.bias.stride[0] = 0;  // all batches are one
  EXPECT_EQ(fdma_cache_append_supported(&call.params), FDMA_SUCCESS) << fdma_last_error_message();
  call.params.cache.value.data = call.params.cache.key.data;
  EXPECT_EQ(fdma_cache_append(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("cache.value.data is 0x", ", which is cache.key.data too; accepted: memory of its own");
}

TEST(CacheGather, PositionIsOptionalAndOutputsAreNotTheCache) {
  GatherCall call;
  call.params.position = {};
  EXPECT_EQ(fdma_cache_gather_supported(&call.params), FDMA_SUCCESS) << fdma_last_error_message();
  call.params.key.data = call.params.cache.key.data;
  EXPECT_EQ(fdma_cache_gather(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("key.data is 0x", ", which is cache.key.data too; accepted: memory of its own");
}

}  // namespace
}  // namespace fdma::testing
