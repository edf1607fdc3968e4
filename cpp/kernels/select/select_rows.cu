// Top-w selection from a bias of its own for every query, straight to a packed mask (policy/mask_bits.hpp).
//
// A row is held in registers, 4096 keys a warp, and read once. The value of the w-th best key is found bit by bit: how
// many keys are at least as good as a guess is one comparison and one addition for two 16-bit keys. Rows too long for
// the registers of a block are read again for each guess.
#include "kernels/core/launch.cuh"
#include "kernels/core/numeric.cuh"
#include "kernels/launchers.hpp"
#include "kernels/policy/range.hpp"
#include "kernels/select/key_mask.cuh"

namespace fdma {
namespace {

constexpr int kLaneKeys = 8;               // neighbouring keys that a lane loads, and the bits of a byte
constexpr int kPassKeys = 32 * kLaneKeys;  // of a warp
constexpr int kPasses = 16;
constexpr int kWarpKeys = kPasses * kPassKeys;
constexpr int kThreads = 128;  // of blocks in which each warp has a row of its own
constexpr int kLongThreads = 256;

// Eight keys. Keys that are not to be kept are -inf.
template <typename T>
struct Keys;

template <typename T, typename T2>
struct PairKeys {
  using Ordinal = uint32_t;  // 16 bits that rise with the value
  static constexpr int kOrdinalBits = 16;
  T2 pairs[4];

  FDMA_DEVICE static T value_of(Ordinal ordinal) {
    const auto raw = static_cast<uint16_t>((ordinal & 0x8000u) != 0 ? ordinal ^ 0x8000u : ~ordinal);
    return reinterpret_cast<const T&>(raw);
  }
  FDMA_DEVICE T get(int e) const { return e % 2 == 0 ? pairs[e / 2].x : pairs[e / 2].y; }
  FDMA_DEVICE void set(int e, T value) { (e % 2 == 0 ? pairs[e / 2].x : pairs[e / 2].y) = value; }
  FDMA_DEVICE void load(const T* source) {
    const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(source));
    reinterpret_cast<uint4&>(pairs) = raw;
  }

  // Counts in both halves; sums of up to 256 are exact in either type.
  struct Counter {
    T2 sum{};
    FDMA_DEVICE void add(const PairKeys& keys, T2 guess) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum = __hadd2(sum, __hge2(keys.pairs[i], guess));
    }
    FDMA_DEVICE int total() const {
      return static_cast<int>(Element<T>::to_float(sum.x)) + static_cast<int>(Element<T>::to_float(sum.y));
    }
  };
  FDMA_DEVICE static T2 twice(T value) {
    T2 pair;
    pair.x = value;
    pair.y = value;
    return pair;
  }
  // Bit e: key e is worth more than the guess, and as much.
  FDMA_DEVICE uint32_t better(T2 guess) const {
    return bits([&](T2 pair) { return __hgt2_mask(pair, guess); });
  }
  FDMA_DEVICE uint32_t equal(T2 guess) const {
    return bits([&](T2 pair) { return __heq2_mask(pair, guess); });
  }

 private:
  // One bit of each half of a mask; those of upper halves lie 16 bits up.
  template <typename Compare>
  FDMA_DEVICE uint32_t bits(const Compare& compare) const {
    uint32_t result = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) result |= compare(pairs[i]) & (0x00020001u << (2 * i));
    return (result | result >> 16) & 0xffu;
  }
};
template <>
struct Keys<half_t> : PairKeys<half_t, __half2> {};
template <>
struct Keys<bfloat16_t> : PairKeys<bfloat16_t, __nv_bfloat162> {};

template <>
struct Keys<float> {
  using Ordinal = uint32_t;
  static constexpr int kOrdinalBits = 32;
  float values[kLaneKeys];

