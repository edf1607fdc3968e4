// Masks that list keys, FDMA_MASK_COLUMNS and FDMA_MASK_INTERVAL, forward and backward, on each device and dtype: calls
// that run on the listed keys alone, and those that expand the lists to bits.
#include <string>
#include <vector>

#include "tests/support/attention_table.hpp"

namespace fdma::test {
namespace {

using C = AttentionCase;

constexpr Extent kOne = Extent::kOne, kFull = Extent::kFull, kKv = Extent::kKvHeads;

std::vector<C> cases_of(fdma_mask_kind kind) {
  const ScoreShape keys{kFull, kKv, kOne, kFull};
  const bool columns = kind == FDMA_MASK_COLUMNS;
  const auto make = [&](const char* name) {
    C c(std::string(columns ? "columns_" : "interval_") + name);
    c.lists(kind).heads(4, 2);
    return columns ? c : c.causal();
  };
  std::vector<C> cases = {
      make("plain"),
      make("square").lengths(200, 200),
      make("fewer_queries").lengths(40, 300),
      make("more_queries").lengths(300, 40),
      make("one_query").lengths(1, 333),
      make("one_key").lengths(70, 1),
      make("one_score").lengths(1, 1).bias(FDMA_FLOAT32, keys),
      make("many_tiles").lengths(500, 700).dim(32),
      make("no_keys").lengths(5, 0),
      make("no_queries").lengths(0, 60).bias(FDMA_FLOAT32, keys),
      make("no_batches").batches(0),
      make("mqa").heads(4, 1),
      make("every_head").heads(3, 3),
      make("groups_of_4").heads(8, 2).lengths(150, 300).bias(FDMA_FLOAT32, keys),
      make("groups_of_8").heads(8, 1).lengths(99, 300).dim(128),
      make("groups_of_6").heads(6, 1).lengths(99, 300).dim(256),
      make("expanded_queries").layouts(Layout::kExpanded, Layout::kContiguous),
      make("shared_by_batches").lists(kind, kOne),
      make("shared_by_heads").lists(kind, kFull, kOne),
      make("shared_by_all").lists(kind, kOne, kOne).bias(FDMA_BFLOAT16, keys),
      make("misaligned").layouts(Layout::kMisaligned, Layout::kMisaligned).bias(FDMA_FLOAT16, keys),
      make("transposed").layouts(Layout::kHeadsFirst, Layout::kHeadsFirst),
      make("softcap").capped(1.5f).bias(FDMA_FLOAT32, keys),
      make("scale_negative").scaled(-0.3f),
      make("grad_lse").grad_lse().bias(FDMA_FLOAT32, keys),
      make("bias").bias(FDMA_FLOAT32, keys),
      make("bias_bfloat16").bias(FDMA_BFLOAT16, keys),
      make("bias_hides").bias(FDMA_FLOAT16, keys).hiding_bias(),
      make("bias_of_query_heads").bias(FDMA_FLOAT32, {kFull, kFull, kOne, kFull}),
      make("bias_of_batches").bias(FDMA_FLOAT32, {kFull, kOne, kOne, kFull}),
      make("bias_of_heads").bias(FDMA_FLOAT32, {kOne, kFull, kOne, kFull}).lists(kind, kOne),
      make("bias_of_heads_in_batches").bias(FDMA_FLOAT32, {kOne, kKv, kOne, kFull}),
      make("bias_of_keys").bias(FDMA_FLOAT32, {kOne, kOne, kOne, kFull}),
      make("bias_of_nothing").bias(FDMA_FLOAT32, {kOne, kOne, kOne, kOne}).grad_lse(),
      make("only_query_gradient").gradients(true, false, false, false),
      make("only_value_gradient").gradients(false, false, true, false),
      make("only_bias_gradient").bias(FDMA_FLOAT32, keys).gradients(false, false, false, true),
      // Expanded to bits.
      make("of_query_heads").lists(kind, kFull, kFull),
      make("dense_bias").bias(FDMA_FLOAT32),
      make("sequences").sequences({70, 33, 90, 1, 20, 0, 12}, {70, 200, 40, 50, 1, 30, 0}).bias(FDMA_FLOAT32, keys),
      make("sequences_shared").sequences({70, 33, 90}, {70, 200, 40}).lists(kind, kOne).padded(),
  };
  if (columns) {
    cases.push_back(make("causal").causal().bias(FDMA_FLOAT32, keys));
    cases.push_back(make("causal_dense_bias").causal().bias(FDMA_FLOAT32));
    cases.push_back(make("causal_sequences").causal().sequences({70, 33, 90}, {70, 200, 40}));
  }
  for (const int64_t dim : {8, 72, 128, 256}) {
    cases.push_back(make("dim").dim(dim).bias(FDMA_FLOAT32, keys));
    cases.back().name += "_" + std::to_string(dim);
  }
  return cases;
}

std::vector<C> all_cases() {
  std::vector<C> all = cases_of(FDMA_MASK_INTERVAL);
  for (const C& c : cases_of(FDMA_MASK_COLUMNS)) all.push_back(c);
  return all;
}

class AttentionKeyLists : public AttentionTable {};

TEST_P(AttentionKeyLists, MatchesReference) { expect_matches_reference(); }

INSTANTIATE_TEST_SUITE_P(Cpu, AttentionKeyLists, on_cpu(all_cases()), parameter_name);
INSTANTIATE_TEST_SUITE_P(Gpu, AttentionKeyLists, on_gpu(all_cases()), parameter_name);

}  // namespace
}  // namespace fdma::test
