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

AttentionCase sequence_case() {
  return AttentionCase("sequences").sequences({100, 20, 80}, {40, 150, 10}).bounds(128, 160).heads(4, 2).causal();
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
  const AttentionCase cases[] = {graph_case().lengths(150, 200), graph_case().lengths(150, 231),
                                 sequence_case().mask(FDMA_BOOL).bias(FDMA_BFLOAT16)};
  std::vector<std::unique_ptr<AttentionCall>> calls;
  for (const AttentionCase& c : cases) calls.push_back(std::make_unique<AttentionCall>(c, FDMA_BFLOAT16, kCuda));
  for (size_t i = 0; i < 3; ++i) calls[i]->forward(0, streams_[i]);
  for (size_t i = 0; i < 3; ++i) calls[i]->backward(true, 0, streams_[i]);
  for (const auto& call : calls) {
    call->download();
    call->expect_forward_matches();
    call->expect_backward_matches();
  }
}

// Forward and backward of a call, captured.
class CapturedCall {
 public:
  CapturedCall(AttentionCall& call, cudaStream_t stream) : stream_(stream) {
    EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    call.forward(0, stream);
    call.backward(true, 0, stream);
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph_), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&executable_, graph_, 0), cudaSuccess);
  }
  ~CapturedCall() {
    cudaGraphExecDestroy(executable_);
    cudaGraphDestroy(graph_);
  }
  void replay() { ASSERT_EQ(cudaGraphLaunch(executable_, stream_), cudaSuccess); }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

TEST_F(AttentionStreamsGpu, CapturedInAGraphAndReplayed) {
  AttentionCall call(graph_case(), FDMA_FLOAT16, kCuda);
  const cudaStream_t stream = streams_[0];
  call.forward(0, stream);  // kernels are loaded and the workspace is there before the capture
  call.backward(true, 0, stream);
  const std::vector<unsigned char> expected = call.output_bytes();

  CapturedCall captured(call, stream);
  for (int i = 0; i < 3; ++i) {
    call.refill();
    captured.replay();
    EXPECT_TRUE(call.output_bytes() == expected) << "replay " << i;
  }
}

// Lengths are read on the device: a graph serves all that the bounds hold.
class OtherLengthsGpu : public AttentionStreamsGpu, public testing::WithParamInterface<AttentionCase> {};

TEST_P(OtherLengthsGpu, CapturedInAGraphAndReplayed) {
  const std::vector<int64_t> q = {0, 100, 120, 200}, k = {0, 40, 190, 200};
  const std::vector<int64_t> other_q = {0, 0, 128, 200}, other_k = {0, 60, 160, 200};
  AttentionCall call(GetParam(), FDMA_FLOAT16, kCuda);
  const cudaStream_t stream = streams_[0];
  const auto outputs_with = [&](const std::vector<int64_t>& offsets_q, const std::vector<int64_t>& offsets_k) {
    call.set_offsets(offsets_q, offsets_k);
    call.refill();
    call.forward(0, stream);
    call.backward(true, 0, stream);
    return call.output_bytes();
  };
  const std::vector<unsigned char> other = outputs_with(other_q, other_k);
  const std::vector<unsigned char> expected = outputs_with(q, k);
  call.expect_forward_matches();
  call.expect_backward_matches();

  CapturedCall captured(call, stream);
  for (const bool has_other_lengths : {true, false}) {
    call.set_offsets(has_other_lengths ? other_q : q, has_other_lengths ? other_k : k);
    call.refill();
    captured.replay();
    EXPECT_TRUE(call.output_bytes() == (has_other_lengths ? other : expected))
        << "other lengths: " << has_other_lengths;
  }
}

std::vector<AttentionCase> other_length_cases() {
  AttentionCase interval = sequence_case().lists(FDMA_MASK_INTERVAL);
  AttentionCase columns = sequence_case().lists(FDMA_MASK_COLUMNS, Extent::kFull, Extent::kFull);
  interval.name = "interval";
  columns.name = "columns_of_query_heads";
  return {sequence_case(), interval, columns};
}
INSTANTIATE_TEST_SUITE_P(Attention, OtherLengthsGpu, testing::ValuesIn(other_length_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace fdma::test

#else

TEST(AttentionStreamsGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "this build has no CUDA kernels (FDMA_CUDA)"; }

#endif
