// Top-w selection from a bias of its own for every query, straight to a packed mask (policy/mask_bits.hpp).
//
// A row is held in registers, 4096 keys a warp, and read once. The value of the w-th best key is found by guesses: how
// many keys are at least as good as a guess is one comparison and one addition for two 16-bit keys. A sample of 64 keys
// of the row gives a guess on either side, and interpolation between the two nearly always ends within four more;
// where it does not, bisection does. Rows too long for the registers of a block are read again for each guess.
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
constexpr int kLongWarps = 8;  // of rows that do not fit one warp

// Eight keys. Keys that are not to be kept are -inf. An ordinal is a number that rises with the value.
template <typename T>
struct Keys;

// kNothing: the ordinal of -inf.
template <typename T, typename T2, uint32_t kNothing_>
struct PairKeys {
  static constexpr uint32_t kNothing = kNothing_, kInfinity = 0xffffu - kNothing_;
  using Both = T2;
  T2 pairs[4];

  FDMA_DEVICE static T value_of(uint32_t ordinal) {
    const auto raw = static_cast<uint16_t>((ordinal & 0x8000u) != 0 ? ordinal ^ 0x8000u : ~ordinal);
    return reinterpret_cast<const T&>(raw);
  }
  FDMA_DEVICE static uint32_t ordinal_of(T value) {
    const uint32_t raw = reinterpret_cast<const uint16_t&>(value);
    return (raw & 0x8000u) != 0 ? raw ^ 0xffffu : raw | 0x8000u;
  }
  FDMA_DEVICE void set(int e, T value) { (e % 2 == 0 ? pairs[e / 2].x : pairs[e / 2].y) = value; }
  FDMA_DEVICE void load(const T* source) {
    const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(source));
    reinterpret_cast<uint4&>(pairs) = raw;
  }

  // Counts in both halves; sums of up to 256 are exact in either type.
  struct Counter {
    T2 sum{};
    FDMA_DEVICE void add(const PairKeys& keys, T2 guess) {
      const T2 first = __hadd2(__hge2(keys.pairs[0], guess), __hge2(keys.pairs[1], guess));
      const T2 second = __hadd2(__hge2(keys.pairs[2], guess), __hge2(keys.pairs[3], guess));
      sum = __hadd2(sum, __hadd2(first, second));
    }
    FDMA_DEVICE int total() const {
      return static_cast<int>(Element<T>::to_float(sum.x)) + static_cast<int>(Element<T>::to_float(sum.y));
    }
  };
  FDMA_DEVICE static T2 both(T first, T second) {
    T2 pair;
    pair.x = first;
    pair.y = second;
    return pair;
  }
  FDMA_DEVICE static T2 greater(T2 a, T2 b) { return __hmax2(a, b); }
  FDMA_DEVICE static T2 smaller(T2 a, T2 b) { return __hmin2(a, b); }
  FDMA_DEVICE static T2 other_lane(T2 pair, int lane) { return __shfl_sync(0xffffffffu, pair, lane); }

  // Bit shift + e: key e is worth at least the bound, or as much. The bits of upper halves lie 16 bits up until they
  // are folded.
  template <bool kEqual>
  FDMA_DEVICE uint32_t marks(T2 bound, int shift) const {
    uint32_t result = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t mask = kEqual ? __heq2_mask(pairs[i], bound) : __hge2_mask(pairs[i], bound);
      result |= mask & (0x00020001u << (2 * i + shift));
    }
    return result;
  }
  FDMA_DEVICE static uint32_t fold(uint32_t marks) { return (marks | marks >> 16) & 0xffffu; }
};
template <>
struct Keys<half_t> : PairKeys<half_t, __half2, 0x03ffu> {};
template <>
struct Keys<bfloat16_t> : PairKeys<bfloat16_t, __nv_bfloat162, 0x007fu> {};

template <>
struct Keys<float> {
  static constexpr uint32_t kNothing = 0x007fffffu, kInfinity = 0xff800000u;
  using Both = float2;
  float values[kLaneKeys];

