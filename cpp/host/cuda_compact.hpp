// Dense and packed masks on keys in an order that makes the most of them (policy/compact.hpp).
#pragma once

#include "host/cuda_reordered.hpp"

namespace fdma::cuda {

// A call that compacts(). `params` has the packed mask in natural order; the constructor gives it the one that gather
// makes of it. Where the order does not pay, which only the device learns, gather copies in natural order.
class CompactCall : public ReorderedCall {
 public:
  CompactCall(const AttentionProblem& problem, AttentionParams& params, Workspace& workspace);
  void gather(const AttentionParams& params, cudaStream_t stream) const override;

 private:
  void take_scratch(Workspace& workspace);
  void take_bias(const AttentionProblem& problem, AttentionParams& params, Workspace& workspace);

  CompactParams compact_;
  SlotBiasParams bias_params_;
  void* bias_target_ = nullptr;
  int32_t bias_pitch_ = 0;
};

}  // namespace fdma::cuda
