#include "cpu/slots.hpp"

#include <algorithm>
#include <cstring>
#include <functional>

#include "cpu/compact.hpp"
#include "cpu/pack_mask.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tensor_rows.hpp"
#include "cpu/tile_kernels.hpp"
#include "host/dtype.hpp"

namespace fdma::cpu {
namespace {

bool is_interval(const AttentionProblem& problem) { return problem.mask.kind == FDMA_MASK_INTERVAL; }

// Threads for `items` lists or heads, each of which moves `bytes`.
int move_threads(const AttentionProblem& problem, int64_t items, int64_t bytes) {
  const double flops = static_cast<double>(items) * static_cast<double>(bytes);  // a byte costs as much as one
  return thread_count(problem.num_threads, items, flops);
}

Sequence narrow(const SequenceExtents& extents) {
  return {static_cast<int32_t>(extents.len_q), static_cast<int32_t>(extents.len_k), extents.q_begin, extents.k_begin};
}

// Calls body(sequence) for those of a batch entry of key-like tensors.
template <typename Body>
void for_each_sequence(const AttentionProblem& problem, int64_t entry, const Body& body) {
  if (!problem.sequences.packed) return body(problem.extents(entry));
  for (int64_t b = 0; b < problem.batch; ++b) body(problem.extents(b));
}

// The queries that see each row of a batch entry of key-like tensors.
std::vector<Span> spans_of_keys(const AttentionProblem& problem, int64_t list) {
  std::vector<Span> spans(static_cast<size_t>(problem.rows_k()), kNoSpan);
  const KeyListProblem& lists = problem.mask.lists;
  for_each_sequence(problem, list / lists.heads, [&](const SequenceExtents& extents) {
    const Sequence sequence = narrow(extents);
    const int32_t* data = lists.row(lists.list(extents.batch, list % lists.heads));
    Span* of_sequence = spans.data() + sequence.k_begin;
    if (is_interval(problem)) {
      for (int32_t k = 0; k < sequence.len_k; ++k) of_sequence[k] = interval_rows(sequence, k, data[k]);
      return;
    }
    for (int64_t column = 0; column < lists.width; ++column) {
      const int32_t k = data[column];
      if (k >= 0 && k < sequence.len_k) of_sequence[k] = column_rows(sequence, k, problem.is_causal);
    }
  });
  return spans;
}

}  // namespace

SlotCall::SlotCall(const AttentionProblem& problem, Workspace& workspace) {
  const bool compacts = problem.compacts();
  slots_ = compacts ? problem.len_k : problem.slot_count();
  lists_ = problem.order_batch() * problem.order_heads();
  keys_ = workspace.take<int32_t>(lists_ * slots_);
  if (compacts) {
    natural_mask_ = static_cast<const uint32_t*>(packed_mask(problem, workspace));
    mask_ = workspace.take<uint32_t>(problem.mask.layout.bytes() / 4);
  } else {
    take_spans(workspace);
  }
  slot_of_key_ = workspace.take<int32_t>(lists_ * problem.rows_k());
  key_ = workspace.take<char>(tensor_bytes(problem));
  value_ = workspace.take<char>(tensor_bytes(problem));
  if (problem.bias.kind != FDMA_BIAS_NONE) {
    bias_ = workspace.take<float>(problem.slot_bias_batch() * problem.slot_bias_heads() * slots_);
  }
  view_.slots = static_cast<int32_t>(slots_);
  view_.list_stride_batch = problem.order_batch() == 1 ? 0 : static_cast<int32_t>(problem.order_heads());
  view_.list_stride_head = problem.order_heads() == 1 ? 0 : 1;
}

void SlotCall::take_spans(Workspace& workspace) {
  spans_ = workspace.take<Span>(lists_ * slots_);
  groups_ = workspace.take<SpanSummary>(lists_ * (slots_ / kSlotGroup));
  view_.spans = spans_;
  view_.groups = groups_;
}

int64_t SlotCall::tensor_bytes(const AttentionProblem& problem) const {
  return problem.batches() * problem.slot_heads() * slots_ * problem.head_dim * dtype_size(problem.dtype);
}

void SlotCall::take_gradients(const BackwardProblem& problem, Workspace& workspace) {
  if (problem.grad_key) grad_key_ = workspace.take<char>(tensor_bytes(problem));
  if (problem.grad_value) grad_value_ = workspace.take<char>(tensor_bytes(problem));
  if (problem.grad_bias != nullptr) {
    grad_bias_ = workspace.take<float>(problem.slot_bias_batch() * problem.slot_bias_heads() * slots_);
  }
}

View4 SlotCall::rows_view(const AttentionProblem& problem, char* data) const {
  View4 view;
  view.data = data;
  const int64_t head = slots_ * problem.head_dim;
  view.stride = {problem.slot_heads() * head, problem.head_dim, head, 1};
  return view;
}

void SlotCall::describe(AttentionProblem& problem) const {
  const int64_t bias_batch = problem.slot_bias_batch(), bias_heads = problem.slot_bias_heads();
  const bool compacts = problem.compacts();
  problem.key = rows_view(problem, key_);
  problem.value = rows_view(problem, value_);
  problem.heads_kv = problem.slot_heads();
  if (problem.sequences.packed) {
    // One sequence, which ends where the last of them does: spans tell them apart.
    problem.sequences.joined = problem.batch;
    problem.batch = 1;
    problem.len_q = problem.rows_q();
  }
  problem.sequences.rows_k = slots_;
  if (compacts) {
    problem.mask.kind = FDMA_MASK_BITS;
    problem.mask.packed = mask_;
  } else {
    problem.mask = MaskProblem{};
    problem.slots = view_;
  }
  problem.len_k = slots_;
  problem.is_causal = false;  // spans or bits say it
  if (bias_ == nullptr) return;
  problem.bias.view.data = bias_;
  problem.bias.view.stride = {bias_batch == 1 ? 0 : bias_heads * slots_, slots_, 0, 1};
  problem.bias.dtype = FDMA_FLOAT32;
  problem.bias.batch = bias_batch;
  problem.bias.heads = bias_heads;
  problem.bias.keys = slots_;
}

ForwardProblem SlotCall::on_slots(const ForwardProblem& problem) const {
  ForwardProblem result = problem;
  describe(result);
  return result;
}

BackwardProblem SlotCall::on_slots(const BackwardProblem& problem) const {
  BackwardProblem result = problem;
  describe(result);
  if (problem.grad_key) result.grad_key = rows_view(problem, grad_key_);
  if (problem.grad_value) result.grad_value = rows_view(problem, grad_value_);
  if (problem.grad_bias != nullptr) result.grad_bias = grad_bias_;
  return result;
}

void SlotCall::gather(const AttentionProblem& problem) const {
  if (problem.compacts()) {
    fill_mask(problem);
  } else {
    constexpr int64_t kBytesAKey = 256;  // sorting one is as much as moving these
    parallel_for(move_threads(problem, lists_, problem.rows_k() * kBytesAKey), lists_,
                 [&](int, int64_t list) { fill_list(problem, list); });
  }
  gather_rows(problem, problem.key, key_);
  gather_rows(problem, problem.value, value_);
  if (bias_ != nullptr) gather_bias(problem);
}

// As the kernels of select/compact.cu.
void SlotCall::fill_mask(const AttentionProblem& problem) const {
  const PackedMaskLayout& layout = problem.mask.layout;
  const int threads = pack_threads(problem.num_threads, layout);
  for (int64_t list = 0; list < lists_; ++list) {
    int32_t* keys = keys_ + list * slots_;
    order_keys(layout, natural_mask_, list, problem.len_q, problem.is_causal, threads, keys);
    for (int64_t slot = 0; slot < slots_; ++slot) slot_of_key_[list * slots_ + keys[slot]] = static_cast<int32_t>(slot);
  }
  permute_mask(problem, natural_mask_, slot_of_key_, mask_);
}

// As the kernels of select/slots.cu.
void SlotCall::fill_list(const AttentionProblem& problem, int64_t list) const {
  const std::vector<Span> span_of_key = spans_of_keys(problem, list);
  const int64_t rows = problem.rows_k();
  int32_t* keys = keys_ + list * slots_;
  std::fill_n(keys, slots_, -1);
  int64_t seen = 0;
  for (int64_t row = 0; row < rows; ++row) {
    if (span_of_key[static_cast<size_t>(row)].end != kNoSpan.end) keys[seen++] = static_cast<int32_t>(row);
  }
  const auto span_of = [&](int32_t key) { return span_of_key[static_cast<size_t>(key)]; };
  for (int64_t first = 0, epoch = slot_epoch(static_cast<int>(problem.len_k)); first < seen; first += epoch) {
    std::stable_sort(keys + first, keys + min_of(seen, first + epoch),
                     [&](int32_t a, int32_t b) { return span_of(a).end < span_of(b).end; });
  }
  Span* spans = spans_ + list * slots_;
  std::fill_n(spans, slots_, kNoSpan);
  int32_t* slot_of_key = slot_of_key_ + list * rows;
  std::fill_n(slot_of_key, rows, -1);
  for (int64_t slot = 0; slot < seen; ++slot) {
    spans[slot] = span_of(keys[slot]);
    slot_of_key[keys[slot]] = static_cast<int32_t>(slot);
  }
  for (int64_t group = 0; group < slots_ / kSlotGroup; ++group) {
    const Span* first = spans + group * kSlotGroup;
    SpanSummary summary{first->begin, first->end, first->begin, first->end};
    for (int i = 1; i < kSlotGroup; ++i) {
      summary.add({first[i].begin, first[i].end, first[i].begin, first[i].end});
    }
    groups_[list * (slots_ / kSlotGroup) + group] = summary;
  }
}

void SlotCall::gather_rows(const AttentionProblem& problem, const View4& natural, char* slotted) const {
  const auto row_bytes = static_cast<size_t>(problem.head_dim * dtype_size(problem.dtype));
  const View4 slots = rows_view(problem, slotted);
  const int64_t heads = problem.slot_heads(), copies = heads / problem.heads_kv, items = problem.batches() * heads;
  parallel_for(move_threads(problem, items, slots_ * static_cast<int64_t>(row_bytes)), items, [&](int, int64_t item) {
    const int64_t b = item / heads, h = item % heads;
    const int32_t* keys = keys_ + list_of(b, h) * slots_;
    for (int64_t slot = 0; slot < slots_; ++slot) {
      void* target = tensor_rows(problem, slots, b, slot, h, 1).data;
      if (keys[slot] < 0) {
        std::memset(target, 0, row_bytes);
      } else {
        std::memcpy(target, tensor_rows(problem, natural, b, keys[slot], h / copies, 1).data, row_bytes);
      }
    }
  });
}

// Every row is written, those of hidden keys with zeros. Copies of a head are summed in their order.
void SlotCall::scatter_rows(const BackwardProblem& problem, const View4& natural, char* slotted) const {
  const View4 slots = rows_view(problem, slotted);
  const int64_t copies = problem.slot_heads() / problem.heads_kv, items = problem.batches() * problem.heads_kv;
  const int64_t dim = problem.head_dim, width = padded_head_dim(dim), rows = problem.rows_k();
  const int64_t item_bytes = rows * copies * dim * dtype_size(problem.dtype);
  parallel_for(move_threads(problem, items, item_bytes), items, [&](int, int64_t item) {
    const int64_t b = item / problem.heads_kv, h = item % problem.heads_kv;
    std::vector<float> sums(static_cast<size_t>(width)), row(sums.size());
    const float one = 1.0f;
    for (int64_t key = 0; key < rows; ++key) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t copy = h * copies; copy < (h + 1) * copies; ++copy) {
        const int32_t slot = slot_of_key_[list_of(b, copy) * rows + key];
        if (slot < 0) continue;
        tile_kernels().load_rows(tensor_rows(problem, slots, b, slot, copy, 1), dim, row.data(), width);
        std::transform(sums.begin(), sums.end(), row.begin(), sums.begin(), std::plus<>());
      }
      tile_kernels().store_rows(sums.data(), width, &one, dim, tensor_rows(problem, natural, b, key, h, 1));
    }
  });
}

