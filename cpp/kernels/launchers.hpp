// What the host side may start. Plain functions: no kernel and no CuTe type crosses this line. All enqueue on `stream`
// of the current device and return the runtime's verdict on their launches.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cache/params.hpp"
#include "kernels/core/params.hpp"
#include "kernels/decode/params.hpp"
#include "kernels/select/params.hpp"

namespace fdma {

// cudaSuccess when the current device can run the kernels of this build.
cudaError_t kernel_image_error();

cudaError_t launch_pack_mask(const PackMaskParams& params, cudaStream_t stream);

// Selection: sizes of scratch, then the call. Asking for sizes touches no memory of the device.
cudaError_t select_sort_bytes(const SelectParams& params, size_t& bytes);
int64_t select_plane_words(const SelectParams& params);
cudaError_t launch_select(const SelectParams& params, const SelectScratch& scratch, cudaStream_t stream);
// Selection for every query, without scratch.
cudaError_t launch_select_rows(const SelectRowsParams& params, cudaStream_t stream);

// Slots of a mask, and the tensors of a call in their order and back. See policy/slots.hpp.
int64_t slot_sums(const KeyListView& mask);  // entries of SlotScratch::sums
cudaError_t launch_fill_slots(const KeyListView& mask, const SlotTables& tables, const SlotScratch& scratch,
                              cudaStream_t stream);
cudaError_t launch_gather_rows(const SlotRowsParams& params, cudaStream_t stream);
cudaError_t launch_scatter_rows(const SlotRowsParams& params, cudaStream_t stream);
cudaError_t launch_gather_bias(const SlotBiasParams& params, cudaStream_t stream);
// At most 2^31 - 1 blocks.
cudaError_t launch_order_blocks(const BlockOrderParams& params, cudaStream_t stream);
// Mode kKeys, with slots. The batch and the sequences of `params` are those of the caller, and so are `rows`.
cudaError_t launch_reduce_slot_bias_gradient(const BackwardParams& params, const int32_t* slot_of_key,
                                             const KeyRows& rows, cudaStream_t stream);
// Lists of keys as a packed mask.
cudaError_t launch_expand_key_lists(const ExpandParams& params, cudaStream_t stream);

// The bounded cache. Appends of up to kFewTokens need no scratch.
cudaError_t launch_cache_append(const CacheAppendParams& params, cudaStream_t stream);
cudaError_t launch_cache_gather(const CacheGatherParams& params, cudaStream_t stream);
// Decode: how rows of `keys` keys are selected from, and the selection.
struct DecodeSelectPlan {
  int32_t chunks = 0;  // 0: a block has a whole row
  int64_t histogram_words = 0;
};
DecodeSelectPlan plan_decode_select(ElementType type, int64_t rows, int64_t keys);
cudaError_t launch_decode_select(const DecodeSelectParams& params, cudaStream_t stream);
// A packed mask with its keys in an order that follows from it. See policy/compact.hpp.
cudaError_t compact_sort_bytes(const CompactParams& params, size_t& bytes);
cudaError_t launch_compact_mask(const CompactParams& params, cudaStream_t stream);
// Biases in that order and in their own type: (batch, heads, pitch) elements, of which `slots` are biases and the rest
// zero.
cudaError_t launch_order_bias(const SlotBiasParams& params, void* target, int32_t pitch, cudaStream_t stream);

// Zeros (in lse: -inf) in the rows that belong to no sequence.
cudaError_t launch_clear_rows(const ClearRowsParams& params, cudaStream_t stream);

// Puts parts of rows together, in their order.
cudaError_t launch_combine_splits(const CombineParams& params, ElementType type, cudaStream_t stream);
// The same for the gradients of split key tiles: their sums, to grad_key and grad_value.
cudaError_t launch_combine_gradients(const BackwardParams& params, ElementType type, cudaStream_t stream);

// Fills row_stats and clears the sums of dQ.
cudaError_t launch_prepare_backward(const BackwardParams& params, ElementType type, cudaStream_t stream);
// Modes kKeys (after backward) and kRows.
cudaError_t launch_reduce_bias_gradient(const BackwardParams& params, cudaStream_t stream);

// The kernels built for one dtype and one head-dim bucket.
struct AttentionKernels {
  ElementType type;
  int head_dim;  // bucket: serves every head_dim up to this
  cudaError_t (*forward)(const ForwardParams& params, cudaStream_t stream);
  // dK, dV, grad_bias of mode kScores, column sums of mode kKeys, sums of dQ. `roomy`: see backward_tile.
  cudaError_t (*backward)(const BackwardParams& params, bool roomy, cudaStream_t stream);
  // dQ from its sums.
  cudaError_t (*finish_backward)(const BackwardParams& params, bool roomy, cudaStream_t stream);
  // grad_bias of mode kBatched.
  cudaError_t (*bias_gradient)(const BackwardParams& params, cudaStream_t stream);
  // Attention of decode: outputs, or the parts of splits.
  cudaError_t (*decode)(const DecodeParams& params, cudaStream_t stream);
  // Hopper's own (sm_90a), for calls that host/cuda_hopper.hpp says they serve. Null where the build has none.
  cudaError_t (*forward_sm90)(const ForwardParams& params, int multiprocessors, cudaStream_t stream);
  cudaError_t (*backward_sm90)(const BackwardParams& params, cudaStream_t stream);
  cudaError_t (*finish_backward_sm90)(const BackwardParams& params, cudaStream_t stream);
};

// The smallest bucket that serves head_dim, or null when none was built.
const AttentionKernels* find_attention_kernels(ElementType type, int head_dim);

}  // namespace fdma
