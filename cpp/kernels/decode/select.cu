// Top-w selection for decode: the keys of the w largest biases of a row, in rising order, with their biases.
//
// A radix select over the ranks of policy/selection.hpp, 8 bits at a time from the top. A digit is counted in shared
// memory in 32 histograms, one a lane, so that no two lanes of a warp meet in a bank. A row of up to 32768 keys stays
// in the registers of one block. A longer one is cut into chunks, a block each: every digit is a launch whose blocks
// leave the histogram of their chunk, and what the next launch needs to know (the digit of the w-th best key; how many
// keys of the chunks before are kept) each block sums up by itself. So there are no atomics in global memory, nothing
// is cleared, and the result is the same every time.
#include "kernels/core/launch.cuh"
#include "kernels/core/numeric.cuh"
#include "kernels/launchers.hpp"
#include "kernels/policy/selection.hpp"

namespace fdma {
namespace {

constexpr int kLaneKeys = 8;               // neighbouring keys that a lane loads
constexpr int kPassKeys = 32 * kLaneKeys;  // of a warp
constexpr int kPasses = 4;
constexpr int kWarpKeys = kPasses * kPassKeys;
constexpr int kBins = 256;
constexpr int kDigitBits = 8;
constexpr int kChunkThreads = 512;
constexpr int kChunkKeys = kChunkThreads / 32 * kWarpKeys;
constexpr int kRowThreads = 1024;  // of 16-bit rows longer than a chunk
constexpr int kRowKeys = kRowThreads / 32 * kWarpKeys;

template <typename T>
struct Ranks;

template <typename T, uint32_t kInfinity>
struct Ranks16 {
  static constexpr int kBits = 16;
  static constexpr uint32_t kNever = kNeverKept16;
  uint32_t pairs[kLaneKeys / 2];

  FDMA_DEVICE void load(const T* source) {
    const uint4 raw = __ldg(reinterpret_cast<const uint4*>(source));
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pairs[i] = selection_rank16(words[i] & 0xffffu, kInfinity) | selection_rank16(words[i] >> 16, kInfinity) << 16;
    }
  }
  FDMA_DEVICE uint32_t get(int e) const { return (pairs[e / 2] >> (e % 2 * 16)) & 0xffffu; }
  FDMA_DEVICE static uint32_t rank(T value) { return selection_rank16(reinterpret_cast<uint16_t&>(value), kInfinity); }
  FDMA_DEVICE void set(int e, uint32_t rank) {
    pairs[e / 2] = e % 2 == 0 ? (pairs[e / 2] & 0xffff0000u) | rank : (pairs[e / 2] & 0xffffu) | rank << 16;
  }
};
template <>
struct Ranks<half_t> : Ranks16<half_t, 0x7c00u> {};
template <>
struct Ranks<bfloat16_t> : Ranks16<bfloat16_t, 0x7f80u> {};
template <>
struct Ranks<float> {
  static constexpr int kBits = 32;
  static constexpr uint32_t kNever = kNeverKept;
  uint32_t ranks[kLaneKeys];

  FDMA_DEVICE void load(const float* source) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 quad = __ldg(reinterpret_cast<const float4*>(source) + i);
      ranks[4 * i] = rank(quad.x), ranks[4 * i + 1] = rank(quad.y);
      ranks[4 * i + 2] = rank(quad.z), ranks[4 * i + 3] = rank(quad.w);
    }
  }
  FDMA_DEVICE uint32_t get(int e) const { return ranks[e]; }
  FDMA_DEVICE static uint32_t rank(float value) { return selection_rank(value); }
  FDMA_DEVICE void set(int e, uint32_t rank) { ranks[e] = rank; }
};

template <typename T>
constexpr int kLevels = Ranks<T>::kBits / kDigitBits;

// Where the w-th best key lies, as far as digits are known.
struct Threshold {
  uint32_t prefix = 0;  // digits of its rank
  int left = 0;         // keys to be kept among those with these digits
  int equals = 0;       // keys that have them
  int kept = 0;         // in all
  bool all = false;     // every key that may be kept is
};

template <int kThreads>
struct SelectShared {
  uint32_t lanes[kBins * 32];  // histogram of each lane
  uint32_t bins[kBins];
  Threshold threshold;
  uint32_t warp_sums[kThreads / 32];
  int better_before, equals_before;
};

// The row that a block works on.
template <typename T>
struct Row {
  int64_t index;
  const T* bias;
  int limit;  // first key that may not be kept

