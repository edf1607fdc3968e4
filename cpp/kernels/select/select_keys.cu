// Top-w selection from a bias that is the same for all queries: sort the keys of each row from the best to the worst,
// then turn the order into `end` or `columns`.
//
// end[k] of a key with r keys before it is the keep-th smallest of those r keys (policy of fdma/select.h): an order
// statistic of a prefix. A wavelet matrix of the sorted keys answers it in one step a bit of the key: level l holds one
// bit of every key, the keys stably partitioned by the bits above; zeros before a position tell where a prefix
// continues on the next level (Claude, Navarro, Ordonez, "The wavelet matrix", 2015). Everything is integers in a fixed
// order.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
#include <cub/device/device_segmented_radix_sort.cuh>

#include "kernels/core/launch.cuh"
#include "kernels/core/numeric.cuh"
#include "kernels/launchers.hpp"
#include "kernels/policy/selection.hpp"
#include "kernels/select/key_mask.cuh"
#include "kernels/select/rank_bits.hpp"
#include "kernels/select/row_block.cuh"

namespace fdma {
namespace {

constexpr int kThreads = 256;     // of kernels with one key a thread
constexpr int kWordsPerWarp = 8;  // words of 32 keys that a warp takes in one pass over a row

// Ranks of all keys, from the newest on: a stable sort then leaves the newer of equal keys first.
__global__ void __launch_bounds__(kThreads)
    rank_keys_kernel(const __grid_constant__ SelectParams p, uint32_t* ranks, uint32_t* order) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= static_cast<int64_t>(p.rows) * p.keys) return;
  const int64_t row = index / p.keys;
  const int k = p.keys - 1 - static_cast<int>(index % p.keys);
  const int64_t b = row / p.heads;
  const float bias = load_element(p.bias, p.type, b * p.bias_stride_batch + row % p.heads * p.bias_stride_head + k);
  const bool visible = p.key_mask == nullptr || is_visible(p, b * p.key_mask_stride + k);
  ranks[index] = visible ? selection_rank(bias) : kNeverKept;
  order[index] = k;
}

