// Masks that list keys, FDMA_MASK_COLUMNS and FDMA_MASK_INTERVAL, forward and backward, on each device and dtype: calls
// that run on the listed keys alone, and those that expand the lists to bits.
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/attention_table.hpp"

namespace fdma::test {
namespace {

using C = AttentionCase;
using Lengths = std::vector<int64_t>;

constexpr Extent kOne = Extent::kOne, kFull = Extent::kFull, kKv = Extent::kKvHeads;
constexpr ScoreShape kKeys{kFull, kKv, kOne, kFull};

// A case with lists of a kind, by its name.
using Maker = std::function<C(const std::string&)>;

Maker maker(fdma_mask_kind kind) {
  return [kind](const std::string& name) {
    const bool columns = kind == FDMA_MASK_COLUMNS;
    C c((columns ? "columns_" : "interval_") + name);
    c.lists(kind).heads(4, 2);
    return columns ? c : c.causal();
  };
}

std::vector<C> cases_of(fdma_mask_kind kind) {
  const Maker make = maker(kind);
  std::vector<C> cases = {
      make("plain"),
      make("square").lengths(200, 200),
      make("fewer_queries").lengths(40, 300),
      make("more_queries").lengths(300, 40),
      make("one_query").lengths(1, 333),
      make("one_key").lengths(70, 1),
      make("one_score").lengths(1, 1).bias(FDMA_FLOAT32, kKeys),
      make("many_tiles").lengths(500, 700).dim(32),
      make("no_keys").lengths(5, 0),
      make("no_queries").lengths(0, 60).bias(FDMA_FLOAT32, kKeys),
      make("no_batches").batches(0),
      make("mqa").heads(4, 1),
      make("every_head").heads(3, 3),
      make("groups_of_4").heads(8, 2).lengths(150, 300).bias(FDMA_FLOAT32, kKeys),
      make("groups_of_8").heads(8, 1).lengths(99, 300).dim(128),
      make("groups_of_6").heads(6, 1).lengths(99, 300).dim(256),
      make("expanded_queries").layouts(Layout::kExpanded, Layout::kContiguous),
      make("shared_by_batches").lists(kind, kOne),
      make("shared_by_heads").lists(kind, kFull, kOne),
      make("shared_by_all").lists(kind, kOne, kOne).bias(FDMA_BFLOAT16, kKeys),
      make("misaligned").layouts(Layout::kMisaligned, Layout::kMisaligned).bias(FDMA_FLOAT16, kKeys),
      make("transposed").layouts(Layout::kHeadsFirst, Layout::kHeadsFirst),
      make("softcap").capped(1.5f).bias(FDMA_FLOAT32, kKeys),
      make("scale_negative").scaled(-0.3f),
      make("grad_lse").grad_lse().bias(FDMA_FLOAT32, kKeys),
      make("bias").bias(FDMA_FLOAT32, kKeys),
      make("bias_bfloat16").bias(FDMA_BFLOAT16, kKeys),
      make("bias_hides").bias(FDMA_FLOAT16, kKeys).hiding_bias(),
      make("bias_of_query_heads").bias(FDMA_FLOAT32, {kFull, kFull, kOne, kFull}),
      make("bias_of_batches").bias(FDMA_FLOAT32, {kFull, kOne, kOne, kFull}),
      make("bias_of_heads").bias(FDMA_FLOAT32, {kOne, kFull, kOne, kFull}).lists(kind, kOne),
      make("bias_of_heads_in_batches").bias(FDMA_FLOAT32, {kOne, kKv, kOne, kFull}),
      make("bias_of_keys").bias(FDMA_FLOAT32, {kOne, kOne, kOne, kFull}),
      make("bias_of_nothing").bias(FDMA_FLOAT32, {kOne, kOne, kOne, kOne}).grad_lse(),
      make("only_query_gradient").gradients(true, false, false, false),
      make("only_value_gradient").gradients(false, false, true, false),
      make("only_bias_gradient").bias(FDMA_FLOAT32, kKeys).gradients(false, false, false, true),
  };
  if (kind == FDMA_MASK_COLUMNS) cases.push_back(make("causal").causal().bias(FDMA_FLOAT32, kKeys));
  for (const int64_t dim : {8, 72, 128, 256}) {
    cases.push_back(make("dim_" + std::to_string(dim)).dim(dim).bias(FDMA_FLOAT32, kKeys));
  }
  return cases;
}

// Sequences of different lengths: of fewer, as many and more queries than keys, one query, one key, none of either.
C mixed(C c) { return c.sequences({70, 33, 90, 1, 20, 0, 12}, {70, 200, 40, 50, 1, 30, 0}).dim(16); }
// On, before and behind the edges of tiles.
C edges(C c) { return c.sequences({1, 63, 64, 65, 129, 300}, {300, 129, 65, 64, 63, 1}).dim(32); }

std::vector<C> sequence_cases(fdma_mask_kind kind) {
  const Maker make = maker(kind);
  const auto sequences = [&](const std::string& name) { return mixed(make("sequences_" + name)); };
  std::vector<C> cases = {
      sequences("bias").bias(FDMA_FLOAT32, kKeys),
      sequences("rows_behind").slack(9, 17).bias(FDMA_FLOAT32, kKeys),
      sequences("many_rows_behind").slack(200, 300),
      sequences("int64").wide_offsets().slack(2, 3),
      sequences("bounds_above").bounds(150, 333).bias(FDMA_FLOAT32, kKeys),
      sequences("shared_by_batches").lists(kind, kOne),
      sequences("shared_by_all").lists(kind, kOne, kOne).bias(FDMA_BFLOAT16, kKeys),
      sequences("of_query_heads").lists(kind, kFull, kFull).bias(FDMA_FLOAT32, kKeys).slack(3, 3),
      sequences("mqa").heads(5, 1),
      sequences("transposed").layouts(Layout::kHeadsFirst, Layout::kHeadsFirst),
      sequences("misaligned").layouts(Layout::kMisaligned, Layout::kMisaligned).bias(FDMA_FLOAT16, kKeys),
      sequences("softcap").capped(1.5f).bias(FDMA_FLOAT32, kKeys),
      sequences("bias_hides").bias(FDMA_FLOAT16, kKeys).hiding_bias().grad_lse(),
      sequences("only_query_gradient").gradients(true, false, false, false).slack(5, 5),
      sequences("only_key_gradient").gradients(false, true, false, false).slack(5, 5),
      sequences("only_bias_gradient").gradients(false, false, false, true).bias(FDMA_FLOAT32, kKeys),
      edges(make("sequences_edges")),
      edges(make("sequences_edges_of_query_heads")).lists(kind, kFull, kFull).bias(FDMA_FLOAT32, kKeys),
      make("sequences_one").sequences({113}, {203}),
      make("sequences_long").sequences({700, 5, 1023}, {900, 1000, 600}).heads(2, 1).dim(40),
      // More tiles of slots than a walk looks at together, of which a query tile sees a third.
      make("sequences_many_keys").sequences(Lengths(200, 2), Lengths(200, 150)).heads(2, 1).dim(16),
      make("sequences_many_short").sequences(Lengths(50, 2), Lengths(50, 3)).bias(FDMA_FLOAT32, kKeys),
      make("sequences_many_empty").sequences({0, 0, 3, 0, 0, 4, 0}, {0, 2, 0, 0, 6, 5, 0}).bias(FDMA_FLOAT32, kKeys),
      make("sequences_all_empty").sequences({0, 0}, {0, 0}).slack(7, 70),
      make("sequences_all_empty_bounds").sequences({0, 0}, {0, 0}).slack(7, 70).bounds(5, 9).bias(FDMA_FLOAT32, kKeys),
      make("sequences_without_queries").sequences({0, 0}, {20, 130}).slack(3, 3).bounds(4, 130),
      make("sequences_without_keys").sequences({20, 130}, {0, 0}).slack(3, 3).bounds(130, 4),
      make("sequences_none").sequences({}, {}).slack(7, 11),
      make("sequences_decode").sequences({1, 1, 1, 1}, {1, 64, 129, 300}).heads(8, 2).bias(FDMA_FLOAT32, kKeys),
  };
  for (const int64_t dim : {8, 128, 256}) {
    cases.push_back(sequences("dim_" + std::to_string(dim)).dim(dim).bias(FDMA_FLOAT32, kKeys));
  }
  const size_t packed = cases.size();
  for (size_t i = 0; i < packed; ++i) {
    cases.push_back(C(cases[i]).padded());
    cases.back().name += "_padded";
  }
  if (kind == FDMA_MASK_COLUMNS) {
    const size_t not_causal = cases.size();
    for (size_t i = 0; i < not_causal; ++i) {
      cases.push_back(C(cases[i]).causal());
      cases.back().name += "_causal";
    }
  }
  return cases;
}

// Each way to broadcast a bias that is the same for all queries.
std::vector<C> bias_cases(fdma_mask_kind kind) {
  const Maker make = maker(kind);
  std::vector<C> cases;
  for (const auto& [suffix, shape] : all_broadcasts()) {
    if (shape.rows != kOne) continue;
    const auto with_bias = [&, shape = shape](C c) { return c.bias(FDMA_FLOAT32, shape).grad_lse(); };
    cases.push_back(with_bias(mixed(make("bias_packed" + suffix))));
    cases.push_back(with_bias(mixed(make("bias_padded" + suffix)).padded().slack(3, 3)));
    cases.push_back(with_bias(make("bias_of_query_heads" + suffix).lists(kind, kFull, kFull).dim(16)));
    cases.push_back(with_bias(mixed(make("bias_of_packed_query_heads" + suffix)).lists(kind, kOne, kFull)));
  }
  return cases;
}

std::vector<C> query_head_cases(fdma_mask_kind kind) {
  const Maker make = maker(kind);
  const auto of_heads = [&](const std::string& name) {
    return make("of_query_heads" + name).lists(kind, kFull, kFull);
  };
  return {
      of_heads(""),
      of_heads("_causal").causal().bias(FDMA_FLOAT32, kKeys),
      of_heads("_shared_by_batches").lists(kind, kOne, kFull),
      of_heads("_mqa").heads(5, 1),
      of_heads("_many_tiles").lengths(500, 700).dim(32).heads(6, 2),
      of_heads("_fewer_queries").lengths(40, 300).bias(FDMA_BFLOAT16, kKeys),
      of_heads("_more_queries").lengths(300, 40).bias(FDMA_BFLOAT16, kKeys),
      of_heads("_one_query").lengths(1, 333).bias(FDMA_FLOAT32, kKeys),
      of_heads("_misaligned").layouts(Layout::kMisaligned, Layout::kMisaligned),
      of_heads("_softcap").capped(1.5f).bias(FDMA_FLOAT32, kKeys),
      of_heads("_dim_128").dim(128).bias(FDMA_FLOAT32, kKeys),
      of_heads("_dim_256").dim(256).bias(FDMA_FLOAT32, kKeys),
      of_heads("_only_key_gradient").gradients(false, true, false, false),
      of_heads("_only_bias_gradient").gradients(false, false, false, true).bias(FDMA_FLOAT32, kKeys),
  };
}

std::vector<C> expanded_cases(fdma_mask_kind kind) {
  const Maker make = maker(kind);
  std::vector<C> cases = {
      make("dense_bias").bias(FDMA_FLOAT32),
      make("dense_bias_of_query_heads").bias(FDMA_FLOAT32).lists(kind, kFull, kFull),
      mixed(make("dense_bias_packed")).bias(FDMA_FLOAT32).slack(3, 3),
      mixed(make("dense_bias_padded")).bias(FDMA_FLOAT32).padded().lists(kind, kOne),
      mixed(make("paged")).pages(16).bias(FDMA_FLOAT32, kKeys),
      mixed(make("paged_shared")).pages(48).lists(kind, kOne, kFull),
  };
  if (kind == FDMA_MASK_COLUMNS) cases.push_back(make("causal_dense_bias").causal().bias(FDMA_FLOAT32));
  return cases;
}

std::vector<C> all_cases() {
  std::vector<C> all;
  for (const fdma_mask_kind kind : {FDMA_MASK_INTERVAL, FDMA_MASK_COLUMNS}) {
    for (const auto& make : {cases_of, sequence_cases, bias_cases, query_head_cases, expanded_cases}) {
      for (const C& c : make(kind)) all.push_back(c);
    }
  }
  return all;
}

class AttentionKeyLists : public AttentionTable {};

TEST_P(AttentionKeyLists, MatchesReference) { expect_matches_reference(); }

INSTANTIATE_TEST_SUITE_P(Cpu, AttentionKeyLists, on_cpu(all_cases()), parameter_name);
INSTANTIATE_TEST_SUITE_P(Gpu, AttentionKeyLists, on_gpu(all_cases()), parameter_name);

}  // namespace
}  // namespace fdma::test
