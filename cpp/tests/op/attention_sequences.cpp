// Every rule of "Variable lengths" in fdma/attention.h, one case each, forward and backward, on each device and dtype.
#include <string>
#include <utility>
#include <vector>

#include "tests/support/attention_table.hpp"

namespace fdma::test {
namespace {

using C = AttentionCase;
using Lengths = std::vector<int64_t>;

constexpr Extent kOne = Extent::kOne, kFull = Extent::kFull, kKv = Extent::kKvHeads;

// Fewer, as many and more queries than keys, one query, one key, no queries, no keys.
C mixed(std::string name) {
  return C(std::move(name)).heads(2, 2).sequences({70, 33, 90, 1, 20, 0, 12}, {70, 200, 40, 50, 1, 30, 0});
}

C grouped(std::string name) { return mixed(std::move(name)).heads(4, 2).dim(16); }

// On, before and behind the edges of tiles, in both directions.
C edges(std::string name) {
  return C(std::move(name)).heads(1, 1).dim(32).sequences({1, 63, 64, 65, 129, 300}, {300, 129, 65, 64, 63, 1});
}

std::vector<C> layout_cases() {
  return {
      mixed("packed"),
      mixed("packed_causal").causal(),
      mixed("padded").padded(),
      mixed("padded_causal").padded().causal(),
      mixed("packed_int64").wide_offsets().causal(),
      mixed("padded_int64").wide_offsets().padded().causal(),
      mixed("rows_behind_the_last").slack(9, 17),
      mixed("rows_behind_the_last_many").slack(200, 300).causal(),
      mixed("rows_behind_padded").slack(9, 17).padded().causal(),
      mixed("bounds_above").bounds(150, 333).causal().mask(FDMA_BOOL).bias(FDMA_FLOAT32),
      mixed("bounds_above_padding").padded().bounds(150, 333).slack(3, 0).mask(FDMA_BOOL).bias(FDMA_BFLOAT16),
      mixed("bounds_above_everything").bounds(500, 700).causal(),
      mixed("transposed_views").layouts(Layout::kHeadsFirst, Layout::kHeadsFirst),
      mixed("transposed_views_padded").layouts(Layout::kHeadsFirst, Layout::kHeadsFirst).padded().slack(2, 3),
      mixed("misaligned_views").layouts(Layout::kMisaligned, Layout::kMisaligned).mask(FDMA_BOOL),
      mixed("misaligned_views_padded").layouts(Layout::kMisaligned, Layout::kMisaligned).padded().causal().dim(72),
  };
}

std::vector<C> length_cases() {
  return {
      C("one_sequence").sequences({113}, {203}).causal(),
      C("equal_lengths").sequences({64, 64, 64}, {64, 64, 64}).causal(),
      edges("tile_edges"),
      edges("tile_edges_causal").causal(),
      edges("tile_edges_padded").padded().causal(),
      C("tile_edges_square").sequences({1, 63, 64, 65, 129, 300}, {1, 63, 64, 65, 129, 300}).heads(2, 1).causal(),
      C("long").sequences({700, 5, 1023}, {900, 1000, 600}).heads(1, 1).dim(40).causal(),
      C("many_short").sequences(Lengths(50, 2), Lengths(50, 3)).causal(),
      C("many_empty").sequences({0, 0, 3, 0, 0, 4, 0}, {0, 2, 0, 0, 6, 5, 0}).bias(FDMA_FLOAT32),
      C("all_empty").sequences({0, 0}, {0, 0}),
      C("all_empty_rows_behind").sequences({0, 0}, {0, 0}).slack(7, 70),
      C("all_empty_bounds").sequences({0, 0}, {0, 0}).slack(7, 70).bounds(5, 9).mask(FDMA_BOOL).bias(FDMA_FLOAT32),
      C("all_empty_padded").sequences({0, 0}, {0, 0}).slack(7, 70).padded(),
      C("no_queries").sequences({0, 0}, {20, 130}).slack(3, 3),
      C("no_queries_bias").sequences({0, 0}, {20, 130}).bias(FDMA_FLOAT32, {kFull, kFull, kOne, kFull}),
      C("no_keys").sequences({20, 130}, {0, 0}).slack(3, 3),
      C("no_keys_bias").sequences({20, 130}, {0, 0}).bias(FDMA_FLOAT32, {kFull, kFull, kFull, kOne}),
      C("no_sequences").sequences({}, {}),
      C("no_sequences_rows").sequences({}, {}).slack(7, 11),
      C("no_sequences_bounds")
          .sequences({}, {})
          .slack(7, 11)
          .bounds(70, 80)
          .mask(FDMA_BOOL, {kOne})
          .bias(FDMA_FLOAT16, {kOne}),
      C("no_sequences_padded").sequences({}, {}).slack(7, 11).padded(),
      C("decode").sequences({1, 1, 1, 1}, {1, 64, 129, 300}).causal(),
      C("decode_gqa").sequences({1, 1, 1, 1}, {1, 64, 129, 300}).heads(8, 2).causal(),
      C("decode_gqa_mask").sequences({1, 0, 1, 1}, {70, 64, 0, 300}).heads(8, 2).mask(FDMA_BOOL).bias(FDMA_FLOAT32),
  };
}

std::vector<C> rule_cases() {
  const ScoreShape keys_only = {kFull, kKv, kOne, kFull};
  return {
      mixed("gqa").heads(8, 2),
      mixed("gqa_causal_mask_bias").heads(6, 2).causal().mask(FDMA_BOOL).bias(FDMA_BFLOAT16),
      mixed("mqa").heads(5, 1).causal().padded(),
      mixed("scale").scaled(-0.3f).causal(),
      mixed("softcap").capped(2.0f),
      mixed("softcap_bias_mask").capped(3.0f).scaled(0.5f).bias(FDMA_FLOAT32).mask(FDMA_UINT8).causal().padded(),
      mixed("grad_lse").grad_lse().causal(),
      mixed("grad_lse_padded").grad_lse().padded().slack(4, 4),
      mixed("grad_lse_dead_rows").grad_lse().mask(FDMA_BOOL).slack(4, 4),
      mixed("grad_lse_bias_of_rows").grad_lse().bias(FDMA_FLOAT32, {kFull, kFull, kFull, kOne}).causal(),
      mixed("mask").mask(FDMA_BOOL),
      mixed("mask_float").mask(FDMA_FLOAT32).causal(),
      mixed("mask_int64").mask(FDMA_INT64).padded(),
      mixed("mask_nothing").mask(FDMA_BOOL, {}, MaskPattern::kNothing).bias(FDMA_FLOAT32),
      mixed("mask_everything").mask(FDMA_BOOL, {}, MaskPattern::kEverything).causal().slack(5, 5),
      edges("mask_blocks").mask(FDMA_BOOL, {}, MaskPattern::kBlocks),
      edges("mask_blocks_bits").mask(FDMA_BOOL, {}, MaskPattern::kBlocks).causal().bits(),
      mixed("mask_bits").mask(FDMA_BOOL).bits().causal(),
      mixed("mask_bits_padded").mask(FDMA_BOOL).bits().causal().padded().bounds(100, 300),
      mixed("mask_bits_shared").mask(FDMA_BOOL, {kOne, kKv, kFull, kFull}).heads(6, 2).bits().causal(),
      mixed("mask_bits_of_keys").mask(FDMA_BOOL, {kFull, kFull, kOne, kFull}).bits().causal(),
      mixed("mask_bits_one_element").mask(FDMA_BOOL, {kOne, kOne, kOne, kOne}, MaskPattern::kEverything).bits(),
      mixed("bias_float16").bias(FDMA_FLOAT16).causal(),
      mixed("bias_bfloat16").bias(FDMA_BFLOAT16).padded(),
      mixed("bias_float32").bias(FDMA_FLOAT32),
      mixed("bias_hides").bias(FDMA_FLOAT32).hiding_bias(),
      mixed("bias_hides_keys").bias(FDMA_BFLOAT16, keys_only).hiding_bias().heads(4, 2).causal(),
      edges("bias_of_keys").bias(FDMA_BFLOAT16, keys_only).causal(),
      edges("bias_shared").bias(FDMA_FLOAT16, {kOne, kOne, kFull, kFull}).causal(),
      mixed("only_query_gradient").gradients(true, false, false, false).bias(FDMA_FLOAT32).slack(5, 5),
      mixed("only_key_gradient").gradients(false, true, false, false).mask(FDMA_BOOL).slack(5, 5),
      mixed("only_value_gradient").gradients(false, false, true, false).causal().slack(5, 5),
      mixed("only_bias_gradient").gradients(false, false, false, true).bias(FDMA_FLOAT32).mask(FDMA_BOOL),
      mixed("only_shared_bias_gradient").gradients(false, false, false, true).bias(FDMA_FLOAT32, {kOne, kOne}),
      mixed("only_key_bias_gradient")
          .gradients(false, false, false, true)
          .bias(FDMA_FLOAT32, {kOne, kOne, kOne, kFull}),
  };
}

std::vector<C> head_dim_cases() {
  std::vector<C> cases;
  for (int64_t dim : {8, 64, 72, 128, 256}) {
    const std::string suffix = "_dim_" + std::to_string(dim);
    cases.push_back(mixed("plain" + suffix).dim(dim).heads(1, 1).padded());
    cases.push_back(
        mixed("full" + suffix).dim(dim).heads(2, 1).causal().mask(FDMA_BOOL).bias(FDMA_BFLOAT16).grad_lse());
    cases.push_back(mixed("key_bias" + suffix).dim(dim).heads(2, 1).bias(FDMA_FLOAT32, {kFull, kKv, kOne, kFull}));
  }
  return cases;
}

std::vector<C> broadcast_cases() {
  std::vector<C> cases;
  for (const auto& [suffix, shape] : all_broadcasts()) {
    cases.push_back(grouped("broadcast_mask" + suffix).mask(FDMA_BOOL, shape).causal());
    cases.push_back(grouped("broadcast_bias" + suffix).bias(FDMA_FLOAT32, shape).causal());
    cases.push_back(
        grouped("broadcast_bias_padded" + suffix).bias(FDMA_BFLOAT16, shape).padded().slack(3, 3).grad_lse());
  }
  return cases;
}

std::vector<C> sequence_cases() {
  std::vector<C> all;
  for (const std::vector<C>& cases :
       {layout_cases(), length_cases(), rule_cases(), head_dim_cases(), broadcast_cases()}) {
    all.insert(all.end(), cases.begin(), cases.end());
  }
  return all;
}

using AttentionSequences = AttentionTable;

TEST_P(AttentionSequences, MatchesReference) { expect_matches_reference(); }

INSTANTIATE_TEST_SUITE_P(Cpu, AttentionSequences, on_cpu(sequence_cases()), parameter_name);
INSTANTIATE_TEST_SUITE_P(Gpu, AttentionSequences, on_gpu(sequence_cases()), parameter_name);

}  // namespace
}  // namespace fdma::test
