// Refusals of packing a mask.
#include "calls.hpp"
#include "fdma/mask.h"
#include "refusal.hpp"

namespace fdma::testing {
namespace {

// A mask (2, 4, 3, 5).
struct PackMaskCall {
  PackMaskCall() {
    fdma_pack_mask_params_init(&params);
    params.mask = memory.tensor(FDMA_BOOL, {kB, kH, kLq, kLk});
    params.len_k = kLk;
    params.packed_mask = memory.tensor(FDMA_UINT8, {kPackedBytes});
  }

  Memory memory;
  fdma_pack_mask_params params;
};

using Row = Refusal<PackMaskCall>;
class PackMaskRefusals : public ::testing::TestWithParam<Row> {};

TEST_P(PackMaskRefusals, SaysArgumentValueAndWhatIsAccepted) {
  PackMaskCall call;
  ASSERT_EQ(fdma_pack_mask_supported(&call.params), FDMA_SUCCESS) << fdma_last_error_message();
  GetParam().break_it(call);
  EXPECT_EQ(fdma_pack_mask(&call.params, nullptr, 0, nullptr), GetParam().status);
  EXPECT_STREQ(fdma_last_error_message(), GetParam().message);
}

const Row kArguments[] = {
    {"Version", [](PackMaskCall& c) { c.params.struct_size = 8; }, FDMA_INVALID_ARGUMENT,
     "params.struct_size is 8; accepted: 224 or more, as fdma_pack_mask_params_init sets it"},
    {"Reserved", [](PackMaskCall& c) { c.params.reserved = 1; }, FDMA_INVALID_ARGUMENT, "reserved is 1; accepted: 0"},
    {"Reserved1", [](PackMaskCall& c) { c.params.reserved1 = 1; }, FDMA_INVALID_ARGUMENT,
     "reserved1 is 1; accepted: 0"},
    {"Device", [](PackMaskCall& c) { c.params.device.index = 1; }, FDMA_INVALID_ARGUMENT,
     "device.index is 1; accepted for the CPU: 0"},
    {"Threads", [](PackMaskCall& c) { c.params.num_threads = -1; }, FDMA_INVALID_ARGUMENT,
     "num_threads is -1; accepted: 0 (all available) or a positive number"},
    {"MaskAbsent", [](PackMaskCall& c) { c.params.mask = {}; }, FDMA_INVALID_ARGUMENT,
     "mask is not given (rank 0); accepted: a tensor ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})"},
    {"MaskRank", [](PackMaskCall& c) { c.params.mask.rank = 3; }, FDMA_INVALID_SHAPE,
     "mask.rank is 3; accepted: 4, ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})"},
    {"MaskDtype", [](PackMaskCall& c) { c.params.mask.dtype = static_cast<fdma_dtype>(7); }, FDMA_INVALID_DTYPE,
     "mask.dtype is unknown dtype 7; accepted: float16, bfloat16, float32, float64, bool, uint8, int8, int16, int32, "
     "int64"},
    {"MaskStride", [](PackMaskCall& c) { c.params.mask.stride[3] = 2; }, FDMA_INVALID_LAYOUT,
     "mask.stride is (60, 15, 5, 2) for shape (2, 4, 3, 5); accepted: a stride of 1 in the last dimension"},
    {"MaskData", [](PackMaskCall& c) { c.params.mask.data = nullptr; }, FDMA_INVALID_ARGUMENT,
     "mask.data is NULL; accepted: a pointer to its elements"},
    {"KeysNegative", [](PackMaskCall& c) { c.params.len_k = -1; }, FDMA_INVALID_ARGUMENT,
     "len_k is -1; accepted: 0 or more"},
    {"KeysOfAnotherLength", [](PackMaskCall& c) { c.params.len_k = 6; }, FDMA_INVALID_SHAPE,
     "mask.shape is (2, 4, 3, 5); accepted: a last dimension of 1 or len_k = 6"},
    {"TooLarge",
     [](PackMaskCall& c) {
       c.params.mask.shape[2] = int64_t{1} << 62;
       c.params.mask.stride[2] = 0;
     },
     FDMA_INVALID_SHAPE,
     "mask.shape is (2, 4, 4611686018427387904, 5) with len_k = 5; accepted: below 2^63 bytes of packed mask"},
    {"PackedAbsent", [](PackMaskCall& c) { c.params.packed_mask = {}; }, FDMA_INVALID_ARGUMENT,
     "packed_mask is not given (rank 0); accepted: a tensor (bytes,)"},
    {"PackedShape", [](PackMaskCall& c) { c.params.packed_mask.shape[0] = 400; }, FDMA_INVALID_SHAPE,
     "packed_mask.shape is (400,); accepted: (fdma_mask_packed_size bytes,) = (416,)"},
};

INSTANTIATE_TEST_SUITE_P(Arguments, PackMaskRefusals, ::testing::ValuesIn(kArguments), RefusalName());

TEST(PackMask, ParametersAreGiven) {
  EXPECT_EQ(fdma_pack_mask(nullptr, nullptr, 0, nullptr), FDMA_INVALID_ARGUMENT);
  EXPECT_STREQ(fdma_last_error_message(), "params is NULL; accepted: fdma_pack_mask_params");
}

TEST(PackMask, SizesAreKnownWithoutData) {
  PackMaskCall call;
  call.params.mask.data = call.params.packed_mask.data = nullptr;
  size_t bytes = 1;
  EXPECT_EQ(fdma_pack_mask_workspace_size(&call.params, &bytes), FDMA_SUCCESS) << fdma_last_error_message();
  EXPECT_EQ(bytes, 0u);
}

TEST(PackMask, OutputHasMemoryOfItsOwn) {
  PackMaskCall call;
  call.params.packed_mask.data = call.params.mask.data;
  EXPECT_EQ(fdma_pack_mask(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("packed_mask.data is 0x", ", which is mask.data too; accepted: memory of its own");
}

}  // namespace
}  // namespace fdma::testing
