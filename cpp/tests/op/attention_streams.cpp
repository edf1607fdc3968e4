// Work enqueued on CUDA streams and captured in graphs.
#include <gtest/gtest.h>

#include "tests/support/attention_case.hpp"

#if defined(FDMA_WITH_CUDA)
#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

namespace fdma::test {
namespace {

AttentionCase graph_case() {
  return AttentionCase("graph").lengths(200, 333).heads(4, 2).causal().mask(FDMA_BOOL).bias(FDMA_BFLOAT16).bits();
}

class AttentionStreamsGpu : public testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = unavailable_reason(kCuda);
    if (!reason.empty()) GTEST_SKIP() << reason;
    for (cudaStream_t& stream : streams_) {
      ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    }
  }
  void TearDown() override {
    for (cudaStream_t stream : streams_) {
      if (stream != nullptr) cudaStreamDestroy(stream);
    }
  }

  cudaStream_t streams_[3] = {};
};

TEST_F(AttentionStreamsGpu, CallsOnSeveralStreams) {
  std::vector<std::unique_ptr<AttentionCall>> calls;
  for (size_t i = 0; i < 3; ++i) {
    calls.push_back(std::make_unique<AttentionCall>(graph_case().lengths(150, 200 + 31 * i), FDMA_BFLOAT16, kCuda));
  }
  for (size_t i = 0; i < 3; ++i) calls[i]->forward(0, streams_[i]);
  for (size_t i = 0; i < 3; ++i) calls[i]->backward(true, 0, streams_[i]);
  for (const auto& call : calls) {
    call->download();
    call->expect_forward_matches();
    call->expect_backward_matches();
  }
}

TEST_F(AttentionStreamsGpu, CapturedInAGraphAndReplayed) {
  AttentionCall call(graph_case(), FDMA_FLOAT16, kCuda);
  const cudaStream_t stream = streams_[0];
  call.forward(0, stream);  // kernels are loaded and the workspace is there before the capture
  call.backward(true, 0, stream);
  const std::vector<double> expected = call.outputs();

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  call.forward(0, stream);
  call.backward(true, 0, stream);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (int replay = 0; replay < 3; ++replay) {
    call.refill();
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    EXPECT_EQ(call.outputs(), expected) << "replay " << replay;
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

}  // namespace
}  // namespace fdma::test

#else

TEST(AttentionStreamsGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "this build has no CUDA kernels (FDMA_CUDA)"; }

#endif