  FDMA_DEVICE static float value_of(uint32_t ordinal) {
    return __uint_as_float((ordinal & 0x80000000u) != 0 ? ordinal ^ 0x80000000u : ~ordinal);
  }
  FDMA_DEVICE static uint32_t ordinal_of(float value) {
    const uint32_t raw = __float_as_uint(value);
    return (raw & 0x80000000u) != 0 ? ~raw : raw | 0x80000000u;
  }
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
    FDMA_DEVICE void add(const Keys& keys, float2 guess) {
#pragma unroll
      for (int e = 0; e < kLaneKeys; ++e) sum += keys.values[e] >= guess.x ? 1 : 0;
    }
    FDMA_DEVICE int total() const { return sum; }
  };
  FDMA_DEVICE static float2 both(float first, float second) { return make_float2(first, second); }
  FDMA_DEVICE static float2 greater(float2 a, float2 b) { return make_float2(fmaxf(a.x, b.x), fmaxf(a.y, b.y)); }
  FDMA_DEVICE static float2 smaller(float2 a, float2 b) { return make_float2(fminf(a.x, b.x), fminf(a.y, b.y)); }
  FDMA_DEVICE static float2 other_lane(float2 pair, int lane) {
    return make_float2(__shfl_sync(0xffffffffu, pair.x, lane), __shfl_sync(0xffffffffu, pair.y, lane));
  }
  template <bool kEqual>
  FDMA_DEVICE uint32_t marks(float2 bound, int shift) const {
    uint32_t result = 0;
#pragma unroll
    for (int e = 0; e < kLaneKeys; ++e) {
      const bool marked = kEqual ? values[e] == bound.x : values[e] >= bound.x;
      result |= marked ? 1u << (e + shift) : 0u;
    }
    return result;
  }
  FDMA_DEVICE static uint32_t fold(uint32_t marks) { return marks; }
};

// Two samples of 32 keys, each in descending order, one key of each a lane.
template <typename T>
class Sample {
  using K = Keys<T>;

 public:
  FDMA_DEVICE explicit Sample(typename K::Both keys) : keys_(keys) {}

  // Bitonic. Where a key is NaN the order is none: guesses are worse then, not the selection.
  FDMA_DEVICE void sort() {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int size = 2; size <= 32; size *= 2) {
#pragma unroll
      for (int distance = size / 2; distance > 0; distance /= 2) {
        const typename K::Both other = K::other_lane(keys_, lane ^ distance);
        const bool takes_greater = ((lane & distance) == 0) == ((lane & size) == 0);
        keys_ = takes_greater ? K::greater(keys_, other) : K::smaller(keys_, other);
      }
    }
  }
  // The ordinals of the greater and of the smaller of the keys of this rank.
  FDMA_DEVICE uint32_t greater(int rank) const {
    const typename K::Both pair = K::other_lane(keys_, rank);
    return max_of(K::ordinal_of(pair.x), K::ordinal_of(pair.y));
  }
  FDMA_DEVICE uint32_t smaller(int rank) const {
    const typename K::Both pair = K::other_lane(keys_, rank);
    return min_of(K::ordinal_of(pair.x), K::ordinal_of(pair.y));
  }

 private:
  typename K::Both keys_;
};

// The search for the greatest ordinal that at least `keep` keys reach: says what to guess next. All threads of a row
// know the same and ask for the same.
template <typename T>
class ThresholdSearch {
  using K = Keys<T>;

 public:
  FDMA_DEVICE ThresholdSearch(const Sample<T>& sample, int keep, int keys)
      : sample_(sample),
        keep_(keep),
        rank_(min_of(31, static_cast<int>(32.f * static_cast<float>(keep) / static_cast<float>(keys)))) {}

  FDMA_DEVICE bool done() const { return low_known_ && (at_low_ <= keep_ || high_ - low_ == 1); }
  // An ordinal in (low, high), or in [low, high) as long as nothing is known of `low`.
  FDMA_DEVICE uint32_t guess() {
    uint32_t result;
    if (!low_known_) {
      result = sample_.smaller(min_of(31, rank_ + reach_));
      if (result >= high_) result = low_;
    } else if (!high_known_) {
      result = sample_.greater(max_of(0, rank_ - reach_)) + 1;
      if (result <= low_) {  // nothing of the sample is that good
        result = middle();
        interpolations_ = 0;
      }
    } else if (interpolations_ > 0) {
      --interpolations_;
      const float low = Element<T>::to_float(K::value_of(low_)), high = Element<T>::to_float(K::value_of(high_));
      const float share = (static_cast<float>(at_low_ - keep_) + 0.5f) / static_cast<float>(at_low_ - at_high_);
      result = K::ordinal_of(Element<T>::from_float(fmaf(high - low, share, low)));
    } else {
      result = middle();
    }
    reach_ *= 2;
    return min_of(max_of(result, low_ + (low_known_ ? 1 : 0)), high_ - 1);
  }
  // `found` keys reach the ordinal that was guessed.
  FDMA_DEVICE void learn(uint32_t guess, int found) {
    if (found >= keep_ || guess == low_) {  // nothing is lower than the first `low`
      if (!low_known_) reach_ = 1;
      low_ = guess;
      low_known_ = true;
      at_low_ = found;
    } else {
      high_ = guess;
      high_known_ = low_known_ || high_known_;
      at_high_ = found;
    }
  }
  FDMA_DEVICE uint32_t ordinal() const { return low_; }
  FDMA_DEVICE int excess() const { return max_of(0, at_low_ - keep_); }  // keys that reach it beyond `keep`

