// From the keys that a mask lists to slots (policy/slots.hpp): their order, their spans, and the tensors of a call in
// that order and back.
#include <cub/block/block_radix_sort.cuh>

#include "kernels/core/launch.cuh"
#include "kernels/core/numeric.cuh"
#include "kernels/launchers.hpp"
#include "kernels/policy/bias_grad.cuh"
#include "kernels/policy/range.hpp"
#include "kernels/policy/slot_walk.cuh"
#include "kernels/select/row_block.cuh"
#include "kernels/sm80/tile_io.cuh"

namespace fdma {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>(ceil_div<int64_t>(threads, kThreads)); }

// What the mask says of key k: the positions that see it.
FDMA_DEVICE Span interval_span(const KeyListView& mask, int64_t list, int k) {
  const int end = min_of(mask.row(list)[k], mask.keys);
  return end > k ? Span{k, end} : kNoSpan;
}

// One thread a key, one block kRowThreads keys of a list: how many of them are seen.
__global__ void __launch_bounds__(kRowThreads)
    count_seen_kernel(const __grid_constant__ KeyListView mask, int32_t* sums, int blocks) {
  const int64_t list = blockIdx.x / blocks;
  const int k = static_cast<int>(blockIdx.x % blocks) * kRowThreads + threadIdx.x;
  const int seen = __syncthreads_count(k < mask.keys && interval_span(mask, list, k).end != kNoSpan.end);
  if (threadIdx.x == 0) sums[blockIdx.x] = seen;
}

// The same blocks: the keys that are seen, one behind the other. The last block of a list says how many.
__global__ void __launch_bounds__(kRowThreads)
    compact_seen_kernel(const __grid_constant__ KeyListView mask, const int32_t* sums, int blocks, int32_t* seen_keys,
                        int32_t* used) {
  __shared__ int partial[2][kRowWarps];
  const int64_t list = blockIdx.x / blocks;
  const int block = static_cast<int>(blockIdx.x % blocks);
  int of_thread = 0;  // seen keys of earlier blocks
  for (int i = threadIdx.x; i < block; i += kRowThreads) of_thread += sums[list * blocks + i];
  int earlier, total;
  sum_of_earlier_warps(__reduce_add_sync(0xffffffffu, of_thread), partial, 0, earlier);

  const int k = block * kRowThreads + threadIdx.x;
  const bool seen = k < mask.keys && interval_span(mask, list, k).end != kNoSpan.end;
  const uint32_t of_warp = __ballot_sync(0xffffffffu, seen);
  const int before = sum_of_earlier_warps(__popc(of_warp), partial, 1, total);
  const int rank = earlier + before + __popc(of_warp & ((1u << threadIdx.x % 32) - 1));
  if (seen) seen_keys[list * mask.keys + rank] = k;
  if (block == blocks - 1 && threadIdx.x == 0) used[list] = earlier + total;
}

// One block an epoch: its keys by the ends of their spans.
constexpr int kSortThreads = 512;
__global__ void __launch_bounds__(kSortThreads)
    sort_epoch_kernel(const __grid_constant__ KeyListView mask, const int32_t* seen_keys, const int32_t* used,
                      int epochs, int end_bits, int32_t* order) {
  constexpr int kItems = kLongestSlotEpoch / kSortThreads;
  static_assert(kItems * kSortThreads == kLongestSlotEpoch);
  using Sort = cub::BlockRadixSort<uint32_t, kSortThreads, kItems, int32_t>;
  __shared__ typename Sort::TempStorage scratch;
  const int64_t list = blockIdx.x / epochs;
  const int epoch = slot_epoch(mask.keys);
  const int first = static_cast<int>(blockIdx.x % epochs) * epoch;
  const int count = min_of(epoch, used[list] - first);
  if (count <= 0) return;
  uint32_t ends[kItems];
  int32_t keys[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int rank = threadIdx.x * kItems + i;
    keys[i] = rank < count ? seen_keys[list * mask.keys + first + rank] : 0;
    ends[i] = rank < count ? static_cast<uint32_t>(interval_span(mask, list, keys[i]).end) : 0xffffffffu;
  }
  Sort(scratch).SortBlockedToStriped(ends, keys, 0, end_bits);
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int place = i * kSortThreads + threadIdx.x;
    if (place < count) order[list * mask.keys + first + place] = keys[i];
  }
}

