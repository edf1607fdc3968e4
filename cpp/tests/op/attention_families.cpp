// Kernels that the GPU at hand would not take by itself: the portable ones, and of these the tiles for GPUs that give a
// block 99 KB of shared memory (sm_86, sm_89, sm_120). And calls as Hopper's own kernels take them, in both modes of
// backward.
#include <gtest/gtest.h>

#include <tuple>
#include <vector>

#include "host/backend.hpp"
#include "tests/support/attention_case.hpp"

#if defined(FDMA_WITH_CUDA)

namespace fdma::test {
namespace {

constexpr Extent kOne = Extent::kOne, kFull = Extent::kFull, kKv = Extent::kKvHeads;

std::vector<AttentionCase> cases() {
  using C = AttentionCase;
  std::vector<C> all;
  for (int64_t dim : {64, 72, 128, 160, 256}) {
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
    all.push_back(C("interval" + suffix)
                      .dim(dim)
                      .heads(4, 2)
                      .lengths(190, 300)
                      .lists(FDMA_MASK_INTERVAL)
                      .bias(FDMA_BFLOAT16, {kFull, kKv, kOne, kFull}));
    all.push_back(C("blocks" + suffix).dim(dim).mask(FDMA_BOOL, {}, MaskPattern::kBlocks).lengths(300, 500).causal());
  }
  return all;
}

// What Hopper's own backward serves: rows of a bias start at multiples of 16 bytes. Head dims of its kernel of 64 keys,
// whose warpgroups share them, beside one of those with 128.
std::vector<AttentionCase> aligned_cases() {
  using C = AttentionCase;
  const ScoreShape keys_only = {kFull, kKv, kOne, kFull};
  std::vector<AttentionCase> all;
  for (int64_t dim : {128, 136, 200, 256}) {
    const auto make = [&](const char* name) {
      return C(name + ("_dim_" + std::to_string(dim))).dim(dim).lengths(200, 328).heads(4, 2);
    };
    all.push_back(make("plain"));
    all.push_back(make("causal").causal().grad_lse());
    all.push_back(make("long_queries").lengths(1300, 300).batches(1).heads(2, 1));
    all.push_back(make("mask").mask(FDMA_BOOL));
    all.push_back(
        make("blocks").mask(FDMA_BOOL, {}, MaskPattern::kBlocks).lengths(300, 1500).batches(1).heads(2, 1).causal());
    all.push_back(make("bias").bias(FDMA_BFLOAT16));
    all.push_back(make("bias_hides").bias(FDMA_BFLOAT16).hiding_bias().causal());
    all.push_back(make("shared_bias").bias(FDMA_BFLOAT16, {kOne, kKv, kFull, kFull}));
    all.push_back(make("full").causal().mask(FDMA_BOOL).bias(FDMA_BFLOAT16));
    all.push_back(make("full_blocks").mask(FDMA_BOOL, {}, MaskPattern::kBlocks).bias(FDMA_BFLOAT16).lengths(300, 504));
    all.push_back(make("interval").lists(FDMA_MASK_INTERVAL).bias(FDMA_BFLOAT16, keys_only));
    all.push_back(make("columns").lists(FDMA_MASK_COLUMNS).bias(FDMA_FLOAT32, keys_only).causal());
    all.push_back(make("interval_without_bias").lists(FDMA_MASK_INTERVAL));
    all.push_back(make("softcap").capped(3.0f).causal());
    all.push_back(make("softcap_long_queries").capped(1.5f).lengths(1300, 300).batches(1).heads(2, 1));
    all.push_back(make("softcap_mask").capped(1.5f).mask(FDMA_BOOL).grad_lse());
    all.push_back(make("softcap_interval").capped(1.5f).lists(FDMA_MASK_INTERVAL).bias(FDMA_BFLOAT16, keys_only));
    all.push_back(make("softcap_columns").capped(3.0f).lists(FDMA_MASK_COLUMNS).causal());
    all.push_back(make("only_query_gradient").bias(FDMA_BFLOAT16).gradients(true, false, false, false));
    all.push_back(make("without_query_gradient").bias(FDMA_BFLOAT16).gradients(false, true, true, true));
    const auto sequences = [&](const char* name) {
      return make(name).sequences({70, 33, 90, 1, 12, 129}, {70, 104, 40, 50, 0, 64}).slack(5, 6);
    };
    all.push_back(sequences("sequences"));
    all.push_back(sequences("sequences_softcap").capped(1.5f).causal());
    all.push_back(sequences("sequences_padded").padded().causal());
    all.push_back(sequences("sequences_full").causal().mask(FDMA_BOOL).bias(FDMA_BFLOAT16));
    all.push_back(sequences("sequences_interval").lists(FDMA_MASK_INTERVAL).bias(FDMA_BFLOAT16, keys_only));
  }
  return all;
}

// For the calls of this thread, in a scope.
class UseKernels {
 public:
  explicit UseKernels(cuda::KernelFamily family) { cuda::kernel_family = family; }
  ~UseKernels() { cuda::kernel_family = cuda::KernelFamily::kBest; }
  UseKernels(const UseKernels&) = delete;
  UseKernels& operator=(const UseKernels&) = delete;
};

using Parameter = std::tuple<AttentionCase, cuda::KernelFamily, bool>;

class KernelFamiliesGpu : public testing::TestWithParam<Parameter> {};

TEST_P(KernelFamiliesGpu, MatchReference) {
  const auto& [c, family, deterministic] = GetParam();
  const fdma_device device = {FDMA_DEVICE_CUDA, 0};
  const std::string reason = unavailable_reason(device);
  if (!reason.empty()) GTEST_SKIP() << reason;

  const UseKernels scope(family);
  AttentionCall call(c, FDMA_BFLOAT16, device);
  call.forward();
  call.download();
  call.expect_forward_matches();
  call.backward(deterministic);
  call.download();
  call.expect_backward_matches();
  call.expect_surroundings_untouched();
}

std::string family_name(const testing::TestParamInfo<Parameter>& info) {
  const auto& [c, family, deterministic] = info.param;
  const char* name = family == cuda::KernelFamily::kPortable     ? "_portable"
                     : family == cuda::KernelFamily::kSmallTiles ? "_small_tiles"
                                                                 : "_hopper";
  return c.name + name + (deterministic ? "_deterministic" : "");
}

INSTANTIATE_TEST_SUITE_P(
    Attention, KernelFamiliesGpu,
    testing::Combine(testing::ValuesIn(cases()),
                     testing::Values(cuda::KernelFamily::kPortable, cuda::KernelFamily::kSmallTiles), testing::Bool()),
    family_name);
INSTANTIATE_TEST_SUITE_P(Aligned, KernelFamiliesGpu,
                         testing::Combine(testing::ValuesIn(aligned_cases()),
                                          testing::Values(cuda::KernelFamily::kBest), testing::Bool()),
                         family_name);

}  // namespace
}  // namespace fdma::test

#endif
