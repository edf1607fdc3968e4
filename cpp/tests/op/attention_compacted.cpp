// Dense and packed masks whose keys are put into an order of their own, forward and backward, on each device and dtype:
// masks for which it pays and masks for which it does not.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/attention_table.hpp"

namespace fdma::test {
namespace {

using C = AttentionCase;

constexpr Extent kOne = Extent::kOne, kFull = Extent::kFull, kKv = Extent::kKvHeads;
constexpr ScoreShape kMask{kFull, kKv, kFull, kFull}, kBias{kFull, kKv, kOne, kFull};

C make(const std::string& name, MaskPattern pattern = MaskPattern::kSpans, ScoreShape shape = kMask) {
  return C(name).heads(4, 2).lengths(300, 500).mask(FDMA_BOOL, shape, pattern).bits().compacted();
}

std::vector<C> small_cases() {
  const MaskPattern spans = MaskPattern::kSpans;
  std::vector<C> cases = {
      make("plain"),
      make("square").lengths(400, 400),
      make("more_queries").lengths(500, 130),
      make("causal").lengths(400, 400).causal(),
      make("causal_fewer_queries").causal(),
      make("causal_more_queries").lengths(500, 300).causal(),
      make("many_query_tiles").lengths(2200, 90).dim(16),
      make("one_query").lengths(1, 300),
      make("one_key").lengths(70, 1),
      make("one_score").lengths(1, 1).bias(FDMA_FLOAT32, kBias),
      make("no_keys").lengths(5, 0),
      make("no_batches").batches(0),
      make("dense_for_backward").bias(FDMA_FLOAT32, kBias),
      make("mqa").heads(4, 1),
      make("every_head", spans, {kFull, kFull, kFull, kFull}).heads(3, 3),
      make("of_query_heads", spans, {kFull, kFull, kFull, kFull}),  // runs in the natural order
      make("shared_by_batches", spans, {kOne, kKv, kFull, kFull}),
      make("shared_by_heads", spans, {kFull, kOne, kFull, kFull}).bias(FDMA_FLOAT32, kBias),
      make("shared_by_all", spans, {kOne, kOne, kFull, kFull}).bias(FDMA_BFLOAT16, kBias),
      make("misaligned").layouts(Layout::kMisaligned, Layout::kMisaligned).bias(FDMA_FLOAT16, kBias),
      make("transposed").layouts(Layout::kHeadsFirst, Layout::kHeadsFirst),
      make("softcap").capped(1.5f).bias(FDMA_FLOAT32, kBias),
      make("grad_lse").grad_lse().bias(FDMA_FLOAT32, kBias),
      make("bias_hides").bias(FDMA_FLOAT16, kBias).hiding_bias(),
      make("bias_of_query_heads").bias(FDMA_FLOAT32, {kFull, kFull, kOne, kFull}),
      make("bias_of_batches").bias(FDMA_FLOAT32, {kFull, kOne, kOne, kFull}),
      make("bias_of_heads").bias(FDMA_BFLOAT16, {kOne, kFull, kOne, kFull}),
      make("bias_of_keys").bias(FDMA_FLOAT32, {kOne, kOne, kOne, kFull}),
      make("bias_of_nothing").bias(FDMA_FLOAT32, {kOne, kOne, kOne, kOne}).grad_lse(),
      make("bias_of_queries").bias(FDMA_FLOAT32, {kFull, kKv, kFull, kOne}),  // natural order
      make("dense_bias").bias(FDMA_FLOAT32),                                  // natural order
      make("only_query_gradient").gradients(true, false, false, false),
      make("only_value_gradient").gradients(false, false, true, false),
      make("only_bias_gradient").bias(FDMA_FLOAT32, kBias).gradients(false, false, false, true),
      make("top_keys", MaskPattern::kTopKeys).lengths(450, 450).bias(FDMA_FLOAT32, kBias),
      make("top_keys_causal", MaskPattern::kTopKeys).lengths(450, 450).causal().bias(FDMA_FLOAT32, kBias),
      // Nothing to gain.
      make("random", MaskPattern::kRandom).bias(FDMA_FLOAT32, kBias),
      make("random_causal", MaskPattern::kRandom).causal(),
      make("everything", MaskPattern::kEverything),
      make("everything_causal", MaskPattern::kEverything).causal().bias(FDMA_FLOAT32, kBias),
      make("band", MaskPattern::kBand),
      make("blocks", MaskPattern::kBlocks).bias(FDMA_FLOAT32, kBias),
      make("nothing", MaskPattern::kNothing).bias(FDMA_FLOAT32, kBias),
  };
  for (C& c : cases) c.keep_bits = c.name != "dense_for_backward" && c.name != "causal";
  for (const int64_t dim : {8, 72, 128, 256}) {
    cases.push_back(make("dim_" + std::to_string(dim)).dim(dim).bias(FDMA_FLOAT32, kBias));
  }
  for (const fdma_dtype dtype : {FDMA_INT8, FDMA_FLOAT16, FDMA_FLOAT32, FDMA_INT64}) {
    cases.push_back(make("mask_" + std::to_string(dtype)));
    cases.back().mask_dtype = dtype;
  }
  return cases;
}

// By the rule for sizes; on CUDA they are too little work, and asked for.
std::vector<C> long_cases(Compaction when) {
  const auto make_long = [&](const char* name, MaskPattern pattern, int64_t length) {
    C c(name);
    c.batches(1).heads(2, 1).dim(16).lengths(length, length);
    return c.mask(FDMA_BOOL, kMask, pattern).bits().compacted(when);
  };
  return {
      make_long("long_top_keys", MaskPattern::kTopKeys, 2100).causal().bias(FDMA_FLOAT32, kBias),
      make_long("long_spans", MaskPattern::kSpans, 2048).lengths(600, 2300),
      make_long("long_random", MaskPattern::kRandom, 2050).lengths(513, 2050),
      make_long("long_keys", MaskPattern::kSpans, 2048).lengths(70, 17000),
      make_long("longer_keys", MaskPattern::kTopKeys, 2048).lengths(70, 66000).dim(8),
  };
}

class AttentionCompacted : public AttentionTable {};

TEST_P(AttentionCompacted, MatchesReference) { expect_matches_reference(); }

INSTANTIATE_TEST_SUITE_P(Cpu, AttentionCompacted, on_cpu(small_cases()), parameter_name);
INSTANTIATE_TEST_SUITE_P(Gpu, AttentionCompacted, on_gpu(small_cases()), parameter_name);
INSTANTIATE_TEST_SUITE_P(LongCpu, AttentionCompacted, on_cpu(long_cases(Compaction::kBySize)), parameter_name);
INSTANTIATE_TEST_SUITE_P(LongGpu, AttentionCompacted, on_gpu(long_cases(Compaction::kAnySize)), parameter_name);

// Both are held to the reference.
std::vector<unsigned char> outputs_of(C c, Compaction when, fdma_dtype dtype, fdma_device device) {
  AttentionCall call(c.compacted(when), dtype, device);
  call.forward();
  call.backward();
  std::vector<unsigned char> bytes = call.output_bytes();
  call.expect_forward_matches();
  call.expect_backward_matches();
  return bytes;
}

std::vector<C> choice_cases() {
  const MaskPattern top_keys = MaskPattern::kTopKeys;
  return {
      make("spans").bias(FDMA_FLOAT32, kBias).grad_lse(),
      make("spans_mqa").heads(4, 1).bias(FDMA_FLOAT16, kBias).capped(1.5f),
      make("spans_shared", MaskPattern::kSpans, {kOne, kOne, kFull, kFull}).dim(128).bias(FDMA_FLOAT32, kBias),
      make("top_keys", top_keys).lengths(900, 900).dim(16).causal().bias(FDMA_FLOAT32, kBias),
  };
}

// The same problem with keys in their natural order and in one of their own.
class CompactionChoice : public AttentionTable {};

TEST_P(CompactionChoice, ChangesRoundingAlone) {
  const auto& [c, dtype, device_type] = GetParam();
  const fdma_device device{device_type, 0};
  const std::vector<unsigned char> natural = outputs_of(c, Compaction::kNever, dtype, device);
  const std::vector<unsigned char> ordered = outputs_of(c, Compaction::kAnySize, dtype, device);
  EXPECT_TRUE(natural != ordered) << "keys were not put into another order";
}

INSTANTIATE_TEST_SUITE_P(Cpu, CompactionChoice, on_cpu(choice_cases()), parameter_name);
INSTANTIATE_TEST_SUITE_P(Gpu, CompactionChoice, on_gpu(choice_cases()), parameter_name);

}  // namespace
}  // namespace fdma::test