 private:
  FDMA_DEVICE uint32_t middle() const { return low_ + (high_ - low_) / 2; }

  const Sample<T>& sample_;
  int keep_, rank_;
  int reach_ = 1;           // ranks from the guess to the rank that is wanted
  int interpolations_ = 6;  // that may still be tried
  // No key is worth -inf, and nothing reaches NaN: the search starts above the one and ends below the other.
  uint32_t low_ = K::kNothing + 1, high_ = K::kInfinity + 1;
  int at_low_ = 0, at_high_ = 0;  // keys that reach them
  bool low_known_ = false, high_known_ = false;
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
  FDMA_DEVICE Row(const SelectRowsParams& p, RowSums<kWarps>& sums, int b, int h, int q, int limit)
      : p_(p), sums_(sums), limit_(limit), chunks_(max_of(1, static_cast<int>(ceil_div(limit, kKeys)))) {
    mask_row_ = b * p.key_mask_stride;
    source_ = static_cast<const T*>(p.bias) + b * p.bias_stride_batch + h * p.bias_stride_head + q * p.bias_stride_row;
    const int64_t head = static_cast<int64_t>(b) * p.heads + h;
    row_ = p.rows + (head * p.len_q + q) * p.layout.row_words();
    tiles_ = p.tiles + (head * p.layout.row_tiles() + q / kMaskTile) * p.layout.tile_words();
  }

  FDMA_DEVICE void select() {
    const bool all = limit_ <= p_.keep;  // but -inf and NaN
    Sample<T> sample(all ? typename K::Both{} : K::both(source_[sample_key(0)], source_[sample_key(1)]));
    load(0);
    if (!all) sample.sort();  // while the keys are on their way
    ThresholdSearch<T> search(sample, p_.keep, limit_);
    while (!all && !search.done()) {
      const uint32_t guess = search.guess();
      search.learn(guess, count(K::value_of(guess)));
    }
    store(K::value_of(search.ordinal()), search.excess());
  }

 private:
  FDMA_DEVICE int warp() const { return kWarps == 1 ? 0 : threadIdx.x / 32; }
  FDMA_DEVICE int lane() const { return threadIdx.x % 32; }
  FDMA_DEVICE int sample_key(int i) const {
    return static_cast<int>(static_cast<int64_t>(limit_) * (2 * lane() + i) / 64);
  }
  FDMA_DEVICE int first_key(int chunk) const { return chunk * kKeys + warp() * kWarpKeys; }  // of the warp

  // Keys one by one: at the end of a row, of rows that are not aligned, and under a key mask. A call, since inlined
  // into sixteen passes it takes the compiler minutes.
  __device__ __noinline__ static K load_one_by_one(const SelectRowsParams& p, const T* source, int64_t mask_row, int k,
                                                   int limit) {
    K keys;
#pragma unroll
    for (int e = 0; e < kLaneKeys; ++e) {
      const bool visible = k + e < limit && (p.key_mask == nullptr || is_visible(p, mask_row + k + e));
      keys.set(e, visible ? source[k + e] : K::value_of(K::kNothing));
    }
    return keys;
  }