  FDMA_DEVICE static float value_of(Ordinal ordinal) {
    return __uint_as_float((ordinal & 0x80000000u) != 0 ? ordinal ^ 0x80000000u : ~ordinal);
  }
  FDMA_DEVICE float get(int e) const { return values[e]; }
  FDMA_DEVICE void set(int e, float value) { values[e] = value; }
  FDMA_DEVICE void load(const float* source) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 quad = __ldcs(reinterpret_cast<const float4*>(source) + i);
      values[4 * i] = quad.x, values[4 * i + 1] = quad.y, values[4 * i + 2] = quad.z, values[4 * i + 3] = quad.w;
    }
  }
  struct Counter {
    int sum = 0;
    FDMA_DEVICE void add(const Keys& keys, float guess) {
#pragma unroll
      for (int e = 0; e < kLaneKeys; ++e) sum += keys.values[e] >= guess ? 1 : 0;
    }
    FDMA_DEVICE int total() const { return sum; }
  };
  FDMA_DEVICE static float twice(float value) { return value; }
  FDMA_DEVICE uint32_t better(float guess) const {
    uint32_t result = 0;
#pragma unroll
    for (int e = 0; e < kLaneKeys; ++e) result |= values[e] > guess ? 1u << e : 0u;
    return result;
  }
  FDMA_DEVICE uint32_t equal(float guess) const {
    uint32_t result = 0;
#pragma unroll
    for (int e = 0; e < kLaneKeys; ++e) result |= values[e] == guess ? 1u << e : 0u;
    return result;
  }
};

// What the warps of one row tell each other.
template <int kWarps>
struct RowSums {
  int values[2][kWarps];
};

// A row of the bias, shared by the kWarps warps of a block, or one warp's own.
template <typename T, int kWarps>
class Row {
  using K = Keys<T>;

 public:
  static constexpr int kKeys = kWarps * kWarpKeys;  // that fit the registers

  // `limit`: the first key that the row may not see.
  FDMA_DEVICE Row(const SelectRowsParams& p, RowSums<kWarps>& sums, int64_t head, int q, int limit)
      : p_(p), sums_(sums), limit_(limit), chunks_(max_of(1, static_cast<int>(ceil_div(limit, kKeys)))) {
    b_ = head / p.heads;
    source_ = static_cast<const T*>(p.bias) + b_ * p.bias_stride_batch + head % p.heads * p.bias_stride_head +
              q * p.bias_stride_row;
    row_ = p.rows + (head * p.len_q + q) * p.layout.row_words();
    tiles_ = p.tiles + (head * p.layout.row_tiles() + q / kMaskTile) * p.layout.tile_words();
    load(0);
  }

  FDMA_DEVICE void select() {
    // No key is worth -inf, and nothing compares with NaN: guesses start above both.
    const int candidates = count(K::value_of(K::kOrdinalBits == 16 ? lowest_16() : lowest_32()));
    if (candidates <= p_.keep) return store(K::value_of(lowest()), candidates);
    typename K::Ordinal found = 0;
    for (int bit = K::kOrdinalBits - 1; bit >= 0; --bit) {
      const typename K::Ordinal guess = found | (typename K::Ordinal{1} << bit);
      if (count(K::value_of(guess)) >= p_.keep) found = guess;
    }
    store(K::value_of(found), p_.keep);
  }

 private:
  FDMA_DEVICE static typename K::Ordinal lowest_32() { return 0x00800000u; }  // above that of -inf, 0x007fffff
  FDMA_DEVICE static typename K::Ordinal lowest_16() {
    return sizeof(T) == 2 && Element<T>::kType == ElementType::kFloat16 ? 0x0400u : 0x0080u;  // -inf: 0x03ff, 0x007f
  }
  FDMA_DEVICE static typename K::Ordinal lowest() { return K::kOrdinalBits == 16 ? lowest_16() : lowest_32(); }

  FDMA_DEVICE int warp() const { return kWarps == 1 ? 0 : threadIdx.x / 32; }
  FDMA_DEVICE int lane() const { return threadIdx.x % 32; }
  FDMA_DEVICE int first_key(int chunk, int pass) const {
    return chunk * kKeys + warp() * kWarpKeys + pass * kPassKeys + lane() * kLaneKeys;
  }

  // Keys one by one: at the end of a row, of rows that are not aligned, and under a key mask. A call, since inlined
  // into sixteen passes it takes the compiler minutes.
  __device__ __noinline__ static K load_one_by_one(const SelectRowsParams& p, const T* source, int64_t mask_row, int k,
                                                   int limit) {
    K keys;
#pragma unroll
    for (int e = 0; e < kLaneKeys; ++e) {
      const bool visible = k + e < limit && (p.key_mask == nullptr || is_visible(p, mask_row + k + e));
      keys.set(e, visible ? source[k + e] : K::value_of(lowest() - 1));
    }
    return keys;
  }

