#include "host/cuda_compact.hpp"

#include "host/cuda_device.hpp"
#include "host/cuda_params.hpp"
#include "kernels/policy/compact.hpp"

namespace fdma::cuda {

CompactCall::CompactCall(const AttentionProblem& problem, AttentionParams& params, Workspace& workspace)
    : ReorderedCall(problem, params) {
  compact_.layout = problem.mask.layout;
  compact_.is_causal = problem.is_causal;
  compact_.natural_rows = params.mask.rows;
  compact_.natural_tiles = params.mask.tiles;
  take_order(problem, params, params.sequences.max_k, workspace);
  compact_.keys = tables_.keys;
  compact_.slot_of_key = tables_.slot_of_key;
  char* packed = workspace.take<char>(compact_.layout.bytes());
  params.mask = packed_mask_view(compact_.layout, packed, problem.heads_q);
  compact_.rows = reinterpret_cast<uint32_t*>(packed);
  compact_.tiles_of_rows = compact_.rows + compact_.layout.rows_bytes() / 4;
  params.is_causal = false;  // the bits say it
  take_scratch(workspace);
  if (problem.bias.kind != FDMA_BIAS_NONE && problem.bias.keys > 1) take_bias(problem, params, workspace);
}

void CompactCall::take_scratch(Workspace& workspace) {
  const PackedMaskLayout& layout = compact_.layout;
  const int64_t lists = compact_.lists(), words = lists * query_words(layout);
  compact_.seen = workspace.take<uint32_t>(words * layout.row_words() * 32);
  compact_.natural_live = workspace.take<uint32_t>(words * compact_.tiles());
  compact_.ordered_live = workspace.take<uint32_t>(words * compact_.tiles());
  compact_.bins = workspace.take<int32_t>(lists * CompactOrder::kBins);
  compact_.counts = workspace.take<unsigned long long>(lists * 2);
  for (uint64_t*& places : compact_.places) places = workspace.take<uint64_t>(lists * layout.keys);
  for (int32_t*& order : compact_.order) order = workspace.take<int32_t>(lists * layout.keys);
  check(compact_sort_bytes(compact_, compact_.sort_bytes), "the scratch of sorting keys");
  compact_.sort = workspace.take<char>(static_cast<int64_t>(compact_.sort_bytes));
}

// Rows of the type that the caller gave, each at a multiple of 16 bytes.
void CompactCall::take_bias(const AttentionProblem& problem, AttentionParams& params, Workspace& workspace) {
  bias_params_ = bias_params(problem, params);
  bias_pitch_ = round_up(tables_.slots, 8);
  const int64_t rows = static_cast<int64_t>(bias_params_.batch) * bias_params_.heads;
  bias_target_ = workspace.take<char>(rows * bias_pitch_ * element_bytes(bias_.type));
  BiasView& view = params.bias;
  view.data = bias_target_;
  view.stride_batch = bias_params_.batch == 1 ? 0 : static_cast<int64_t>(bias_params_.heads) * bias_pitch_;
  view.stride_head = bias_pitch_;
  view.stride_row = 0;
  view.heads_per_bias_head = bias_params_.heads_per_row;
  view.vector_rows = true;
}

void CompactCall::gather(const AttentionParams& params, cudaStream_t stream) const {
  check(launch_compact_mask(compact_, stream), "ordering the keys of the mask");
  gather_key_value(params, stream);
  if (bias_target_ != nullptr) {
    check(launch_order_bias(bias_params_, bias_target_, bias_pitch_, stream), "gathering biases");
  }
}

}  // namespace fdma::cuda
