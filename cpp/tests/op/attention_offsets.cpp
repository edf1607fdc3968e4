// Values of cu_seqlens that lie on the GPU, where nobody checks them, and are wrong: nothing outside the outputs is
// written, nothing outside the tensors read (memcheck sees that). Where each row still has one owner, lengths are cut
// to what there is.
#include <gtest/gtest.h>

#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "tests/support/attention_table.hpp"

#if defined(FDMA_WITH_CUDA)

namespace fdma::test {
namespace {

using Offsets = std::vector<int64_t>;

constexpr Extent kOne = Extent::kOne, kFull = Extent::kFull, kKv = Extent::kKvHeads;

struct WrongOffsets {
  std::string name;
  Offsets q, k;
};

std::ostream& operator<<(std::ostream& stream, const WrongOffsets& wrong) { return stream << wrong.name; }

// Three sequences over 150 query and 200 key rows, all of which are values.
AttentionCase plain_case() {
  return AttentionCase("plain").sequences({60, 50, 40}, {80, 20, 100}).heads(4, 2).causal();
}
constexpr int64_t kMax = 2147483647, kMin = -kMax - 1;

std::vector<WrongOffsets> wrong_offsets() {
  const Offsets q = {0, 60, 110, 150}, k = {0, 80, 100, 200};
  return {
      {"exceed_q", {0, 60, 110, 5000}, k},
      {"exceed_k", q, {0, 80, 100, 5000}},
      {"begin_behind_the_end", {0, 60, 4000, 5000}, {0, 80, 4000, 5000}},
      {"negative", {-40, -30, 110, 150}, {-70, -50, -20, 200}},
      {"negative_last", {0, 60, 110, -1}, {0, 80, 100, -1}},
      {"fall_q", {0, 150, 20, 150}, k},
      {"fall_k", q, {0, 200, 20, 200}},
      {"fall_to_the_start", {0, 150, 0, 150}, {0, 200, 0, 200}},
      {"first_is_not_zero", {33, 60, 110, 150}, {70, 80, 100, 200}},
      {"extreme", {kMin, kMax, kMin, kMax}, {kMax, kMin, kMax, kMin}},
  };
}

using Parameter = std::tuple<WrongOffsets, bool>;  // offsets, padded

class WrongOffsetsGpu : public testing::TestWithParam<Parameter> {
 protected:
  void SetUp() override {
    const std::string reason = unavailable_reason(kCuda);
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

TEST_P(WrongOffsetsGpu, TouchNothingElse) {
  const auto& [wrong, is_padded] = GetParam();
  for (const Extent rows : {kOne, kFull}) {
    // The bounds hold all rows, and all of mask and bias are values.
    AttentionCase c = plain_case().mask(FDMA_BOOL).bias(FDMA_FLOAT32, {kFull, kKv, rows, kFull}).grad_lse();
    c.spec.padded = is_padded;
    for (const bool deterministic : {false, true}) {
      AttentionCall call(c, FDMA_BFLOAT16, kCuda);
      call.set_offsets(wrong.q, wrong.k);
      call.forward();
      call.backward(deterministic);
      call.download();
      call.expect_surroundings_untouched();
    }
  }
}

TEST_P(WrongOffsetsGpu, TouchNothingElseOnSlots) {
  const auto& [wrong, is_padded] = GetParam();
  for (const fdma_mask_kind kind : {FDMA_MASK_INTERVAL, FDMA_MASK_COLUMNS}) {
    for (const Extent heads : {kKv, kFull}) {
      AttentionCase c = plain_case().lists(kind, kFull, heads).bias(FDMA_FLOAT32, {kFull, kKv, kOne, kFull}).grad_lse();
      c.spec.padded = is_padded;
      for (const bool deterministic : {false, true}) {
        AttentionCall call(c, FDMA_BFLOAT16, kCuda);
        call.set_offsets(wrong.q, wrong.k);
        call.forward();
        call.backward(deterministic);
        call.download();
        call.expect_surroundings_untouched();
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sequences, WrongOffsetsGpu,
                         testing::Combine(testing::ValuesIn(wrong_offsets()), testing::Bool()),
                         [](const testing::TestParamInfo<Parameter>& info) {
                           return std::get<0>(info.param).name + (std::get<1>(info.param) ? "_padded" : "_packed") +
                                  "_bfloat16";
                         });

// `c` has the lengths that are left of `offsets_q` and `offsets_k`.
void expect_cut(const AttentionCase& c, const Offsets& offsets_q, const Offsets& offsets_k) {
  AttentionCall call(c, FDMA_BFLOAT16, kCuda);
  call.set_offsets(offsets_q, offsets_k);
  call.forward();
  call.backward();
  call.download();
  call.expect_forward_matches();
  call.expect_backward_matches();
  call.expect_surroundings_untouched();
}

// Without a mask, and on slots.
std::vector<AttentionCase> masked_cases(const AttentionCase& c) {
  return {c, AttentionCase(c).lists(FDMA_MASK_INTERVAL), AttentionCase(c).lists(FDMA_MASK_COLUMNS)};
}

TEST(CutLengthsGpu, ToTheTensors_bfloat16) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  for (const AttentionCase& c : masked_cases(plain_case())) {
    expect_cut(AttentionCase(c).bounds(999, 999), {0, 60, 110, 151}, {0, 80, 100, 3000000});
    // The third sequence begins behind the last row.
    expect_cut(AttentionCase(c).sequences({60, 90, 0}, {80, 120, 0}).bounds(999, 999), {0, 60, 400, 500},
               {0, 80, 400, 500});
    expect_cut(AttentionCase(c).sequences({60, 60, 60}, {80, 20, 80}).padded().bounds(999, 999), {0, 60, 999, 1998},
               {0, 80, 100, 1000});
  }
}

// The rows that are cut off belong to no sequence.
TEST(CutLengthsGpu, ToTheBounds_bfloat16) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  const AttentionCase plain = plain_case().sequences({60, 50, 40}, {80, 20, 80}).slack(3, 20).bounds(60, 80);
  for (const AttentionCase& c : masked_cases(plain)) {
    expect_cut(c, {0, 60, 110, 150}, {0, 80, 100, 200});
    expect_cut(AttentionCase(c).padded(), {0, 60, 110, 150}, {0, 80, 100, 200});
  }
}

// A table that leads nowhere is read as if it led to some page; more keys than its pages hold are not there.
TEST(CutLengthsGpu, ToThePages_bfloat16) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  AttentionCall call(plain_case().slack(4, 0).pages(16), FDMA_BFLOAT16, kCuda);
  call.set_offsets({0, 60, 110, 150}, {0, 100000, 200000, 300000});
  call.forward();
  call.download();
  call.expect_surroundings_untouched();
}

}  // namespace
}  // namespace fdma::test

#endif
