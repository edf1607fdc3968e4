// A packed mask on keys in an order that follows from it (policy/compact.hpp): which query tiles see each key, the
// order, whether it pays, and the bits in that order. Every step is a function of the mask alone, in integers: backward
// finds the order that forward found.
//
// The mask is read twice, only where its tiles are live, and written once. What lies between is 64 times smaller: a bit
// for each key and query tile.
#include <cub/device/device_radix_sort.cuh>

#include "kernels/core/launch.cuh"
#include "kernels/launchers.hpp"
#include "kernels/policy/compact.hpp"
#include "kernels/policy/range.hpp"
#include "kernels/select/row_block.cuh"

namespace fdma {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
static_assert(CompactOrder::kBins == kRowThreads);

// A word of keys of a row, without those that causality hides.
FDMA_DEVICE uint32_t visible_word(const CompactParams& p, uint32_t word, int64_t row, int64_t w) {
  return word & keys_before(key_limit(row, p.layout.rows, p.layout.keys, p.is_causal), w);
}

// Whether words [w, w + 1], w even, of a query tile have any bit.
FDMA_DEVICE bool tile_is_live(const CompactParams& p, int64_t list, int64_t query_tile, int64_t w) {
  const uint32_t* tiles = p.natural_tiles + (list * p.layout.row_tiles() + query_tile) * p.layout.tile_words();
  return ((tiles[w / 64] >> (w / 2 % 32)) & 1u) != 0;
}

// A block takes 32 query tiles, one a warp, and 1024 keys, one word a lane: the OR of the rows of each warp, turned
// from bits of keys to bits of query tiles.
__global__ void __launch_bounds__(kRowThreads) see_keys_kernel(const __grid_constant__ CompactParams p) {
  __shared__ uint32_t any[32][33];
  const PackedMaskLayout& layout = p.layout;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row_words = layout.row_words(), chunks = ceil_div<int64_t>(row_words, 32);
  const int64_t chunk = blockIdx.x % chunks, query_word = blockIdx.x / chunks % query_words(layout);
  const int64_t list = blockIdx.x / chunks / query_words(layout);
  const int64_t query_tile = query_word * 32 + warp, w = chunk * 32 + lane;
  uint32_t seen = 0;
  if (query_tile < layout.row_tiles() && w < row_words && tile_is_live(p, list, query_tile, w)) {
    const int64_t first = query_tile * kMaskTile;
    const int rows = static_cast<int>(min_of(kMaskTile, layout.rows - first));
    const uint32_t* source = p.natural_rows + (list * layout.rows + first) * row_words + w;
#pragma unroll 8
    for (int r = 0; r < rows; ++r) seen |= visible_word(p, source[r * row_words], first + r, w);
  }
  any[warp][lane] = seen;
  __syncthreads();
  const uint32_t of_tile = any[lane][warp];  // keys of word `warp` that query tile `lane` sees
  uint32_t of_key = 0;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const uint32_t tiles = __ballot_sync(0xffffffffu, ((of_tile >> i) & 1u) != 0);
    if (lane == i) of_key = tiles;
  }
  const int64_t word = chunk * 32 + warp;
  if (word < row_words) p.seen[(list * query_words(layout) + query_word) * row_words * 32 + word * 32 + lane] = of_key;
}

FDMA_DEVICE Span tiles_of_key(const CompactParams& p, int64_t list, int64_t key) {
  const int64_t stride = p.layout.row_words() * 32, count = query_words(p.layout);
  return query_tile_span(p.seen + list * count * stride + key, stride, count);
}

// One thread a key: how many keys each bin of query tiles sees first.
__global__ void __launch_bounds__(kThreads) count_bins_kernel(const __grid_constant__ CompactParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= p.lists() * p.layout.keys) return;
  const int64_t list = index / p.layout.keys;
  const Span tiles = tiles_of_key(p, list, index % p.layout.keys);
  if (tiles.end >= 0) atomicAdd(p.bins + list * CompactOrder::kBins + CompactOrder(p.layout).bin(tiles), 1);
}