  FDMA_DEVICE Row(const DecodeSelectParams& p, int64_t row) : index(row) {
    const int64_t q = row % p.queries, head = row / p.queries;
    const int64_t b = head / p.heads;
    const int length = p.lengths.at(b);
    bias = static_cast<const T*>(p.bias.data) + b * p.bias.stride_batch + head % p.heads * p.bias.stride_head;
    limit = p.is_causal ? max_of(0, length - p.len_q + static_cast<int>(q) + 1) : length;
  }
};

// The keys of one block, in registers. Warps, passes, lanes and keys of a lane follow each other.
template <typename T, int kThreads>
class Chunk {
  using R = Ranks<T>;
  using Shared = SelectShared<kThreads>;
  static constexpr int kWarps = kThreads / 32;

 public:
  FDMA_DEVICE Chunk(Shared& shared, const Row<T>& row, int first, bool vector)
      : shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32), first_(first + warp_ * kWarpKeys) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int k = key(pass);
      if (vector && k + kLaneKeys <= row.limit) {
        ranks_[pass].load(row.bias + k);
      } else {
        ranks_[pass] = load_one_by_one(row.bias, k, row.limit);
      }
    }
  }

  // Fills shared.bins with the digits below `prefix`, which has `level` digits.
  FDMA_DEVICE void count_digits(int level, uint32_t prefix) {
    for (int i = threadIdx.x; i < kBins * 32; i += kThreads) shared_.lanes[i] = 0;
    __syncthreads();
    const int shift = R::kBits - kDigitBits * (level + 1);
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
#pragma unroll
      for (int e = 0; e < kLaneKeys; ++e) {
        const uint32_t rank = ranks_[pass].get(e), digits = rank >> shift;
        if (rank != R::kNever && digits >> kDigitBits == prefix) {
          atomicAdd(&shared_.lanes[(digits & (kBins - 1)) * 32 + lane_], 1u);
        }
      }
    }
    __syncthreads();
    for (int bin = warp_; bin < kBins; bin += kWarps) {
      const uint32_t sum = __reduce_add_sync(0xffffffffu, shared_.lanes[bin * 32 + lane_]);
      if (lane_ == 0) shared_.bins[bin] = sum;
    }
    __syncthreads();
  }

  // Stores the keys to be kept. `better` and `equals` lie in chunks before this one.
  FDMA_DEVICE void store(const Threshold& t, int better, int equals, const Row<T>& row, KeptKey* kept) {
    const uint32_t bound = t.all ? R::kNever : t.prefix;
    uint32_t better_bits = 0, equal_bits = 0;  // a byte for each pass
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
#pragma unroll
      for (int e = 0; e < kLaneKeys; ++e) {
        const uint32_t rank = ranks_[pass].get(e), bit = 1u << (pass * kLaneKeys + e);
        if (rank < bound) better_bits |= bit;
        if (rank == bound && !t.all) equal_bits |= bit;
      }
    }
    // Two counts in a word: a block has at most 32768 keys.
    const uint32_t own = static_cast<uint32_t>(__popc(better_bits)) << 16 | static_cast<uint32_t>(__popc(equal_bits));
    const uint32_t of_warp = __reduce_add_sync(0xffffffffu, own);
    if (lane_ == 0) shared_.warp_sums[warp_] = of_warp;
    __syncthreads();
    const uint32_t earlier = __reduce_add_sync(0xffffffffu, lane_ < warp_ ? shared_.warp_sums[lane_] : 0u);
    better += static_cast<int>(earlier >> 16);
    equals += static_cast<int>(earlier & 0xffffu);
    const int skipped = t.equals - t.left;  // of equals the newest are kept
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const uint32_t better_byte = (better_bits >> (pass * kLaneKeys)) & 0xffu;
      const uint32_t equal_byte = (equal_bits >> (pass * kLaneKeys)) & 0xffu;
      const uint32_t count =
          static_cast<uint32_t>(__popc(better_byte)) << 16 | static_cast<uint32_t>(__popc(equal_byte));
      if (__any_sync(0xffffffffu, count != 0)) {
        uint32_t inclusive = count;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
          const uint32_t other = __shfl_up_sync(0xffffffffu, inclusive, distance);
          if (lane_ >= distance) inclusive += other;
        }
        const uint32_t before = inclusive - count, in_pass = __shfl_sync(0xffffffffu, inclusive, 31);
        store_lane(better_byte, equal_byte, key(pass), better + static_cast<int>(before >> 16),
                   equals + static_cast<int>(before & 0xffffu), skipped, row, kept);
        better += static_cast<int>(in_pass >> 16);
        equals += static_cast<int>(in_pass & 0xffffu);
      }
    }
  }

 private:
  FDMA_DEVICE int key(int pass) const { return first_ + pass * kPassKeys + lane_ * kLaneKeys; }

  __device__ __noinline__ static R load_one_by_one(const T* source, int k, int limit) {
    R ranks;
#pragma unroll
    for (int e = 0; e < kLaneKeys; ++e) ranks.set(e, k + e < limit ? R::rank(source[k + e]) : R::kNever);
    return ranks;
  }

  FDMA_DEVICE static void store_lane(uint32_t better_byte, uint32_t equal_byte, int k, int better, int equals,
                                     int skipped, const Row<T>& row, KeptKey* kept) {
    for (uint32_t bits = better_byte | equal_byte; bits != 0; bits &= bits - 1) {
      const int e = __ffs(bits) - 1;
      const bool is_equal = (equal_byte >> e & 1u) != 0;
      if (!is_equal || equals >= skipped) {
        kept[better + max_of(0, equals - skipped)] = {k + e, Element<T>::to_float(row.bias[k + e])};
      }
      (is_equal ? equals : better) += 1;
    }
  }

  Shared& shared_;
  int warp_, lane_, first_;
  R ranks_[kPasses];
};

