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

// Whether some query sees the key of this row.
FDMA_DEVICE bool is_seen(const KeyListView& mask, int64_t order, int row) {
  return row < mask.keys.rows && mask.span(order, row).end != kNoSpan.end;
}

// One thread for each (sequence, mask head, column): which keys are listed.
__global__ void __launch_bounds__(kThreads) mark_listed_kernel(const __grid_constant__ KeyListView mask) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t head = index / mask.width % mask.heads, b = index / mask.width / mask.heads;
  if (b >= mask.keys.batch) return;
  const Sequence sequence = mask.keys.sequences.at(b);
  const int key = mask.row(mask.list(b, head))[index % mask.width];
  if (key >= 0 && key < sequence.len_k) mask.listed[mask.place(b, head, sequence, key)] = 1;
}

// One thread a key, one block kRowThreads keys of an order: how many of them are seen.
__global__ void __launch_bounds__(kRowThreads)
    count_seen_kernel(const __grid_constant__ KeyListView mask, int32_t* sums, int blocks) {
  const int row = static_cast<int>(blockIdx.x % blocks) * kRowThreads + threadIdx.x;
  const int seen = __syncthreads_count(is_seen(mask, blockIdx.x / blocks, row));
  if (threadIdx.x == 0) sums[blockIdx.x] = seen;
}

// The same blocks: the keys that are seen, one behind the other. The last block of an order says how many.
__global__ void __launch_bounds__(kRowThreads)
    compact_seen_kernel(const __grid_constant__ KeyListView mask, const int32_t* sums, int blocks, int32_t* seen_keys,
                        int32_t* used) {
  __shared__ int partial[2][kRowWarps];
  const int64_t order = blockIdx.x / blocks;
  const int block = static_cast<int>(blockIdx.x % blocks);
  int of_thread = 0;  // seen keys of earlier blocks
  for (int i = threadIdx.x; i < block; i += kRowThreads) of_thread += sums[order * blocks + i];
  int earlier, total;
  sum_of_earlier_warps(__reduce_add_sync(0xffffffffu, of_thread), partial, 0, earlier);

  const int row = block * kRowThreads + threadIdx.x;
  const bool seen = is_seen(mask, order, row);
  const uint32_t of_warp = __ballot_sync(0xffffffffu, seen);
  const int before = sum_of_earlier_warps(__popc(of_warp), partial, 1, total);
  const int rank = earlier + before + __popc(of_warp & ((1u << threadIdx.x % 32) - 1));
  if (seen) seen_keys[order * mask.keys.rows + rank] = row;
  if (block == blocks - 1 && threadIdx.x == 0) used[order] = earlier + total;
}

// One block an epoch: its keys by the ends of their spans.
constexpr int kSortThreads = 512;
__global__ void __launch_bounds__(kSortThreads)
    sort_epoch_kernel(const __grid_constant__ KeyListView mask, const int32_t* seen_keys, const int32_t* used,
                      int epochs, int end_bits, int32_t* ordered) {
  constexpr int kItems = kLongestSlotEpoch / kSortThreads;
  static_assert(kItems * kSortThreads == kLongestSlotEpoch);
  using Sort = cub::BlockRadixSort<uint32_t, kSortThreads, kItems, int32_t>;
  __shared__ typename Sort::TempStorage scratch;
  const int64_t order = blockIdx.x / epochs, first_key = order * mask.keys.rows;
  const int epoch = slot_epoch(mask.width);
  const int first = static_cast<int>(blockIdx.x % epochs) * epoch;
  const int count = min_of(epoch, used[order] - first);
  if (count <= 0) return;
  uint32_t ends[kItems];
  int32_t keys[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int rank = threadIdx.x * kItems + i;
    keys[i] = rank < count ? seen_keys[first_key + first + rank] : 0;
    ends[i] = rank < count ? static_cast<uint32_t>(mask.span(order, keys[i]).end) : 0xffffffffu;
  }
  Sort(scratch).SortBlockedToStriped(ends, keys, 0, end_bits);
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int place = i * kSortThreads + threadIdx.x;
    if (place < count) ordered[first_key + first + place] = keys[i];
  }
}

// Of the lanes of a warp.
FDMA_DEVICE SpanSummary summary_of_warp(SpanSummary summary) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    SpanSummary other;
    other.first_begin = __shfl_xor_sync(0xffffffffu, summary.first_begin, distance);
    other.last_end = __shfl_xor_sync(0xffffffffu, summary.last_end, distance);
    other.last_begin = __shfl_xor_sync(0xffffffffu, summary.last_begin, distance);
    other.first_end = __shfl_xor_sync(0xffffffffu, summary.first_end, distance);
    summary.add(other);
  }
  return summary;
}