// A block takes kRowThreads keys of a list, one a thread: what they are sorted by, list before place.
__global__ void __launch_bounds__(kRowThreads)
    place_keys_kernel(const __grid_constant__ CompactParams p, uint64_t* places, int32_t* keys) {
  __shared__ int sums[2][kRowWarps];
  __shared__ int earlier[CompactOrder::kBins];
  const int lane = threadIdx.x % 32;
  const int64_t blocks = ceil_div<int64_t>(p.layout.keys, kRowThreads);
  const int64_t list = blockIdx.x / blocks, key = blockIdx.x % blocks * kRowThreads + threadIdx.x;

  const int count = p.bins[list * CompactOrder::kBins + threadIdx.x];
  int inclusive = count;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, inclusive, distance);
    if (lane >= distance) inclusive += other;
  }
  int total;
  const int of_warp = __shfl_sync(0xffffffffu, inclusive, 31);
  earlier[threadIdx.x] = sum_of_earlier_warps(of_warp, sums, 0, total) + inclusive - count;
  __syncthreads();

  if (key >= p.layout.keys) return;
  const CompactOrder order(p.layout);
  const Span tiles = tiles_of_key(p, list, key);
  const uint32_t place = tiles.end < 0 ? order.hidden() : order.place(earlier[order.bin(tiles)], tiles);
  places[list * p.layout.keys + key] = static_cast<uint64_t>(list) << order.order.bits | place;
  keys[list * p.layout.keys + key] = static_cast<int32_t>(key);
}

// One warp a tile of 64 slots: the query tiles that see any of its keys, in natural order and in `order`.
__global__ void __launch_bounds__(kThreads)
    count_tiles_kernel(const __grid_constant__ CompactParams p, const int32_t* order) {
  const int lane = threadIdx.x % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (index >= p.lists() * p.tiles()) return;
  const int64_t list = index / p.tiles(), tile = index % p.tiles();
  const int64_t stride = p.layout.row_words() * 32;
  int64_t slots[2], keys[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    slots[i] = tile * kMaskTile + 32 * i + lane;
    keys[i] = slots[i] < p.layout.keys ? order[list * p.layout.keys + slots[i]] : slots[i];  // padding is not seen
  }
  uint64_t natural_tiles = 0, ordered_tiles = 0;
  for (int64_t word = 0; word < query_words(p.layout); ++word) {
    const int64_t row = list * query_words(p.layout) + word;
    const uint32_t* seen = p.seen + row * stride;
    const uint32_t natural = __reduce_or_sync(0xffffffffu, seen[slots[0]] | seen[slots[1]]);
    const uint32_t ordered = __reduce_or_sync(0xffffffffu, seen[keys[0]] | seen[keys[1]]);
    natural_tiles += __popc(natural);
    ordered_tiles += __popc(ordered);
    if (lane == 0) {
      p.natural_live[row * p.tiles() + tile] = natural;
      p.ordered_live[row * p.tiles() + tile] = ordered;
    }
  }
  if (lane != 0) return;
  atomicAdd(p.counts + 2 * list, static_cast<unsigned long long>(natural_tiles));
  atomicAdd(p.counts + 2 * list + 1, static_cast<unsigned long long>(ordered_tiles));
}

FDMA_DEVICE bool pays(const CompactParams& p, int64_t list) {
  return compaction_pays(p.counts[2 * list], p.counts[2 * list + 1]);
}

// One thread a slot: its key, for good.
__global__ void __launch_bounds__(kThreads)
    settle_order_kernel(const __grid_constant__ CompactParams p, const int32_t* order) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= p.lists() * p.layout.keys) return;
  const int64_t list = index / p.layout.keys;
  const auto slot = static_cast<int32_t>(index % p.layout.keys);
  const int32_t key = pays(p, list) ? order[index] : slot;
  p.keys[index] = key;
  p.slot_of_key[list * p.layout.keys + key] = slot;
}

// Where a block of order_mask_kernel works: kRows rows of one query tile.
template <int kRows>
struct MaskRows {
  static_assert(kMaskTile % kRows == 0 && 2 * kRows <= 32);
  const CompactParams& p;
  int64_t list, first, query_tile;
  int rows, row_words;
  bool ordered;

