// Every rule of the contract in fdma/attention.h, one case each, forward and backward, on each device and dtype.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/support/attention_table.hpp"

namespace fdma::test {
namespace {

constexpr Extent kOne = Extent::kOne, kFull = Extent::kFull, kKv = Extent::kKvHeads;

std::vector<AttentionCase> semantic_cases() {
  using C = AttentionCase;
  std::vector<C> cases = {
      C("plain"),
      C("causal").causal(),
      C("causal_square").lengths(130, 130).causal(),
      C("causal_more_queries_than_keys").lengths(203, 113).causal(),
      C("one_query").lengths(1, 239),
      C("one_query_causal").lengths(1, 239).causal(),
      C("one_key").lengths(239, 1),
      C("one_key_causal").lengths(239, 1).causal(),
      C("one_score").lengths(1, 1).batches(1).heads(1, 1),
      C("whole_tiles").lengths(128, 192).causal(),
      C("long").lengths(1023, 1024).batches(1).heads(1, 1).dim(40).causal(),
      C("no_keys").lengths(5, 0),
      C("no_keys_bias").lengths(5, 0).bias(FDMA_FLOAT32, {kFull, kFull, kFull, kOne}),
      C("no_queries").lengths(0, 70),
      C("no_queries_bias").lengths(0, 70).bias(FDMA_FLOAT32, {kFull, kFull, kOne, kFull}),
      C("no_batches").batches(0),
      C("gqa").heads(8, 2),
      C("gqa_causal_mask_bias").heads(6, 2).causal().mask(FDMA_BOOL).bias(FDMA_BFLOAT16),
      C("gqa_one_query").heads(8, 2).lengths(1, 203).mask(FDMA_BOOL),
      C("mqa").heads(5, 1).causal(),
      C("scale_zero").scaled(0.0f),
      C("scale_negative").scaled(-0.3f).causal(),
      C("scale_large").scaled(2.0f),
      C("softcap").capped(2.0f),
      C("softcap_bias_mask").capped(3.0f).scaled(0.5f).bias(FDMA_FLOAT32).mask(FDMA_UINT8).causal(),
      C("grad_lse").grad_lse().causal(),
      C("grad_lse_dead_rows").grad_lse().mask(FDMA_BOOL),
      C("transposed_views").layouts(Layout::kHeadsFirst, Layout::kHeadsFirst),
      C("misaligned_views").layouts(Layout::kMisaligned, Layout::kMisaligned).mask(FDMA_BOOL),
      C("misaligned_views_dim_72").layouts(Layout::kMisaligned, Layout::kMisaligned).dim(72).causal(),
      C("expanded_keys").layouts(Layout::kContiguous, Layout::kExpanded),
      C("expanded_queries").layouts(Layout::kExpanded, Layout::kContiguous),
      C("mask_blocks").mask(FDMA_BOOL, {}, MaskPattern::kBlocks).lengths(300, 500),
      C("mask_blocks_causal_bits").mask(FDMA_BOOL, {}, MaskPattern::kBlocks).lengths(300, 500).causal().bits(),
      C("mask_nothing").mask(FDMA_BOOL, {}, MaskPattern::kNothing).bias(FDMA_FLOAT32),
      C("mask_everything").mask(FDMA_BOOL, {}, MaskPattern::kEverything).causal(),
      C("mask_bits").mask(FDMA_FLOAT32).bits().causal(),
      C("mask_bits_broadcast").mask(FDMA_BOOL, {kOne, kKv, kFull, kFull}).heads(6, 2).bits(),
      C("mask_bits_one_element").mask(FDMA_BOOL, {kOne, kOne, kOne, kOne}, MaskPattern::kEverything).bits(),
      C("bias_hides").bias(FDMA_FLOAT32).hiding_bias(),
      C("bias_hides_rows").bias(FDMA_FLOAT32, {kFull, kFull, kFull, kOne}).hiding_bias(),
      C("bias_hides_keys").bias(FDMA_BFLOAT16, {kFull, kKv, kOne, kFull}).hiding_bias().heads(4, 2).causal(),
      C("only_query_gradient").gradients(true, false, false, false).bias(FDMA_FLOAT32),
      C("only_key_gradient").gradients(false, true, false, false).mask(FDMA_BOOL),
      C("only_value_gradient").gradients(false, false, true, false).causal(),
      C("only_bias_gradient").gradients(false, false, false, true).bias(FDMA_FLOAT32).mask(FDMA_BOOL),
      C("only_key_bias_gradient").gradients(false, false, false, true).bias(FDMA_FLOAT32, {kOne, kOne, kOne, kFull}),
  };
  for (int64_t dim : {8, 40, 64, 72, 96, 128, 200, 256}) {
    const std::string suffix = "_dim_" + std::to_string(dim);
    cases.push_back(C("plain" + suffix).dim(dim).batches(1));
    cases.push_back(C("full" + suffix).dim(dim).batches(1).heads(4, 2).causal().mask(FDMA_BOOL).bias(FDMA_BFLOAT16));
  }
  for (int64_t dim : {64, 128, 256}) {
    const std::string suffix = "_dim_" + std::to_string(dim);
    cases.push_back(C("softcap" + suffix).dim(dim).capped(0.5f).scaled(0.7f).heads(4, 2).causal());
    // Few tiles and long walks: on GPUs, tiles that are cut into parts.
    cases.push_back(C("long_keys" + suffix).dim(dim).batches(1).heads(1, 1).lengths(300, 2100).grad_lse());
    cases.push_back(C("long_keys_causal" + suffix).dim(dim).batches(1).lengths(200, 1300).heads(2, 1).causal());
    cases.push_back(C("long_queries" + suffix).dim(dim).batches(1).lengths(1300, 300).heads(2, 1));
  }
  const std::pair<const char*, fdma_dtype> mask_dtypes[] = {
      {"bool", FDMA_BOOL},       {"uint8", FDMA_UINT8},    {"int8", FDMA_INT8},       {"int16", FDMA_INT16},
      {"int32", FDMA_INT32},     {"int64", FDMA_INT64},    {"float16", FDMA_FLOAT16}, {"bfloat16", FDMA_BFLOAT16},
      {"float32", FDMA_FLOAT32}, {"float64", FDMA_FLOAT64}};
  for (const auto& [name, dtype] : mask_dtypes) {
    cases.push_back(C(std::string("mask_") + name).mask(dtype).dim(16).batches(1).lengths(70, 139));
  }
  const std::pair<const char*, fdma_dtype> bias_dtypes[] = {
      {"float16", FDMA_FLOAT16}, {"bfloat16", FDMA_BFLOAT16}, {"float32", FDMA_FLOAT32}};
  for (const auto& [name, dtype] : bias_dtypes) cases.push_back(C(std::string("bias_") + name).bias(dtype).dim(32));
  // All broadcasts of mask and bias, with grouped heads.
  for (const auto& [suffix, shape] : all_broadcasts()) {
    cases.push_back(C("broadcast_mask" + suffix).mask(FDMA_BOOL, shape).heads(4, 2).dim(16).lengths(70, 139));
    cases.push_back(
        C("broadcast_bias" + suffix).bias(FDMA_FLOAT32, shape).heads(4, 2).dim(16).lengths(70, 139).causal());
  }
  return cases;
}

using AttentionSemantics = AttentionTable;

TEST_P(AttentionSemantics, MatchesReference) { expect_matches_reference(); }

INSTANTIATE_TEST_SUITE_P(Cpu, AttentionSemantics, on_cpu(semantic_cases()), parameter_name);
INSTANTIATE_TEST_SUITE_P(Gpu, AttentionSemantics, on_gpu(semantic_cases()), parameter_name);

}  // namespace
}  // namespace fdma::test
