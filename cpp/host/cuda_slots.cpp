#include "host/cuda_slots.hpp"

#include "host/cuda_device.hpp"
#include "host/cuda_params.hpp"

namespace fdma::cuda {
namespace {

KeyListView list_view(const AttentionProblem& problem) {
  const KeyListProblem& lists = problem.mask.lists;
  KeyListView view;
  static_cast<KeyLists&>(view) = lists;
  narrow(lists.batch, "the batch size of the mask");
  narrow(lists.heads, "the number of mask heads");
  view.keys = narrow(problem.len_k, "the number of keys");
  view.width = narrow(lists.width, "the number of columns");
  view.is_interval = problem.mask.kind == FDMA_MASK_INTERVAL;
  view.is_causal = problem.is_causal;
  return view;
}

int32_t padded_slots(const KeyListView& lists) {
  return narrow(round_up<int64_t>(lists.width, kSlotPadding), "the number of listed keys");
}

// A (B, slots, heads, D) tensor whose rows are aligned.
TensorView take_rows(const AttentionProblem& problem, int64_t slots, Workspace& workspace) {
  TensorView view;
  view.data = workspace.take<uint16_t>(problem.batch * problem.heads_kv * slots * problem.head_dim);
  view.stride_row = problem.head_dim;
  view.stride_head = slots * problem.head_dim;
  view.stride_batch = problem.heads_kv * view.stride_head;
  return view;
}

}  // namespace

SlotCall::SlotCall(const AttentionProblem& problem, AttentionParams& params, Workspace& workspace)
    : lists_(list_view(problem)),
      key_(params.key),
      value_(params.value),
      vector_(vector_rows(problem.key) && vector_rows(problem.value)),
      bias_(params.bias),
      len_k_(lists_.keys) {
  const int64_t lists = lists_.lists();
  const int32_t slots = padded_slots(lists_);
  tables_.slots = slots;
  tables_.keys = workspace.take<int32_t>(lists * slots);
  tables_.spans = workspace.take<Span>(lists * slots);
  tables_.groups = workspace.take<SpanSummary>(lists * (slots / kSlotGroup));
  tables_.slot_of_key = workspace.take<int32_t>(lists * lists_.keys);
  tables_.used = workspace.take<int32_t>(lists);
  if (lists_.is_interval) {
    scratch_.seen = workspace.take<int32_t>(lists * lists_.keys);
    scratch_.order = workspace.take<int32_t>(lists * lists_.keys);
    scratch_.sums = workspace.take<int32_t>(slot_sums(lists_));
  }
  params.key = take_rows(problem, slots, workspace);
  params.value = take_rows(problem, slots, workspace);
  params.vector_rows = vector_rows(problem.query);
  params.sequences.max_k = slots;
  params.bias = BiasView{};

  SlotView& view = params.slots;
  view.spans = tables_.spans;
  view.groups = tables_.groups;
  view.used = slots == 0 ? nullptr : tables_.used;  // nothing is written without slots
  view.slots = slots;
  view.shift = lists_.keys - params.sequences.max_q;
  view.list_stride_head = lists_.heads == 1 ? 0 : 1;
  view.list_stride_batch = lists_.batch == 1 ? 0 : static_cast<int32_t>(lists_.heads);
  if (problem.bias.kind == FDMA_BIAS_NONE) return;

  // A row of slot biases for every (batch, head) of the bias, and for every list that meets it.
  bias_params_.bias = bias_;
  bias_params_.batch = static_cast<int32_t>(problem.slot_bias_batch());
  bias_params_.heads = static_cast<int32_t>(problem.slot_bias_heads());
  bias_params_.heads_per_row = params.heads_q / bias_params_.heads;
  bias_params_.group = params.group;
  bias_params_.slots = slots;
  bias_params_.list_stride_batch = view.list_stride_batch;
  bias_params_.list_stride_head = view.list_stride_head;
  bias_params_.keys = tables_.keys;
  bias_params_.target = workspace.take<float>(static_cast<int64_t>(bias_params_.batch) * bias_params_.heads * slots);
  view.bias = bias_params_.target;
  view.heads_per_bias_head = bias_params_.heads_per_row;
  view.bias_stride_head = 1;
  view.bias_stride_batch = bias_params_.batch == 1 ? 0 : bias_params_.heads;
}

void SlotCall::take_gradients(const BackwardProblem& problem, BackwardParams& params, Workspace& workspace) {
  if (problem.grad_key) params.grad_key = take_rows(problem, tables_.slots, workspace);
  if (problem.grad_value) params.grad_value = take_rows(problem, tables_.slots, workspace);
  params.vector_grads = vector_rows(problem.grad_query);
  params.vector_rows = params.vector_rows && vector_rows(problem.grad_out);
  if (params.bias_grad != BiasGradMode::kNone && params.bias_grad != BiasGradMode::kRows) {
    params.bias_grad = BiasGradMode::kKeys;  // also where one query row makes the bias one of scores
    params.bias_keys = tables_.slots;
  }
  params.bias.type = bias_.type;  // of the gradient
}

void SlotCall::order_blocks(const BackwardProblem& problem, BackwardParams& params, Workspace& workspace, int tile_slots,
                            int tile_queries) {
  // Sums in a fixed order need blocks in one, too. A grid takes 65535 batches, and more are several grids.
  constexpr int32_t kMaxGrid = 65535;
  block_order_.slots = params.slots;
  block_order_.batch = params.batch;
  block_order_.heads_kv = params.heads_kv;
  block_order_.len_q = params.sequences.max_q;
  block_order_.tile_slots = tile_slots;
  block_order_.tile_queries = tile_queries;
  if (problem.deterministic || params.batch > kMaxGrid || block_order_.blocks() > INT32_MAX) return;
  block_order_.order = workspace.take<int32_t>(block_order_.blocks());
  params.block_order = block_order_.order;
}

SlotRowsParams SlotCall::rows_params(const AttentionParams& params, const TensorView& natural, bool vector,
                                     const TensorView& slotted) const {
  SlotRowsParams rows;
  rows.natural = natural;
  rows.slotted = slotted;
  rows.batch = params.batch;
  rows.heads = params.heads_kv;
  rows.slots = tables_.slots;
  rows.len_k = len_k_;
  rows.head_dim = params.head_dim;
  rows.list_stride_batch = params.slots.list_stride_batch;
  rows.list_stride_head = params.slots.list_stride_head;
  rows.keys = tables_.keys;
  rows.slot_of_key = tables_.slot_of_key;
  rows.gaps = !lists_.is_interval;
  rows.vector = vector;
  return rows;
}

void SlotCall::gather(const AttentionParams& params, cudaStream_t stream) const {
  check(launch_fill_slots(lists_, tables_, scratch_, stream), "ordering the keys of the mask");
  check(launch_gather_rows(rows_params(params, key_, vector_, params.key), stream), "gathering keys");
  check(launch_gather_rows(rows_params(params, value_, vector_, params.value), stream), "gathering values");
  if (bias_params_.target != nullptr) check(launch_gather_bias(bias_params_, stream), "gathering biases");
  if (block_order_.order != nullptr) check(launch_order_blocks(block_order_, stream), "ordering blocks");
}

void SlotCall::reduce_bias_gradient(const BackwardParams& params, cudaStream_t stream) const {
  check(launch_reduce_slot_bias_gradient(params, tables_.slot_of_key, len_k_, stream), "the gradient of the bias");
}

void SlotCall::scatter(const BackwardProblem& problem, const BackwardParams& params, cudaStream_t stream) const {
  const auto scatter_rows = [&](const View4& target, const TensorView& slotted, const char* what) {
    if (!target) return;
    check(launch_scatter_rows(rows_params(params, tensor_view(target), vector_rows(target), slotted), stream), what);
  };
  scatter_rows(problem.grad_key, params.grad_key, "the gradient of the key");
  scatter_rows(problem.grad_value, params.grad_value, "the gradient of the value");
}

void bind_expanded_lists(AttentionParams& params, const AttentionProblem& problem, Workspace& workspace,
                         cudaStream_t stream) {
  const PackedMaskLayout& layout = problem.mask.layout;
  ExpandParams expand;
  expand.layout = layout;
  expand.mask = list_view(problem);
  expand.sequences = params.sequences;
  const int64_t lists = expand.mask.lists();
  SlotTables tables;
  if (!expand.mask.is_interval) {  // columns are looked up by key
    tables.slots = padded_slots(expand.mask);
    tables.keys = workspace.take<int32_t>(lists * tables.slots);
    tables.spans = workspace.take<Span>(lists * tables.slots);
    tables.groups = workspace.take<SpanSummary>(lists * (tables.slots / kSlotGroup));
    tables.slot_of_key = workspace.take<int32_t>(lists * expand.mask.keys);
    tables.used = workspace.take<int32_t>(lists);
  }
  char* packed = workspace.take<char>(layout.bytes());
  params.mask = packed_mask_view(layout, packed, problem.heads_q);
  if (workspace.counting()) return;
  if (!expand.mask.is_interval) {
    check(launch_fill_slots(expand.mask, tables, SlotScratch{}, stream), "reading the columns of the mask");
    expand.slot_of_key = tables.slot_of_key;
  }
  expand.rows = reinterpret_cast<uint32_t*>(packed);
  expand.tiles = expand.rows + layout.rows_bytes() / 4;
  check(launch_expand_key_lists(expand, stream), "expanding the mask");
}

}  // namespace fdma::cuda