  // One warp has rows that fit it.
  FDMA_DEVICE int chunks() const { return kWarps == 1 ? 1 : chunks_; }
  FDMA_DEVICE void reload(int chunk) {
    if (chunks() > 1) load(chunk);
  }
  FDMA_DEVICE void load(int chunk) {
    live_ = 0;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int k = first_key(chunk, pass);
      if (k - lane() * kLaneKeys < limit_) live_ = pass + 1;
      if (p_.vector_rows && p_.key_mask == nullptr && k + kLaneKeys <= limit_) {
        keys_[pass].load(source_ + k);
      } else {
        keys_[pass] = load_one_by_one(p_, source_, b_ * p_.key_mask_stride, k, limit_);
      }
    }
  }

  // Keys of the row that are worth at least `guess`.
  FDMA_DEVICE int count(T guess) {
    int total = 0;
    const auto both = K::twice(guess);
    for (int chunk = 0; chunk < chunks(); ++chunk) {
      reload(chunk);
      typename K::Counter counter;
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        if (pass < live_) counter.add(keys_[pass], both);
      }
      total += counter.total();
    }
    return sum_of_row(total);
  }

  FDMA_DEVICE int sum_of_row(int value) {
    int sum = __reduce_add_sync(0xffffffffu, value);
    if constexpr (kWarps > 1) {
      if (lane() == 0) sums_.values[half_][warp()] = sum;
      __syncthreads();
      sum = __reduce_add_sync(0xffffffffu, lane() < kWarps ? sums_.values[half_][lane()] : 0);
      half_ ^= 1;
    }
    return sum;
  }

  // Sum over the warps behind this one, which hold newer keys.
  FDMA_DEVICE int sum_of_later_warps(int value) {
    if constexpr (kWarps == 1) return 0;
    const int sum = __reduce_add_sync(0xffffffffu, value);
    if (lane() == 0) sums_.values[half_][warp()] = sum;
    __syncthreads();
    const int later = lane() < kWarps && lane() > warp() ? sums_.values[half_][lane()] : 0;
    half_ ^= 1;
    return __reduce_add_sync(0xffffffffu, later);
  }

  // A byte for each pass, of the keys that the lane holds.
  struct PassBytes {
    uint32_t words[kPasses / 4];
    FDMA_DEVICE uint32_t get(int pass) const {
      const uint32_t low = pass % 8 < 4 ? words[0] : words[1], high = pass % 8 < 4 ? words[2] : words[3];
      return ((pass < 8 ? low : high) >> (8 * (pass % 4))) & 0xffu;
    }
  };
  static_assert(kPasses == 16);

  template <typename Compare>
  FDMA_DEVICE PassBytes compare(const Compare& bits_of) const {
    PassBytes bytes{};
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if (pass < live_) bytes.words[pass / 4] |= bits_of(keys_[pass]) << (8 * (pass % 4));
    }
    return bytes;
  }
  FDMA_DEVICE static int count_bits(const PassBytes& bytes) {
    return __popc(bytes.words[0]) + __popc(bytes.words[1]) + __popc(bytes.words[2]) + __popc(bytes.words[3]);
  }

  // Keeps the `kept` best keys, the worst of which is worth `worst`: of its equals the newest.
  FDMA_DEVICE void store(T worst, int kept) {
    const auto bound = K::twice(worst);
    const auto is_better = [&](const K& keys) { return keys.better(bound); };
    const auto is_equal = [&](const K& keys) { return keys.equal(bound); };
    int better = 0;
    for (int chunk = 0; chunk < chunks(); ++chunk) {
      reload(chunk);
      better += count_bits(compare(is_better));
    }
    int quota = kept - sum_of_row(better);  // equals that are still to be kept
    for (int chunk = chunks() - 1; chunk >= 0; --chunk) {
      reload(chunk);
      quota -= store_chunk(chunk, compare(is_better), compare(is_equal), quota);
    }
    clear_behind();
  }

  // Returns how many equals the chunk has.
  FDMA_DEVICE int store_chunk(int chunk, const PassBytes& better, const PassBytes& equal, int quota) {
    const int equals = count_bits(equal);
    const int in_chunk = sum_of_row(equals);
    int left = quota - sum_of_later_warps(equals);  // for this warp, from its newest key on
    uint64_t live_tiles = 0;
#pragma unroll 1
    for (int pass = kPasses - 1; pass >= 0; --pass) {
      const int k = first_key(chunk, pass);
      const uint32_t bits = better.get(pass) | newest_equals(equal.get(pass), left);
      if (k < p_.layout.row_words() * 32) reinterpret_cast<uint8_t*>(row_)[k / 8] = static_cast<uint8_t>(bits);
      const uint32_t lanes = __ballot_sync(0xffffffffu, bits != 0);
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        live_tiles |= static_cast<uint64_t>(((lanes >> (8 * tile)) & 0xffu) != 0) << (pass * 4 + tile);
      }
    }
    if (lane() < 2) {
      const auto word = static_cast<uint32_t>(live_tiles >> (32 * lane()));
      const int first_tile = (chunk * kKeys + warp() * kWarpKeys) / static_cast<int>(kMaskTile);
      if (word != 0) atomicOr(tiles_ + first_tile / 32 + lane(), word);
    }
    return in_chunk;
  }

  // The newest of the equals of a pass, as long as `left` lasts; takes those of all lanes off it.
  FDMA_DEVICE uint32_t newest_equals(uint32_t equals, int& left) const {
    const int own = __popc(equals);
    const int all = __reduce_add_sync(0xffffffffu, own);
    const int before = left;
    left -= all;
    if (before >= all) return equals;
    if (before <= 0) return 0;
    int later = own;  // of this and higher lanes
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_down_sync(0xffffffffu, later, distance);
      if (lane() + distance < 32) later += other;
    }
    uint32_t kept = 0;
    for (int take = min_of(before - (later - own), own); take > 0; --take) {
      const uint32_t newest = 1u << (31 - __clz(equals));
      kept |= newest;
      equals ^= newest;
    }
    return kept;
  }

  // Zeros behind the chunks that were read.
  FDMA_DEVICE void clear_behind() const {
    const int64_t bytes = p_.layout.row_words() * 4;
    const int thread = kWarps == 1 ? lane() : threadIdx.x;
    for (int64_t byte = static_cast<int64_t>(chunks()) * kKeys / 8 + thread; byte < bytes; byte += kWarps * 32) {
      reinterpret_cast<uint8_t*>(row_)[byte] = 0;
    }
  }

  const SelectRowsParams& p_;
  RowSums<kWarps>& sums_;
  int64_t b_;
  const T* source_;
  uint32_t *row_, *tiles_;
  int limit_, chunks_, half_ = 0;
  int live_ = 0;  // passes of the loaded chunk that have keys
  K keys_[kPasses];
};