// A key that is listed more than once belongs to the first of its columns.
__global__ void __launch_bounds__(kThreads)
    claim_columns_kernel(const __grid_constant__ KeyListView mask, int32_t* slot_of_key) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= mask.lists() * mask.width) return;
  const int64_t list = index / mask.width;
  const int slot = static_cast<int>(index % mask.width);
  const int key = mask.row(list)[slot];
  if (key < 0 || key >= mask.keys) return;
  atomicMin(reinterpret_cast<uint32_t*>(slot_of_key + list * mask.keys + key), static_cast<uint32_t>(slot));
}

// One thread a slot: its key and span, the summaries, and the slot of each key. `order`: null for columns.
__global__ void __launch_bounds__(kThreads)
    fill_slots_kernel(const __grid_constant__ KeyListView mask, const int32_t* order, SlotTables tables) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;  // whole warps: see kSlotPadding
  if (index >= mask.lists() * tables.slots) return;
  const int64_t list = index / tables.slots;
  const int slot = static_cast<int>(index % tables.slots);
  int key = -1;
  Span span = kNoSpan;
  if (slot < mask.width) {
    if (order == nullptr) {
      const int column = mask.row(list)[slot];
      if (column >= 0 && column < mask.keys && tables.slot_of_key[list * mask.keys + column] == slot) {
        key = column;
        span = {mask.is_causal ? key : INT32_MIN, INT32_MAX};
      }
    } else if (slot < tables.used[list]) {
      key = order[list * mask.keys + slot];
      span = interval_span(mask, list, key);
    }
  }
  tables.keys[index] = key;
  tables.spans[index] = span;
  if (order == nullptr) {
    if (slot == 0) tables.used[list] = mask.width;
  } else if (key >= 0) {
    tables.slot_of_key[list * mask.keys + key] = slot;
  }
  SpanSummary summary{span.begin, span.end, span.begin, span.end};
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    SpanSummary other;
    other.first_begin = __shfl_xor_sync(0xffffffffu, summary.first_begin, distance);
    other.last_end = __shfl_xor_sync(0xffffffffu, summary.last_end, distance);
    other.last_begin = __shfl_xor_sync(0xffffffffu, summary.last_begin, distance);
    other.first_end = __shfl_xor_sync(0xffffffffu, summary.first_end, distance);
    summary.add(other);
  }
  if (threadIdx.x % 32 == 0) tables.groups[index / kSlotGroup] = summary;
}

FDMA_DEVICE uint4 load_chunk(const uint16_t* source, bool vector) {
  return vector ? *reinterpret_cast<const uint4*>(source) : sm80::load_unaligned_chunk(source);
}

// Eight elements a thread. Rows of slots that no kernel visits are not written.
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(const __grid_constant__ SlotRowsParams p) {
  const int chunks = p.head_dim / sm80::kChunk;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = index / chunks;
  if (row >= static_cast<int64_t>(p.batch) * p.heads * p.slots) return;
  const int slot = static_cast<int>(row % p.slots);
  const int h = static_cast<int>(row / p.slots % p.heads);
  const int b = static_cast<int>(row / p.slots / p.heads);
  const int32_t* keys = p.keys + (static_cast<int64_t>(b) * p.list_stride_batch + h * p.list_stride_head) * p.slots;
  const int key = keys[slot];
  // Keys come first in a list, except in lists of columns that have gaps.
  if (key < 0 && !p.gaps && keys[slot / kSlotPadding * kSlotPadding] < 0) return;
  const int column = static_cast<int>(index % chunks) * sm80::kChunk;
  uint4 value = make_uint4(0, 0, 0, 0);
  if (key >= 0) value = load_chunk(p.natural.at<const uint16_t>(b, h, key) + column, p.vector);
  *reinterpret_cast<uint4*>(p.slotted.at<uint16_t>(b, h, slot) + column) = value;
}

