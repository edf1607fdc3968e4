// Refusals of variable lengths and pages, and what backends are given of them.
#include <array>
#include <cstring>

#include "calls.hpp"
#include "host/problem.hpp"
#include "refusal.hpp"

namespace fdma::testing {
namespace {

using Strides = std::array<int64_t, 4>;

constexpr int64_t kSequences = 3, kTotalQ = 9, kTotalK = 12, kMaxQ = 5, kMaxK = 7, kPages = 6, kPageSize = 16;

// Three sequences of 4, 0 and 5 queries over 7, 2 and 3 keys: total_q 9, total_k 12, H 4, H_kv 2, D 16.
template <typename Params>
void make_packed(Params& params, Memory& memory) {
  params.query = memory.tensor(FDMA_FLOAT32, {kTotalQ, kH, kD});
  params.key = memory.tensor(FDMA_FLOAT32, {kTotalK, kHkv, kD});
  params.value = memory.tensor(FDMA_FLOAT32, {kTotalK, kHkv, kD});
  params.out = memory.tensor(FDMA_FLOAT32, {kTotalQ, kH, kD});
  params.cu_seqlens_q = memory.tensor(FDMA_INT32, {kSequences + 1});
  params.cu_seqlens_k = memory.tensor(FDMA_INT32, {kSequences + 1});
  const int32_t offsets_q[] = {0, 4, 4, 9}, offsets_k[] = {0, 7, 9, 12};
  std::memcpy(params.cu_seqlens_q.data, offsets_q, sizeof offsets_q);
  std::memcpy(params.cu_seqlens_k.data, offsets_k, sizeof offsets_k);
  params.max_seqlen_q = kMaxQ;
  params.max_seqlen_k = kMaxK;
}

struct SequenceCall : ForwardCall {
  SequenceCall() { make_packed(params, memory); }

  int32_t* offsets_q() { return static_cast<int32_t*>(params.cu_seqlens_q.data); }
  int32_t* offsets_k() { return static_cast<int32_t*>(params.cu_seqlens_k.data); }
  int32_t* table() { return static_cast<int32_t*>(params.block_table.data); }

  // The same lengths in the first rows of (3, 6, 4, 16) and (3, 8, 2, 16).
  void pad() {
    params.query = memory.tensor(FDMA_FLOAT32, {kSequences, 6, kH, kD});
    params.key = memory.tensor(FDMA_FLOAT32, {kSequences, 8, kHkv, kD});
    params.value = memory.tensor(FDMA_FLOAT32, {kSequences, 8, kHkv, kD});
    params.out = memory.tensor(FDMA_FLOAT32, {kSequences, 6, kH, kD});
  }