// One block a region, one thread a slot: its key and span, the summaries, and the slot of each key. `ordered`: the keys
// of an order.
__global__ void __launch_bounds__(kSlotRegion)
    fill_slots_kernel(const __grid_constant__ KeyListView mask, const int32_t* ordered, SlotTables tables) {
  static_assert(kSlotGroup == 32 && kSlotRegion == 32 * kSlotGroup);  // a warp has a group, a warp of groups the region
  __shared__ SpanSummary groups[kSlotRegion / kSlotGroup];
  const int regions = slot_regions(tables.slots);
  const int64_t order = blockIdx.x / regions, first_key = order * mask.keys.rows;
  const int slot = static_cast<int>(blockIdx.x % regions) * kSlotRegion + threadIdx.x;
  int key = -1;
  Span span = kNoSpan;
  if (slot < tables.used[order]) {
    key = ordered[first_key + slot];
    span = mask.span(order, key);
    tables.slot_of_key[first_key + key] = slot;
  }
  const SpanSummary of_group = summary_of_warp({span.begin, span.end, span.begin, span.end});
  if (slot < tables.slots) {  // whole warps: see kSlotPadding
    const int64_t index = order * tables.slots + slot;
    tables.keys[index] = key;
    tables.spans[index] = span;
    if (threadIdx.x % 32 == 0) tables.groups[index / kSlotGroup] = of_group;
  }
  if (threadIdx.x % 32 == 0) groups[threadIdx.x / 32] = of_group;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const SpanSummary of_region = summary_of_warp(groups[threadIdx.x]);
  if (threadIdx.x == 0) tables.regions[blockIdx.x] = of_region;
}

FDMA_DEVICE uint4 load_chunk(const uint16_t* source, bool vector) {
  return vector ? *reinterpret_cast<const uint4*>(source) : sm80::load_unaligned_chunk(source);
}

// Eight elements a thread. Rows of slots that no kernel visits are not written.
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(const __grid_constant__ SlotRowsParams p) {
  const int chunks = p.head_dim / sm80::kChunk, heads = p.heads * p.copies;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = index / chunks;
  if (row >= static_cast<int64_t>(p.batch) * heads * p.slots) return;
  const int slot = static_cast<int>(row % p.slots);
  const int h = static_cast<int>(row / p.slots % heads);
  const int b = static_cast<int>(row / p.slots / heads);
  const int32_t* keys = p.keys + (static_cast<int64_t>(b) * p.list_stride_batch + h * p.list_stride_head) * p.slots;
  const int key = keys[slot];
  if (key < 0 && keys[slot / kSlotPadding * kSlotPadding] < 0) return;  // keys come first
  const int column = static_cast<int>(index % chunks) * sm80::kChunk;
  uint4 value = make_uint4(0, 0, 0, 0);
  if (key >= 0) value = load_chunk(p.natural.at<const uint16_t>(b, h / p.copies, key) + column, p.vector);
  *reinterpret_cast<uint4*>(p.slotted.at<uint16_t>(b, h, slot) + column) = value;
}