void SlotCall::gather_bias(const AttentionProblem& problem) const {
  const BiasProblem& bias = problem.bias;
  const int64_t heads = problem.slot_bias_heads(), rows = problem.slot_bias_batch() * heads;
  std::vector<float> natural(static_cast<size_t>(round_up<int64_t>(bias.keys, 16)));
  std::fill_n(bias_, rows * slots_, 0.0f);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t entry = row / heads, h = row % heads * (problem.heads_q / heads);
    const int32_t* slot_of_key = slot_of_key_ + list_of(entry, slot_head(problem, h)) * problem.rows_k();
    for_each_sequence(problem, entry, [&](const SequenceExtents& sequence) {
      const int64_t offset =
          sequence.batch * bias.view.stride[0] + h / (problem.heads_q / bias.heads) * bias.view.stride[1];
      char* data = static_cast<char*>(bias.view.data) + offset * dtype_size(bias.dtype);
      const int64_t keys = min_of(sequence.len_k, bias.keys);
      tile_kernels().load_rows({data, bias.dtype, keys, 1}, keys, natural.data(), keys);
      for (int64_t k = 0; k < sequence.len_k; ++k) {
        const int32_t slot = slot_of_key[sequence.k_begin + k];
        if (slot >= 0) bias_[row * slots_ + slot] = natural[static_cast<size_t>(bias.keys == 1 ? 0 : k)];
      }
    });
  }
}