// Takes the next digit of the threshold from shared.bins.
template <typename Shared>
FDMA_DEVICE Threshold next_digit(Shared& shared, Threshold t, int level) {
  if (threadIdx.x < 32) {
    constexpr int kLaneBins = kBins / 32;
    const int lane = threadIdx.x;
    int bins[kLaneBins], own = 0;
#pragma unroll
    for (int i = 0; i < kLaneBins; ++i) own += bins[i] = static_cast<int>(shared.bins[lane * kLaneBins + i]);
    int inclusive = own;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, inclusive, distance);
      if (lane >= distance) inclusive += other;
    }
    const int total = __shfl_sync(0xffffffffu, inclusive, 31);
    if (level == 0 && total <= t.left) {
      if (lane == 0) shared.threshold = {0, 0, 0, total, true};
    } else {
      int before = inclusive - own;
      if (before < t.left && t.left <= inclusive) {
        int i = 0;
        for (; before + bins[i] < t.left; ++i) before += bins[i];
        shared.threshold = {t.prefix << kDigitBits | static_cast<uint32_t>(lane * kLaneBins + i), t.left - before,
                            bins[i], t.kept, false};
      }
    }
  }
  __syncthreads();
  return shared.threshold;
}

// One block a row.
template <typename T, int kThreads>
__global__ void __launch_bounds__(kThreads) select_row_kernel(const __grid_constant__ DecodeSelectParams p) {
  __shared__ SelectShared<kThreads> shared;
  const Row<T> row(p, blockIdx.x);
  Chunk<T, kThreads> keys(shared, row, 0, p.bias.vector_rows);
  Threshold t;
  t.left = t.kept = p.keep;
#pragma unroll 1
  for (int level = 0; level < kLevels<T> && !t.all; ++level) {
    keys.count_digits(level, t.prefix);
    t = next_digit(shared, t, level);
  }
  if (threadIdx.x == 0) p.counts[row.index] = t.kept;
  keys.store(t, 0, 0, row, p.kept + row.index * p.keep);
}

// Chunks of a row that hold keys; one of a row without keys, since somebody has to say so.
FDMA_DEVICE int live_chunks(int limit) { return max_of(1, static_cast<int>(ceil_div(limit, kChunkKeys))); }

// The first `levels` digits of the threshold from the histograms of all chunks; what lies before `chunk` goes to
// shared.better_before and equals_before.
template <typename Shared>
FDMA_DEVICE Threshold find_digits(const DecodeSelectParams& p, Shared& shared, int64_t row, int chunk, int chunks,
                                  int levels) {
  Threshold t;
  t.left = t.kept = p.keep;
  if (threadIdx.x == 0) shared.better_before = shared.equals_before = 0;
  int better = 0;
  const int bin = threadIdx.x;
  for (int level = 0; level < levels && !t.all; ++level) {
    uint32_t sum = 0, before = 0;
    if (bin < kBins) {
      const uint32_t* counts = p.histograms + (level * p.rows() + row) * p.chunks * kBins + bin;
#pragma unroll 8
      for (int c = 0; c < chunks; ++c) {
        const uint32_t count = counts[c * kBins];
        sum += count;
        before += c < chunk ? count : 0;
      }
      shared.bins[bin] = sum;
    }
    __syncthreads();
    t = next_digit(shared, t, level);
    const int digit = t.all ? kBins : static_cast<int>(t.prefix & (kBins - 1));
    if (bin < digit) better += static_cast<int>(before);
    if (bin == digit) shared.equals_before = static_cast<int>(before);  // that of the last level stays
    __syncthreads();
  }
  better = __reduce_add_sync(0xffffffffu, better);
  if (threadIdx.x % 32 == 0 && better != 0) atomicAdd(&shared.better_before, better);
  __syncthreads();
  return t;
}

