// Every refusal of attention forward, one row each.
#include <algorithm>
#include <limits>

#include "calls.hpp"
#include "refusal.hpp"

namespace fdma::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kHuge = int64_t{1} << 62;

using Row = Refusal<ForwardCall>;
class ForwardRefusals : public ::testing::TestWithParam<Row> {};

TEST_P(ForwardRefusals, SaysArgumentValueAndWhatIsAccepted) {
  ForwardCall call;
  GetParam().break_it(call);
  EXPECT_EQ(fdma_attention_forward(&call.params, nullptr, 0, nullptr), GetParam().status);
  EXPECT_STREQ(fdma_last_error_message(), GetParam().message);
}

const Row kGeneral[] = {
    {"StructNotInitialised", [](ForwardCall& c) { c.params.struct_size = 0; }, FDMA_INVALID_ARGUMENT,
     "params.struct_size is 0; accepted: 816 or more, as fdma_attention_forward_params_init sets it"},
    {"Reserved", [](ForwardCall& c) { c.params.reserved = 7; }, FDMA_INVALID_ARGUMENT, "reserved is 7; accepted: 0"},
    {"DeviceType", [](ForwardCall& c) { c.params.device.type = static_cast<fdma_device_type>(3); },
     FDMA_INVALID_ARGUMENT, "device.type is 3; accepted: FDMA_DEVICE_CPU (1), FDMA_DEVICE_CUDA (2)"},
    {"CpuIndex", [](ForwardCall& c) { c.params.device.index = 1; }, FDMA_INVALID_ARGUMENT,
     "device.index is 1; accepted for the CPU: 0"},
    {"ScaleNan", [](ForwardCall& c) { c.params.scale = kNan; }, FDMA_INVALID_ARGUMENT,
     "scale is nan; accepted: finite values, or FDMA_SCALE_DEFAULT"},
    {"ScaleInf", [](ForwardCall& c) { c.params.scale = -kInf; }, FDMA_INVALID_ARGUMENT,
     "scale is -inf; accepted: finite values, or FDMA_SCALE_DEFAULT"},
    {"SoftcapNegative", [](ForwardCall& c) { c.params.softcap = -1; }, FDMA_INVALID_ARGUMENT,
     "softcap is -1; accepted: 0 (off) or a positive finite value"},
    {"SoftcapInf", [](ForwardCall& c) { c.params.softcap = kInf; }, FDMA_INVALID_ARGUMENT,
     "softcap is inf; accepted: 0 (off) or a positive finite value"},
    {"SoftcapNan", [](ForwardCall& c) { c.params.softcap = kNan; }, FDMA_INVALID_ARGUMENT,
     "softcap is nan; accepted: 0 (off) or a positive finite value"},
    {"IsCausal", [](ForwardCall& c) { c.params.is_causal = 2; }, FDMA_INVALID_ARGUMENT,
     "is_causal is 2; accepted: 0 or 1"},
    {"NumThreads", [](ForwardCall& c) { c.params.num_threads = -1; }, FDMA_INVALID_ARGUMENT,
     "num_threads is -1; accepted: 0 (all available) or a positive number"},
};