  // The same lengths over six pages of 16 keys, two a sequence.
  void page() {
    params.key = memory.tensor(FDMA_FLOAT32, {kPages, kPageSize, kHkv, kD});
    params.value = memory.tensor(FDMA_FLOAT32, {kPages, kPageSize, kHkv, kD});
    params.block_table = memory.tensor(FDMA_INT32, {kSequences, 2});
    const int32_t pages[] = {5, -1, 0, -1, 3, -1};  // the second page of each sequence is not used
    std::memcpy(table(), pages, sizeof pages);
  }
};

using Row = Refusal<SequenceCall>;
class SequenceRefusals : public ::testing::TestWithParam<Row> {};

TEST_P(SequenceRefusals, SaysArgumentValueAndWhatIsAccepted) {
  SequenceCall call;
  ASSERT_EQ(fdma_attention_forward_supported(&call.params), FDMA_SUCCESS) << fdma_last_error_message();
  GetParam().break_it(call);
  EXPECT_EQ(fdma_attention_forward(&call.params, nullptr, 0, nullptr), GetParam().status);
  EXPECT_STREQ(fdma_last_error_message(), GetParam().message);
}

const Row kArguments[] = {
    {"OffsetsQAbsent", [](SequenceCall& c) { c.params.cu_seqlens_q = {}; }, FDMA_INVALID_ARGUMENT,
     "cu_seqlens_q is not given (rank 0); accepted: a tensor (B + 1,)"},
    {"OffsetsKAbsent", [](SequenceCall& c) { c.params.cu_seqlens_k = {}; }, FDMA_INVALID_ARGUMENT,
     "cu_seqlens_k is not given (rank 0); accepted: a tensor (B + 1,)"},
    {"OffsetsRank", [](SequenceCall& c) { c.params.cu_seqlens_q.rank = 2; }, FDMA_INVALID_SHAPE,
     "cu_seqlens_q.rank is 2; accepted: 1, (B + 1,)"},
    {"OffsetsDtype", [](SequenceCall& c) { c.params.cu_seqlens_k.dtype = FDMA_INT16; }, FDMA_INVALID_DTYPE,
     "cu_seqlens_k.dtype is int16; accepted: int32, int64"},
    {"OffsetsOfTwoDtypes",
     [](SequenceCall& c) { c.params.cu_seqlens_k = c.memory.tensor(FDMA_INT64, {kSequences + 1}); }, FDMA_INVALID_DTYPE,
     "cu_seqlens_k.dtype is int64; accepted: int32, the dtype of cu_seqlens_q"},
    {"OffsetsOfTwoLengths", [](SequenceCall& c) { c.params.cu_seqlens_k.shape[0] = 3; }, FDMA_INVALID_SHAPE,
     "cu_seqlens_k.shape is (3,); accepted: (B + 1,) = (4,)"},
    {"OffsetsEmpty", [](SequenceCall& c) { c.params.cu_seqlens_q.shape[0] = c.params.cu_seqlens_k.shape[0] = 0; },
     FDMA_INVALID_SHAPE,
     "cu_seqlens_q.shape is (0,); accepted: (B + 1,), at least one value\n"
     "cu_seqlens_k.shape is (0,); accepted: (B + 1,), at least one value"},
    {"OffsetsStrided", [](SequenceCall& c) { c.params.cu_seqlens_q.stride[0] = 2; }, FDMA_INVALID_LAYOUT,
     "cu_seqlens_q.stride is (2,) for shape (4,); accepted: a contiguous tensor"},
    {"OffsetsNull", [](SequenceCall& c) { c.params.cu_seqlens_q.data = nullptr; }, FDMA_INVALID_ARGUMENT,
     "cu_seqlens_q.data is NULL; accepted: a pointer to its elements"},
    {"BoundOfKeysNegative", [](SequenceCall& c) { c.params.max_seqlen_k = -7; }, FDMA_INVALID_ARGUMENT,
     "max_seqlen_k is -7; accepted: 0 or more"},
    {"BoundNegative", [](SequenceCall& c) { c.params.max_seqlen_q = -1; }, FDMA_INVALID_ARGUMENT,
     "max_seqlen_q is -1; accepted: 0 or more"},
    {"QueryRank", [](SequenceCall& c) { c.params.query.rank = 2; }, FDMA_INVALID_SHAPE,
     "query.rank is 2; accepted: 4, (B, Lq, H, D), or 3, (total_q, H, D)\n"
     "key.rank is 3; accepted: 4, (B, Lk, H_kv, D)\nvalue.rank is 3; accepted: 4, (B, Lk, H_kv, D)\n"
     "out.rank is 3; accepted: 4, (B, Lq, H, D)"},
    {"PaddedKey",
     [](SequenceCall& c) {
       c.params.key = c.memory.tensor(FDMA_FLOAT32, {3, 8, kHkv, kD});
     },
     FDMA_INVALID_SHAPE, "key.rank is 4; accepted: 3, (total_k, H_kv, D)"},
    {"PackedOut", [](SequenceCall& c) { c.params.out.shape[0] = 8; }, FDMA_INVALID_SHAPE,
     "out.shape is (8, 4, 16); accepted: (total_q, H, D) = (9, 4, 16)"},
    {"PackedValue", [](SequenceCall& c) { c.params.value.shape[0] = 13; }, FDMA_INVALID_SHAPE,
     "value.shape is (13, 2, 16); accepted: (total_k, H_kv, D) = (12, 2, 16)"},
    {"PackedLse",
     [](SequenceCall& c) {
       c.params.lse = c.memory.tensor(FDMA_FLOAT32, {kTotalQ, kH});
     },
     FDMA_INVALID_SHAPE, "lse.shape is (9, 4); accepted: (H, total_q) = (4, 9)"},
    {"PaddedBatch",
     [](SequenceCall& c) {
       c.pad();
       c.params.query.shape[0] = 2;
     },
     FDMA_INVALID_SHAPE,
     "query.shape is (2, 6, 4, 16); accepted: (B, Lq, H, D) with B = 3, the sequences of cu_seqlens_q"},
    {"PaddedLse",
     [](SequenceCall& c) {
       c.pad();
       c.params.lse = c.memory.tensor(FDMA_FLOAT32, {kSequences, kH, kMaxQ});
     },
     FDMA_INVALID_SHAPE, "lse.shape is (3, 4, 5); accepted: (B, H, Lq) = (3, 4, 6)"},
    {"MaskOfTotals",
     [](SequenceCall& c) {
       c.params.mask = {FDMA_MASK_DENSE, c.memory.tensor(FDMA_BOOL, {1, 1, kTotalQ, kTotalK})};
     },
     FDMA_INVALID_SHAPE,
     "mask.tensor.shape is (1, 1, 9, 12); accepted: ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1}) with B = 3, H = 4, H_kv = 2, "
     "Lq = max_seqlen_q = 5, Lk = max_seqlen_k = 7"},
};

const Row kValues[] = {
    {"FirstOffset", [](SequenceCall& c) { c.offsets_q()[0] = 1; }, FDMA_INVALID_ARGUMENT,
     "cu_seqlens_q[0] is 1; accepted: 0"},
    {"Falls", [](SequenceCall& c) { c.offsets_k()[2] = 6; }, FDMA_INVALID_ARGUMENT,
     "cu_seqlens_k[2] is 6 after cu_seqlens_k[1] = 7; accepted: values that do not fall"},
    {"FallsBelowZero", [](SequenceCall& c) { c.offsets_k()[1] = -1; }, FDMA_INVALID_ARGUMENT,
     "cu_seqlens_k[1] is -1 after cu_seqlens_k[0] = 0; accepted: values that do not fall"},
    {"PastTheTotal", [](SequenceCall& c) { c.offsets_k()[3] = 13; }, FDMA_INVALID_ARGUMENT,
     "cu_seqlens_k[3] is 13; accepted: at most total_k = 12"},
    {"PastTheTotalOfQueries",
     [](SequenceCall& c) {
       c.params.max_seqlen_q = 100;
       c.offsets_q()[3] = 10;
     },
     FDMA_INVALID_ARGUMENT, "cu_seqlens_q[3] is 10; accepted: at most total_q = 9"},
    {"BothSides",
     [](SequenceCall& c) {
       c.offsets_q()[0] = -1;
       c.offsets_k()[0] = 2;
     },
     FDMA_INVALID_ARGUMENT, "cu_seqlens_q[0] is -1; accepted: 0\ncu_seqlens_k[0] is 2; accepted: 0"},
    {"LongerThanThePaddedQueries",
     [](SequenceCall& c) {
       c.pad();
       c.params.max_seqlen_q = 20;
       c.offsets_q()[1] = c.offsets_q()[2] = 7;
     },
     FDMA_INVALID_ARGUMENT, "cu_seqlens_q[1] - cu_seqlens_q[0] is 7; accepted: at most Lq = 6"},
    {"LongerThanTheBound", [](SequenceCall& c) { c.params.max_seqlen_q = 4; }, FDMA_INVALID_ARGUMENT,
     "cu_seqlens_q[3] - cu_seqlens_q[2] is 5; accepted: at most max_seqlen_q = 4"},
    {"LongerThanThePadding",
     [](SequenceCall& c) {
       c.pad();
       c.params.max_seqlen_k = 20;
       c.offsets_k()[3] = 18;
     },
     FDMA_INVALID_ARGUMENT, "cu_seqlens_k[3] - cu_seqlens_k[2] is 9; accepted: at most Lk = 8"},
    {"WideOffsets",
     [](SequenceCall& c) {
       const int64_t offsets[] = {0, 4, 4, int64_t{1} << 40};
       c.params.cu_seqlens_q = c.memory.tensor(FDMA_INT64, {4});
       c.params.cu_seqlens_k = c.memory.tensor(FDMA_INT64, {4});
       std::memcpy(c.params.cu_seqlens_q.data, offsets, sizeof offsets);
     },
     FDMA_INVALID_ARGUMENT, "cu_seqlens_q[3] - cu_seqlens_q[2] is 1099511627772; accepted: at most max_seqlen_q = 5"},
};

const Row kPaged[] = {
    {"TableRank",
     [](SequenceCall& c) {
       c.page();
       c.params.block_table.rank = 1;
     },
     FDMA_INVALID_SHAPE, "block_table.rank is 1; accepted: 2, (B, pages of a sequence)"},
    {"TableBatch",
     [](SequenceCall& c) {
       c.page();
       c.params.block_table.shape[0] = 2;
     },
     FDMA_INVALID_SHAPE, "block_table.shape is (2, 2); accepted: (B, pages of a sequence) = (3, 2)"},
    {"TableDtype",
     [](SequenceCall& c) {
       c.page();
       c.params.block_table.dtype = FDMA_INT64;
     },
     FDMA_INVALID_DTYPE, "block_table.dtype is int64; accepted: int32"},
    {"TableStrided",
     [](SequenceCall& c) {
       c.page();
       c.params.block_table.stride[0] = 4;
     },
     FDMA_INVALID_LAYOUT, "block_table.stride is (4, 1) for shape (3, 2); accepted: a contiguous tensor"},
    {"TableEntry",
     [](SequenceCall& c) {
       c.page();
       c.table()[2] = 6;
     },
     FDMA_INVALID_ARGUMENT, "block_table[1][0] is 6; accepted: 0 to 5, the pages of key"},
    {"TableEntryNegative",
     [](SequenceCall& c) {
       c.page();
       c.table()[4] = -1;
     },
     FDMA_INVALID_ARGUMENT, "block_table[2][0] is -1; accepted: 0 to 5, the pages of key"},
    {"MoreKeysThanPagesHold",
     [](SequenceCall& c) {
       c.page();
       c.params.max_seqlen_k = 100;
       c.offsets_k()[3] = 42;
     },
     FDMA_INVALID_ARGUMENT,
     "cu_seqlens_k[3] - cu_seqlens_k[2] is 33; accepted: at most the keys in the pages of a sequence = 32"},
    {"TableNull",
     [](SequenceCall& c) {
       c.page();
       c.params.block_table.data = nullptr;
     },
     FDMA_INVALID_ARGUMENT, "block_table.data is NULL; accepted: a pointer to its elements"},
    {"MoreKeysThanCanBeCounted",
     [](SequenceCall& c) {
       c.page();
       c.params.block_table.shape[1] = c.params.block_table.stride[0] = int64_t{1} << 60;
     },
     FDMA_INVALID_SHAPE,
     "block_table has 1152921504606846976 pages of 16 keys a sequence; accepted: fewer than 2^63 keys"},
    {"NoPages",
     [](SequenceCall& c) {
       c.page();
       c.params.key.shape[0] = c.params.value.shape[0] = 0;
     },
     FDMA_INVALID_ARGUMENT,
     "cu_seqlens_k[1] - cu_seqlens_k[0] is 7; accepted: at most the keys in the pages of a sequence = 0"},
    {"KeyNotInPages",
     [](SequenceCall& c) {
       c.page();
       c.params.key = c.memory.tensor(FDMA_FLOAT32, {kTotalK, kHkv, kD});
     },
     FDMA_INVALID_SHAPE, "key.rank is 3; accepted: 4, (pages, page_size, H_kv, D)"},
    {"ValuePages",
     [](SequenceCall& c) {
       c.page();
       c.params.value.shape[0] = 5;
     },
     FDMA_INVALID_SHAPE, "value.shape is (5, 16, 2, 16); accepted: (pages, page_size, H_kv, D) = (6, 16, 2, 16)"},
    {"SmallPages",
     [](SequenceCall& c) {
       c.page();
       c.params.key.shape[1] = c.params.value.shape[1] = 8;
     },
     FDMA_INVALID_SHAPE, "key.shape is (6, 8, 2, 16), page_size 8; accepted: 16 or more"},
};

INSTANTIATE_TEST_SUITE_P(Arguments, SequenceRefusals, ::testing::ValuesIn(kArguments), RefusalName());
INSTANTIATE_TEST_SUITE_P(Values, SequenceRefusals, ::testing::ValuesIn(kValues), RefusalName());
INSTANTIATE_TEST_SUITE_P(Paged, SequenceRefusals, ::testing::ValuesIn(kPaged), RefusalName());

TEST(SequenceRefusal, BoundsAndPagesWithoutSequences) {
  ForwardCall call;
  call.params.max_seqlen_q = 3;
  call.params.max_seqlen_k = -5;
  call.params.block_table = call.memory.tensor(FDMA_INT32, {kB, 1});
  EXPECT_EQ(fdma_attention_forward(&call.params, nullptr, 0, nullptr), FDMA_INVALID_ARGUMENT);
  EXPECT_STREQ(fdma_last_error_message(),
               "max_seqlen_q is 3; accepted without cu_seqlens_q: 0\n"
               "max_seqlen_k is -5; accepted without cu_seqlens_q: 0\n"
               "block_table is given without cu_seqlens_q; accepted with cu_seqlens_q and cu_seqlens_k only");
}

TEST(SequenceRefusal, OutputOverOffsets) {
  SequenceCall call;
  call.params.out.data = call.params.cu_seqlens_k.data;
  EXPECT_EQ(fdma_attention_forward(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("out.data is 0x", ", which is cu_seqlens_k.data too; accepted: memory of its own");
}

TEST(SequenceRefusal, MisalignedOffsets) {
  SequenceCall call;
  call.params.cu_seqlens_k.data = static_cast<char*>(call.params.cu_seqlens_k.data) + 2;
  EXPECT_EQ(fdma_attention_forward(&call.params, nullptr, 0, nullptr), FDMA_INVALID_LAYOUT);
  expect_message_has("cu_seqlens_k.data is 0x", "; accepted: a multiple of 4 bytes");
}

TEST(SequenceRefusal, OfBackwardSpeakOfItsTensors) {
  BackwardCall call;
  make_packed(call.params, call.memory);
  EXPECT_EQ(fdma_attention_backward(&call.params, nullptr, 0, nullptr), FDMA_INVALID_SHAPE);
  EXPECT_STREQ(fdma_last_error_message(),
               "lse.rank is 3; accepted: 2, (H, total_q)\ngrad_out.rank is 4; accepted: 3, (total_q, H, D)\n"
               "grad_query.rank is 4; accepted: 3, (total_q, H, D)\n"
               "grad_key.rank is 4; accepted: 3, (total_k, H_kv, D)\n"
               "grad_value.rank is 4; accepted: 3, (total_k, H_kv, D)");
}

TEST(SequenceProblem, ValuesAreNotReadForSizes) {
  SequenceCall call;
  call.offsets_q()[0] = 100;
  size_t bytes = 0;
  EXPECT_EQ(fdma_attention_forward_workspace_size(&call.params, &bytes), FDMA_SUCCESS) << fdma_last_error_message();
  call.params.cu_seqlens_q.data = call.params.cu_seqlens_k.data = nullptr;
  EXPECT_EQ(fdma_attention_forward_supported(&call.params), FDMA_SUCCESS) << fdma_last_error_message();
  EXPECT_TRUE(make_forward_problem(call.params, false).sequences);
}

TEST(SequenceProblem, Packed) {
  SequenceCall call;
  call.params.lse = call.memory.tensor(FDMA_FLOAT32, {kH, kTotalQ});
  const ForwardProblem problem = make_forward_problem(call.params, true);
  EXPECT_EQ(problem.batch, kSequences);
  EXPECT_EQ(problem.len_q, kMaxQ);
  EXPECT_EQ(problem.len_k, kMaxK);
  EXPECT_TRUE(problem.sequences.packed);
  EXPECT_FALSE(problem.sequences.is_64bit);
  EXPECT_EQ(problem.sequences.cu_q, call.params.cu_seqlens_q.data);
  EXPECT_EQ(problem.sequences.cu_k, call.params.cu_seqlens_k.data);
  EXPECT_EQ(problem.rows_q(), kTotalQ);
  EXPECT_EQ(problem.rows_k(), kTotalK);
  EXPECT_EQ(problem.sequences.begin_q(2), 4);
  EXPECT_EQ(problem.sequences.length_k(0), 7);
  EXPECT_FALSE(problem.pages);
  EXPECT_EQ(problem.query.stride, (Strides{0, kH * kD, kD, 1}));
  EXPECT_EQ(problem.key.stride, (Strides{0, kHkv * kD, kD, 1}));
  EXPECT_EQ(problem.lse, call.params.lse.data);
  EXPECT_EQ(problem.describe(),
            "cpu float32 B=3 Lq=5 Lk=7 H=4 H_kv=2 D=16 mask=none bias=none scale=0.25 softcap=0 causal=0 "
            "sequences=packed int32 rows_q=9 rows_k=12");
}

TEST(SequenceProblem, PaddedWithBoundsAboveTheTensors) {
  SequenceCall call;
  call.pad();
  call.params.max_seqlen_q = 100;
  call.params.mask = {FDMA_MASK_DENSE, call.memory.tensor(FDMA_BOOL, {kSequences, 1, 100, kMaxK})};
  const ForwardProblem problem = make_forward_problem(call.params, true);
  EXPECT_FALSE(problem.sequences.packed);
  EXPECT_EQ(problem.len_q, 100);
  EXPECT_EQ(problem.rows_q(), 6);
  EXPECT_EQ(problem.rows_k(), 8);
  EXPECT_EQ(problem.query.stride, (Strides{6 * kH * kD, kH * kD, kD, 1}));
  EXPECT_EQ(problem.mask.layout.rows, 100);
}

TEST(SequenceProblem, Pages) {
  SequenceCall call;
  call.page();
  const ForwardProblem problem = make_forward_problem(call.params, true);
  EXPECT_EQ(problem.pages.table, call.params.block_table.data);
  EXPECT_EQ(problem.pages.pages, kPages);
  EXPECT_EQ(problem.pages.page_size, kPageSize);
  EXPECT_EQ(problem.pages.pages_per_sequence, 2);
  EXPECT_EQ(problem.rows_k(), 2 * kPageSize);
  EXPECT_EQ(problem.key.stride, (Strides{kPageSize * kHkv * kD, kHkv * kD, kD, 1}));
}

// One order of keys for all packed sequences, one for each padded one; a bias of scores and pages need bits.
TEST(SequenceProblem, KeyListsRunOnSlots) {
  SequenceCall call;
  call.params.mask = {FDMA_MASK_INTERVAL, call.memory.tensor(FDMA_INT32, {1, kH, kMaxK})};
  const ForwardProblem packed = make_forward_problem(call.params, true);
  EXPECT_TRUE(packed.runs_on_slots());
  EXPECT_EQ(packed.order_batch(), 1);
  EXPECT_EQ(packed.slot_heads(), kH);
  EXPECT_EQ(packed.slot_count(), kSlotPadding);

  SequenceCall padded;
  padded.pad();
  padded.params.mask = {FDMA_MASK_COLUMNS, padded.memory.tensor(FDMA_INT32, {1, kHkv, 2})};
  padded.params.bias = {FDMA_BIAS_DENSE, padded.memory.tensor(FDMA_FLOAT32, {1, kHkv, 1, kMaxK})};
  const ForwardProblem problem = make_forward_problem(padded.params, true);
  EXPECT_TRUE(problem.runs_on_slots());
  EXPECT_EQ(problem.order_batch(), kSequences);
  EXPECT_EQ(problem.slot_heads(), kHkv);
  EXPECT_EQ(problem.slot_bias_batch(), kSequences);

  padded.params.bias = {FDMA_BIAS_DENSE, padded.memory.tensor(FDMA_FLOAT32, {1, kHkv, kMaxQ, kMaxK})};
  EXPECT_FALSE(make_forward_problem(padded.params, true).runs_on_slots());
  call.page();
  EXPECT_FALSE(make_forward_problem(call.params, true).runs_on_slots());
}

TEST(SequenceProblem, NoSequenceAtAll) {
  SequenceCall call;
  call.params.cu_seqlens_q.shape[0] = call.params.cu_seqlens_k.shape[0] = 1;
  call.params.max_seqlen_q = call.params.max_seqlen_k = 0;
  EXPECT_EQ(make_forward_problem(call.params, true).batch, 0);
}

}  // namespace
}  // namespace fdma::testing
