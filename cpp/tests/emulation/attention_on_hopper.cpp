// Attention by Hopper's kernels on the emulation, against the float64 reference: each call with everything asynchronous
// as early as it may be, with late copies, with late products and in a random order. Shapes of few tiles: walks, masks,
// rings and barriers are what is tested.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "tests/emulation/machine/emulator.hpp"
#include "tests/support/attention_case.hpp"

namespace fdma::test {
namespace {

using emulation::Timing;

using Lengths = std::vector<int64_t>;

constexpr Extent kOne = Extent::kOne, kFull = Extent::kFull, kKv = Extent::kKvHeads;

// Rows of a bias start at multiples of 16 bytes: other lengths of keys go to the portable kernels.
std::vector<AttentionCase> backward_cases() {
  using C = AttentionCase;
  const ScoreShape keys_only = {kFull, kKv, kOne, kFull};
  std::vector<AttentionCase> all;
  for (int64_t dim : {64, 128, 256}) {
    const auto make = [&](const char* name) {
      return C(name + ("_dim_" + std::to_string(dim))).dim(dim).batches(1).heads(2, 1).lengths(140, 168);
    };
    all.push_back(make("plain").lengths(133, 155));
    all.push_back(make("causal").lengths(90, 203).causal().grad_lse());
    all.push_back(make("long_queries").lengths(203, 90).causal());
    all.push_back(make("mask").mask(FDMA_BOOL));
    all.push_back(make("blocks").mask(FDMA_BOOL, {}, MaskPattern::kBlocks).lengths(140, 328).causal());
    all.push_back(make("bias").bias(FDMA_BFLOAT16));
    all.push_back(make("full").causal().mask(FDMA_BOOL).bias(FDMA_BFLOAT16));
    all.push_back(make("interval").lists(FDMA_MASK_INTERVAL).bias(FDMA_BFLOAT16, keys_only));
    all.push_back(make("columns").lists(FDMA_MASK_COLUMNS).bias(FDMA_FLOAT32, keys_only).causal());
    all.push_back(make("softcap").capped(3.0f).causal());
    all.push_back(make("softcap_mask").capped(1.5f).mask(FDMA_BOOL).grad_lse());
    all.push_back(make("softcap_interval").capped(1.5f).lists(FDMA_MASK_INTERVAL).bias(FDMA_BFLOAT16, keys_only));
    all.push_back(make("softcap_columns").capped(3.0f).lists(FDMA_MASK_COLUMNS));
    const auto sequences = [&](const char* name) {
      return make(name).sequences({70, 0, 33, 129}, {72, 40, 0, 64}).slack(5, 6);
    };
    all.push_back(sequences("sequences"));
    all.push_back(sequences("sequences_full").causal().mask(FDMA_BOOL).bias(FDMA_BFLOAT16));
    // Many rounds of the rings for one tile.
    all.push_back(make("long_walks").heads(1, 1).sequences({40, 900}, {900, 40}));
    // Long walks of few tiles: the last are cut in parts, of keys forward and of queries backward.
    all.push_back(make("tails_forward").heads(1, 1).lengths(100, dim == 256 ? 500 : 1000));
    all.push_back(make("tails_backward").heads(1, 1).lengths(dim == 64 ? 1000 : 500, dim == 256 ? 100 : 200));
  }
  // Slots of many sequences: walks pass over whole regions of them.
  all.push_back(
      C("regions_dim_64").dim(64).heads(1, 1).lists(FDMA_MASK_COLUMNS).sequences(Lengths(200, 2), Lengths(200, 150)));
  return all;
}

std::vector<AttentionCase> forward_cases() {
  using C = AttentionCase;
  std::vector<AttentionCase> all;
  for (int64_t dim : {64, 128, 256}) {
    const auto make = [&](const char* name) {
      return C(name + ("_dim_" + std::to_string(dim)))
          .dim(dim)
          .batches(1)
          .heads(2, 1)
          .lengths(140, 200)
          .gradients(false, false, false, false);
    };
    all.push_back(make("softcap_full").capped(3.0f).mask(FDMA_BOOL).bias(FDMA_BFLOAT16));
    // More query tiles than multiprocessors: blocks take them from the queue.
    all.push_back(make("queue").heads(4, 4).lengths(400, 130).causal());
  }
  return all;
}

// Launches whose name has all of these in it.
int64_t count(const std::vector<std::string>& launches, const std::string& kernel, const std::string& traits) {
  return std::count_if(launches.begin(), launches.end(), [&](const std::string& name) {
    return name.find(kernel) != std::string::npos && name.find(traits) != std::string::npos;
  });
}

bool starts_with(const std::string& name, const std::string& part) { return name.rfind(part, 0) == 0; }

std::string list(const std::vector<std::string>& launches) {
  std::string all;
  for (const std::string& name : launches) all += "\n  " + name;
  return all;
}

const auto kAllTimings = testing::Values(Timing::kEarly, Timing::kLateCopies, Timing::kLateProducts, Timing::kRandom);

using Parameter = std::tuple<AttentionCase, Timing, bool>;

class Emulated : public testing::TestWithParam<Parameter> {
 protected:
  void SetUp() override {
    emulation::set_timing(std::get<Timing>(GetParam()), seed());
    emulation::take_launches();
  }
  void TearDown() override { emulation::set_timing(Timing::kEarly); }
  // Another one for each test, the same each time; others with --gtest_shuffle --gtest_random_seed=N.
  static unsigned seed() {
    const testing::UnitTest& all = *testing::UnitTest::GetInstance();
    auto seed = static_cast<unsigned>(all.random_seed());
    for (const char* c = all.current_test_info()->name(); *c != 0; ++c)
      seed = seed * 31 + static_cast<unsigned char>(*c);
    return seed;
  }
};

TEST_P(Emulated, MatchesReference) {
  const auto& [c, timing, deterministic] = GetParam();
  const std::string of_dim = "<__nv_bfloat16, " + std::to_string(c.head_dim) + ",";
  AttentionCall call(c, FDMA_BFLOAT16, {FDMA_DEVICE_CUDA, 0});
  call.forward();
  std::vector<std::string> launches = emulation::take_launches();
  EXPECT_EQ(count(launches, "sm90::forward_kernel<", of_dim), 1) << list(launches);
  EXPECT_EQ(count(launches, "combine_splits_kernel", ""), starts_with(c.name, "tails_forward")) << list(launches);
  call.download();
  call.expect_forward_matches();
  if (c.has_gradients()) {
    call.backward(deterministic);
    launches = emulation::take_launches();
    EXPECT_EQ(count(launches, "sm90::backward_kernel<", of_dim), 1) << list(launches);
    EXPECT_EQ(count(launches, "combine_gradients_kernel", ""), starts_with(c.name, "tails_backward") && !deterministic)
        << list(launches);
    call.download();
    call.expect_backward_matches();
  }
  call.expect_surroundings_untouched();
}

std::string parameter_name(const testing::TestParamInfo<Parameter>& info) {
  constexpr const char* kTimings[] = {"_early", "_late_copies", "_late_products", "_random"};
  const auto& [c, timing, deterministic] = info.param;
  return c.name + (deterministic ? "_deterministic" : "") + kTimings[static_cast<int>(timing)];
}

INSTANTIATE_TEST_SUITE_P(Backward, Emulated,
                         testing::Combine(testing::ValuesIn(backward_cases()), kAllTimings, testing::Bool()),
                         parameter_name);
INSTANTIATE_TEST_SUITE_P(Forward, Emulated,
                         testing::Combine(testing::ValuesIn(forward_cases()), kAllTimings, testing::Values(false)),
                         parameter_name);

}  // namespace
}  // namespace fdma::test