// The way back: every row of the natural order is written, those of hidden keys with zeros. Copies are summed in their
// order.
template <typename T>
__global__ void __launch_bounds__(kThreads) scatter_rows_kernel(const __grid_constant__ SlotRowsParams p) {
  const int chunks = p.head_dim / sm80::kChunk;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = index / chunks;
  if (row >= static_cast<int64_t>(p.batch) * p.heads * p.rows) return;
  const int k = static_cast<int>(row % p.rows);
  const int h = static_cast<int>(row / p.rows % p.heads);
  const int b = static_cast<int>(row / p.rows / p.heads);
  const int column = static_cast<int>(index % chunks) * sm80::kChunk;
  float2 sums[4] = {};
  for (int copy = h * p.copies; copy < (h + 1) * p.copies; ++copy) {
    const int64_t list = static_cast<int64_t>(b) * p.list_stride_batch + copy * p.list_stride_head;
    const int slot = p.slot_of_key[list * p.rows + k];
    if (slot < 0) continue;
    const uint4 chunk = *reinterpret_cast<const uint4*>(p.slotted.at<uint16_t>(b, copy, slot) + column);
    const uint32_t pairs[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = Element<T>::unpack(pairs[i]);
      sums[i].x += pair.x;
      sums[i].y += pair.y;
    }
  }
  uint4 value;
  value.x = Element<T>::pack(sums[0].x, sums[0].y), value.y = Element<T>::pack(sums[1].x, sums[1].y);
  value.z = Element<T>::pack(sums[2].x, sums[2].y), value.w = Element<T>::pack(sums[3].x, sums[3].y);
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
    const SpanSummary* groups = p.slots.groups_of(list);
    const int per_tile = p.tile_slots / kSlotGroup;
    SpanSummary spans = load_summary(groups, tile * per_tile);
    for (int i = 1; i < per_tile; ++i) spans.add(load_summary(groups, tile * per_tile + i));
    const QueryTiles walk = query_tiles(spans, p.len_q, p.tile_queries);
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
  const int row_of_key = p.keys[list * p.slots + slot];
  float bias = 0.f;
  if (row_of_key >= 0) {
    const KeyRows::Key key = p.rows.at(b, row_of_key);
    const int64_t element = p.bias.offset(key.b, h, 0) + static_cast<int64_t>(key.k) * p.bias.stride_key;
    bias = kLog2e * load_element(p.bias.data, p.bias.type, element);
  }
  p.target[index] = bias;
}

