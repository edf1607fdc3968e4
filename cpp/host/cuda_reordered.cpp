#include "host/cuda_reordered.hpp"

#include "host/cuda_device.hpp"
#include "host/cuda_params.hpp"

namespace fdma::cuda {

ReorderedCall::ReorderedCall(const AttentionProblem& problem, const AttentionParams& params)
    : bias_(params.bias),
      rows_(key_rows(params, problem)),
      key_(params.key),
      value_(params.value),
      heads_kv_(params.heads_kv),
      type_(element_type(problem.dtype)),
      vector_(vector_rows(problem.key) && vector_rows(problem.value)) {}

void ReorderedCall::take_order(const AttentionProblem& problem, AttentionParams& params, int32_t slots,
                               Workspace& workspace) {
  const int64_t orders = problem.order_batch() * problem.order_heads();
  tables_.slots = slots;
  tables_.keys = workspace.take<int32_t>(orders * slots);
  tables_.slot_of_key = workspace.take<int32_t>(orders * rows_.rows);
  params.heads_kv = static_cast<int32_t>(problem.slot_heads());
  params.group = params.heads_q / params.heads_kv;
  params.key = take_rows(params, workspace);
  params.value = take_rows(params, workspace);
  params.vector_rows = vector_rows(problem.query);
  params.sequences.max_k = slots;
  params.sequences.rows_k = slots;
  params.slots.slots = slots;
  params.slots.list_stride_head = problem.order_heads() == 1 ? 0 : 1;
  params.slots.list_stride_batch = problem.order_batch() == 1 ? 0 : static_cast<int32_t>(problem.order_heads());
}

// A (B, slots, heads, D) tensor whose rows are aligned.
TensorView ReorderedCall::take_rows(const AttentionParams& params, Workspace& workspace) const {
  TensorView view;
  view.stride_row = params.head_dim;
  view.stride_head = tables_.slots * view.stride_row;
  view.stride_batch = params.heads_kv * view.stride_head;
  view.data = workspace.take<uint16_t>(params.batch * view.stride_batch);
  return view;
}

SlotBiasParams ReorderedCall::bias_params(const AttentionProblem& problem, const AttentionParams& params) const {
  SlotBiasParams bias;
  bias.bias = bias_;
  bias.rows = rows_;
  bias.batch = static_cast<int32_t>(problem.slot_bias_batch());
  bias.heads = static_cast<int32_t>(problem.slot_bias_heads());
  bias.heads_per_row = params.heads_q / bias.heads;
  bias.group = params.group;
  bias.slots = tables_.slots;
  bias.list_stride_batch = params.slots.list_stride_batch;
  bias.list_stride_head = params.slots.list_stride_head;
  bias.keys = tables_.keys;
  return bias;
}

void ReorderedCall::take_gradients(const BackwardProblem& problem, BackwardParams& params, Workspace& workspace) {
  if (problem.grad_key) params.grad_key = take_rows(params, workspace);
  if (problem.grad_value) params.grad_value = take_rows(params, workspace);
  params.vector_grads = vector_rows(problem.grad_query);
  params.vector_rows = params.vector_rows && vector_rows(problem.grad_out);
  if (params.bias_grad != BiasGradMode::kNone && params.bias_grad != BiasGradMode::kRows) {
    params.bias_grad = BiasGradMode::kKeys;  // also where one query row makes the bias one of scores
    params.bias_keys = tables_.slots;
  }
  params.bias.type = bias_.type;  // of the gradient
}

void ReorderedCall::order_blocks(const BackwardProblem&, BackwardParams&, Workspace&, int, int) {}

SlotRowsParams ReorderedCall::rows_params(const AttentionParams& params, const TensorView& natural, bool vector,
                                          const TensorView& slotted) const {
  SlotRowsParams rows;
  rows.natural = natural;
  rows.slotted = slotted;
  rows.type = type_;
  rows.batch = params.batch;
  rows.heads = heads_kv_;
  rows.copies = params.heads_kv / heads_kv_;
  rows.slots = tables_.slots;
  rows.rows = static_cast<int32_t>(rows_.rows);
  rows.head_dim = params.head_dim;
  rows.list_stride_batch = params.slots.list_stride_batch;
  rows.list_stride_head = params.slots.list_stride_head;
  rows.keys = tables_.keys;
  rows.slot_of_key = tables_.slot_of_key;
  rows.vector = vector;
  return rows;
}

void ReorderedCall::gather_key_value(const AttentionParams& params, cudaStream_t stream) const {
  check(launch_gather_rows(rows_params(params, key_, vector_, params.key), stream), "gathering keys");
  check(launch_gather_rows(rows_params(params, value_, vector_, params.value), stream), "gathering values");
}

void ReorderedCall::reduce_bias_gradient(const BackwardParams& params, cudaStream_t stream) const {
  BackwardParams natural = params;
  natural.batch = static_cast<int32_t>(rows_.batch);
  natural.sequences = rows_.sequences;
  check(params.bias_grad == BiasGradMode::kKeys
            ? launch_reduce_slot_bias_gradient(natural, tables_.slot_of_key, rows_, stream)
            : launch_reduce_bias_gradient(natural, stream),
        "the gradient of the bias");
}

void ReorderedCall::scatter(const BackwardProblem& problem, const BackwardParams& params, cudaStream_t stream) const {
  const auto scatter_rows = [&](const View4& target, const TensorView& slotted, const char* what) {
    if (!target) return;
    check(launch_scatter_rows(rows_params(params, tensor_view(target), vector_rows(target), slotted), stream), what);
  };
  scatter_rows(problem.grad_key, params.grad_key, "the gradient of the key");
  scatter_rows(problem.grad_value, params.grad_value, "the gradient of the value");
}

}  // namespace fdma::cuda