// Keys of the row that may be kept: those before the first rank of kNeverKept.
FDMA_DEVICE int count_kept(const uint32_t* ranks, int keys) {
  int low = 0, high = keys;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (ranks[middle] == kNeverKept) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Geometry of the wavelet matrix of a row.
struct Wavelet {
  int keys, levels, words;  // words of 32 keys; one more word follows them

  FDMA_HOST_DEVICE explicit Wavelet(int keys_) : keys(keys_), levels(1), words(static_cast<int>(ceil_div(keys_, 32))) {
    while (levels < 31 && (1 << levels) < keys) ++levels;
  }
  FDMA_HOST_DEVICE int64_t row_words() const { return static_cast<int64_t>(levels) * (words + 1); }
  // Keys of 0 to keys - 1 with a zero at `bit`.
  FDMA_DEVICE int zeros(int bit) const {
    const int half = 1 << bit;
    return ((keys >> bit) >> 1) * half + min_of(keys & (2 * half - 1), half);
  }
};

// One level for all words of a row: {bits of 32 keys, zeros before them}, and the keys partitioned for the next level.
FDMA_DEVICE void partition_level(const Wavelet& shape, int bit, const uint32_t* source, uint32_t* target, uint2* plane,
                                 int (&sums)[2][kRowWarps]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int zeros_total = shape.zeros(bit);
  int carry = 0;
  int half = 0;
  for (int first = 0; first < shape.words; first += kRowWarps * kWordsPerWarp, half ^= 1) {
    uint32_t keys[kWordsPerWarp], bits[kWordsPerWarp], inside[kWordsPerWarp];
    int zeros = 0;
#pragma unroll
    for (int i = 0; i < kWordsPerWarp; ++i) {
      const int position = (first + warp * kWordsPerWarp + i) * 32 + lane;
      const bool valid = position < shape.keys;
      keys[i] = valid ? source[position] : 0;
      inside[i] = __ballot_sync(0xffffffffu, valid);
      bits[i] = __ballot_sync(0xffffffffu, valid && ((keys[i] >> bit) & 1) != 0);
      zeros += __popc(inside[i] & ~bits[i]);
    }
    int total;
    int before = carry + sum_of_earlier_warps(zeros, sums, half, total);
    carry += total;
#pragma unroll
    for (int i = 0; i < kWordsPerWarp; ++i) {
      const int word = first + warp * kWordsPerWarp + i;
      if (word >= shape.words) break;
      if (lane == 0) plane[word] = make_uint2(bits[i], before);
      const int position = word * 32 + lane;
      const int zeros_before = before + __popc(~bits[i] & ((1u << lane) - 1));
      if ((inside[i] >> lane) & 1) {
        target[(bits[i] >> lane) & 1 ? zeros_total + position - zeros_before : zeros_before] = keys[i];
      }
      before += __popc(inside[i] & ~bits[i]);
    }
  }
  if (threadIdx.x == 0) plane[shape.words] = make_uint2(0, zeros_total);
  __syncthreads();  // the next level reads what other threads have partitioned
}

// One block a row. `order`: sorted keys, which stay; the three other arrays of the row are overwritten.
__global__ void __launch_bounds__(kRowThreads)
    build_wavelet_kernel(const __grid_constant__ SelectParams p, const uint32_t* order, const uint32_t* ranks,
                         uint32_t* ping, uint32_t* pong, uint2* planes, int32_t* kept) {
  __shared__ int sums[2][kRowWarps];
  const Wavelet shape(p.keys);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * p.keys;
  if (threadIdx.x == 0) kept[blockIdx.x] = count_kept(ranks + row, p.keys);
  uint2* plane = planes + blockIdx.x * shape.row_words();
  const uint32_t* source = order + row;
  uint32_t *target = ping + row, *spare = pong + row;
  for (int level = 0; level < shape.levels; ++level, plane += shape.words + 1) {
    partition_level(shape, shape.levels - 1 - level, source, target, plane, sums);
    source = target;
    target = spare;
    spare = const_cast<uint32_t*>(source);
  }
}

FDMA_DEVICE int zeros_before(const uint2* plane, int position) {
  const uint2 entry = __ldg(plane + position / 32);
  return static_cast<int>(entry.y) + __popc(~entry.x & ((1u << (position % 32)) - 1));
}

// The keep-th smallest of the `count` best keys.
FDMA_DEVICE int order_statistic(const Wavelet& shape, const uint2* plane, int count, int keep) {
  int low = 0, high = count, left = keep - 1, key = 0;
  for (int level = 0; level < shape.levels; ++level, plane += shape.words + 1) {
    const int bit = shape.levels - 1 - level;
    const int low_zeros = zeros_before(plane, low), high_zeros = zeros_before(plane, high);
    if (left < high_zeros - low_zeros) {
      low = low_zeros;
      high = high_zeros;
    } else {
      left -= high_zeros - low_zeros;
      key |= 1 << bit;
      low = shape.zeros(bit) + low - low_zeros;
      high = shape.zeros(bit) + high - high_zeros;
    }
  }
  return key;
}

__global__ void __launch_bounds__(kThreads)
    store_ends_kernel(const __grid_constant__ SelectParams p, const uint32_t* order, const uint2* planes,
                      const int32_t* kept) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= static_cast<int64_t>(p.rows) * p.keys) return;
  const int64_t row = index / p.keys;
  const int place = static_cast<int>(index % p.keys);
  const int key = static_cast<int>(order[index]);
  const Wavelet shape(p.keys);
  int end;
  if (place >= kept[row]) {
    end = key;
  } else if (place < p.keep) {
    end = p.keys;
  } else {
    end = max_of(key, order_statistic(shape, planes + row * shape.row_words(), place, p.keep));
  }
  p.end[row * p.keys + key] = end;
}