// Sums over what the bias broadcasts, in double.
void SlotCall::scatter_bias(const BackwardProblem& problem) const {
  const BiasProblem& bias = problem.bias;
  const int64_t sequences = problem.sequences.packed ? problem.batch : problem.slot_bias_batch();
  std::vector<double> sums(static_cast<size_t>(bias.keys));
  std::vector<float> rounded(static_cast<size_t>(round_up<int64_t>(bias.keys, 16)));  // whole vectors are read
  const float one = 1.0f;
  for (int64_t target = 0; target < bias.batch * bias.heads; ++target) {
    std::fill(sums.begin(), sums.end(), 0.0);
    const int64_t first = bias.batch == 1 ? 0 : target / bias.heads, end = bias.batch == 1 ? sequences : first + 1;
    for (int64_t b = first; b < end; ++b) add_bias_row(problem, problem.extents(b), target % bias.heads, sums);
    std::transform(sums.begin(), sums.end(), rounded.begin(), [](double x) { return static_cast<float>(x); });
    char* data = static_cast<char*>(problem.grad_bias) + target * bias.keys * dtype_size(bias.dtype);
    tile_kernels().store_rows(rounded.data(), bias.keys, &one, bias.keys, {data, bias.dtype, bias.keys, 1});
  }
}

// Adds what the keys of a sequence have in the rows of slots that share a head of the bias.
void SlotCall::add_bias_row(const BackwardProblem& problem, const SequenceExtents& sequence, int64_t bias_head,
                            std::vector<double>& sums) const {
  const int64_t entry = problem.sequences.packed ? 0 : sequence.batch;
  const int64_t heads = problem.slot_bias_heads(), shared = max_of<int64_t>(1, heads / problem.bias.heads);
  for (int64_t row = bias_head * shared; row < (bias_head + 1) * shared; ++row) {
    const float* of_slots = grad_bias_ + (entry * heads + row) * slots_;
    const int64_t list = list_of(entry, slot_head(problem, row * (problem.heads_q / heads)));
    const int32_t* slot_of_key = slot_of_key_ + list * problem.rows_k() + sequence.k_begin;
    for (int64_t k = 0; k < sequence.len_k; ++k) {
      if (slot_of_key[k] < 0) continue;
      sums[static_cast<size_t>(problem.bias.keys == 1 ? 0 : k)] += static_cast<double>(of_slots[slot_of_key[k]]);
    }
  }
}

void SlotCall::scatter(const BackwardProblem& problem) const {
  if (problem.grad_key) scatter_rows(problem, problem.grad_key, grad_key_);
  if (problem.grad_value) scatter_rows(problem, problem.grad_value, grad_value_);
  if (grad_bias_ != nullptr) scatter_bias(problem);
}

}  // namespace fdma::cpu
