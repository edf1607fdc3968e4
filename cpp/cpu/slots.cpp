#include "cpu/slots.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/compact.hpp"
#include "cpu/pack_mask.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tensor_rows.hpp"
#include "cpu/tile_kernels.hpp"
#include "host/dtype.hpp"

namespace fdma::cpu {
namespace {

bool is_interval(const AttentionProblem& problem) { return problem.mask.kind == FDMA_MASK_INTERVAL; }

// (b, h, row) -> the row of a key-like tensor.
auto row_at(const AttentionProblem& problem, const View4& view) {
  return [&](int64_t b, int64_t h, int64_t row) { return tensor_rows(problem, view, b, row, h, 1).data; };
}

// Threads for `items` lists or heads, each of which moves `bytes`.
int move_threads(const AttentionProblem& problem, int64_t items, int64_t bytes) {
  const double flops = static_cast<double>(items) * static_cast<double>(bytes);  // a byte costs as much as one
  return thread_count(problem.num_threads, items, flops);
}

}  // namespace

SlotCall::SlotCall(const AttentionProblem& problem, Workspace& workspace) {
  const bool compacts = problem.compacts();
  slots_ = compacts ? problem.len_k : round_up<int64_t>(problem.mask.lists.width, kSlotPadding);
  lists_ = problem.order_batch() * problem.order_heads();
  keys_ = workspace.take<int32_t>(lists_ * slots_);
  if (compacts) {
    natural_mask_ = static_cast<const uint32_t*>(packed_mask(problem, workspace));
    mask_ = workspace.take<uint32_t>(problem.mask.layout.bytes() / 4);
  } else {
    take_spans(workspace);
  }
  slot_of_key_ = workspace.take<int32_t>(lists_ * problem.len_k);
  const int64_t row_bytes = problem.head_dim * dtype_size(problem.dtype);
  const int64_t tensor_bytes = problem.batch * problem.heads_kv * slots_ * row_bytes;
  key_ = workspace.take<char>(tensor_bytes);
  value_ = workspace.take<char>(tensor_bytes);
  if (problem.bias.kind != FDMA_BIAS_NONE) {
    bias_ = workspace.take<float>(problem.slot_bias_batch() * problem.slot_bias_heads() * slots_);
  }
  view_.slots = static_cast<int32_t>(slots_);
  view_.shift = static_cast<int32_t>(problem.len_k - problem.len_q);
  view_.list_stride_batch = problem.order_batch() == 1 ? 0 : static_cast<int32_t>(problem.order_heads());
  view_.list_stride_head = problem.order_heads() == 1 ? 0 : 1;
}

void SlotCall::take_spans(Workspace& workspace) {
  spans_ = workspace.take<Span>(lists_ * slots_);
  groups_ = workspace.take<SpanSummary>(lists_ * (slots_ / kSlotGroup));
  view_.spans = spans_;
  view_.groups = groups_;
}

void SlotCall::take_gradients(const BackwardProblem& problem, Workspace& workspace) {
  const int64_t row_bytes = problem.head_dim * dtype_size(problem.dtype);
  const int64_t tensor_bytes = problem.batch * problem.heads_kv * slots_ * row_bytes;
  if (problem.grad_key) grad_key_ = workspace.take<char>(tensor_bytes);
  if (problem.grad_value) grad_value_ = workspace.take<char>(tensor_bytes);
  if (problem.grad_bias != nullptr) {
    grad_bias_ = workspace.take<float>(problem.slot_bias_batch() * problem.slot_bias_heads() * slots_);
  }
}

View4 SlotCall::rows_view(const AttentionProblem& problem, char* data) const {
  View4 view;
  view.data = data;
  const int64_t head = slots_ * problem.head_dim;
  view.stride = {problem.heads_kv * head, problem.head_dim, head, 1};
  return view;
}

void SlotCall::describe(AttentionProblem& problem) const {
  const int64_t bias_batch = problem.slot_bias_batch(), bias_heads = problem.slot_bias_heads();
  problem.key = rows_view(problem, key_);
  problem.value = rows_view(problem, value_);
  if (problem.runs_on_slots()) {
    problem.mask = MaskProblem{};
    problem.slots = view_;
  } else {
    problem.mask.kind = FDMA_MASK_BITS;
    problem.mask.packed = mask_;
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
    parallel_for(move_threads(problem, lists_, problem.len_k * kBytesAKey), lists_,
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
  const int32_t* data = problem.mask.lists.row(list);
  const auto len_k = static_cast<int32_t>(problem.len_k);
  int32_t* keys = keys_ + list * slots_;
  Span* spans = spans_ + list * slots_;
  std::fill_n(keys, slots_, -1);
  std::fill_n(spans, slots_, kNoSpan);
  int32_t* slot_of_key = slot_of_key_ + list * len_k;
  std::fill_n(slot_of_key, len_k, -1);
  const auto take = [&](int64_t slot, int32_t key, Span span) {
    keys[slot] = key;
    spans[slot] = span;
    slot_of_key[key] = static_cast<int32_t>(slot);
  };
  if (is_interval(problem)) {
    const auto end_of = [&](int32_t k) { return min_of(data[k], len_k); };
    int64_t seen = 0;
    for (int32_t k = 0; k < len_k; ++k) {
      if (end_of(k) > k) keys[seen++] = k;
    }
    for (int64_t first = 0, epoch = slot_epoch(len_k); first < seen; first += epoch) {
      std::stable_sort(keys + first, keys + min_of(seen, first + epoch),
                       [&](int32_t a, int32_t b) { return end_of(a) < end_of(b); });
    }
    for (int64_t slot = 0; slot < seen; ++slot) take(slot, keys[slot], {keys[slot], end_of(keys[slot])});
  } else {
    for (int64_t column = 0; column < problem.mask.lists.width; ++column) {
      const int32_t key = data[column];
      if (key < 0 || key >= len_k || slot_of_key[key] >= 0) continue;  // a key that is listed twice is seen once
      take(column, key, {problem.is_causal ? key : INT32_MIN, INT32_MAX});
    }
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

template <typename Target, typename Source>
void SlotCall::copy_rows(const AttentionProblem& problem, int64_t rows, const int32_t* source_of, const Target& target,
                         const Source& source) const {
  const auto row_bytes = static_cast<size_t>(problem.head_dim * dtype_size(problem.dtype));
  const int64_t heads = problem.batch * problem.heads_kv;
  parallel_for(move_threads(problem, heads, rows * static_cast<int64_t>(row_bytes)), heads, [&](int, int64_t head) {
    const int64_t b = head / problem.heads_kv, h = head % problem.heads_kv;
    const int32_t* sources = source_of + list_of(b, h) * rows;
    for (int64_t row = 0; row < rows; ++row) {
      if (sources[row] < 0) {
        std::memset(target(b, h, row), 0, row_bytes);
      } else {
        std::memcpy(target(b, h, row), source(b, h, sources[row]), row_bytes);
      }
    }
  });
}

void SlotCall::gather_rows(const AttentionProblem& problem, const View4& natural, char* slotted) const {
  const View4 slots = rows_view(problem, slotted);
  copy_rows(problem, slots_, keys_, row_at(problem, slots), row_at(problem, natural));
}

void SlotCall::scatter_rows(const BackwardProblem& problem, const View4& natural, char* slotted) const {
  const View4 slots = rows_view(problem, slotted);
  copy_rows(problem, problem.len_k, slot_of_key_, row_at(problem, natural), row_at(problem, slots));
}

void SlotCall::gather_bias(const AttentionProblem& problem) const {
  const BiasProblem& bias = problem.bias;
  const int64_t heads = problem.slot_bias_heads();
  std::vector<float> natural(static_cast<size_t>(round_up<int64_t>(bias.keys, 16)));
  for (int64_t row = 0; row < problem.slot_bias_batch() * heads; ++row) {
    const int64_t b = row / heads, h = row % heads * (problem.heads_q / heads);
    const int64_t offset = b * bias.view.stride[0] + h / (problem.heads_q / bias.heads) * bias.view.stride[1];
    char* data = static_cast<char*>(bias.view.data) + offset * dtype_size(bias.dtype);
    tile_kernels().load_rows({data, bias.dtype, bias.keys, 1}, bias.keys, natural.data(), bias.keys);
    const int32_t* keys = keys_ + list_of(b, h / problem.group()) * slots_;
    for (int64_t slot = 0; slot < slots_; ++slot) {
      const int64_t key = bias.keys == 1 ? 0 : keys[slot];
      bias_[row * slots_ + slot] = keys[slot] < 0 ? 0.0f : natural[static_cast<size_t>(key)];
    }
  }
}

// Sums over what the bias broadcasts, in double.
void SlotCall::scatter_bias(const BackwardProblem& problem) const {
  const BiasProblem& bias = problem.bias;
  const int64_t row_batch = problem.slot_bias_batch(), row_heads = problem.slot_bias_heads();
  const int64_t shared_batches = row_batch / bias.batch, shared_heads = max_of<int64_t>(1, row_heads / bias.heads);
  std::vector<double> sums(static_cast<size_t>(bias.keys));
  std::vector<float> rounded(static_cast<size_t>(round_up<int64_t>(bias.keys, 16)));  // whole vectors are read
  const float one = 1.0f;
  for (int64_t target = 0; target < bias.batch * bias.heads; ++target) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t i = 0; i < shared_batches * shared_heads; ++i) {
      const int64_t b = target / bias.heads * shared_batches + i / shared_heads;
      const int64_t h = target % bias.heads * shared_heads + i % shared_heads;
      const float* row = grad_bias_ + (b * row_heads + h) * slots_;
      const int32_t* keys = keys_ + list_of(b, h * (problem.heads_q / row_heads) / problem.group()) * slots_;
      for (int64_t slot = 0; slot < slots_; ++slot) {
        if (keys[slot] >= 0)
          sums[static_cast<size_t>(bias.keys == 1 ? 0 : keys[slot])] += static_cast<double>(row[slot]);
      }
    }
    std::transform(sums.begin(), sums.end(), rounded.begin(), [](double x) { return static_cast<float>(x); });
    char* data = static_cast<char*>(problem.grad_bias) + target * bias.keys * dtype_size(bias.dtype);
    tile_kernels().store_rows(rounded.data(), bias.keys, &one, bias.keys, {data, bias.dtype, bias.keys, 1});
  }
}

void SlotCall::scatter(const BackwardProblem& problem) const {
  if (problem.grad_key) scatter_rows(problem, problem.grad_key, grad_key_);
  if (problem.grad_value) scatter_rows(problem, problem.grad_value, grad_value_);
  if (grad_bias_ != nullptr) scatter_bias(problem);
}

}  // namespace fdma::cpu
