// Dense mask -> packed mask (policy/mask_bits.hpp). The dense mask is read once, by this kernel; everything after it
// works on bits. One block of threads owns 64 rows x 2048 keys: one word of tile bits.
#include <type_traits>

#include "kernels/core/launch.cuh"
#include "kernels/launchers.hpp"
#include "kernels/policy/range.hpp"

namespace fdma {

namespace {

constexpr int kPackWarps = 4;
constexpr int kPackKeys = 2048;  // keys of one word of tile bits

// The elements that a lane turns into bits at a time, as 32-bit words: 8, or 16 bytes.
template <typename Word, int kElements>
struct Chunk {
  static constexpr int kWords = kElements * sizeof(Word) / 4;
  uint32_t words[kWords] = {};

  FDMA_DEVICE void load(const Word* source) {
    if constexpr (kWords == 2) {
      const uint2 v = __ldcs(reinterpret_cast<const uint2*>(source));
      words[0] = v.x, words[1] = v.y;
    } else {
#pragma unroll
      for (int w = 0; w < kWords; w += 4) {
        const uint4 v = __ldcs(reinterpret_cast<const uint4*>(source) + w / 4);
        words[w] = v.x, words[w + 1] = v.y, words[w + 2] = v.z, words[w + 3] = v.w;
      }
    }
  }

  // `care`: the bits of an element that make it non-zero.
  FDMA_DEVICE uint32_t bits(Word care) const {
    uint32_t result = 0;
    if constexpr (sizeof(Word) == 1) {
#pragma unroll
      for (int w = 0; w < kWords; w += 2) {
        // Flags are 128 in their bytes; the sum of their products with powers of two is 128 times the bits.
        const uint32_t low = __dp4a(flags<0x7f7f7f7fu>(words[w], care * 0x01010101u), 0x08040201u, 0u);
        const uint32_t both = __dp4a(flags<0x7f7f7f7fu>(words[w + 1], care * 0x01010101u), 0x80402010u, low);
        result |= both >> 7 << (4 * w);
      }
    } else if constexpr (sizeof(Word) == 2) {
#pragma unroll
      for (int w = 0; w < 4; ++w) result |= flags<0x7fff7fffu>(words[w], care * 0x00010001u) >> (15 - 2 * w);
      result = (result | result >> 15) & 0xffu;  // flags of the upper halves lie 16 bits up
    } else if constexpr (sizeof(Word) == 4) {
#pragma unroll
      for (int e = 0; e < 8; ++e) result |= (words[e] & care) != 0 ? 1u << e : 0u;
    } else {
      const uint32_t high = static_cast<uint32_t>(care >> 32);
#pragma unroll
      for (int e = 0; e < 8; ++e) result |= (words[2 * e] | (words[2 * e + 1] & high)) != 0 ? 1u << e : 0u;
    }
    return result;
  }

 private:
  // The top bit of each lane of a word: set where the lane has a bit of `care`. kLow: all bits but the top ones; adding
  // it to the low bits of a lane carries into the top bit unless they are zero.
  template <uint32_t kLow>
  FDMA_DEVICE static uint32_t flags(uint32_t word, uint32_t care) {
    return (((word & kLow) + kLow) | (word & care)) & ~kLow;
  }
};

template <typename Word>
FDMA_DEVICE uint32_t pack_elements(const Word* source, int stride, int count, Word care) {
  uint32_t bits = 0;
#pragma unroll 1
  for (int e = 0; e < count; ++e) bits |= (source[e * static_cast<int64_t>(stride)] & care) != 0 ? 1u << e : 0u;
  return bits;
}

// Packs the part of a row that one block of threads owns. Each lane takes a chunk of each pass. All that a row adds to
// the loads, the bits and their stores is worked out once: a row of 2048 keys is few instructions.
template <typename Word, int kElements>
struct RowPacker {
  using Elements = Chunk<Word, kElements>;
  using Bits = std::conditional_t<kElements == 16, uint16_t, uint8_t>;
  static constexpr int kKeysPerPass = 32 * kElements;
  static constexpr int kPasses = kPackKeys / kKeysPerPass;
  static constexpr int kInFlight = min_of<int>(kPasses, 32 / Elements::kWords);  // passes that load together

  // From the lane's first key of the part on.
  const Word* source;
  Bits* target;
  int keys, bytes;  // of the mask, of the packed row
  int stride;       // of keys
  bool vector;
  Word care;
  uint32_t seen[kPasses] = {};  // bits of the lane in each pass, of all rows