// One block a row: marks the kept keys in a bitmap, then lists its bits in rising order.
__global__ void __launch_bounds__(kRowThreads)
    store_columns_kernel(const __grid_constant__ SelectParams p, const uint32_t* order, const uint32_t* ranks,
                         uint32_t* bitmaps) {
  __shared__ int sums[2][kRowWarps];
  __shared__ int shared_count;
  const int64_t row = blockIdx.x;
  const int words = static_cast<int>(ceil_div(p.keys, 32));
  uint32_t* bitmap = bitmaps + row * words;
  int32_t* columns = p.columns + row * p.keep;
  for (int word = threadIdx.x; word < words; word += kRowThreads) bitmap[word] = 0;
  if (threadIdx.x == 0) shared_count = min_of(p.keep, count_kept(ranks + row * p.keys, p.keys));
  __syncthreads();
  const int count = shared_count;
  for (int place = threadIdx.x; place < count; place += kRowThreads) {
    const uint32_t key = order[row * p.keys + place];
    atomicOr(bitmap + key / 32, 1u << (key % 32));
  }
  __syncthreads();
  int carry = 0;
  int half = 0;
  for (int first = 0; first < words; first += kRowThreads, half ^= 1) {
    const int word = first + threadIdx.x;
    uint32_t bits = word < words ? __ldcg(bitmap + word) : 0;
    int inclusive = __popc(bits);
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, inclusive, distance);
      if (lane >= distance) inclusive += other;
    }
    int total;
    const int of_warp = __shfl_sync(0xffffffffu, inclusive, 31);
    int place = carry + sum_of_earlier_warps(of_warp, sums, half, total) + inclusive - __popc(bits);
    for (; bits != 0; bits &= bits - 1) columns[place++] = word * 32 + __ffs(bits) - 1;
    carry += total;
  }
  for (int place = count + threadIdx.x; place < p.keep; place += kRowThreads) columns[place] = -1;
  if (threadIdx.x == 0) p.counts[row] = count;
}

struct RowBegin {
  int64_t keys;
  __host__ __device__ int64_t operator()(int64_t row) const { return row * keys; }
};

cudaError_t sort_keys(const SelectParams& p, void* scratch, size_t& bytes, cub::DoubleBuffer<uint32_t>& ranks,
                      cub::DoubleBuffer<uint32_t>& order, cudaStream_t stream) {
  const auto begins = thrust::make_transform_iterator(thrust::make_counting_iterator<int64_t>(0), RowBegin{p.keys});
  return cub::DeviceSegmentedRadixSort::SortPairs(scratch, bytes, ranks, order, int64_t{p.rows} * p.keys,
                                                  int64_t{p.rows}, begins, begins + 1, lowest_rank_bit(p.type), 32,
                                                  stream);
}

}  // namespace

cudaError_t select_sort_bytes(const SelectParams& p, size_t& bytes) {
  cub::DoubleBuffer<uint32_t> ranks(nullptr, nullptr), order(nullptr, nullptr);
  return sort_keys(p, nullptr, bytes, ranks, order, nullptr);
}

int64_t select_plane_words(const SelectParams& p) { return p.rows * Wavelet(p.keys).row_words(); }

cudaError_t launch_select(const SelectParams& p, const SelectScratch& scratch, cudaStream_t stream) {
  const int64_t blocks = ceil_div<int64_t>(static_cast<int64_t>(p.rows) * p.keys, kThreads);
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  rank_keys_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, scratch.ranks[0], scratch.order[0]);
  cub::DoubleBuffer<uint32_t> ranks(scratch.ranks[0], scratch.ranks[1]), order(scratch.order[0], scratch.order[1]);
  size_t sort_bytes = scratch.sort_bytes;
  const cudaError_t error = sort_keys(p, scratch.sort, sort_bytes, ranks, order, stream);
  if (error != cudaSuccess) return error;
  if (p.end == nullptr) {
    store_columns_kernel<<<static_cast<unsigned>(p.rows), kRowThreads, 0, stream>>>(p, order.Current(), ranks.Current(),
                                                                                    scratch.bitmap);
    return cudaPeekAtLastError();
  }
  build_wavelet_kernel<<<static_cast<unsigned>(p.rows), kRowThreads, 0, stream>>>(
      p, order.Current(), ranks.Current(), order.Alternate(), ranks.Alternate(), scratch.planes, scratch.kept);
  store_ends_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, order.Current(), scratch.planes,
                                                                            scratch.kept);
  return cudaPeekAtLastError();
}

}  // namespace fdma