  // One warp has rows that fit it.
  FDMA_DEVICE int chunks() const { return kWarps == 1 ? 1 : chunks_; }
  FDMA_DEVICE void reload(int chunk) {
    if (chunks() > 1) load(chunk);
  }
  FDMA_DEVICE void load(int chunk) {
    whole_ = max_of(0, min_of(kPasses, (limit_ - first_key(chunk)) / kPassKeys));
    const int k = first_key(chunk) + lane() * kLaneKeys;
    if (p_.vector_rows && p_.key_mask == nullptr) {
      for_whole_passes([&](int pass) { keys_[pass].load(source_ + k + pass * kPassKeys); });
    } else {
      for_whole_passes(
          [&](int pass) { keys_[pass] = load_one_by_one(p_, source_, mask_row_, k + pass * kPassKeys, limit_); });
    }
    cut_ = load_one_by_one(p_, source_, mask_row_, k + whole_ * kPassKeys, whole_ < kPasses ? limit_ : 0);
  }

  template <typename Use>
  FDMA_DEVICE void for_whole_passes(const Use& use) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if (pass < whole_) use(pass);
    }
  }

  // Keys of the row that reach `guess`.
  FDMA_DEVICE int count(T guess) {
    int total = 0;
    const auto both = K::both(guess, guess);
    for (int chunk = 0; chunk < chunks(); ++chunk) {
      reload(chunk);
      typename K::Counter counter;
      for_whole_passes([&](int pass) { counter.add(keys_[pass], both); });
      counter.add(cut_, both);
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

  // Sums over the row and over the warps before this one, which hold older keys.
  FDMA_DEVICE int sum_of_earlier_warps(int value, int& of_row) {
    of_row = __reduce_add_sync(0xffffffffu, value);
    if constexpr (kWarps == 1) return 0;
    if (lane() == 0) sums_.values[half_][warp()] = of_row;
    __syncthreads();
    const int of_warp = lane() < kWarps ? sums_.values[half_][lane()] : 0;
    half_ ^= 1;
    of_row = __reduce_add_sync(0xffffffffu, of_warp);
    return __reduce_add_sync(0xffffffffu, lane() < warp() ? of_warp : 0);
  }

  // A byte for each pass, of the keys that the lane holds.
  struct PassBytes {
    uint32_t words[kPasses / 4];
  };

  template <bool kEqual>
  FDMA_DEVICE PassBytes marks(typename K::Both bound) {
    uint32_t pairs[kPasses / 2] = {};  // of passes
    for_whole_passes([&](int pass) { pairs[pass / 2] |= keys_[pass].template marks<kEqual>(bound, pass % 2 * 8); });
    const uint32_t cut = K::fold(cut_.template marks<kEqual>(bound, 0)) << (whole_ % 4 * 8);
    PassBytes bytes;
#pragma unroll
    for (int i = 0; i < kPasses / 4; ++i) {
      bytes.words[i] = K::fold(pairs[2 * i]) | K::fold(pairs[2 * i + 1]) << 16 | (whole_ / 4 == i ? cut : 0u);
    }
    return bytes;
  }

  // Keeps the keys that reach `worst`, but for the `excess` oldest of those that are worth no more.
  FDMA_DEVICE void store(T worst, int excess) {
    const auto bound = K::both(worst, worst);
    for (int chunk = 0; chunk < chunks(); ++chunk) {
      reload(chunk);
      PassBytes kept = marks<false>(bound);
      if (excess > 0) excess -= drop_oldest(kept, marks<true>(bound), excess);
      store_chunk(chunk, kept);
    }
    clear_behind();
  }

  // Takes the `excess` oldest of `equals` out of `kept`. Returns how many equals the chunk has.
  FDMA_DEVICE int drop_oldest(PassBytes& kept, const PassBytes& equals, int excess) {
    int own = 0;
#pragma unroll
    for (int i = 0; i < kPasses / 4; ++i) own += __popc(equals.words[i]);
    int in_chunk;
    int left = excess - sum_of_earlier_warps(own, in_chunk);
    int parted = -1, dropped = 0;  // the word of which some are dropped and some are kept
    uint32_t of_parted = 0;
#pragma unroll
    for (int i = 0; i < kPasses / 4; ++i) {
      const uint32_t word = equals.words[i];
      const int all = __reduce_add_sync(0xffffffffu, __popc(word));
      if (left >= all) {
        kept.words[i] ^= word;
      } else if (left > 0) {
        parted = i;
        dropped = left;
        of_parted = word;
      }
      left -= all;
    }
    if (parted < 0) return in_chunk;
    const uint32_t oldest = oldest_of_passes(of_parted, dropped);
#pragma unroll
    for (int i = 0; i < kPasses / 4; ++i) kept.words[i] ^= parted == i ? oldest : 0u;
    return in_chunk;
  }

  // The `left` oldest of the equals of four passes, a byte each.
  FDMA_DEVICE uint32_t oldest_of_passes(uint32_t equals, int left) const {
    uint32_t oldest = 0;
#pragma unroll 1
    for (int shift = 0; left > 0; shift += 8) {
      uint32_t equal = (equals >> shift) & 0xffu;
      const int own = __popc(equal);
      int earlier = own;  // of this and lower lanes
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, earlier, distance);
        if (lane() >= distance) earlier += other;
      }
      for (int take = min_of(left - (earlier - own), own); take > 0; --take) {
        oldest |= (equal & -equal) << shift;
        equal &= equal - 1;
      }
      left -= __shfl_sync(0xffffffffu, earlier, 31);
    }
    return oldest;
  }

  // Writes the words of the warp's keys. Lanes exchange bytes by fours: then lane l has word l / 4 of a pass, of those
  // passes whose number is l % 4 modulo 4.
  FDMA_DEVICE void store_chunk(int chunk, const PassBytes& kept) {
    const int first_word = first_key(chunk) / 32 + lane() % 4 * (kPassKeys / 32) + lane() / 4;
    const uint32_t tile = 1u << (lane() % 4 * 4 + lane() / 8);  // of the 16 of four passes
    const uint32_t by_one = lane() % 2 == 0 ? 0x6240u : 0x3715u, by_two = lane() % 4 < 2 ? 0x5410u : 0x3276u;
    uint32_t live_tiles[2] = {};
#pragma unroll
    for (int i = 0; i < kPasses / 4; ++i) {
      uint32_t word = kept.words[i];
      word = __byte_perm(word, __shfl_xor_sync(0xffffffffu, word, 1), by_one);
      word = __byte_perm(word, __shfl_xor_sync(0xffffffffu, word, 2), by_two);
      const int index = first_word + i * (4 * kPassKeys / 32);
      if (index < p_.layout.row_words()) row_[index] = word;
      if (word != 0) live_tiles[i / 2] |= tile << (i % 2 * 16);
    }
    const uint32_t low = __reduce_or_sync(0xffffffffu, live_tiles[0]);
    const uint32_t high = __reduce_or_sync(0xffffffffu, live_tiles[1]);
    const uint32_t live = lane() == 0 ? low : high;
    if (lane() < 2 && live != 0) {
      atomicOr(tiles_ + first_key(chunk) / static_cast<int>(kMaskTile) / 32 + lane(), live);
    }
  }

  // Zeros behind the chunks that were read.
  FDMA_DEVICE void clear_behind() const {
    const int64_t words = p_.layout.row_words();
    const int thread = kWarps == 1 ? lane() : threadIdx.x;
    for (int64_t word = static_cast<int64_t>(chunks()) * kKeys / 32 + thread; word < words; word += kWarps * 32) {
      row_[word] = 0;
    }
  }

  const SelectRowsParams& p_;
  RowSums<kWarps>& sums_;
  int64_t mask_row_;  // of the key mask
  const T* source_;
  uint32_t *row_, *tiles_;
  int limit_, chunks_, half_ = 0;
  int whole_ = 0;    // passes of the loaded chunk that the limit does not cut
  K keys_[kPasses];  // these
  K cut_;            // and the one behind them
};

// One block a row. Where that is one warp, the compiler sees that its branches are never divergent.
template <typename T, int kWarps>
__global__ void __launch_bounds__(kWarps * 32) select_rows_kernel(const __grid_constant__ SelectRowsParams p) {
  __shared__ RowSums<kWarps> sums;
  const unsigned head = blockIdx.x / static_cast<unsigned>(p.len_q);
  const auto q = static_cast<int>(blockIdx.x - head * p.len_q);
  const auto b = static_cast<int>(head / static_cast<unsigned>(p.heads)), h = static_cast<int>(head - b * p.heads);
  const auto limit = static_cast<int>(max_of<int64_t>(0, key_limit(q, p.len_q, p.len_k, p.is_causal)));
  Row<T, kWarps>(p, sums, b, h, q, limit).select();
}

template <typename T>
cudaError_t launch_rows(const SelectRowsParams& p, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(p.batch) * p.heads * p.len_q;
  if (p.len_k <= kWarpKeys) return launch(select_rows_kernel<T, 1>, rows, 32, 0, stream, p);
  return launch(select_rows_kernel<T, kLongWarps>, rows, kLongWarps * 32, 0, stream, p);
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