const Row kTensors[] = {
    {"QueryAbsent", [](ForwardCall& c) { c.params.query = {}; }, FDMA_INVALID_ARGUMENT,
     "query is not given (rank 0); accepted: a tensor (B, Lq, H, D)"},
    {"QueryRank", [](ForwardCall& c) { c.params.query.rank = 3; }, FDMA_INVALID_SHAPE,
     "query.rank is 3; accepted: 4, (B, Lq, H, D)"},
    {"QueryExtent", [](ForwardCall& c) { c.params.query.shape[1] = -3; }, FDMA_INVALID_SHAPE,
     "query.shape is (2, -3, 4, 16); accepted: extents of 0 or more"},
    {"QueryHeads", [](ForwardCall& c) { c.params.query.shape[2] = 0; }, FDMA_INVALID_SHAPE,
     "query.shape is (2, 3, 0, 16); accepted: at least one head"},
    {"HeadDimStep", [](ForwardCall& c) { c.params.query.shape[3] = 12; }, FDMA_INVALID_SHAPE,
     "query.shape is (2, 3, 4, 12), head_dim 12; accepted: multiples of 8 from 8 to 256"},
    {"HeadDimZero", [](ForwardCall& c) { c.params.query.shape[3] = 0; }, FDMA_INVALID_SHAPE,
     "query.shape is (2, 3, 4, 0), head_dim 0; accepted: multiples of 8 from 8 to 256"},
    {"HeadDimMax", [](ForwardCall& c) { c.params.query.shape[3] = 264; }, FDMA_INVALID_SHAPE,
     "query.shape is (2, 3, 4, 264), head_dim 264; accepted: multiples of 8 from 8 to 256"},
    {"QueryNull", [](ForwardCall& c) { c.params.query.data = nullptr; }, FDMA_INVALID_ARGUMENT,
     "query.data is NULL; accepted: a pointer to its elements"},
    {"QueryStrideNegative", [](ForwardCall& c) { c.params.query.stride[1] = -64; }, FDMA_INVALID_LAYOUT,
     "query.stride is (192, -64, 16, 1) for shape (2, 3, 4, 16); accepted: strides of 0 or more"},
    {"QueryLastStride", [](ForwardCall& c) { c.params.query.stride[3] = 2; }, FDMA_INVALID_LAYOUT,
     "query.stride is (192, 64, 16, 2) for shape (2, 3, 4, 16); accepted: a stride of 1 in the last dimension"},
    {"QuerySpan", [](ForwardCall& c) { c.params.query.stride[0] = kHuge; }, FDMA_INVALID_LAYOUT,
     "query.stride is (4611686018427387904, 64, 16, 1) for shape (2, 3, 4, 16); accepted: offsets below 2^63 bytes"},
    {"KeyRank", [](ForwardCall& c) { c.params.key.rank = 5; }, FDMA_INVALID_SHAPE,
     "key.rank is 5; accepted: 4, (B, Lk, H_kv, D)"},
    {"KeyHeads", [](ForwardCall& c) { c.params.key.shape[2] = 3; }, FDMA_INVALID_SHAPE,
     "key.shape is (2, 5, 3, 16), H_kv = 3; accepted: a divisor of the 4 heads of query"},
    {"KeyNoHeads", [](ForwardCall& c) { c.params.key.shape[2] = 0; }, FDMA_INVALID_SHAPE,
     "key.shape is (2, 5, 0, 16), H_kv = 0; accepted: a divisor of the 4 heads of query"},
    {"KeyHeadDim", [](ForwardCall& c) { c.params.key.shape[3] = 8; }, FDMA_INVALID_SHAPE,
     "key.shape is (2, 5, 2, 8); accepted: (B, Lk, H_kv, D) = (2, 5, 2, 16)"},
    {"KeyDtype", [](ForwardCall& c) { c.params.key.dtype = FDMA_BFLOAT16; }, FDMA_INVALID_DTYPE,
     "key.dtype is bfloat16; accepted: float32, the dtype of query"},
    {"ValueAbsent", [](ForwardCall& c) { c.params.value = {}; }, FDMA_INVALID_ARGUMENT,
     "value is not given (rank 0); accepted: a tensor (B, Lk, H_kv, D)"},
    {"ValueLength", [](ForwardCall& c) { c.params.value.shape[1] = 4; }, FDMA_INVALID_SHAPE,
     "value.shape is (2, 4, 2, 16); accepted: (B, Lk, H_kv, D) = (2, 5, 2, 16)"},
    {"OutAbsent", [](ForwardCall& c) { c.params.out = {}; }, FDMA_INVALID_ARGUMENT,
     "out is not given (rank 0); accepted: a tensor (B, Lq, H, D)"},
    {"OutBatch", [](ForwardCall& c) { c.params.out.shape[0] = 1; }, FDMA_INVALID_SHAPE,
     "out.shape is (1, 3, 4, 16); accepted: (B, Lq, H, D) = (2, 3, 4, 16)"},
    {"OutDtype", [](ForwardCall& c) { c.params.out.dtype = FDMA_FLOAT16; }, FDMA_INVALID_DTYPE,
     "out.dtype is float16; accepted: float32, the dtype of query"},
    {"OutBroadcast", [](ForwardCall& c) { c.params.out.stride[0] = 0; }, FDMA_INVALID_LAYOUT,
     "out.stride is (0, 64, 16, 1) for shape (2, 3, 4, 16); accepted: an output in which no element is addressed twice "
     "and dimensions do not interleave"},
    {"OutOverlap", [](ForwardCall& c) { c.params.out.stride[1] = 48; }, FDMA_INVALID_LAYOUT,
     "out.stride is (192, 48, 16, 1) for shape (2, 3, 4, 16); accepted: an output in which no element is addressed "
     "twice and dimensions do not interleave"},
    {"LseRank",
     [](ForwardCall& c) {
       c.params.lse = c.memory.tensor(FDMA_FLOAT32, {kB, kH});
     },
     FDMA_INVALID_SHAPE, "lse.rank is 2; accepted: 3, (B, H, Lq)"},
    {"LseShape",
     [](ForwardCall& c) {
       c.params.lse = c.memory.tensor(FDMA_FLOAT32, {kB, kLq, kH});
     },
     FDMA_INVALID_SHAPE, "lse.shape is (2, 3, 4); accepted: (B, H, Lq) = (2, 4, 3)"},
    {"LseDtype",
     [](ForwardCall& c) {
       c.params.lse = c.memory.tensor(FDMA_FLOAT64, {kB, kH, kLq});
     },
     FDMA_INVALID_DTYPE, "lse.dtype is float64; accepted: float32"},
    {"LseContiguous",
     [](ForwardCall& c) {
       c.params.lse = c.memory.tensor(FDMA_FLOAT32, {kB, kH, kLq});
       c.params.lse.stride[0] = 16;
     },
     FDMA_INVALID_LAYOUT, "lse.stride is (16, 3, 1) for shape (2, 4, 3); accepted: a contiguous tensor"},
};

