// Kernels that the GPU at hand would not take by itself: the portable ones, and of these the tiles for GPUs that give a
// block 99 KB of shared memory (sm_86, sm_89, sm_120).
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
  const char* name = family == cuda::KernelFamily::kPortable ? "_portable" : "_small_tiles";
  return c.name + name + (deterministic ? "_deterministic" : "");
}

INSTANTIATE_TEST_SUITE_P(
    Attention, KernelFamiliesGpu,
    testing::Combine(testing::ValuesIn(cases()),
                     testing::Values(cuda::KernelFamily::kPortable, cuda::KernelFamily::kSmallTiles), testing::Bool()),
    family_name);

}  // namespace
}  // namespace fdma::test

#endif
