#include "host/cuda_slots.hpp"

#include "host/cuda_device.hpp"
#include "host/cuda_params.hpp"

namespace fdma::cuda {
namespace {

KeyListView list_view(const AttentionProblem& problem, const KeyRows& rows) {
  const KeyListProblem& lists = problem.mask.lists;
  KeyListView view;
  static_cast<KeyLists&>(view) = lists;
  narrow(lists.batch, "the batch size of the mask");
  narrow(lists.heads, "the number of mask heads");
  view.keys = rows;
  if (!problem.sequences) view.keys.batch = lists.batch;  // the lists of batch entries that share them are the same
  view.width = narrow(lists.width, "the number of columns");
  view.is_interval = problem.mask.kind == FDMA_MASK_INTERVAL;
  view.is_causal = problem.is_causal;
  return view;
}

void take_listed(KeyListView& lists, Workspace& workspace) {
  if (!lists.is_interval) lists.listed = workspace.take<uint8_t>(lists.all_keys());
}

// Packed sequences are one sequence to the kernels, which ends where the last of them does: spans tell them apart. Keys
// are slots, all of them: no value of cu_seqlens, which nobody has checked, leaves one without a gradient.
void join_sequences(const AttentionProblem& problem, AttentionParams& params) {
  if (!problem.sequences.packed) return;
  params.sequences.joined = problem.batch;
  params.sequences.cu_k = nullptr;
  params.sequences.max_q = narrow(problem.rows_q(), "the number of queries");
  params.batch = 1;
}

}  // namespace

SlotCall::SlotCall(const AttentionProblem& problem, AttentionParams& params, Workspace& workspace)
    : ReorderedCall(problem, params), lists_(list_view(problem, rows_)) {
  const int32_t slots = narrow(problem.slot_count(), "the number of listed keys");
  const int64_t orders = lists_.orders();
  join_sequences(problem, params);
  take_order(problem, params, slots, workspace);
  take_listed(lists_, workspace);
  tables_.spans = workspace.take<Span>(orders * slots);
  tables_.groups = workspace.take<SpanSummary>(orders * (slots / kSlotGroup));
  tables_.regions = workspace.take<SpanSummary>(orders * slot_regions(slots));
  tables_.used = workspace.take<int32_t>(orders);
  scratch_.seen = workspace.take<int32_t>(lists_.all_keys());
  if (lists_.is_interval) scratch_.order = workspace.take<int32_t>(lists_.all_keys());
  scratch_.sums = workspace.take<int32_t>(slot_sums(lists_));
  params.bias = BiasView{};

  SlotView& view = params.slots;
  view.spans = tables_.spans;
  view.groups = tables_.groups;
  view.regions = tables_.regions;
  view.used = slots == 0 ? nullptr : tables_.used;  // nothing is written without slots
  if (params.query.stride_head != 0) view.packed = PackedHeads::of_group(params.group);
  if (problem.bias.kind == FDMA_BIAS_NONE) return;

  bias_params_ = bias_params(problem, params);
  bias_params_.target = workspace.take<float>(static_cast<int64_t>(bias_params_.batch) * bias_params_.heads * slots);
  view.bias = bias_params_.target;
  view.heads_per_bias_head = bias_params_.heads_per_row;
  if (view.heads_per_bias_head == 1) view.packed = {};  // a tile of slots has one bias a slot
  view.bias_stride_head = 1;
  view.bias_stride_batch = bias_params_.batch == 1 ? 0 : bias_params_.heads;
}

void SlotCall::order_blocks(const BackwardProblem& problem, BackwardParams& params, Workspace& workspace,
                            int tile_slots, int tile_queries) {
  // Blocks in their own order walk the same queries at a time, which L2 serves: with 16384 keys the kernel took 2.31 ms
  // in that order and 2.44 in this one on an H100. In long lists the lengths of walks differ by more than that is
  // worth.
  constexpr int32_t kManySlots = 32768;
  // Sums in a fixed order need blocks in one, too. A grid takes 65535 batches, and more are several grids.
  constexpr int32_t kMaxGrid = 65535;
  block_order_.slots = params.slots;
  block_order_.batch = params.batch;
  block_order_.heads_kv = params.heads_kv;
  block_order_.len_q = params.sequences.max_q;
  block_order_.tile_slots = tile_slots;
  block_order_.tile_queries = tile_queries;
  if (params.slots.slots <= kManySlots || problem.deterministic) return;
  if (params.batch > kMaxGrid || block_order_.blocks() > INT32_MAX) return;
  block_order_.order = workspace.take<int32_t>(block_order_.blocks());
  params.block_order = block_order_.order;
}

void SlotCall::gather(const AttentionParams& params, cudaStream_t stream) const {
  check(launch_fill_slots(lists_, tables_, scratch_, stream), "ordering the keys of the mask");
  gather_key_value(params, stream);
  if (bias_params_.target != nullptr) check(launch_gather_bias(bias_params_, stream), "gathering biases");
  if (block_order_.order != nullptr) check(launch_order_blocks(block_order_, stream), "ordering blocks");
}

void bind_expanded_lists(AttentionParams& params, const AttentionProblem& problem, Workspace& workspace,
                         cudaStream_t stream) {
  const PackedMaskLayout& layout = problem.mask.layout;
  ExpandParams expand;
  expand.layout = layout;
  expand.mask = list_view(problem, key_rows(params, problem));
  take_listed(expand.mask, workspace);
  char* packed = workspace.take<char>(layout.bytes());
  params.mask = packed_mask_view(layout, packed, problem.heads_q);
  if (workspace.counting()) return;
  expand.rows = reinterpret_cast<uint32_t*>(packed);
  expand.tiles = expand.rows + layout.rows_bytes() / 4;
  check(launch_expand_key_lists(expand, stream), "expanding the mask");
}

}  // namespace fdma::cuda
