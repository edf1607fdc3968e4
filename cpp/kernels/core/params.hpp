// What kernels are launched with: plain values, element strides, no ownership.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/policy/mask_bits.hpp"
#include "kernels/policy/sequence.hpp"
#include "kernels/policy/slots.hpp"
#include "kernels/policy/tile_queue.hpp"

namespace fdma {

// A (batch, row, head, D) tensor whose last stride is 1. Strides count elements.
struct TensorView {
  void* data = nullptr;
  int64_t stride_batch = 0, stride_row = 0, stride_head = 0;

  template <typename T>
  FDMA_HOST_DEVICE T* at(int64_t b, int64_t h, int64_t row) const {
    return static_cast<T*>(data) + b * stride_batch + h * stride_head + row * stride_row;
  }
};

// Values of an element type that is only known at run time.
enum class ElementType : int32_t { kFloat16, kBFloat16, kFloat32 };
FDMA_HOST_DEVICE int element_bytes(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

// Additive bias, broadcast dimensions have stride 0. stride_key is 1, or 0 for a bias that is the same for all keys.
struct BiasView {
  const void* data = nullptr;
  int64_t stride_batch = 0, stride_head = 0, stride_row = 0;
  int32_t stride_key = 1;
  int32_t heads_per_bias_head = 1;  // query heads that share a bias head
  ElementType type = ElementType::kFloat32;
  bool vector_rows = false;  // every row starts at a multiple of 16 bytes

  FDMA_HOST_DEVICE int64_t offset(int64_t b, int32_t h, int64_t q) const {
    return b * stride_batch + (h / heads_per_bias_head) * stride_head + q * stride_row;
  }
};

// What forward and backward share.
struct AttentionParams {
  TensorView query, key, value;
  int32_t batch = 0, heads_q = 0, heads_kv = 0, group = 1;  // group = heads_q / heads_kv
  int32_t batch_begin = 0;                                  // batch of blockIdx.z = 0, see launch_over_heads
  int32_t head_dim = 0;
  SequenceView sequences;
  int64_t lse_stride_batch = 0, lse_stride_head = 0;  // of lse and grad_lse; rows of a sequence follow each other
  float scale = 1;                                    // of q.k
  float softcap = 0;                                  // 0 = off
  bool is_causal = false;
  bool has_mask = false;
  bool vector_rows = false;  // every row of query, key, value (and grad_out) starts at a multiple of 16 bytes
  PackedMaskView mask;
  BiasView bias;
  SlotView slots;  // spans not null: keys and values are in the order of the slots, and mask and bias are in here
};

// A dense mask and where its packed form goes.
struct PackMaskParams {
  PackedMaskLayout layout;
  const void* dense = nullptr;
  int64_t stride_batch = 0, stride_head = 0, stride_row = 0;  // elements
  int32_t stride_key = 1;                                     // 1, or 0 where one element serves all keys
  int32_t element_bytes = 1;                                  // 1, 2, 4, 8
  bool is_float = false;                                      // -0.0 counts as zero
  int32_t chunk = 0;                                          // elements that a lane reads as vectors, 0: one by one
  bool is_causal = false;  // keys that no row may see are not read: their bits are zero
  SequenceView sequences;
  bool shared_by_sequences = false;  // a batch entry of the mask serves several sequences: no length is that of all
  uint32_t* rows = nullptr;
  uint32_t* tiles = nullptr;
};

// Paged keys and values: the batch stride of key and value goes from page to page.
struct PageView {
  const int32_t* table = nullptr;  // (B, pages_per_sequence), null: not paged
  int64_t pages_per_sequence = 0;
  int32_t page_size = 1, pages = 0;
};

struct ForwardParams : AttentionParams {
  PageView pages;
  TensorView out;
  float* lse = nullptr;             // or null
  bool vector_out = false;          // every row of out starts at a multiple of 16 bytes
  int32_t* work_counter = nullptr;  // scratch, one number: kernels whose blocks stay take query tiles from it; or null
  TailSplit tail;                   // of their query tiles
  SplitParts tail_parts;            // scratch, of the rows of those tiles
};

// Parts of rows to put together. Row r of the parts is row r % tile_rows of query tile first_tile + r / tile_rows of
// the queue.
struct CombineParams {
  SplitParts parts;
  int32_t count = 1;  // parts
  TileQueue queue;
  int32_t first_tile = 0, tile_rows = 1;
  int32_t heads_q = 1, len_q = 1, head_dim = 0;
  TensorView out;
  float* lse = nullptr;  // natural; or null
  int64_t lse_stride_batch = 0, lse_stride_head = 0;
};

// Rows of a (batch, row, head, D) tensor, and of lse, that belong to no sequence.
struct ClearRowsParams {
  SequenceView sequences;
  bool of_keys = false;  // of the key-like tensors
  int32_t batch = 0, heads = 0, head_dim = 0;
  TensorView tensor;     // 16-bit elements, set to zero
  float* lse = nullptr;  // set to -inf; or null
  int64_t lse_stride_batch = 0, lse_stride_head = 0;
};

// How the gradient of the bias is produced; decided by the broadcast shape of the bias.
enum class BiasGradMode : int32_t {
  kNone,     // not asked for
  kScores,   // no broadcast: the main kernel stores dS
  kKeys,     // broadcast over query rows: the main kernel sums columns into (B, H, keys), a second kernel the rest
  kBatched,  // broadcast over batch or heads only: a kernel of its own sums dS over them in registers
  kRows      // broadcast over keys: softmax does not move when all scores of a row do, so only grad_lse counts
};

struct BackwardParams : AttentionParams {
  TensorView out, grad_out;
  TensorView grad_query, grad_key, grad_value;  // data is null where not asked for
  bool vector_out = false;                      // every row of out and grad_out starts at a multiple of 16 bytes
  bool vector_grads = false;                    // every row of the gradients given starts at a multiple of 16 bytes
  const float* lse = nullptr;
  const float* grad_lse = nullptr;  // or null

  RowTiles row_tiles;               // of the scratch below, with the query tile of the main kernel
  float2* row_stats = nullptr;      // scratch {lse * log2(e), delta}, head by head; see common/backward_steps.cu
  int64_t stats_stride_head = 0;    // rows of all tiles
  float* grad_query_sum = nullptr;  // scratch, fp32 sums of dQ in accumulator order; see sm80/bwd_query_sum.cuh
  int64_t grad_query_elements = 0;  // of them, a multiple of 4
  int32_t* tile_order = nullptr;   // scratch, a counter a query tile and head: key tiles added, deterministic mode only
  int32_t* block_order = nullptr;  // scratch, see BlockOrderParams; null: blocks run as they are numbered

  TailSplit tail;               // of the key tiles of Hopper's kernel, in the order (batch, kv head, key tile)
  int32_t tail_keys = 1;        // of such a tile
  float* tail_grads = nullptr;  // scratch (parts, tiles, 2, keys of a tile, head_dim): dK and dV of them

  FDMA_HOST_DEVICE float2* stats(int64_t first_tile, int64_t h) const {
    return row_stats + h * stats_stride_head + first_tile * row_tiles.tile;
  }

  BiasGradMode bias_grad = BiasGradMode::kNone;
  void* grad_bias = nullptr;        // contiguous (bias_batch, bias_heads, bias_rows, bias_keys) of bias.type
  float* grad_bias_keys = nullptr;  // scratch (B, H, bias_keys), mode kKeys
  int32_t bias_batch = 1, bias_heads = 1, bias_rows = 1, bias_keys = 1;
};

}  // namespace fdma
