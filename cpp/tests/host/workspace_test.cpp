// Carving of scratch, and what is said about scratch that does not do.
#include "host/workspace.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "calls.hpp"
#include "host/error.hpp"
#include "host/workspace_check.hpp"

namespace fdma::testing {
namespace {

constexpr size_t kAlignment = FDMA_WORKSPACE_ALIGNMENT;

void carve(Workspace& workspace, std::vector<void*>& pieces) {
  pieces.push_back(workspace.take<float>(3));
  pieces.push_back(workspace.take<char>(257));
  pieces.push_back(workspace.take<double>(0));
  pieces.push_back(workspace.take<int64_t>(32));
}

TEST(Workspace, CountsWhatItCarves) {
  Workspace counter;
  std::vector<void*> nothing;
  carve(counter, nothing);
  EXPECT_TRUE(counter.counting());
  EXPECT_EQ(nothing, std::vector<void*>(4, nullptr));
  EXPECT_EQ(counter.used(), 4 * kAlignment);

  alignas(FDMA_WORKSPACE_ALIGNMENT) char memory[4 * kAlignment];
  Workspace scratch(memory);
  std::vector<void*> pieces;
  carve(scratch, pieces);
  EXPECT_FALSE(scratch.counting());
  EXPECT_EQ(scratch.used(), counter.used());
  EXPECT_EQ(pieces,
            (std::vector<void*>{memory, memory + kAlignment, memory + 3 * kAlignment, memory + 3 * kAlignment}));
}

TEST(Workspace, OverflowIsAnErrorNotASmallNumber) {
  Workspace counter;
  EXPECT_THROW(counter.take<float>(std::numeric_limits<int64_t>::max() / 2), Error);
  counter.take<char>(std::numeric_limits<int64_t>::max() - 512);
  EXPECT_THROW(counter.take<char>(std::numeric_limits<int64_t>::max() - 512), Error);
}

std::string refusal(const void* workspace, size_t bytes, size_t needed) {
  try {
    check_workspace(workspace, bytes, needed);
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), FDMA_INVALID_WORKSPACE);
    return error.what();
  }
  return "";
}

TEST(WorkspaceCheck, SaysWhatIsWrongAndWhatIsNeeded) {
  alignas(FDMA_WORKSPACE_ALIGNMENT) char memory[2 * kAlignment];
  EXPECT_EQ(refusal(nullptr, 512, 300), "workspace is NULL; accepted: 300 bytes on the call's device");
  EXPECT_EQ(refusal(memory, 256, 300), "workspace_bytes is 256; accepted: 300 or more, as *_workspace_size says");
  EXPECT_NE(refusal(memory + 16, 512, 300).find("; accepted: a multiple of 256 bytes"), std::string::npos);
  EXPECT_EQ(refusal(nullptr, 0, 300),
            "workspace is NULL; accepted: 300 bytes on the call's device\n"
            "workspace_bytes is 0; accepted: 300 or more, as *_workspace_size says");
  EXPECT_EQ(refusal(memory, 300, 300), "");
}

TEST(WorkspaceCheck, NothingIsAskedOfACallThatNeedsNone) { EXPECT_EQ(refusal(nullptr, 0, 0), ""); }

TEST(WorkspaceSize, NeedsNoDataAndMatchesTheCall) {
  BackwardCall call;
  call.add_bias(FDMA_BFLOAT16);
  size_t with_data = 0;
  ASSERT_EQ(fdma_attention_backward_workspace_size(&call.params, &with_data), FDMA_SUCCESS);
  for (fdma_tensor* tensor : {&call.params.query, &call.params.key, &call.params.value, &call.params.bias.tensor,
                              &call.params.out, &call.params.lse, &call.params.grad_out, &call.params.grad_query,
                              &call.params.grad_key, &call.params.grad_value, &call.params.grad_bias}) {
    tensor->data = nullptr;
  }
  size_t without_data = 0;
  ASSERT_EQ(fdma_attention_backward_workspace_size(&call.params, &without_data), FDMA_SUCCESS)
      << fdma_last_error_message();
  EXPECT_EQ(with_data, without_data);
}

}  // namespace
}  // namespace fdma::testing