const Row kMasks[] = {
    {"MaskUnused",
     [](ForwardCall& c) {
       c.add_mask();
       c.params.mask.kind = FDMA_MASK_NONE;
     },
     FDMA_INVALID_ARGUMENT,
     "mask.kind is FDMA_MASK_NONE, but mask.tensor has rank 4; accepted: rank 0, or FDMA_MASK_DENSE, FDMA_MASK_BITS, "
     "FDMA_MASK_COLUMNS, FDMA_MASK_INTERVAL"},
    {"MaskKind", [](ForwardCall& c) { c.params.mask.kind = static_cast<fdma_mask_kind>(9); }, FDMA_INVALID_ARGUMENT,
     "mask.kind is 9; accepted: FDMA_MASK_NONE (0), FDMA_MASK_DENSE (1), FDMA_MASK_BITS (2), "
     "FDMA_MASK_COLUMNS (3), FDMA_MASK_INTERVAL (4)"},
    {"MaskAbsent", [](ForwardCall& c) { c.params.mask.kind = FDMA_MASK_DENSE; }, FDMA_INVALID_ARGUMENT,
     "mask.tensor is not given (rank 0); accepted: a tensor ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})"},
    {"MaskHeads",
     [](ForwardCall& c) {
       c.add_mask();
       c.params.mask.tensor.shape[1] = 3;
     },
     FDMA_INVALID_SHAPE,
     "mask.tensor.shape is (2, 3, 3, 5); accepted: ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1}) with B = 2, H = 4, H_kv = 2, "
     "Lq = 3, Lk = 5"},
    {"MaskDtype",
     [](ForwardCall& c) {
       c.add_mask();
       c.params.mask.tensor.dtype = static_cast<fdma_dtype>(7);
     },
     FDMA_INVALID_DTYPE,
     "mask.tensor.dtype is unknown dtype 7; accepted: float16, bfloat16, float32, float64, bool, uint8, int8, int16, "
     "int32, int64"},
    {"MaskLastStride",
     [](ForwardCall& c) {
       c.add_mask();
       c.params.mask.tensor.stride[3] = 0;
     },
     FDMA_INVALID_LAYOUT,
     "mask.tensor.stride is (60, 15, 5, 0) for shape (2, 4, 3, 5); accepted: a stride of 1 in the last dimension"},
    {"MaskNull",
     [](ForwardCall& c) {
       c.add_mask();
       c.params.mask.tensor.data = nullptr;
     },
     FDMA_INVALID_ARGUMENT, "mask.tensor.data is NULL; accepted: a pointer to its elements"},
    {"BitsDtype",
     [](ForwardCall& c) {
       c.add_bits();
       c.params.mask.tensor.dtype = FDMA_INT32;
     },
     FDMA_INVALID_DTYPE, "mask.tensor.dtype is int32; accepted for FDMA_MASK_BITS: uint8"},
    {"BitsKeys",
     [](ForwardCall& c) {
       c.add_bits();
       c.params.mask.tensor.shape[3] = 1;
     },
     FDMA_INVALID_SHAPE, "mask.tensor.shape is (2, 4, 3, 1); accepted for FDMA_MASK_BITS: a last dimension of Lk = 5"},
    {"ListsOfTooManyKeys",
     [](ForwardCall& c) {
       c.params.key.shape[1] = c.params.value.shape[1] = int64_t{1} << 31;
       c.params.key.stride[1] = c.params.value.stride[1] = 0;
       c.params.mask.kind = FDMA_MASK_COLUMNS;
       c.params.mask.tensor = c.memory.tensor(FDMA_INT32, {2, 2, 7});
     },
     FDMA_UNSUPPORTED,
     "mask.tensor.shape is (2, 2, 7) with Lk = 2147483648; accepted for masks that list keys: Lk < 2^31 and lists of "
     "at most 2^31 - 128"},
    {"PackedMaskWithoutMask", [](ForwardCall& c) { c.params.packed_mask = c.memory.tensor(FDMA_UINT8, {16}); },
     FDMA_INVALID_ARGUMENT, "packed_mask is given with mask.kind 0; accepted with FDMA_MASK_DENSE (1) only"},
    {"PackedMaskOfBits",
     [](ForwardCall& c) {
       c.add_bits();
       c.params.packed_mask = c.memory.tensor(FDMA_UINT8, {16});
     },
     FDMA_INVALID_ARGUMENT, "packed_mask is given with mask.kind 2; accepted with FDMA_MASK_DENSE (1) only"},
    {"PackedMaskSize",
     [](ForwardCall& c) {
       c.add_mask();
       c.params.packed_mask = c.memory.tensor(FDMA_UINT8, {16});
     },
     FDMA_INVALID_SHAPE, "packed_mask.shape is (16,); accepted: (fdma_mask_packed_size bytes,) = (416,)"},
    {"PackedMaskDtype",
     [](ForwardCall& c) {
       c.add_mask();
       c.params.packed_mask = c.memory.tensor(FDMA_INT8, {kPackedBytes});
     },
     FDMA_INVALID_DTYPE, "packed_mask.dtype is int8; accepted: uint8"},
};

