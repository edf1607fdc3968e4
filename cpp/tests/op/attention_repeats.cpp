// The same call again: bit for bit the same results, from any number of threads, at the same time as others.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/support/attention_case.hpp"

namespace fdma::test {
namespace {

constexpr Extent kOne = Extent::kOne, kFull = Extent::kFull, kKv = Extent::kKvHeads;

AttentionCase busy_case() {
  return AttentionCase("busy").lengths(200, 333).heads(4, 2).causal().mask(FDMA_BOOL).bias(FDMA_FLOAT32,
                                                                                           {kFull, kKv, kOne, kFull});
}

AttentionCase busy_sequences() {
  return AttentionCase("busy_sequences")
      .sequences({70, 0, 129, 1, 64}, {150, 20, 129, 65, 40})
      .slack(5, 6)
      .heads(4, 2)
      .causal()
      .mask(FDMA_BOOL)
      .bias(FDMA_FLOAT32, {kFull, kKv, kOne, kFull})
      .grad_lse();
}

AttentionCase busy_lists(fdma_mask_kind kind) {
  AttentionCase c = busy_sequences();
  c.name = "busy_lists";
  return c.lists(kind, kFull, kFull);
}

void expect_repeatable(const AttentionCase& c, fdma_dtype dtype, fdma_device device, int repeats) {
  AttentionCall call(c, dtype, device);
  call.forward();
  call.backward();
  const std::vector<unsigned char> first = call.output_bytes();
  for (int i = 0; i < repeats; ++i) {
    call.refill();
    call.forward();
    call.backward();
    ASSERT_TRUE(first == call.output_bytes()) << "repeat " << i;
  }
}

TEST(AttentionRepeats, HundredTimesTheSameBits) { expect_repeatable(busy_case(), FDMA_FLOAT32, kCpu, 100); }

TEST(AttentionRepeats, HundredTimesTheSameBitsOfSequences) {
  expect_repeatable(busy_sequences(), FDMA_FLOAT32, kCpu, 100);
}

TEST(AttentionRepeatsGpu, HundredTimesTheSameBitsOfKeyLists) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  for (const fdma_mask_kind kind : {FDMA_MASK_INTERVAL, FDMA_MASK_COLUMNS}) {
    expect_repeatable(busy_lists(kind), FDMA_BFLOAT16, kCuda, 100);
    expect_repeatable(busy_lists(kind).padded(), FDMA_FLOAT16, kCuda, 100);
  }
}

TEST(AttentionRepeatsGpu, HundredTimesTheSameBitsOfSequences) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  for (const Extent rows : {kOne, kFull}) {
    AttentionCase c = busy_sequences();
    c.bias_shape.rows = rows;
    expect_repeatable(c, FDMA_BFLOAT16, kCuda, 100);
    expect_repeatable(c.padded(), FDMA_FLOAT16, kCuda, 100);
  }
}

TEST(AttentionRepeatsGpu, HundredTimesTheSameBits) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  expect_repeatable(busy_case(), FDMA_BFLOAT16, kCuda, 100);
}

// The cases that Hopper has kernels for: blocks add to dQ by the copy engine, in an order of their own making.
class ThousandTimesGpu : public testing::TestWithParam<AttentionCase> {};

TEST_P(ThousandTimesGpu, TheSameBits) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  expect_repeatable(GetParam(), FDMA_BFLOAT16, kCuda, 1000);
}

std::vector<AttentionCase> thousand_cases() {
  using C = AttentionCase;
  const auto base = [](const char* name) { return C(name).batches(1).lengths(200, 328).heads(4, 2); };
  return {base("plain").dim(128).causal(),
          base("dim_64").causal(),
          base("dim_256").dim(256).causal(),
          base("softcap").dim(128).causal().capped(1.5f),
          base("softcap_dim_256").dim(256).capped(1.5f),
          base("full").dim(128).mask(FDMA_BOOL).bias(FDMA_BFLOAT16),
          base("full_dim_256").dim(256).mask(FDMA_BOOL).bias(FDMA_BFLOAT16),
          base("interval").lengths(200, 300).lists(FDMA_MASK_INTERVAL).bias(FDMA_BFLOAT16, {kFull, kKv, kOne, kFull}),
          base("interval_of_sequences")
              .sequences({150, 0, 129, 40}, {200, 20, 129, 65})
              .lists(FDMA_MASK_INTERVAL)
              .bias(FDMA_BFLOAT16, {kFull, kKv, kOne, kFull})};
}
INSTANTIATE_TEST_SUITE_P(Attention, ThousandTimesGpu, testing::ValuesIn(thousand_cases()),
                         [](const auto& info) { return info.param.name; });

TEST(AttentionRepeatsGpu, HundredTimesTheSameBitsOverBroadcastBias) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  for (const Extent rows : {kOne, kFull}) {
    AttentionCase c = busy_case();
    c.bias_shape = {kOne, kOne, rows, kFull};
    expect_repeatable(c, FDMA_FLOAT16, kCuda, 100);
  }
}

void expect_threads_change_no_bit(const AttentionCase& c) {
  AttentionCall call(c, FDMA_FLOAT32, kCpu);
  call.forward(1);
  call.backward(true, 1);
  const std::vector<unsigned char> first = call.output_bytes();
  for (int threads : {2, 3, 5, 16}) {
    call.refill();
    call.forward(threads);
    call.backward(true, threads);
    EXPECT_TRUE(first == call.output_bytes()) << c.name << ", " << threads << " threads";
  }
}

TEST(AttentionRepeats, ThreadsChangeNoBit) {
  for (const Extent heads : {kOne, kKv, kFull}) {
    for (AttentionCase c : {busy_case(), busy_sequences(), busy_sequences().padded(), busy_lists(FDMA_MASK_INTERVAL),
                            busy_lists(FDMA_MASK_COLUMNS).padded()}) {
      c.bias_shape.heads = heads;
      expect_threads_change_no_bit(c);
    }
  }
}

void expect_concurrent_calls_agree(const AttentionCase& c, fdma_dtype dtype, fdma_device device) {
  AttentionCall alone(c, dtype, device);
  alone.forward();
  alone.backward();
  const std::vector<unsigned char> expected = alone.output_bytes();
  constexpr int kCallers = 4;
  std::vector<char> same(kCallers, false);
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&, i] {
      AttentionCall call(c, dtype, device);
      bool all_same = true;
      for (int repeat = 0; repeat < 5; ++repeat) {
        call.forward();
        call.backward();
        all_same = all_same && expected == call.output_bytes();
        call.refill();
      }
      same[static_cast<size_t>(i)] = all_same;
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int i = 0; i < kCallers; ++i) EXPECT_TRUE(same[static_cast<size_t>(i)]) << "caller " << i;
}

TEST(AttentionRepeats, ConcurrentCallsDoNotMeet) {
  expect_concurrent_calls_agree(busy_case(), FDMA_FLOAT32, kCpu);
  expect_concurrent_calls_agree(busy_sequences(), FDMA_FLOAT32, kCpu);
}

TEST(AttentionRepeatsGpu, ConcurrentCallsDoNotMeet) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  expect_concurrent_calls_agree(busy_case(), FDMA_BFLOAT16, kCuda);
  expect_concurrent_calls_agree(busy_sequences(), FDMA_BFLOAT16, kCuda);
}

}  // namespace
}  // namespace fdma::test
