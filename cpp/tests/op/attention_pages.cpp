// Every rule of "Pages" in fdma/attention.h, forward, on each device and dtype.
#include <string>
#include <utility>
#include <vector>

#include "tests/support/attention_table.hpp"

namespace fdma::test {
namespace {

using C = AttentionCase;

constexpr Extent kOne = Extent::kOne, kFull = Extent::kFull, kKv = Extent::kKvHeads;

C mixed(std::string name, int64_t page_size) {
  return C(std::move(name))
      .heads(2, 2)
      .sequences({70, 33, 90, 1, 20, 0, 12}, {70, 200, 40, 50, 1, 30, 0})
      .pages(page_size);
}

C decode(std::string name, int64_t page_size) {
  return C(std::move(name))
      .heads(8, 2)
      .sequences({1, 1, 0, 1, 1, 1}, {1, 64, 40, 129, 300, 0})
      .causal()
      .pages(page_size);
}

std::vector<C> page_cases() {
  std::vector<C> cases = {
      mixed("int64", 48).wide_offsets().causal(),
      mixed("padded_queries", 48).padded().slack(4, 0).causal(),
      mixed("rows_behind_the_last", 16).slack(9, 0),
      mixed("bounds_above", 64).bounds(150, 700).mask(FDMA_BOOL).bias(FDMA_FLOAT32),
      mixed("transposed_pages", 48).layouts(Layout::kHeadsFirst, Layout::kHeadsFirst).causal(),
      mixed("misaligned_pages", 48).layouts(Layout::kMisaligned, Layout::kMisaligned).causal(),
      mixed("mask_blocks", 64).mask(FDMA_BOOL, {}, MaskPattern::kBlocks).causal(),
      mixed("mask_nothing", 16).mask(FDMA_BOOL, {}, MaskPattern::kNothing),
      mixed("mask_shared", 100).mask(FDMA_BOOL, {kOne, kKv, kFull, kFull}).heads(4, 2).causal(),
      mixed("bias_of_keys", 48).bias(FDMA_BFLOAT16, {kFull, kKv, kOne, kFull}).heads(4, 2).hiding_bias(),
      mixed("softcap", 100).capped(2.0f).bias(FDMA_FLOAT16),
      C("long").sequences({130, 5}, {900, 1000}).heads(1, 1).dim(128).causal().pages(16),
      C("all_empty").sequences({0, 0}, {0, 0}).slack(5, 0).pages(16),
      C("no_keys").sequences({20, 130}, {0, 0}).pages(16),
      C("no_sequences").sequences({}, {}).slack(5, 0).pages(16),
  };
  for (int64_t size : {16, 17, 48, 64, 100, 256, 1024}) {
    const std::string suffix = "_of_" + std::to_string(size);
    cases.push_back(mixed("pages" + suffix, size));
    cases.push_back(mixed("causal_mask_bias" + suffix, size).causal().mask(FDMA_BOOL).bias(FDMA_BFLOAT16).heads(4, 2));
    cases.push_back(decode("decode" + suffix, size));
  }
  for (int64_t dim : {8, 72, 128, 256}) {
    const std::string suffix = "_dim_" + std::to_string(dim);
    cases.push_back(mixed("plain" + suffix, 48).dim(dim).heads(1, 1));
    cases.push_back(mixed("full" + suffix, 16).dim(dim).heads(2, 1).causal().mask(FDMA_BOOL).bias(FDMA_FLOAT32));
    cases.push_back(decode("decode" + suffix, 64).dim(dim));
  }
  return cases;
}

using AttentionPages = AttentionTable;

TEST_P(AttentionPages, MatchesReference) { expect_matches_reference(); }

INSTANTIATE_TEST_SUITE_P(Cpu, AttentionPages, on_cpu(page_cases()), parameter_name);
INSTANTIATE_TEST_SUITE_P(Gpu, AttentionPages, on_gpu(page_cases()), parameter_name);

}  // namespace
}  // namespace fdma::test
