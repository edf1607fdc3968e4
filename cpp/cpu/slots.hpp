// Calls on keys in an order of their own, on the CPU: on the keys that a mask lists alone, in the order of their slots,
// or on all keys under a dense or packed mask in the order that makes the most of it (policy/compact.hpp).
#pragma once

#include <vector>

#include "host/problem.hpp"
#include "host/workspace.hpp"

namespace fdma::cpu {

// The constructor carves scratch. `gather` copies the keys, values and biases that are seen, `on_slots` describes the
// call on them; after a backward call on it `scatter` brings the gradients back.
class SlotCall {
 public:
  SlotCall(const AttentionProblem& problem, Workspace& workspace);
  // Backward: room for the gradients of slots.
  void take_gradients(const BackwardProblem& problem, Workspace& workspace);

  ForwardProblem on_slots(const ForwardProblem& problem) const;
  BackwardProblem on_slots(const BackwardProblem& problem) const;
  // Fills the scratch that the problem on slots reads.
  void gather(const AttentionProblem& problem) const;
  void scatter(const BackwardProblem& problem) const;

 private:
  void describe(AttentionProblem& problem) const;
  void take_spans(Workspace& workspace);
  void fill_mask(const AttentionProblem& problem) const;
  void fill_list(const AttentionProblem& problem, int64_t list) const;
  void gather_rows(const AttentionProblem& problem, const View4& natural, char* slotted) const;
  void scatter_rows(const BackwardProblem& problem, const View4& natural, char* slotted) const;
  void gather_bias(const AttentionProblem& problem) const;
  void scatter_bias(const BackwardProblem& problem) const;
  void add_bias_row(const BackwardProblem& problem, const SequenceExtents& sequence, int64_t bias_head,
                    std::vector<double>& sums) const;
  int64_t tensor_bytes(const AttentionProblem& problem) const;
  View4 rows_view(const AttentionProblem& problem, char* data) const;
  int64_t list_of(int64_t entry, int64_t slot_head) const {
    return view_.list(static_cast<int>(entry), static_cast<int>(slot_head));
  }
  // Of keys and values, for a query head.
  static int64_t slot_head(const AttentionProblem& problem, int64_t head) {
    return head / (problem.heads_q / problem.slot_heads());
  }

  int64_t slots_ = 0, lists_ = 0;
  SlotView view_;
  const uint32_t* natural_mask_ = nullptr;  // a packed mask, and
  uint32_t* mask_ = nullptr;                // the same in the order of slots; null for lists, which have spans
  int32_t* keys_ = nullptr;                 // [list][slots]: -1 where there is none
  Span* spans_ = nullptr;                   // [list][slots]
  SpanSummary* groups_ = nullptr;           // [list][slots / kSlotGroup]
  int32_t* slot_of_key_ = nullptr;          // [list][rows of keys]: -1 for a hidden key
  char *key_ = nullptr, *value_ = nullptr, *grad_key_ = nullptr, *grad_value_ = nullptr;  // (B, slot_heads, slots, D)
  float *bias_ = nullptr, *grad_bias_ = nullptr;  // (slot_bias_batch, slot_bias_heads, slots)
};

}  // namespace fdma::cpu
