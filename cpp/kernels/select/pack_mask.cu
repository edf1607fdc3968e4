// Dense mask -> packed mask (policy/mask_bits.hpp). The dense mask is read once, by this kernel; everything after it
// works on bits. One block of threads owns 64 rows x 2048 keys: one word of tile bits.
#include "kernels/core/launch.cuh"
#include "kernels/launchers.hpp"
#include "kernels/policy/range.hpp"

namespace fdma {

namespace {

constexpr int kPackWarps = 8;
constexpr int kPackKeys = 2048;  // keys of one word of tile bits

template <int kBytes>
struct UnsignedOf;
template <>
struct UnsignedOf<1> {
  using Type = uint8_t;
};
template <>
struct UnsignedOf<2> {
  using Type = uint16_t;
};
template <>
struct UnsignedOf<4> {
  using Type = uint32_t;
};
template <>
struct UnsignedOf<8> {
  using Type = uint64_t;
};

// The 8 elements that a lane turns into one byte of bits, as 32-bit words.
template <typename Word>
struct EightElements {
  static constexpr int kWords = 8 * sizeof(Word) / 4;
  uint32_t words[kWords];

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
      for (int w = 0; w < 2; ++w) {
        // One flag a byte at bits 0, 8, 16, 24; the product moves them to bits 24 to 27 without a carry.
        result |= ((flags<0x7f7f7f7fu>(words[w], care * 0x01010101u) >> 7) * 0x01020408u >> 24 & 0xfu) << (4 * w);
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
  for (int e = 0; e < count; ++e) bits |= (source[e * stride] & care) != 0 ? 1u << e : 0u;
  return bits;
}

// Packs the part of a row that one block of threads owns. Lane l takes 8 keys of each pass and writes one byte. All
// loads of a row start before the first is used.
template <typename Word>
struct RowPacker {
  static constexpr int kKeysPerPass = 32 * 8;
  static constexpr int kPasses = kPackKeys / kKeysPerPass;
  static constexpr int kInFlight =
      sizeof(Word) <= 2 ? kPasses : kPasses * 2 / sizeof(Word);  // passes that load together

  int first_key;  // of the part
  int lane;
  int keys;       // of the mask
  int row_bytes;  // of the packed mask
  int stride;
  bool vector;
  Word care;
  uint64_t seen = 0;  // byte i: bits of the lane in pass i, of all rows

  // `limit`: the first hidden key, at most `keys`.
  FDMA_DEVICE void pack(const Word* source, uint8_t* target, int limit) {
    // Passes of visible keys alone, then the one in which the visible keys end, then passes without any.
    const int inside = vector ? max_of(0, min_of((limit - first_key) / kKeysPerPass, kPasses)) : 0;
    const int edge_key = key_of(inside);
    const bool edge_vector = vector && inside < kPasses && edge_key < limit && edge_key + 8 <= keys;
    EightElements<Word> edge;
    if (edge_vector) edge.load(source + edge_key);
#pragma unroll
    for (int first = 0; first < kPasses; first += kInFlight) {
      EightElements<Word> elements[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (first + i < inside) elements[i].load(source + key_of(first + i));
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (first + i < inside) store(target, first + i, elements[i].bits(care));
      }
    }
    if (edge_vector) {
      store(target, inside, edge.bits(care) & (0xffu >> (8 - min_of(8, limit - edge_key))));
    }
#pragma unroll 1
    for (int pass = inside + (edge_vector ? 1 : 0); pass < kPasses && key_of(pass) / 8 < row_bytes; ++pass) {
      const int count = min_of(8, limit - key_of(pass));
      store(target, pass, pack_elements(source + key_of(pass) * static_cast<int64_t>(stride), stride, count, care));
    }
  }

  FDMA_DEVICE bool seen_in(int pass) const { return ((seen >> (8 * pass)) & 0xffu) != 0; }