// Gradient of a key-only bias from the sums of each slot, (batch entries, H, slots).
__global__ void __launch_bounds__(kThreads)
    reduce_slot_bias_gradient_kernel(const __grid_constant__ BackwardParams p, const int32_t* slot_of_key,
                                     const __grid_constant__ KeyRows rows) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int len_k = p.sequences.max_k;
  if (index >= static_cast<int64_t>(p.bias_batch) * p.bias_heads * len_k) return;
  const int k = static_cast<int>(index % len_k);
  const BiasSharers sharers(p, static_cast<int>(index / len_k / p.bias_heads),
                            static_cast<int>(index / len_k % p.bias_heads));
  float sum = 0.f;
  for (int b = sharers.batch_begin; b < sharers.batch_end; ++b) {
    const Sequence sequence = p.sequences.at(b);
    if (k >= sequence.len_k) continue;
    const int entry = static_cast<int>(rows.entry(b));
    for (int h = sharers.head_begin; h < sharers.head_end; ++h) {
      const int slot = slot_of_key[p.slots.list(entry, h / p.group) * rows.rows + sequence.k_begin + k];
      if (slot >= 0) sum += p.grad_bias_keys[(static_cast<int64_t>(entry) * p.heads_q + h) * p.bias_keys + slot];
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
  const Sequence sequence = p.mask.keys.sequences.at(b);
  const int position = q + sequence.len_k - sequence.len_q;
  const int32_t* ends = p.mask.row(p.mask.list(b, head % layout.heads));
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) {
    const int k = word * 32 + i;
    if (k >= sequence.len_k || q >= sequence.len_q) break;
    bool seen;
    if (p.mask.is_interval) {
      seen = k <= position && position < ends[k];
    } else {
      const int64_t place = p.mask.place(b, head % layout.heads, sequence, k);
      seen = p.mask.listed[place] != 0 && (!p.mask.is_causal || k <= position);
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

cudaError_t mark_listed(const KeyListView& mask, cudaStream_t stream) {
  if (mask.is_interval) return cudaSuccess;
  const cudaError_t error = cudaMemsetAsync(mask.listed, 0, static_cast<size_t>(mask.all_keys()), stream);
  if (error != cudaSuccess) return error;
  return start(mark_listed_kernel, mask.keys.batch * mask.heads * mask.width, stream, mask);
}

// Scratch seen and `used`.
cudaError_t collect_seen_keys(const KeyListView& mask, const SlotScratch& scratch, int32_t* used, cudaStream_t stream) {
  const int64_t blocks = ceil_div<int64_t>(mask.keys.rows, kRowThreads), all_blocks = mask.orders() * blocks;
  if (all_blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const auto grid = static_cast<unsigned>(all_blocks);
  const int of_order = static_cast<int>(blocks);
  count_seen_kernel<<<grid, kRowThreads, 0, stream>>>(mask, scratch.sums, of_order);
  const cudaError_t error = cudaPeekAtLastError();
  if (error != cudaSuccess) return error;
  compact_seen_kernel<<<grid, kRowThreads, 0, stream>>>(mask, scratch.sums, of_order, scratch.seen, used);
  return cudaPeekAtLastError();
}

// Scratch order.
cudaError_t sort_epochs(const KeyListView& mask, const SlotScratch& scratch, const int32_t* used, cudaStream_t stream) {
  const int epochs = static_cast<int>(ceil_div<int64_t>(mask.keys.rows, slot_epoch(mask.width)));
  if (mask.orders() * epochs > INT32_MAX) return cudaErrorInvalidConfiguration;
  const SequenceView& sequences = mask.keys.sequences;
  const int64_t last_end = sequences.packed ? sequences.rows_q : sequences.max_q;
  int end_bits = 1;
  while (end_bits < 31 && last_end >> end_bits != 0) ++end_bits;
  sort_epoch_kernel<<<static_cast<unsigned>(mask.orders() * epochs), kSortThreads, 0, stream>>>(
      mask, scratch.seen, used, epochs, end_bits + 1, scratch.order);
  return cudaPeekAtLastError();
}

}  // namespace

int64_t slot_sums(const KeyListView& mask) { return mask.orders() * ceil_div<int64_t>(mask.keys.rows, kRowThreads); }

cudaError_t launch_fill_slots(const KeyListView& mask, const SlotTables& tables, const SlotScratch& scratch,
                              cudaStream_t stream) {
  const size_t inverse_bytes = static_cast<size_t>(mask.all_keys()) * sizeof(int32_t);
  cudaError_t error = cudaMemsetAsync(tables.slot_of_key, 0xff, inverse_bytes, stream);
  if (error != cudaSuccess || mask.orders() * tables.slots == 0) return error;
  error = mark_listed(mask, stream);
  if (error != cudaSuccess) return error;
  error = collect_seen_keys(mask, scratch, tables.used, stream);
  if (error != cudaSuccess) return error;
  // The ends of columns are those of their sequences: they rise with the keys.
  if (mask.is_interval) error = sort_epochs(mask, scratch, tables.used, stream);
  if (error != cudaSuccess) return error;
  const int64_t regions = mask.orders() * slot_regions(tables.slots);
  if (regions > INT32_MAX) return cudaErrorInvalidConfiguration;
  fill_slots_kernel<<<static_cast<unsigned>(regions), kSlotRegion, 0, stream>>>(
      mask, mask.is_interval ? scratch.order : scratch.seen, tables);
  return cudaPeekAtLastError();
}

cudaError_t launch_order_blocks(const BlockOrderParams& p, cudaStream_t stream) {
  if (p.blocks() == 0) return cudaSuccess;
  if (p.blocks() > INT32_MAX) return cudaErrorInvalidConfiguration;
  order_blocks_kernel<<<1, kRowThreads, 0, stream>>>(p);
  return cudaPeekAtLastError();
}

cudaError_t launch_gather_rows(const SlotRowsParams& p, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(p.batch) * p.heads * p.copies * p.slots;
  return start(gather_rows_kernel, rows * (p.head_dim / sm80::kChunk), stream, p);
}

cudaError_t launch_scatter_rows(const SlotRowsParams& p, cudaStream_t stream) {
  const int64_t threads = static_cast<int64_t>(p.batch) * p.heads * p.rows * (p.head_dim / sm80::kChunk);
  const bool is_half = p.type == ElementType::kFloat16;
  return start(is_half ? scatter_rows_kernel<half_t> : scatter_rows_kernel<bfloat16_t>, threads, stream, p);
}

cudaError_t launch_gather_bias(const SlotBiasParams& p, cudaStream_t stream) {
  return start(gather_bias_kernel, static_cast<int64_t>(p.batch) * p.heads * p.slots, stream, p);
}

cudaError_t launch_reduce_slot_bias_gradient(const BackwardParams& p, const int32_t* slot_of_key, const KeyRows& rows,
                                             cudaStream_t stream) {
  return start(reduce_slot_bias_gradient_kernel, static_cast<int64_t>(p.bias_batch) * p.bias_heads * p.sequences.max_k,
               stream, p, slot_of_key, rows);
}

cudaError_t launch_expand_key_lists(const ExpandParams& p, cudaStream_t stream) {
  cudaError_t error = cudaMemsetAsync(p.tiles, 0, static_cast<size_t>(p.layout.tiles_bytes()), stream);
  if (error == cudaSuccess) error = mark_listed(p.mask, stream);
  if (error != cudaSuccess) return error;
  return start(expand_key_lists_kernel, p.layout.batch * p.layout.heads * p.layout.rows * p.layout.row_words(), stream,
               p);
}

}  // namespace fdma