  FDMA_DEVICE explicit MaskRows(const CompactParams& params) : p(params) {
    const int64_t blocks = ceil_div<int64_t>(p.layout.rows, kRows);
    list = blockIdx.x / blocks;
    first = blockIdx.x % blocks * kRows;
    query_tile = first / kMaskTile;
    rows = static_cast<int>(min_of<int64_t>(kRows, p.layout.rows - first));
    row_words = static_cast<int>(p.layout.row_words());
    ordered = pays(p, list);
  }
  // Whether the query tile sees keys of a tile of the result.
  FDMA_DEVICE bool live(int64_t tile) const {
    const uint32_t* words = ordered ? p.ordered_live : p.natural_live;
    const int64_t row = list * query_words(p.layout) + query_tile / 32;
    return tile < p.tiles() && ((words[row * p.tiles() + tile] >> (query_tile % 32)) & 1u) != 0;
  }
  FDMA_DEVICE uint32_t* target(int row, int word) const {
    return p.rows + (list * p.layout.rows + first + row) * row_words + word;
  }
  // Four words, of two tiles, in natural order.
  FDMA_DEVICE uint4 load(int row, int word) const {
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (row >= rows) return bits;
    if (!tile_is_live(p, list, query_tile, word) && !tile_is_live(p, list, query_tile, word + 2)) return bits;
    const uint32_t* source = p.natural_rows + (list * p.layout.rows + first + row) * row_words + word;
    bits = __ldcs(reinterpret_cast<const uint4*>(source));
    bits.x = visible_word(p, bits.x, first + row, word);
    bits.y = visible_word(p, bits.y, first + row, word + 1);
    bits.z = visible_word(p, bits.z, first + row, word + 2);
    bits.w = visible_word(p, bits.w, first + row, word + 3);
    return bits;
  }
  FDMA_DEVICE void write_tile_bits() const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int64_t word = warp; word < p.layout.tile_words(); word += kWarps) {
      const uint32_t bits = __ballot_sync(0xffffffffu, live(word * 32 + lane));
      if (lane == 0) p.tiles_of_rows[(list * p.layout.row_tiles() + query_tile) * p.layout.tile_words() + word] = bits;
    }
  }
};

// The bits in the order of the slots, every word of the result. Rows are staged in shared memory; a warp takes 256
// slots at a time, a lane a slot of each word, and one ballot makes a word of a row. Words of tiles that are not live
// are zero without a look at the bits.
template <int kRows>
__global__ void __launch_bounds__(kThreads) order_mask_kernel(const __grid_constant__ CompactParams p) {
  constexpr int kUnitWords = 8;
  extern __shared__ uint4 staged[];
  const MaskRows<kRows> block(p);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int vectors = block.row_words / 4;
  if (block.first % kMaskTile == 0) block.write_tile_bits();
  for (int i = threadIdx.x; i < kRows * vectors; i += kThreads) {
    const int row = i / vectors, word = i % vectors * 4;
    const uint4 bits = block.load(row, word);
    if (block.ordered) {
      staged[i] = bits;
    } else if (row < block.rows) {
      *reinterpret_cast<uint4*>(block.target(row, word)) = bits;
    }
  }
  if (!block.ordered) return;
  __syncthreads();

  const uint32_t* rows = reinterpret_cast<const uint32_t*>(staged);
  const int32_t* keys = p.keys + block.list * p.layout.keys;
  // Lane l holds four words of row l / 2: the first half of the unit or the second.
  const int my_row = lane / 2, my_word = lane % 2 * 4;
  for (int unit = warp * kUnitWords; unit < block.row_words; unit += kWarps * kUnitWords) {
    uint32_t mine[4] = {};
#pragma unroll
    for (int j = 0; j < kUnitWords; ++j) {
      const int word = unit + j, slot = word * 32 + lane;
      if (!block.live(word / 2)) continue;
      const bool has_key = slot < p.layout.keys;
      const int key = has_key ? keys[slot] : 0;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const bool sees = has_key && ((rows[r * block.row_words + key / 32] >> (key % 32)) & 1u) != 0;
        const uint32_t bits = __ballot_sync(0xffffffffu, sees);
        if (my_row == r && my_word == j / 4 * 4) mine[j % 4] = bits;
      }
    }
    if (my_row < block.rows && unit + my_word < block.row_words) {
      *reinterpret_cast<uint4*>(block.target(my_row, unit + my_word)) = make_uint4(mine[0], mine[1], mine[2], mine[3]);
    }
  }
}

// Biases in the order of the slots, in their own type; rows of `pitch` elements, zero behind the slots.
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    order_bias_kernel(const __grid_constant__ SlotBiasParams p, Word* target, int pitch) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= static_cast<int64_t>(p.batch) * p.heads * pitch) return;
  const int slot = static_cast<int>(index % pitch);
  const int row = static_cast<int>(index / pitch % p.heads);
  const int b = static_cast<int>(index / pitch / p.heads);
  const int h = row * p.heads_per_row;
  const int64_t list = static_cast<int64_t>(b) * p.list_stride_batch + h / p.group * p.list_stride_head;
  Word value = 0;
  if (slot < p.slots) {
    const int64_t key = p.keys[list * p.slots + slot];
    value = static_cast<const Word*>(p.bias.data)[p.bias.offset(b, h, 0) + key * p.bias.stride_key];
  }
  target[index] = value;
}