const Row kBiases[] = {
    {"BiasUnused",
     [](ForwardCall& c) {
       c.add_bias();
       c.params.bias.kind = FDMA_BIAS_NONE;
     },
     FDMA_INVALID_ARGUMENT,
     "bias.kind is FDMA_BIAS_NONE, but bias.tensor has rank 4; accepted: rank 0, or FDMA_BIAS_DENSE"},
    {"BiasKind", [](ForwardCall& c) { c.params.bias.kind = static_cast<fdma_bias_kind>(2); }, FDMA_INVALID_ARGUMENT,
     "bias.kind is 2; accepted: FDMA_BIAS_NONE (0), FDMA_BIAS_DENSE (1)"},
    {"BiasRank",
     [](ForwardCall& c) {
       c.add_bias();
       c.params.bias.tensor.rank = 2;
     },
     FDMA_INVALID_SHAPE, "bias.tensor.rank is 2; accepted: 4, ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})"},
    {"BiasDtype", [](ForwardCall& c) { c.add_bias(FDMA_FLOAT64); }, FDMA_INVALID_DTYPE,
     "bias.tensor.dtype is float64; accepted: float16, bfloat16, float32"},
    {"BiasRows",
     [](ForwardCall& c) {
       c.add_bias();
       c.params.bias.tensor.shape[2] = 2;
     },
     FDMA_INVALID_SHAPE,
     "bias.tensor.shape is (2, 4, 2, 5); accepted: ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1}) with B = 2, H = 4, H_kv = 2, "
     "Lq = 3, Lk = 5"},
};

INSTANTIATE_TEST_SUITE_P(General, ForwardRefusals, ::testing::ValuesIn(kGeneral), RefusalName());
INSTANTIATE_TEST_SUITE_P(Tensors, ForwardRefusals, ::testing::ValuesIn(kTensors), RefusalName());
INSTANTIATE_TEST_SUITE_P(Masks, ForwardRefusals, ::testing::ValuesIn(kMasks), RefusalName());
INSTANTIATE_TEST_SUITE_P(Biases, ForwardRefusals, ::testing::ValuesIn(kBiases), RefusalName());

