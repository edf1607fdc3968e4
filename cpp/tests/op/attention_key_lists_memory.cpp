// Scratch of calls whose masks list keys grows with the keys, not with the scores.
#include <gtest/gtest.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <tuple>

#include "fdma/fdma.h"
#include "tests/support/device_memory.hpp"

namespace fdma::test {
namespace {

enum class Rows { kBatch, kPacked, kPadded };

struct ListCase {
  const char* name;
  fdma_mask_kind kind;
  Rows rows;
  int64_t mask_heads;
};

constexpr int64_t kHeads = 4, kHeadsKv = 2, kHeadDim = 64, kSequences = 4, kKept = 256;

// Without data.
fdma_tensor tensor(fdma_dtype dtype, std::initializer_list<int64_t> shape) {
  fdma_tensor result{};
  result.dtype = dtype;
  result.rank = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), result.shape);
  int64_t stride = 1;
  for (int i = result.rank - 1; i >= 0; --i) {
    result.stride[i] = stride;
    stride *= result.shape[i];
  }
  return result;
}

using Parameter = std::tuple<ListCase, fdma_device_type>;

class KeyListMemory : public testing::TestWithParam<Parameter> {
 protected:
  void SetUp() override {
    const std::string reason = unavailable_reason({std::get<1>(GetParam()), 0});
    if (!reason.empty()) GTEST_SKIP() << reason;
  }

  // The tensors of a call on `total` rows of queries and keys; packed, each sequence may have all of them.
  template <typename Params>
  static void describe(Params& params, int64_t total) {
    const auto& [c, device_type] = GetParam();
    const auto rows = [&, rows = c.rows](int64_t heads) {
      return rows == Rows::kBatch    ? tensor(FDMA_FLOAT16, {1, total, heads, kHeadDim})
             : rows == Rows::kPacked ? tensor(FDMA_FLOAT16, {total, heads, kHeadDim})
                                     : tensor(FDMA_FLOAT16, {kSequences, total / kSequences, heads, kHeadDim});
    };
    const int64_t batch = c.rows == Rows::kBatch ? 1 : kSequences;
    const int64_t len_k = c.rows == Rows::kPadded ? total / kSequences : total;
    params.device = {device_type, 0};
    params.query = params.out = rows(kHeads);
    params.key = params.value = rows(kHeadsKv);
    params.mask = {c.kind, tensor(FDMA_INT32, {batch, c.mask_heads, c.kind == FDMA_MASK_INTERVAL ? len_k : kKept})};
    params.bias = {FDMA_BIAS_DENSE, tensor(FDMA_FLOAT32, {batch, kHeadsKv, 1, len_k})};
    params.lse = c.rows == Rows::kPacked ? tensor(FDMA_FLOAT32, {kHeads, total})
                                         : tensor(FDMA_FLOAT32, {batch, kHeads, total / batch});
    if (c.rows == Rows::kBatch) return;
    params.cu_seqlens_q = params.cu_seqlens_k = tensor(FDMA_INT32, {kSequences + 1});
    params.max_seqlen_q = params.max_seqlen_k = len_k;
  }

  static size_t forward_bytes(int64_t total) {
    fdma_attention_forward_params params;
    fdma_attention_forward_params_init(&params);
    describe(params, total);
    size_t bytes = 0;
    EXPECT_EQ(fdma_attention_forward_workspace_size(&params, &bytes), FDMA_SUCCESS) << fdma_last_error_message();
    return bytes;
  }

  static size_t backward_bytes(int64_t total) {
    fdma_attention_backward_params params;
    fdma_attention_backward_params_init(&params);
    describe(params, total);
    params.deterministic = 1;
    params.grad_out = params.grad_query = params.query;
    params.grad_key = params.grad_value = params.key;
    params.grad_bias = params.bias.tensor;
    size_t bytes = 0;
    EXPECT_EQ(fdma_attention_backward_workspace_size(&params, &bytes), FDMA_SUCCESS) << fdma_last_error_message();
    return bytes;
  }
};

TEST_P(KeyListMemory, IsLinearInTheRows) {
  // Threads of the CPU have scratch of their own, which does not grow. A packed mask of 65536 x 65536 is 512 MiB a
  // head.
  constexpr size_t kConstant = size_t{64} << 20;
  for (const int64_t total : {int64_t{65536}, int64_t{262144}}) {
    const auto rows = static_cast<size_t>(total);
    EXPECT_LT(forward_bytes(total), kConstant + rows * kHeads * (2 * kHeadDim * 2 + 64)) << total;
    EXPECT_LT(backward_bytes(total), kConstant + rows * kHeads * (4 * kHeadDim * 2 + 4 * kHeadDim + 128)) << total;
  }
}

const ListCase kCases[] = {
    {"interval", FDMA_MASK_INTERVAL, Rows::kBatch, kHeadsKv},
    {"interval_of_query_heads", FDMA_MASK_INTERVAL, Rows::kBatch, kHeads},
    {"interval_packed", FDMA_MASK_INTERVAL, Rows::kPacked, kHeadsKv},
    {"interval_packed_of_query_heads", FDMA_MASK_INTERVAL, Rows::kPacked, kHeads},
    {"interval_padded", FDMA_MASK_INTERVAL, Rows::kPadded, kHeadsKv},
    {"columns_of_query_heads", FDMA_MASK_COLUMNS, Rows::kBatch, kHeads},
    {"columns_packed", FDMA_MASK_COLUMNS, Rows::kPacked, kHeadsKv},
    {"columns_padded_of_query_heads", FDMA_MASK_COLUMNS, Rows::kPadded, kHeads},
};

std::string name_of(const testing::TestParamInfo<Parameter>& info) { return std::get<0>(info.param).name; }

INSTANTIATE_TEST_SUITE_P(Cpu, KeyListMemory,
                         testing::Combine(testing::ValuesIn(kCases), testing::Values(FDMA_DEVICE_CPU)), name_of);
INSTANTIATE_TEST_SUITE_P(Gpu, KeyListMemory,
                         testing::Combine(testing::ValuesIn(kCases), testing::Values(FDMA_DEVICE_CUDA)), name_of);

}  // namespace
}  // namespace fdma::test
