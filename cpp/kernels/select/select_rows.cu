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
    for (int chunk = 0; chunk < chunks_; ++chunk) {
      if (chunks_ > 1) load(chunk);
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

  FDMA_DEVICE uint32_t bits_of(int pass, T worst, bool equal) const {
    uint32_t bits = 0;
    const float bound = Element<T>::to_float(worst);
#pragma unroll
    for (int e = 0; e < kLaneKeys; ++e) {
      const float value = Element<T>::to_float(keys_[pass].get(e));
      bits |= (equal ? value == bound : value > bound) ? 1u << e : 0u;
    }
    return bits;
  }

  // Keeps the `kept` best keys, the worst of which is worth `worst`: of its equals the newest.
  FDMA_DEVICE void store(T worst, int kept) {
    int better = 0;
    for (int chunk = 0; chunk < chunks_; ++chunk) {
      if (chunks_ > 1) load(chunk);
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        if (pass < live_) better += __popc(bits_of(pass, worst, false));
      }
    }
    int quota = kept - sum_of_row(better);  // equals that are still to be kept
    for (int chunk = chunks_ - 1; chunk >= 0; --chunk) {
      if (chunks_ > 1) load(chunk);
      quota -= store_chunk(chunk, worst, quota);
    }
    clear_behind();
  }

  // Returns how many equals the chunk has.
  FDMA_DEVICE int store_chunk(int chunk, T worst, int quota) {
    int equals = 0;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) equals += pass < live_ ? __popc(bits_of(pass, worst, true)) : 0;
    const int in_chunk = sum_of_row(equals);
    int left = quota - sum_of_later_warps(equals);  // for this warp, from its newest key on
    uint64_t live_tiles = 0;
#pragma unroll
    for (int pass = kPasses - 1; pass >= 0; --pass) {
      const int k = first_key(chunk, pass);
      uint32_t bits = 0;
      if (pass < live_) {
        bits = bits_of(pass, worst, false) | newest_equals(bits_of(pass, worst, true), left);
      }
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
    int later = __popc(equals);  // of this and higher lanes
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_down_sync(0xffffffffu, later, distance);
      if (lane() + distance < 32) later += other;
    }
    const int all = __shfl_sync(0xffffffffu, later, 0);
    int own = max_of(0, min_of(left - (later - __popc(equals)), __popc(equals)));
    left -= all;
    uint32_t kept = 0;
    for (; own > 0; --own) {
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
    for (int64_t byte = static_cast<int64_t>(chunks_) * kKeys / 8 + thread; byte < bytes; byte += kWarps * 32) {
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