  // `limit`: the first hidden key of the block's part, the same for all lanes; the lane's first key is `before` keys
  // in. Passes behind it, and what tells a lane's keys apart in front of it, are not worked out.
  FDMA_DEVICE void pack(int limit, int before) {
    const int lane_limit = limit - before;
    const int readable = vector ? min_of(lane_limit, keys - kElements + 1) : 0;
    const int live = ceil_div(limit, kKeysPerPass), whole = vector ? limit / kKeysPerPass : 0;  // passes
#pragma unroll
    for (int first = 0; first < kPasses; first += kInFlight) {
      Elements elements[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int key = (first + i) * kKeysPerPass;
        if (key < readable) elements[i].load(source + key);
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int pass = first + i, key = pass * kKeysPerPass;
        uint32_t bits = 0;
        if (pass < live) {
          bits = elements[i].bits(care);
          if (pass >= whole) {
            const int count = max_of(0, min_of(kElements, lane_limit - key));
            bits &= (1u << count) - 1;
            if (key >= readable) bits = pack_elements(source + static_cast<int64_t>(key) * stride, stride, count, care);
          }
          seen[pass] |= bits;
        }
        if (key < 8 * bytes) target[key / kElements] = static_cast<Bits>(bits);
      }
    }
  }
};

// Keys that a row sees before its first hidden one. A row that serves all query rows has to serve the last one, one
// that serves several sequences the longest there may be.
class VisibleKeys {
 public:
  FDMA_DEVICE VisibleKeys(const PackMaskParams& p, int64_t b)
      : all_(p.shared_by_sequences), len_k_(static_cast<int>(p.layout.keys)) {
    if (all_) return;
    const Sequence sequence = p.sequences.at(b);
    len_q_ = sequence.len_q, len_k_ = sequence.len_k;
    last_ = p.layout.rows == 1;
    is_causal_ = p.is_causal;
  }
  FDMA_DEVICE int of_row(int row) const {
    if (all_) return len_k_;
    const int q = last_ ? len_q_ - 1 : row;
    return q >= len_q_ ? 0 : max_of(0, static_cast<int>(key_limit(q, len_q_, len_k_, is_causal_)));
  }

 private:
  bool all_, last_ = false, is_causal_ = false;
  int len_q_ = 0, len_k_;
};

template <typename Word, int kElements>
__global__ void __launch_bounds__(kPackWarps * 32) pack_mask_kernel(const __grid_constant__ PackMaskParams p) {
  using Packer = RowPacker<Word, kElements>;
  const PackedMaskLayout& layout = p.layout;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t key_blocks = layout.tile_words(), row_tiles = layout.row_tiles();
  const int first_key = static_cast<int>(blockIdx.x % key_blocks) * kPackKeys, lane_key = first_key + lane * kElements;
  const int64_t row_tile = blockIdx.x / key_blocks % row_tiles;
  const int64_t head = blockIdx.x / key_blocks / row_tiles;  // batch * heads + head of the mask
  const int64_t h = head % layout.heads, b = head / layout.heads;
  const int first_row = static_cast<int>(row_tile * kMaskTile) + warp;
  const int row_end = static_cast<int>(min_of((row_tile + 1) * kMaskTile, layout.rows));
  const int64_t row_bytes = layout.row_words() * 4;
  constexpr Word kAllBits = static_cast<Word>(~Word{0});

  Packer packer;
  packer.source = static_cast<const Word*>(p.dense) + b * p.stride_batch + h * p.stride_head +
                  first_row * p.stride_row + static_cast<int64_t>(lane_key) * p.stride_key;
  packer.target = reinterpret_cast<typename Packer::Bits*>(reinterpret_cast<char*>(p.rows) +
                                                           (head * layout.rows + first_row) * row_bytes + lane_key / 8);
  packer.keys = static_cast<int>(layout.keys) - lane_key;
  packer.bytes = static_cast<int>(row_bytes) - lane_key / 8;
  packer.stride = p.stride_key;
  packer.vector = p.chunk == kElements;
  packer.care = p.is_float ? static_cast<Word>(kAllBits >> 1) : kAllBits;

  __shared__ uint32_t tile_bits;
  if (threadIdx.x == 0) tile_bits = 0;
  __syncthreads();

  const VisibleKeys visible(p, b);
#pragma unroll 1
  for (int row = first_row; row < row_end; row += kPackWarps) {
    packer.pack(max_of(0, visible.of_row(row) - first_key), lane * kElements);
    packer.source += kPackWarps * p.stride_row;
    packer.target += kPackWarps * row_bytes / static_cast<int>(sizeof(typename Packer::Bits));
  }
  uint32_t tiles = 0;
#pragma unroll
  for (int pass = 0; pass < Packer::kPasses; ++pass) {
    constexpr int kLanes = kMaskTile / kElements, kTiles = 32 / kLanes;  // lanes of a tile, tiles of a pass
    const uint32_t ballot = __ballot_sync(0xffffffffu, packer.seen[pass] != 0);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const uint32_t lanes = ballot >> (kLanes * i) & ((1u << kLanes) - 1);
      tiles |= lanes != 0 ? 1u << (pass * kTiles + i) : 0u;
    }
  }
  if (lane == 0 && tiles != 0) atomicOr(&tile_bits, tiles);
  __syncthreads();
  if (threadIdx.x == 0) p.tiles[(head * row_tiles + row_tile) * key_blocks + first_key / kPackKeys] = tile_bits;
}

template <typename Word, int kElements>
cudaError_t launch_pack(const PackMaskParams& p, cudaStream_t stream) {
  const PackedMaskLayout& layout = p.layout;
  const int64_t blocks = layout.tile_words() * layout.row_tiles() * layout.heads * layout.batch;
  return launch(pack_mask_kernel<Word, kElements>, blocks, kPackWarps * 32, 0, stream, p);
}

}  // namespace

cudaError_t launch_pack_mask(const PackMaskParams& p, cudaStream_t stream) {
  switch (p.element_bytes) {
    case 1:
      return p.chunk == 16 ? launch_pack<uint8_t, 16>(p, stream) : launch_pack<uint8_t, 8>(p, stream);
    case 2:
      return launch_pack<uint16_t, 8>(p, stream);
    case 4:
      return launch_pack<uint32_t, 8>(p, stream);
    default:
      return launch_pack<uint64_t, 8>(p, stream);
  }
}

}  // namespace fdma
