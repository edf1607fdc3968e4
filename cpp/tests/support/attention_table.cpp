#include "tests/support/attention_table.hpp"

#include <utility>

namespace fdma::test {

void AttentionTable::SetUp() {
  const std::string reason = unavailable_reason({std::get<fdma_device_type>(GetParam()), 0});
  if (!reason.empty()) GTEST_SKIP() << reason;
}

void AttentionTable::expect_matches_reference() const {
  const auto& [c, dtype, device_type] = GetParam();
  AttentionCall call(c, dtype, {device_type, 0});
  call.forward();
  call.download();
  call.expect_forward_matches();
  call.expect_packed_mask_matches();
  if (c.has_gradients()) {
    call.backward();
    call.download();
    call.expect_backward_matches();
  }
  call.expect_surroundings_untouched();
}

std::string parameter_name(const testing::TestParamInfo<AttentionParameter>& info) {
  const fdma_dtype dtype = std::get<fdma_dtype>(info.param);
  return std::get<AttentionCase>(info.param).name + (dtype == FDMA_FLOAT32   ? "_float32"
                                                     : dtype == FDMA_FLOAT16 ? "_float16"
                                                                             : "_bfloat16");
}

std::vector<std::pair<std::string, ScoreShape>> all_broadcasts() {
  const std::pair<const char*, Extent> extents[] = {
      {"1", Extent::kOne}, {"n", Extent::kFull}, {"kv", Extent::kKvHeads}};
  std::vector<std::pair<std::string, ScoreShape>> all;
  for (const auto& [b, batch] : {extents[0], extents[1]}) {
    for (const auto& [h, heads] : extents) {
      for (const auto& [q, rows] : {extents[0], extents[1]}) {
        for (const auto& [k, keys] : {extents[0], extents[1]}) {
          all.push_back({std::string("_") + b + "_" + h + "_" + q + "_" + k, {batch, heads, rows, keys}});
        }
      }
    }
  }
  return all;
}

}  // namespace fdma::test
