// Backward with the tiles for GPUs that give a block 99 KB of shared memory (sm_86, sm_89, sm_120), on any GPU.
#include <gtest/gtest.h>

#include <tuple>
#include <vector>

#include "tests/support/attention_case.hpp"

#if defined(FDMA_WITH_CUDA)

namespace fdma::test {
namespace {

constexpr Extent kOne = Extent::kOne, kFull = Extent::kFull, kKv = Extent::kKvHeads;

std::vector<AttentionCase> cases() {
  using C = AttentionCase;
  std::vector<C> all;
  for (int64_t dim : {72, 128, 160, 256}) {  // smaller head dims have one tile for all GPUs
    const std::string suffix = "_dim_" + std::to_string(dim);
    all.push_back(C("plain" + suffix).dim(dim));
    all.push_back(C("full" + suffix).dim(dim).heads(4, 2).causal().mask(FDMA_BOOL).bias(FDMA_BFLOAT16));
    all.push_back(C("float_bias" + suffix).dim(dim).bias(FDMA_FLOAT32).capped(3.0f));
    all.push_back(C("key_bias" + suffix).dim(dim).heads(4, 2).causal().bias(FDMA_BFLOAT16, {kFull, kKv, kOne, kFull}));
    all.push_back(C("shared_bias" + suffix).dim(dim).bias(FDMA_FLOAT16, {kOne, kOne, kFull, kFull}));
    all.push_back(C("sequences" + suffix).dim(dim).sequences({1, 63, 0, 65, 129}, {129, 65, 64, 63, 0}).slack(5, 6));
    all.push_back(C("sequences_full" + suffix)
                      .dim(dim)
                      .sequences({70, 33, 90, 1, 12}, {70, 100, 40, 50, 0})
                      .heads(4, 2)
                      .causal()
                      .mask(FDMA_BOOL)
                      .bias(FDMA_BFLOAT16));
    all.push_back(C("blocks" + suffix).dim(dim).mask(FDMA_BOOL, {}, MaskPattern::kBlocks).lengths(300, 500).causal());
  }
  return all;
}

using Parameter = std::tuple<AttentionCase, bool>;

class SmallTilesGpu : public testing::TestWithParam<Parameter> {};

TEST_P(SmallTilesGpu, MatchReference) {
  const auto& [c, deterministic] = GetParam();
  const fdma_device device = {FDMA_DEVICE_CUDA, 0};
  const std::string reason = unavailable_reason(device);
  if (!reason.empty()) GTEST_SKIP() << reason;

  AttentionCall call(c, FDMA_BFLOAT16, device);
  call.forward();
  call.backward_in_small_tiles(deterministic);
  call.download();
  call.expect_backward_matches();
  call.expect_surroundings_untouched();
}

INSTANTIATE_TEST_SUITE_P(Backward, SmallTilesGpu, testing::Combine(testing::ValuesIn(cases()), testing::Bool()),
                         [](const testing::TestParamInfo<Parameter>& info) {
                           return std::get<0>(info.param).name + (std::get<1>(info.param) ? "_deterministic" : "");
                         });

}  // namespace
}  // namespace fdma::test

#endif