// The way back: every row of the natural order is written, those of hidden keys with zeros.
__global__ void __launch_bounds__(kThreads) scatter_rows_kernel(const __grid_constant__ SlotRowsParams p) {
  const int chunks = p.head_dim / sm80::kChunk;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = index / chunks;
  if (row >= static_cast<int64_t>(p.batch) * p.heads * p.len_k) return;
  const int k = static_cast<int>(row % p.len_k);
  const int h = static_cast<int>(row / p.len_k % p.heads);
  const int b = static_cast<int>(row / p.len_k / p.heads);
  const int64_t list = static_cast<int64_t>(b) * p.list_stride_batch + h * p.list_stride_head;
  const int slot = p.slot_of_key[list * p.len_k + k];
  const int column = static_cast<int>(index % chunks) * sm80::kChunk;
  uint4 value = make_uint4(0, 0, 0, 0);
  if (slot >= 0) value = *reinterpret_cast<const uint4*>(p.slotted.at<uint16_t>(b, h, slot) + column);
  uint16_t* target = p.natural.at<uint16_t>(b, h, k) + column;
  if (p.vector) {
    *reinterpret_cast<uint4*>(target) = value;
  } else {
    sm80::store_unaligned_chunk(target, value);
  }
}

// One block in all. Walks are sorted by their length in 256 steps; among equal lengths blocks come as they may.
__global__ void __launch_bounds__(kRowThreads) order_blocks_kernel(const __grid_constant__ BlockOrderParams p) {
  constexpr int kSteps = 256;
  __shared__ int places[kSteps], sums[2][kRowWarps];
  const int tiles = p.tiles(), blocks = static_cast<int>(p.blocks());
  const int longest = ceil_div(p.len_q, p.tile_queries);
  const auto step_of = [&](int index) {  // 0 for the longest walks
    const int head = index / tiles, tile = index % tiles;
    const int64_t list = p.slots.list(head / p.heads_kv, head % p.heads_kv);
    const SpanSummary* groups = p.slots.groups + list * (p.slots.slots / kSlotGroup);
    const int per_tile = p.tile_slots / kSlotGroup;
    SpanSummary spans = load_summary(groups, tile * per_tile);
    for (int i = 1; i < per_tile; ++i) spans.add(load_summary(groups, tile * per_tile + i));
    const QueryTiles walk = query_tiles(spans, p.slots.shift, p.len_q, p.tile_queries);
    return kSteps - 1 - static_cast<int>(static_cast<int64_t>(walk.end - walk.first) * (kSteps - 1) / longest);
  };
  if (threadIdx.x < kSteps) places[threadIdx.x] = 0;
  __syncthreads();
  for (int index = threadIdx.x; index < blocks; index += kRowThreads) atomicAdd(&places[step_of(index)], 1);
  __syncthreads();
  const int count = threadIdx.x < kSteps ? places[threadIdx.x] : 0;
  const int lane = threadIdx.x % 32;
  int running = count;  // of this and lower lanes
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, running, distance);
    if (lane >= distance) running += other;
  }
  int total;
  const int earlier = sum_of_earlier_warps(__shfl_sync(0xffffffffu, running, 31), sums, 0, total);
  if (threadIdx.x < kSteps) places[threadIdx.x] = earlier + running - count;
  __syncthreads();
  for (int index = threadIdx.x; index < blocks; index += kRowThreads) {
    p.order[atomicAdd(&places[step_of(index)], 1)] = index;
  }
}

