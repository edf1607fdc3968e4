// Masks that list keys: a call on the keys that they list alone, or the lists as a packed mask.
#pragma once

#include "host/problem.hpp"
#include "host/workspace.hpp"
#include "kernels/core/tile_config.hpp"
#include "kernels/launchers.hpp"

namespace fdma::cuda {

inline bool is_key_lists(fdma_mask_kind kind) { return kind == FDMA_MASK_COLUMNS || kind == FDMA_MASK_INTERVAL; }

// A call whose keys are in the order of their slots. The constructor carves scratch and points `params` at it; gather
// fills it before the main kernels, scatter brings gradients back after them.
class SlotCall {
 public:
  SlotCall(const AttentionProblem& problem, AttentionParams& params, Workspace& workspace);
  // Backward: gradients of keys and values, and the sums of bias gradients, are those of the slots.
  void take_gradients(const BackwardProblem& problem, BackwardParams& params, Workspace& workspace);
  // The blocks of backward start with the longest walks. The tile is that of the main kernel.
  void order_blocks(const BackwardProblem& problem, BackwardParams& params, Workspace& workspace, int tile_slots,
                    int tile_queries);

  void gather(const AttentionParams& params, cudaStream_t stream) const;
  void reduce_bias_gradient(const BackwardParams& params, cudaStream_t stream) const;
  void scatter(const BackwardProblem& problem, const BackwardParams& params, cudaStream_t stream) const;

 private:
  SlotRowsParams rows_params(const AttentionParams& params, const TensorView& natural, bool vector,
                             const TensorView& slotted) const;

  KeyListView lists_;
  SlotTables tables_;
  SlotScratch scratch_;
  TensorView key_, value_;  // as the caller gave them
  bool vector_ = false;     // their rows start at multiples of 16 bytes
  BiasView bias_;
  SlotBiasParams bias_params_;
  BlockOrderParams block_order_;
  int32_t len_k_ = 0;
};

// Gives the params the packed mask that the lists stand for.
void bind_expanded_lists(AttentionParams& params, const AttentionProblem& problem, Workspace& workspace,
                         cudaStream_t stream);

}  // namespace fdma::cuda
