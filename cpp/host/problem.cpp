#include "host/problem.hpp"

#include "host/dtype.hpp"
#include "host/text.hpp"
#include "kernels/policy/compact.hpp"

namespace fdma {
namespace {

std::string score_dims(int64_t batch, int64_t heads, int64_t rows, int64_t keys) {
  const int64_t dims[] = {batch, heads, rows, keys};
  return tuple_text(dims, 4);
}

std::string mask_text(const MaskProblem& mask) {
  if (mask.kind == FDMA_MASK_NONE) return "none";
  if (mask.kind == FDMA_MASK_COLUMNS || mask.kind == FDMA_MASK_INTERVAL) {
    const int64_t dims[] = {mask.lists.batch, mask.lists.heads, mask.lists.width};
    return concat(mask.kind == FDMA_MASK_COLUMNS ? "columns " : "interval ", tuple_text(dims, 3));
  }
  const PackedMaskLayout& layout = mask.layout;
  return concat(mask.kind == FDMA_MASK_DENSE ? "dense " + dtype_name(mask.dtype) : "bits", " ",
                score_dims(layout.batch, layout.heads, layout.rows, layout.keys));
}

std::string bias_text(const BiasProblem& bias) {
  if (bias.kind == FDMA_BIAS_NONE) return "none";
  return concat(dtype_name(bias.dtype), " ", score_dims(bias.batch, bias.heads, bias.rows, bias.keys));
}

// Nothing for a call whose sequences all have the lengths of its tensors.
std::string sequence_text(const AttentionProblem& problem) {
  const SequenceProblem& s = problem.sequences;
  if (!s) return {};
  const std::string pages =
      problem.pages ? concat(" pages=", problem.pages.pages, "x", problem.pages.page_size) : std::string();
  return concat(" sequences=", s.packed ? "packed" : "padded", s.is_64bit ? " int64" : " int32", " rows_q=", s.rows_q,
                " rows_k=", s.rows_k, pages);
}

}  // namespace

bool AttentionProblem::runs_on_slots() const {
  if (mask.kind != FDMA_MASK_COLUMNS && mask.kind != FDMA_MASK_INTERVAL) return false;
  const bool keys_alone = bias.kind == FDMA_BIAS_NONE || bias.rows == 1;
  return keys_alone && has_scores() && !pages && rows_q() < kLengthLimit && rows_k() < kLengthLimit;
}

int64_t AttentionProblem::order_batch() const {
  if (!runs_on_slots()) return mask.layout.batch;
  return sequences ? batches() : mask.lists.batch;
}

int64_t AttentionProblem::slot_count() const {
  const int64_t listed = mask.lists.width * (sequences.packed ? batch : 1);
  return round_up<int64_t>(min_of(listed, rows_k()), kSlotPadding);
}

bool AttentionProblem::compacts() const {
  if ((mask.kind != FDMA_MASK_DENSE && mask.kind != FDMA_MASK_BITS) || compaction == Compaction::kNever) return false;
  const bool shared = mask.layout.heads == 1 || mask.layout.heads == heads_kv;
  const bool keys_alone = bias.kind == FDMA_BIAS_NONE || bias.rows == 1;
  const bool possible = shared && keys_alone && has_scores() && mask.layout.rows == len_q && !sequences && !pages &&
                        len_k <= kCompactMaxKeys;
  if (!possible || compaction == Compaction::kAnySize) return possible;
  const double products = static_cast<double>(batch * heads_q) * static_cast<double>(len_q) *
                          static_cast<double>(len_k) * static_cast<double>(head_dim);
  return len_q >= kCompactMinQueries && len_k >= kCompactMinKeys &&
         (device.type != FDMA_DEVICE_CUDA || products >= kCompactMinProducts);
}

SequenceExtents AttentionProblem::extents(int64_t b) const {
  if (!sequences) return {b, len_q, len_k, 0, 0};
  const bool shifted = sequences.packed;
  // Keys in the order of slots may be fewer than a sequence has.
  return {b, sequences.length_q(b), min_of(sequences.length_k(b), len_k), shifted ? sequences.begin_q(b) : 0,
          shifted && !pages ? sequences.begin_k(b) : 0};
}

std::string AttentionProblem::describe() const {
  return concat(device.type == FDMA_DEVICE_CUDA ? concat("cuda:", device.index) : "cpu", " ", dtype_name(dtype),
                " B=", batch, " Lq=", len_q, " Lk=", len_k, " H=", heads_q, " H_kv=", heads_kv, " D=", head_dim,
                " mask=", mask_text(mask), " bias=", bias_text(bias), " scale=", scale, " softcap=", softcap,
                " causal=", is_causal, sequence_text(*this));
}

}  // namespace fdma