// Biases in bits, in the order of the slots.
__global__ void __launch_bounds__(kThreads) gather_bias_kernel(const __grid_constant__ SlotBiasParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= static_cast<int64_t>(p.batch) * p.heads * p.slots) return;
  const int slot = static_cast<int>(index % p.slots);
  const int row = static_cast<int>(index / p.slots % p.heads);
  const int b = static_cast<int>(index / p.slots / p.heads);
  const int h = row * p.heads_per_row;
  const int64_t list = static_cast<int64_t>(b) * p.list_stride_batch + h / p.group * p.list_stride_head;
  const int key = p.keys[list * p.slots + slot];
  p.target[index] = key < 0
                        ? 0.f
                        : kLog2e * load_element(p.bias.data, p.bias.type,
                                                p.bias.offset(b, h, 0) + static_cast<int64_t>(key) * p.bias.stride_key);
}

// Gradient of a key-only bias from the sums of each slot, (B, H, slots).
__global__ void __launch_bounds__(kThreads)
    reduce_slot_bias_gradient_kernel(const __grid_constant__ BackwardParams p, const int32_t* slot_of_key, int len_k) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= static_cast<int64_t>(p.bias_batch) * p.bias_heads * len_k) return;
  const int k = static_cast<int>(index % len_k);
  const BiasSharers sharers(p, static_cast<int>(index / len_k / p.bias_heads),
                            static_cast<int>(index / len_k % p.bias_heads));
  float sum = 0.f;
  for (int b = sharers.batch_begin; b < sharers.batch_end; ++b) {
    for (int h = sharers.head_begin; h < sharers.head_end; ++h) {
      const int slot = slot_of_key[p.slots.list(b, h / p.group) * len_k + k];
      if (slot >= 0) sum += p.grad_bias_keys[(static_cast<int64_t>(b) * p.heads_q + h) * p.bias_keys + slot];
    }
  }
  store_element(p.grad_bias, p.bias.type, index, sum);
}

// One thread a word of 32 keys of a packed mask.
__global__ void __launch_bounds__(kThreads) expand_key_lists_kernel(const __grid_constant__ ExpandParams p) {
  const PackedMaskLayout& layout = p.layout;
  const int64_t words = layout.row_words();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= layout.batch * layout.heads * layout.rows * words) return;
  const int word = static_cast<int>(index % words);
  const int q = static_cast<int>(index / words % layout.rows);
  const int64_t head = index / words / layout.rows;
  const int64_t b = head / layout.heads;
  const Sequence sequence = p.sequences.at(b);
  const int position = q + sequence.len_k - sequence.len_q;
  const int64_t list = p.mask.list(b, head % layout.heads);
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) {
    const int k = word * 32 + i;
    if (k >= sequence.len_k || q >= sequence.len_q) break;
    bool seen;
    if (p.slot_of_key != nullptr) {
      seen = p.slot_of_key[list * p.mask.keys + k] >= 0 && (!p.mask.is_causal || k <= position);
    } else {
      seen = k <= position && position < p.mask.row(list)[k];
    }
    bits |= seen ? 1u << i : 0u;
  }
  p.rows[index] = bits;
  if (bits == 0) return;
  const int tile = word / 2;
  const int64_t row_tile = head * layout.row_tiles() + q / kMaskTile;
  atomicOr(p.tiles + row_tile * layout.tile_words() + tile / 32, 1u << (tile % 32));
}

template <typename... Args>
cudaError_t start(void (*kernel)(Args...), int64_t threads, cudaStream_t stream, const Args&... args) {
  if (threads == 0) return cudaSuccess;
  if (ceil_div<int64_t>(threads, kThreads) > INT32_MAX) return cudaErrorInvalidConfiguration;
  kernel<<<blocks_for(threads), kThreads, 0, stream>>>(args...);
  return cudaPeekAtLastError();
}

