// Calls whose keys are in an order of their own: what those of slots and those of compacted masks share.
#pragma once

#include "host/problem.hpp"
#include "host/workspace.hpp"
#include "kernels/launchers.hpp"

namespace fdma::cuda {

// The constructor of a kind carves scratch and points `params` at it; gather fills it before the main kernels, scatter
// brings gradients back after them.
class ReorderedCall {
 public:
  virtual ~ReorderedCall() = default;
  // Backward: gradients of keys and values, and the sums of bias gradients, are those of the slots.
  void take_gradients(const BackwardProblem& problem, BackwardParams& params, Workspace& workspace);
  // The blocks of backward start with the longest walks, where those are known. The tile is that of the main kernel.
  virtual void order_blocks(const BackwardProblem& problem, BackwardParams& params, Workspace& workspace,
                            int tile_slots, int tile_queries);

  virtual void gather(const AttentionParams& params, cudaStream_t stream) const = 0;
  // Modes kKeys and kRows.
  void reduce_bias_gradient(const BackwardParams& params, cudaStream_t stream) const;
  void scatter(const BackwardProblem& problem, const BackwardParams& params, cudaStream_t stream) const;

 protected:
  ReorderedCall(const AttentionProblem& problem, const AttentionParams& params);
  // Orders of `slots` places. Keys and values of `params` become those of the slots.
  void take_order(const AttentionProblem& problem, AttentionParams& params, int32_t slots, Workspace& workspace);
  void gather_key_value(const AttentionParams& params, cudaStream_t stream) const;
  // A row of biases for every (batch, head) of the bias, and for every list that meets it: all but the target.
  SlotBiasParams bias_params(const AttentionProblem& problem, const AttentionParams& params) const;

  SlotTables tables_;
  BiasView bias_;  // as the caller gave it
  KeyRows rows_;   // of the caller's keys

 private:
  TensorView take_rows(const AttentionParams& params, Workspace& workspace) const;
  SlotRowsParams rows_params(const AttentionParams& params, const TensorView& natural, bool vector,
                             const TensorView& slotted) const;

  TensorView key_, value_;  // as the caller gave them
  int32_t heads_kv_ = 0;
  ElementType type_;
  bool vector_ = false;  // their rows start at multiples of 16 bytes
};

}  // namespace fdma::cuda