// Rules whose message holds an address.
TEST(ForwardRefusal, MisalignedData) {
  ForwardCall call;
  call.params.value.data = static_cast<char*>(call.params.value.data) + 2;
  EXPECT_EQ(fdma_attention_forward(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("value.data is 0x", "; accepted: a multiple of 4 bytes");
}

TEST(ForwardRefusal, MisalignedBits) {
  ForwardCall call;
  call.add_bits();
  call.params.mask.tensor.data = static_cast<char*>(call.params.mask.tensor.data) + 8;
  EXPECT_EQ(fdma_attention_forward(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("mask.tensor.data is 0x", "; accepted: a multiple of 16 bytes");
}

TEST(ForwardRefusal, MisalignedPackedMask) {
  ForwardCall call;
  call.add_mask();
  call.params.packed_mask = call.memory.tensor(FDMA_UINT8, {kPackedBytes});
  call.params.packed_mask.data = static_cast<char*>(call.params.packed_mask.data) + 1;
  EXPECT_EQ(fdma_attention_forward(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("packed_mask.data is 0x", "; accepted: a multiple of 16 bytes");
}

TEST(ForwardRefusal, OutputInPlaceOfAnInput) {
  ForwardCall call;
  call.params.out.data = call.params.query.data;
  EXPECT_EQ(fdma_attention_forward(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("out.data is 0x", ", which is query.data too; accepted: memory of its own");
}

TEST(ForwardRefusal, DtypesOfTheDevice) {
  ForwardCall call;
  call.params.query.dtype = FDMA_FLOAT64;
  EXPECT_EQ(fdma_attention_forward_supported(&call.params), FDMA_INVALID_DTYPE);
  expect_message_has("query.dtype is float64; accepted on the CPU: float16, bfloat16, float32", "");
  call.params.query.dtype = FDMA_FLOAT32;
  call.params.device = {FDMA_DEVICE_CUDA, 0};
  EXPECT_EQ(fdma_attention_forward_supported(&call.params), FDMA_INVALID_DTYPE);
  expect_message_has("query.dtype is float32; accepted on CUDA: float16, bfloat16", "");
}

TEST(ForwardRefusal, CudaArguments) {
  ForwardCall call;
  call.params.device = {FDMA_DEVICE_CUDA, -1};
  call.params.num_threads = 2;
  for (fdma_tensor* tensor : {&call.params.query, &call.params.key, &call.params.value, &call.params.out}) {
    tensor->dtype = FDMA_BFLOAT16;
  }
  EXPECT_EQ(fdma_attention_forward_supported(&call.params), FDMA_INVALID_ARGUMENT);
  EXPECT_STREQ(fdma_last_error_message(),
               "device.index is -1; accepted for CUDA: a device ordinal, 0 or more\n"
               "num_threads is 2; accepted on CUDA: 0, the threads are those of the CPU");
}

TEST(ForwardRefusal, PackedMaskTooLarge) {
  ForwardCall call;
  call.add_mask();
  call.params.query.shape[1] = call.params.out.shape[1] = call.params.mask.tensor.shape[2] = kHuge;
  for (fdma_tensor* tensor : {&call.params.query, &call.params.out, &call.params.mask.tensor}) {
    std::fill(tensor->stride, tensor->stride + 3, 0);
  }
  EXPECT_EQ(fdma_attention_forward_supported(&call.params), FDMA_INVALID_SHAPE);
  expect_message_has("mask.tensor.shape is (2, 4, 4611686018427387904, 5); accepted: below 2^63 bytes of packed mask",
                     "");
}

TEST(ForwardRefusal, AllReasonsAreListedAndTheFirstGivesTheStatus) {
  ForwardCall call;
  call.params.key.dtype = FDMA_FLOAT16;
  call.params.is_causal = -1;
  call.params.out.rank = 0;
  EXPECT_EQ(fdma_attention_forward_supported(&call.params), FDMA_INVALID_DTYPE);
  EXPECT_STREQ(fdma_last_error_message(),
               "key.dtype is float16; accepted: float32, the dtype of query\n"
               "is_causal is -1; accepted: 0 or 1\n"
               "out is not given (rank 0); accepted: a tensor (B, Lq, H, D)");
}

TEST(ForwardRefusal, NullPointers) {
  ForwardCall call;
  size_t bytes = 0;
  EXPECT_EQ(fdma_attention_forward(nullptr, nullptr, 0, nullptr), FDMA_INVALID_ARGUMENT);
  EXPECT_STREQ(fdma_last_error_message(), "params is NULL; accepted: fdma_attention_forward_params");
  EXPECT_EQ(fdma_attention_forward_supported(nullptr), FDMA_INVALID_ARGUMENT);
  EXPECT_EQ(fdma_attention_forward_workspace_size(nullptr, &bytes), FDMA_INVALID_ARGUMENT);
  EXPECT_EQ(fdma_attention_forward_workspace_size(&call.params, nullptr), FDMA_INVALID_ARGUMENT);
  EXPECT_STREQ(fdma_last_error_message(), "bytes is NULL; accepted: where to write the size");
}

}  // namespace
}  // namespace fdma::testing
