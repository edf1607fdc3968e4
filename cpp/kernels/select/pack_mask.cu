// Dense mask -> packed mask (policy/mask_bits.hpp). The dense mask is read once, by this kernel; everything after it
// works on bits. One block of threads owns 64 rows x 2048 keys: one word of tile bits.
#include <type_traits>

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

// Bits of the 8 elements from `source` on, of which `valid` exist. `care` has the sign bit cleared for floats.
template <typename Word>
FDMA_DEVICE uint32_t pack_eight(const Word* source, int stride, int valid, bool vector, Word care) {
  uint32_t bits = 0;
  if (vector && valid >= 8) {
    constexpr int kVectorBytes = sizeof(Word) == 1 ? 8 : 16;
    constexpr int kPerVector = kVectorBytes / sizeof(Word);
    using Vector = typename std::conditional<kVectorBytes == 8, uint2, uint4>::type;
#pragma unroll
    for (int v = 0; v < 8 / kPerVector; ++v) {
      const Vector raw = __ldcs(reinterpret_cast<const Vector*>(source) + v);
      const Word* element = reinterpret_cast<const Word*>(&raw);
#pragma unroll
      for (int e = 0; e < kPerVector; ++e) bits |= (element[e] & care) != 0 ? 1u << (v * kPerVector + e) : 0u;
    }
  } else {
    for (int e = 0; e < min_of(valid, 8); ++e) bits |= (source[e * stride] & care) != 0 ? 1u << e : 0u;
  }
  return bits;
}

template <int kElementBytes>
__global__ void __launch_bounds__(kPackWarps * 32) pack_mask_kernel(const __grid_constant__ PackMaskParams p) {
  using Word = typename UnsignedOf<kElementBytes>::Type;
  constexpr int kKeysPerPass = 32 * 8;
  constexpr int kPasses = kPackKeys / kKeysPerPass;
  const PackedMaskLayout& layout = p.layout;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t key_blocks = layout.tile_words(), row_tiles = layout.row_tiles();
  const int64_t key_block = blockIdx.x % key_blocks;
  const int64_t row_tile = blockIdx.x / key_blocks % row_tiles;
  const int64_t head = blockIdx.x / key_blocks / row_tiles;  // batch * heads + head of the mask
  const int64_t h = head % layout.heads, b = head / layout.heads;
  const Word care =
      p.is_float ? static_cast<Word>(~static_cast<Word>(0)) >> 1 : static_cast<Word>(~static_cast<Word>(0));
  const Word* dense = static_cast<const Word*>(p.dense) + b * p.stride_batch + h * p.stride_head;
  const int64_t row_bytes = layout.row_words() * 4;

  __shared__ uint32_t tile_bits;
  if (threadIdx.x == 0) tile_bits = 0;
  __syncthreads();

  uint32_t seen = 0;  // bit i: some row of this warp has a bit in the lane's byte of pass i
  const int64_t row_end = min_of((row_tile + 1) * kMaskTile, layout.rows);
  for (int64_t row = row_tile * kMaskTile + warp; row < row_end; row += kPackWarps) {
    // A mask row that serves all query rows has to serve the last one.
    const int64_t q = layout.rows == 1 ? p.len_q - 1 : row;
    const int64_t limit = max_of<int64_t>(0, key_limit(q, p.len_q, layout.keys, p.is_causal));
    uint8_t* target = reinterpret_cast<uint8_t*>(p.rows) + (head * layout.rows + row) * row_bytes;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int64_t key = key_block * kPackKeys + pass * kKeysPerPass + lane * 8;
      if (key >= row_bytes * 8) break;
      const int valid = static_cast<int>(min_of<int64_t>(8, max_of<int64_t>(0, limit - key)));
      uint32_t bits = 0;
      if (valid > 0) {
        const bool whole = key + 8 <= layout.keys;  // the vector may be read even where causality ends inside it
        bits = pack_eight(dense + row * p.stride_row + key * p.stride_key, p.stride_key, whole ? 8 : valid,
                          p.vector_rows && whole, care) &
               ((1u << valid) - 1);
      }
      target[key / 8] = static_cast<uint8_t>(bits);
      seen |= (bits != 0 ? 1u : 0u) << pass;
    }
  }
  uint32_t tiles = 0;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const uint32_t ballot = __ballot_sync(0xffffffffu, (seen >> pass) & 1);
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