// Counts digit p.level of a chunk among the keys that share the digits above it with the w-th best.
template <typename T>
__global__ void __launch_bounds__(kChunkThreads) count_digits_kernel(const __grid_constant__ DecodeSelectParams p) {
  __shared__ SelectShared<kChunkThreads> shared;
  const int chunk = static_cast<int>(blockIdx.x % p.chunks);
  const Row<T> row(p, blockIdx.x / p.chunks);
  const int chunks = live_chunks(row.limit);
  if (chunk >= chunks) return;
  Chunk<T, kChunkThreads> keys(shared, row, chunk * kChunkKeys, p.bias.vector_rows);
  const Threshold t = find_digits(p, shared, row.index, chunk, chunks, p.level);
  if (t.all) return;
  keys.count_digits(p.level, t.prefix);
  uint32_t* counts = p.histograms + ((p.level * p.rows() + row.index) * p.chunks + chunk) * kBins;
  if (threadIdx.x < kBins) counts[threadIdx.x] = shared.bins[threadIdx.x];
}

template <typename T>
__global__ void __launch_bounds__(kChunkThreads) store_kept_kernel(const __grid_constant__ DecodeSelectParams p) {
  __shared__ SelectShared<kChunkThreads> shared;
  const int chunk = static_cast<int>(blockIdx.x % p.chunks);
  const Row<T> row(p, blockIdx.x / p.chunks);
  const int chunks = live_chunks(row.limit);
  if (chunk >= chunks) return;
  Chunk<T, kChunkThreads> keys(shared, row, chunk * kChunkKeys, p.bias.vector_rows);
  const Threshold t = find_digits(p, shared, row.index, chunk, chunks, kLevels<T>);
  if (chunk == 0 && threadIdx.x == 0) p.counts[row.index] = t.kept;
  keys.store(t, shared.better_before, shared.equals_before, row, p.kept + row.index * p.keep);
}

template <typename T>
cudaError_t launch_typed(DecodeSelectParams p, cudaStream_t stream) {
  if (p.chunks == 0) {
    if constexpr (sizeof(T) == 2) {
      if (p.lengths.max > kChunkKeys) {
        return launch(select_row_kernel<T, kRowThreads>, p.rows(), kRowThreads, 0, stream, p);
      }
    }
    return launch(select_row_kernel<T, kChunkThreads>, p.rows(), kChunkThreads, 0, stream, p);
  }
  const int64_t blocks = p.rows() * p.chunks;
  for (p.level = 0; p.level < kLevels<T>; ++p.level) {
    const cudaError_t error = launch(count_digits_kernel<T>, blocks, kChunkThreads, 0, stream, p);
    if (error != cudaSuccess) return error;
  }
  return launch(store_kept_kernel<T>, blocks, kChunkThreads, 0, stream, p);
}

}  // namespace

DecodeSelectPlan plan_decode_select(ElementType type, int64_t rows, int64_t keys) {
  const bool is_16bit = type != ElementType::kFloat32;
  DecodeSelectPlan plan;
  if (keys <= (is_16bit ? kRowKeys : kChunkKeys)) return plan;
  plan.chunks = static_cast<int32_t>(ceil_div<int64_t>(keys, kChunkKeys));
  plan.histogram_words = (is_16bit ? 2 : 4) * rows * plan.chunks * kBins;
  return plan;
}

cudaError_t launch_decode_select(const DecodeSelectParams& p, cudaStream_t stream) {
  switch (p.bias.type) {
    case ElementType::kFloat16:
      return launch_typed<half_t>(p, stream);
    case ElementType::kBFloat16:
      return launch_typed<bfloat16_t>(p, stream);
    default:
      return launch_typed<float>(p, stream);
  }
}

}  // namespace fdma