// kWarps = 1: every warp has a row of its own.
template <typename T, int kWarps>
__global__ void __launch_bounds__(kWarps == 1 ? kThreads : kLongThreads)
    select_rows_kernel(const __grid_constant__ SelectRowsParams p) {
  __shared__ RowSums<kWarps> sums;
  constexpr int kRowsPerBlock = kWarps == 1 ? kThreads / 32 : 1;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + (kWarps == 1 ? threadIdx.x / 32 : 0);
  if (row >= static_cast<int64_t>(p.batch) * p.heads * p.len_q) return;
  const int q = static_cast<int>(row % p.len_q);
  const auto limit = static_cast<int>(max_of<int64_t>(0, key_limit(q, p.len_q, p.len_k, p.is_causal)));
  Row<T, kWarps>(p, sums, row / p.len_q, q, limit).select();
}

template <typename T>
cudaError_t launch_rows(const SelectRowsParams& p, cudaStream_t stream) {
  constexpr int kLongWarps = kLongThreads / 32;
  const int64_t rows = static_cast<int64_t>(p.batch) * p.heads * p.len_q;
  if (p.len_k <= kWarpKeys) {
    return launch(select_rows_kernel<T, 1>, ceil_div<int64_t>(rows, kThreads / 32), kThreads, 0, stream, p);
  }
  return launch(select_rows_kernel<T, kLongWarps>, rows, kLongThreads, 0, stream, p);
}

}  // namespace

cudaError_t launch_select_rows(const SelectRowsParams& p, cudaStream_t stream) {
  const cudaError_t error = cudaMemsetAsync(p.tiles, 0, static_cast<size_t>(p.layout.tiles_bytes()), stream);
  if (error != cudaSuccess) return error;
  switch (p.type) {
    case ElementType::kFloat16:
      return launch_rows<half_t>(p, stream);
    case ElementType::kBFloat16:
      return launch_rows<bfloat16_t>(p, stream);
    default:
      return launch_rows<float>(p, stream);
  }
}

}  // namespace fdma
