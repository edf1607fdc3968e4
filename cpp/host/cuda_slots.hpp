// Masks that list keys: a call on the keys that they list alone, or the lists as a packed mask.
#pragma once

#include "host/cuda_reordered.hpp"

namespace fdma::cuda {

inline bool is_key_lists(fdma_mask_kind kind) { return kind == FDMA_MASK_COLUMNS || kind == FDMA_MASK_INTERVAL; }

// A call on the keys that the mask lists alone.
class SlotCall : public ReorderedCall {
 public:
  SlotCall(const AttentionProblem& problem, AttentionParams& params, Workspace& workspace);
  void order_blocks(const BackwardProblem& problem, BackwardParams& params, Workspace& workspace, int tile_slots,
                    int tile_queries) override;
  void gather(const AttentionParams& params, cudaStream_t stream) const override;

 private:
  KeyListView lists_;
  SlotScratch scratch_;
  SlotBiasParams bias_params_;
  BlockOrderParams block_order_;
};

// Gives the params the packed mask that the lists stand for.
void bind_expanded_lists(AttentionParams& params, const AttentionProblem& problem, Workspace& workspace,
                         cudaStream_t stream);

}  // namespace fdma::cuda
