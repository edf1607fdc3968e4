// Callers compiled against older and newer headers.
#include "host/parameters.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "calls.hpp"
#include "host/error.hpp"

namespace fdma::testing {
namespace {

struct NewerForwardParams {
  fdma_attention_forward_params known;
  int64_t added;
};

TEST(Parameters, NewerCallerWithDefaultsRuns) {
  ForwardCall call;
  NewerForwardParams newer{call.params, 0};
  newer.known.struct_size = sizeof newer;
  EXPECT_EQ(fdma_attention_forward_supported(&newer.known), FDMA_SUCCESS) << fdma_last_error_message();
}

TEST(Parameters, NewerCallerThatUsesItsFieldIsRefused) {
  ForwardCall call;
  NewerForwardParams newer{call.params, 1};
  newer.known.struct_size = sizeof newer;
  EXPECT_EQ(fdma_attention_forward_supported(&newer.known), FDMA_UNSUPPORTED);
  EXPECT_STREQ(
      fdma_last_error_message(),
      "params.struct_size is 1128 and byte 1120 is not zero: the caller uses a field of a newer version; accepted "
      "by this library: 1120 bytes, or zeros past them");
}

TEST(Parameters, OlderCallerGetsDefaultsForWhatItLacks) {
  // A library that has appended two values to a struct that began with two.
  const int32_t caller[2] = {7, 8};
  int32_t params[4] = {0, 0, 30, 40};
  read_versioned(params, sizeof params, sizeof caller, caller, sizeof caller, "init");
  EXPECT_EQ(params[0], 7);
  EXPECT_EQ(params[1], 8);
  EXPECT_EQ(params[2], 30);
  EXPECT_EQ(params[3], 40);
}

TEST(Parameters, ShorterThanTheFirstVersionIsRefused) {
  int32_t params[4] = {};
  EXPECT_THROW(read_versioned(params, sizeof params, 8, params, 7, "init"), Error);
}

TEST(Parameters, InitWritesAsMuchAsTheCallerHas) {
  NewerForwardParams newer;
  std::memset(&newer, 0x5a, sizeof newer);
  fdma_attention_forward_params_init_sized(&newer.known, sizeof newer);
  EXPECT_EQ(newer.known.struct_size, sizeof newer);
  EXPECT_EQ(newer.added, 0);

  fdma_attention_forward_params older;
  std::memset(&older, 0x5a, sizeof older);
  const size_t older_size = offsetof(fdma_attention_forward_params, packed_mask);
  fdma_attention_forward_params_init_sized(&older, older_size);
  EXPECT_EQ(older.struct_size, older_size);
  EXPECT_EQ(older.scale, FDMA_SCALE_DEFAULT);
  EXPECT_EQ(older.lse.rank, 0);
  EXPECT_EQ(older.packed_mask.rank, 0x5a5a5a5a);
}

TEST(Parameters, InitOfBackward) {
  fdma_attention_backward_params params;
  std::memset(&params, 0x5a, sizeof params);
  fdma_attention_backward_params_init(&params);
  EXPECT_EQ(params.struct_size, sizeof params);
  EXPECT_EQ(params.device.type, FDMA_DEVICE_CPU);
  EXPECT_EQ(params.scale, FDMA_SCALE_DEFAULT);
  EXPECT_EQ(params.mask.kind, FDMA_MASK_NONE);
  EXPECT_EQ(params.bias.kind, FDMA_BIAS_NONE);
  EXPECT_EQ(params.grad_bias.rank, 0);
}

}  // namespace
}  // namespace fdma::testing