 private:
  FDMA_DEVICE int key_of(int pass) const { return first_key + lane * 8 + pass * kKeysPerPass; }
  FDMA_DEVICE void store(uint8_t* target, int pass, uint32_t bits) {
    target[key_of(pass) / 8] = static_cast<uint8_t>(bits);
    seen |= static_cast<uint64_t>(bits) << (8 * pass);
  }
};

// First hidden key of a mask row. A row that serves all query rows has to serve the last one, one that serves several
// sequences the longest there may be.
FDMA_DEVICE int visible_keys(const PackMaskParams& p, int64_t b, int64_t row) {
  if (p.shared_by_sequences) return static_cast<int>(p.layout.keys);
  const Sequence sequence = p.sequences.at(b);
  const int64_t q = p.layout.rows == 1 ? sequence.len_q - 1 : row;
  if (q >= sequence.len_q) return 0;
  return static_cast<int>(max_of<int64_t>(0, key_limit(q, sequence.len_q, sequence.len_k, p.is_causal)));
}

template <int kElementBytes>
__global__ void __launch_bounds__(kPackWarps * 32) pack_mask_kernel(const __grid_constant__ PackMaskParams p) {
  using Word = typename UnsignedOf<kElementBytes>::Type;
  const PackedMaskLayout& layout = p.layout;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t key_blocks = layout.tile_words(), row_tiles = layout.row_tiles();
  const int key_block = static_cast<int>(blockIdx.x % key_blocks);
  const int64_t row_tile = blockIdx.x / key_blocks % row_tiles;
  const int64_t head = blockIdx.x / key_blocks / row_tiles;  // batch * heads + head of the mask
  const int64_t h = head % layout.heads, b = head / layout.heads;
  const Word* dense = static_cast<const Word*>(p.dense) + b * p.stride_batch + h * p.stride_head;
  constexpr Word kAllBits = static_cast<Word>(~Word{0});
  RowPacker<Word> packer{key_block * kPackKeys,
                         lane,
                         static_cast<int>(layout.keys),
                         static_cast<int>(layout.row_words() * 4),
                         p.stride_key,
                         p.vector_rows,
                         p.is_float ? static_cast<Word>(kAllBits >> 1) : kAllBits};

  __shared__ uint32_t tile_bits;
  if (threadIdx.x == 0) tile_bits = 0;
  __syncthreads();

  const int64_t row_end = min_of((row_tile + 1) * kMaskTile, layout.rows);
#pragma unroll 1
  for (int64_t row = row_tile * kMaskTile + warp; row < row_end; row += kPackWarps) {
    const int limit = visible_keys(p, b, row);
    const Word* source = dense + row * p.stride_row;
    uint8_t* target = reinterpret_cast<uint8_t*>(p.rows) + (head * layout.rows + row) * packer.row_bytes;
    packer.pack(source, target, limit);
  }
  uint32_t tiles = 0;
#pragma unroll
  for (int pass = 0; pass < RowPacker<Word>::kPasses; ++pass) {
    const uint32_t ballot = __ballot_sync(0xffffffffu, packer.seen_in(pass));
#pragma unroll
    for (int i = 0; i < 4; ++i) tiles |= ((ballot >> (8 * i)) & 0xffu) != 0 ? 1u << (pass * 4 + i) : 0u;
  }
  if (lane == 0 && tiles != 0) atomicOr(&tile_bits, tiles);
  __syncthreads();
  if (threadIdx.x == 0) p.tiles[(head * row_tiles + row_tile) * key_blocks + key_block] = tile_bits;
}

}  // namespace

cudaError_t launch_pack_mask(const PackMaskParams& p, cudaStream_t stream) {
  const PackedMaskLayout& layout = p.layout;
  const int64_t blocks = layout.tile_words() * layout.row_tiles() * layout.heads * layout.batch;
  switch (p.element_bytes) {
    case 1:
      return launch(pack_mask_kernel<1>, blocks, kPackWarps * 32, 0, stream, p);
    case 2:
      return launch(pack_mask_kernel<2>, blocks, kPackWarps * 32, 0, stream, p);
    case 4:
      return launch(pack_mask_kernel<4>, blocks, kPackWarps * 32, 0, stream, p);
    default:
      return launch(pack_mask_kernel<8>, blocks, kPackWarps * 32, 0, stream, p);
  }
}

}  // namespace fdma