// Scratch order and `used`.
cudaError_t order_seen_keys(const KeyListView& mask, const SlotScratch& scratch, int32_t* used, cudaStream_t stream) {
  const int blocks = ceil_div(mask.keys, kRowThreads), epochs = ceil_div(mask.keys, slot_epoch(mask.keys));
  if (mask.lists() * max_of(blocks, epochs) > INT32_MAX) return cudaErrorInvalidConfiguration;
  int end_bits = 1;  // ends are at most the number of keys
  while (end_bits < 31 && mask.keys >> end_bits != 0) ++end_bits;
  const auto lists = static_cast<unsigned>(mask.lists());
  count_seen_kernel<<<lists * blocks, kRowThreads, 0, stream>>>(mask, scratch.sums, blocks);
  cudaError_t error = cudaPeekAtLastError();
  if (error != cudaSuccess) return error;
  compact_seen_kernel<<<lists * blocks, kRowThreads, 0, stream>>>(mask, scratch.sums, blocks, scratch.seen, used);
  error = cudaPeekAtLastError();
  if (error != cudaSuccess) return error;
  sort_epoch_kernel<<<lists * epochs, kSortThreads, 0, stream>>>(mask, scratch.seen, used, epochs, end_bits + 1,
                                                                 scratch.order);
  return cudaPeekAtLastError();
}

}  // namespace

int64_t slot_sums(const KeyListView& mask) { return mask.lists() * ceil_div(mask.keys, kRowThreads); }

cudaError_t launch_fill_slots(const KeyListView& mask, const SlotTables& tables, const SlotScratch& scratch,
                              cudaStream_t stream) {
  const size_t inverse_bytes = static_cast<size_t>(mask.lists() * mask.keys) * sizeof(int32_t);
  cudaError_t error = cudaMemsetAsync(tables.slot_of_key, 0xff, inverse_bytes, stream);
  if (error != cudaSuccess) return error;
  if (!mask.is_interval) {
    error = start(claim_columns_kernel, mask.lists() * mask.width, stream, mask, tables.slot_of_key);
  } else if (mask.lists() * mask.keys == 0) {
    return cudaSuccess;
  } else {
    error = order_seen_keys(mask, scratch, tables.used, stream);
  }
  if (error != cudaSuccess) return error;
  return start(fill_slots_kernel, mask.lists() * tables.slots, stream, mask,
               static_cast<const int32_t*>(mask.is_interval ? scratch.order : nullptr), tables);
}

cudaError_t launch_order_blocks(const BlockOrderParams& p, cudaStream_t stream) {
  if (p.blocks() == 0) return cudaSuccess;
  if (p.blocks() > INT32_MAX) return cudaErrorInvalidConfiguration;
  order_blocks_kernel<<<1, kRowThreads, 0, stream>>>(p);
  return cudaPeekAtLastError();
}

cudaError_t launch_gather_rows(const SlotRowsParams& p, cudaStream_t stream) {
  return start(gather_rows_kernel, static_cast<int64_t>(p.batch) * p.heads * p.slots * (p.head_dim / sm80::kChunk),
               stream, p);
}

cudaError_t launch_scatter_rows(const SlotRowsParams& p, cudaStream_t stream) {
  return start(scatter_rows_kernel, static_cast<int64_t>(p.batch) * p.heads * p.len_k * (p.head_dim / sm80::kChunk),
               stream, p);
}

cudaError_t launch_gather_bias(const SlotBiasParams& p, cudaStream_t stream) {
  return start(gather_bias_kernel, static_cast<int64_t>(p.batch) * p.heads * p.slots, stream, p);
}

cudaError_t launch_reduce_slot_bias_gradient(const BackwardParams& p, const int32_t* slot_of_key, int32_t len_k,
                                             cudaStream_t stream) {
  return start(reduce_slot_bias_gradient_kernel, static_cast<int64_t>(p.bias_batch) * p.bias_heads * len_k, stream, p,
               slot_of_key, len_k);
}

cudaError_t launch_expand_key_lists(const ExpandParams& p, cudaStream_t stream) {
  const cudaError_t error = cudaMemsetAsync(p.tiles, 0, static_cast<size_t>(p.layout.tiles_bytes()), stream);
  if (error != cudaSuccess) return error;
  return start(expand_key_lists_kernel, p.layout.batch * p.layout.heads * p.layout.rows * p.layout.row_words(), stream,
               p);
}

}  // namespace fdma