cudaError_t sort_keys(const CompactParams& p, void* scratch, size_t& bytes, cub::DoubleBuffer<uint64_t>& places,
                      cub::DoubleBuffer<int32_t>& keys, cudaStream_t stream) {
  int bits = CompactOrder(p.layout).order.bits;
  for (int64_t last = p.lists() - 1; last > 0; last >>= 1) ++bits;
  return cub::DeviceRadixSort::SortPairs(scratch, bytes, places, keys, p.lists() * p.layout.keys, 0, bits, stream);
}

template <typename... Args>
cudaError_t start(void (*kernel)(Args...), int64_t blocks, int threads, int shared_bytes, cudaStream_t stream,
                  const Args&... args) {
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(blocks), threads, static_cast<size_t>(shared_bytes), stream>>>(args...);
  return cudaPeekAtLastError();
}

template <int kRows>
cudaError_t start_order_mask(const CompactParams& p, cudaStream_t stream) {
  return start(order_mask_kernel<kRows>, p.lists() * ceil_div<int64_t>(p.layout.rows, kRows), kThreads,
               static_cast<int>(kRows * p.layout.row_words() * 4), stream, p);
}

// As many rows as fit into 32 KB, so that several blocks share an SM.
cudaError_t order_mask(const CompactParams& p, cudaStream_t stream) {
  constexpr int64_t kStagedBytes = 32 * 1024;
  static_assert(kCompactMaxKeys / 8 <= kStagedBytes);
  const int64_t row_bytes = p.layout.row_words() * 4;
  if (16 * row_bytes <= kStagedBytes) return start_order_mask<16>(p, stream);
  if (4 * row_bytes <= kStagedBytes) return start_order_mask<4>(p, stream);
  return start_order_mask<1>(p, stream);
}

}  // namespace

cudaError_t compact_sort_bytes(const CompactParams& p, size_t& bytes) {
  cub::DoubleBuffer<uint64_t> places(nullptr, nullptr);
  cub::DoubleBuffer<int32_t> keys(nullptr, nullptr);
  return sort_keys(p, nullptr, bytes, places, keys, nullptr);
}

cudaError_t launch_compact_mask(const CompactParams& p, cudaStream_t stream) {
  const int64_t keys = p.lists() * p.layout.keys, key_blocks = ceil_div<int64_t>(keys, kThreads);
  const int64_t chunks = ceil_div<int64_t>(p.layout.row_words(), 32) * query_words(p.layout);
  cudaError_t error = start(see_keys_kernel, p.lists() * chunks, kRowThreads, 0, stream, p);
  if (error != cudaSuccess) return error;
  error = cudaMemsetAsync(p.bins, 0, static_cast<size_t>(p.lists()) * CompactOrder::kBins * sizeof(int32_t), stream);
  if (error != cudaSuccess) return error;
  error = cudaMemsetAsync(p.counts, 0, static_cast<size_t>(p.lists()) * 2 * sizeof(uint64_t), stream);
  if (error != cudaSuccess) return error;
  error = start(count_bins_kernel, key_blocks, kThreads, 0, stream, p);
  if (error != cudaSuccess) return error;
  error = start(place_keys_kernel, p.lists() * ceil_div<int64_t>(p.layout.keys, kRowThreads), kRowThreads, 0, stream, p,
                p.places[0], p.order[0]);
  if (error != cudaSuccess) return error;
  cub::DoubleBuffer<uint64_t> places(p.places[0], p.places[1]);
  cub::DoubleBuffer<int32_t> order(p.order[0], p.order[1]);
  size_t bytes = p.sort_bytes;
  error = sort_keys(p, p.sort, bytes, places, order, stream);
  if (error != cudaSuccess) return error;
  const int32_t* ordered = order.Current();
  error = start(count_tiles_kernel, ceil_div<int64_t>(p.lists() * p.tiles(), kWarps), kThreads, 0, stream, p, ordered);
  if (error != cudaSuccess) return error;
  error = start(settle_order_kernel, key_blocks, kThreads, 0, stream, p, ordered);
  if (error != cudaSuccess) return error;
  return order_mask(p, stream);
}

cudaError_t launch_order_bias(const SlotBiasParams& p, void* target, int32_t pitch, cudaStream_t stream) {
  const int64_t blocks = ceil_div<int64_t>(static_cast<int64_t>(p.batch) * p.heads * pitch, kThreads);
  if (p.bias.type == ElementType::kFloat32) {
    return start(order_bias_kernel<uint32_t>, blocks, kThreads, 0, stream, p, static_cast<uint32_t*>(target), pitch);
  }
  return start(order_bias_kernel<uint16_t>, blocks, kThreads, 0, stream, p, static_cast<uint16_t*>(target), pitch);
}

}  // namespace fdma
