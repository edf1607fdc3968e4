// Forward: one block of threads owns a tile of query rows of one head and walks the key tiles from right to left with
// an online softmax. Each warp owns whole rows, so the softmax never leaves a warp.
//
// Schedule of one key tile (K, bias and mask of the tile, and V, each have one buffer; copies run under the tensor
// work):
//   wait K(n) | start V(n) | S = Q K^T, bias, mask | wait V(n) | start K(n - 1) | softmax | O += P V
#pragma once

#include "kernels/policy/mask.cuh"
#include "kernels/policy/score.cuh"
#include "kernels/policy/softmax.cuh"
#include "kernels/sm80/slot_stage.cuh"

namespace fdma::sm80 {

template <typename T_, int kHeadDim_, bool kMasked_, BiasForm kBias_>
struct ForwardTraits {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kMasked = kMasked_;
  static constexpr BiasForm kBias = kBias_;
  static constexpr bool kSlots = kBias == BiasForm::kSlots;
  static constexpr bool kBiased = kBias == BiasForm::kSame || kBias == BiasForm::kFloat;
  static constexpr ForwardTile kTile = forward_tile(kHeadDim, kBias);
  static constexpr int kQueries = kTile.queries, kKeys = kTile.keys;
  static constexpr int kThreads = kTile.warps * 32;
  static constexpr int kWarpRows = kQueries / kTile.warps;
  static constexpr int kM = kWarpRows / 16;
  static constexpr int kN = kKeys / 8;
  static constexpr int kNO = kHeadDim / 8;

  using QueryTile = SmemTile<kQueries, kHeadDim>;
  using KeyTile = SmemTile<kKeys, kHeadDim>;
  using OutTile = SmemTile<kWarpRows, kHeadDim>;  // each warp stages its rows where its queries were
  using Bias = BiasStage<kBias, T, kQueries, kKeys, kThreads>;
  using Mask = MaskStage<kQueries, kKeys, kThreads>;

  static constexpr int kQueryOffset = 0;
  static constexpr int kKeyOffset = kQueryOffset + QueryTile::kBytes;
  static constexpr int kValueOffset = kKeyOffset + KeyTile::kBytes;
  static constexpr int kBiasOffset = kValueOffset + KeyTile::kBytes;
  static constexpr int kMaskOffset = kBiasOffset + Bias::kBytes;
  static constexpr int kSequenceOffset = kMaskOffset + (kMasked ? Mask::kBytes : 0);
  static constexpr int kSharedBytes = kSequenceOffset + static_cast<int>(sizeof(Sequence));
};

// Where a block works. A tile of slots may have several heads, see PackedHeads.
template <typename Traits>
struct ForwardBlock {
  int b, h, kv_head, q;  // batch, first query head, its kv head, first query row
  PackedHeads packed;
  const Sequence& sequence;  // in shared memory

  // All threads of the block construct it together. Under causality long tiles start first.
  FDMA_DEVICE ForwardBlock(const ForwardParams& p, Sequence& shared) : sequence(shared) {
    if constexpr (Traits::kSlots) packed = p.slots.packed;
    q = (p.is_causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x) * packed.position(Traits::kQueries);
    h = blockIdx.y << packed.shift;
    kv_head = h / p.group;
    b = p.batch_begin + blockIdx.z;
    if (threadIdx.x == 0) shared = p.sequences.at(b);
    __syncthreads();
  }
  // Of the sequence, behind the block's last.
  FDMA_DEVICE int q_end() const { return q + packed.position(Traits::kQueries); }
};

template <typename Traits>
class ForwardLoader {
  using T = typename Traits::T;

 public:
  using Block = ForwardBlock<Traits>;

  FDMA_DEVICE ForwardLoader(const ForwardParams& p, const Block& block, uint32_t smem, int thread)
      : p_(p),
        block_(block),
        smem_(smem),
        thread_(thread),
        key_(p.key.at<const T>(p.pages.table == nullptr ? block.b : 0, block.kv_head, block.sequence.k_begin)),
        value_(p.value.at<const T>(p.pages.table == nullptr ? block.b : 0, block.kv_head, block.sequence.k_begin)) {
    if constexpr (Traits::kBiased) bias_element_ = p.bias.offset(block.b, block.h, block.q);
    if constexpr (Traits::kSlots) {
      spans_ = p.slots.spans + p.slots.list(block.b, block.kv_head) * p.slots.slots;
      if (p.slots.bias != nullptr) slot_bias_ = p.slots.bias + p.slots.bias_row(block.b, block.h) * p.slots.slots;
    }
    if constexpr (Traits::kMasked)
      mask_ = Traits::Mask::source(p.mask, block.b, block.h, block.q, block.sequence.len_q, thread);
  }

  FDMA_DEVICE void load_query() const {
    load_tile<typename Traits::QueryTile, Traits::kThreads>(
        smem_ + Traits::kQueryOffset, p_.query.at<const T>(block_.b, block_.h, block_.sequence.q_begin + block_.q),
        RowStride(p_.query, block_.packed), (block_.sequence.len_q - block_.q) << block_.packed.shift, p_.head_dim,
        p_.vector_rows, thread_);
  }
  // K, bias and mask of key tile n.
  FDMA_DEVICE void load_key(int n) const {
    const int k = n * Traits::kKeys;
    load_rows(Traits::kKeyOffset, key_, p_.key, k);
    if constexpr (Traits::kBiased) {
      const BiasTileSource source(p_.bias, bias_element_, k, block_.sequence.len_q - block_.q,
                                  block_.sequence.len_k - k);
      Traits::Bias::load(smem_ + Traits::kBiasOffset, source, thread_);
    }
    if constexpr (Traits::kSlots)
      Traits::Bias::template load<true>(smem_ + Traits::kBiasOffset, spans_, slot_bias_, n, thread_);
    if constexpr (Traits::kMasked) Traits::Mask::load(smem_ + Traits::kMaskOffset, mask_, k, thread_);
  }
  FDMA_DEVICE void load_value(int n) const { load_rows(Traits::kValueOffset, value_, p_.value, n * Traits::kKeys); }

 private:
  // Rows k.. of the sequence; `head` is its row 0, or with pages row 0 of page 0.
  FDMA_DEVICE void load_rows(int offset, const T* head, const TensorView& view, int k) const {
    using Tile = typename Traits::KeyTile;
    const int valid_rows = block_.sequence.len_k - k;
    if (p_.pages.table == nullptr) {
      load_tile<Tile, Traits::kThreads>(smem_ + offset, head + k * view.stride_row, view.stride_row, valid_rows,
                                        p_.head_dim, p_.vector_rows, thread_);
    } else {
      load_paged_tile<Tile, Traits::kThreads>(smem_ + offset, head, view, p_.pages, block_.b, k, valid_rows,
                                              p_.head_dim, p_.vector_rows, thread_);
    }
  }

  const ForwardParams& p_;
  const Block& block_;
  uint32_t smem_;
  int thread_;
  const T *key_, *value_;           // row 0 of the kv head
  int64_t bias_element_ = 0;        // of (b, h, q, 0)
  const uint32_t* mask_ = nullptr;  // word 0 of the thread's row
  const Span* spans_ = nullptr;     // of the kv head's slots
  const float* slot_bias_ = nullptr;
};

// Turns q.k into what the softmax takes: scale and softcap unless it folds the scale, bias, mask, key limit.
template <typename Traits, int kM, int kN>
FDMA_DEVICE void finish_scores(float (&scores)[kM][kN][4], const ForwardParams& p, const ForwardBlock<Traits>& block,
                               const ScoreUnit& unit, bool folded, const char* smem_bytes, uint32_t smem, int n,
                               int warp, int lane) {
  const int warp_row = warp * Traits::kWarpRows;
  if (!folded) unit.to_bits(scores);
  if constexpr (Traits::kBiased) Traits::Bias::add(scores, smem + Traits::kBiasOffset, warp_row, 0, lane);
  if constexpr (Traits::kMasked) {
    const uint32_t* bits = reinterpret_cast<const uint32_t*>(smem_bytes + Traits::kMaskOffset);
    apply_mask_bits(scores, bits + warp_row * Traits::Mask::kWords, Traits::Mask::kWords, lane);
  }
  const int row0 = block.q + block.packed.position(warp_row);
  if constexpr (Traits::kSlots) {
    const SlotView& slots = p.slots;
    const SpanSummary* groups = slots.groups_of(slots.list(block.b, block.kv_head));
    const bool partial =
        !tile_summary<Traits::kKeys>(groups, n).all(row0, row0 + block.packed.position(Traits::kWarpRows - 1));
    return Traits::Bias::apply(scores, smem + Traits::kBiasOffset, row0, 0, partial, lane, block.packed);
  }
  const int col0 = n * Traits::kKeys;
  if (col0 + Traits::kKeys > key_limit(row0, block.sequence.len_q, block.sequence.len_k, p.is_causal)) {
    apply_key_limit(scores, row0, col0, block.sequence.len_q, block.sequence.len_k, p.is_causal, lane);
  }
}

// P as the A operand of the second product: two neighbouring 16 x 8 accumulator blocks are one 16 x 16 operand.
template <typename T, int kM, int kN>
FDMA_DEVICE void to_operand(uint32_t (&a)[kM][kN / 2][4], const float (&acc)[kM][kN][4]) {
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int k = 0; k < kN / 2; ++k) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {  // (rows 0-7, 8-15) of the first block, then of the second
        const float* pair = acc[i][2 * k + part / 2] + 2 * (part % 2);
        a[i][k][part] = Element<T>::pack(pair[0], pair[1]);
      }
    }
  }
}

template <typename Traits, int kM, int kNO>
FDMA_DEVICE void store_result(const OnlineSoftmax<kM>& softmax, const float (&out)[kM][kNO][4], const ForwardParams& p,
                              const ForwardBlock<Traits>& block, uint32_t smem, int warp, int lane) {
  using T = typename Traits::T;
  const PackedHeads packed = block.packed;
  const int row0 = block.q + packed.position(warp * Traits::kWarpRows);
  if (p.lse != nullptr && lane % 4 == 0) {
    float* lse = p.lse + block.b * p.lse_stride_batch + block.h * p.lse_stride_head + block.sequence.q_begin;
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int in_warp = 16 * i + 8 * half + lane / 4;
        const int row = row0 + packed.position(in_warp);
        if (row < block.sequence.len_q) lse[packed.head(in_warp) * p.lse_stride_head + row] = softmax.lse(i, half);
      }
    }
  }
  const uint32_t stage = smem + Traits::kQueryOffset + warp * Traits::OutTile::kBytes;
  store_accumulator<T, typename Traits::OutTile>(stage, out, 0, 0, 1.f, lane);
  __syncwarp();
  store_tile<typename Traits::OutTile, 32>(stage, p.out.at<T>(block.b, block.h, block.sequence.q_begin + row0),
                                           RowStride(p.out, packed), (block.sequence.len_q - row0) << packed.shift,
                                           p.head_dim, p.vector_out, lane);
}

// The key tiles that the block visits, from the last one down.
template <typename Traits>
class LiveTiles {
 public:
  FDMA_DEVICE LiveTiles(const ForwardParams& p, const ForwardBlock<Traits>& block)
      : bits_(p.mask, block.b, block.h, block.q, block.sequence.len_q) {
    if constexpr (Traits::kSlots) {
      const SlotView& slots = p.slots;
      const int last = min_of(block.q_end(), block.sequence.len_q) - 1;
      slots_ = LiveSlotTiles<Traits::kKeys>(slots, slots.list(block.b, block.kv_head), block.q, last);
    }
  }
  // The highest one that is not above n, or -1.
  FDMA_DEVICE int next(int n) {
    if constexpr (Traits::kSlots) return slots_.next(n);
    if constexpr (Traits::kMasked) return bits_.next(n);
    return n;
  }

 private:
  LiveKeyTiles<Traits::kQueries, Traits::kKeys> bits_;
  LiveSlotTiles<Traits::kKeys> slots_;
};

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kTile.ctas_per_sm)
    forward_kernel(const __grid_constant__ ForwardParams p) {
  using T = typename Traits::T;
  constexpr int kM = Traits::kM, kN = Traits::kN, kNO = Traits::kNO;
  extern __shared__ __align__(1024) char smem_bytes[];
  const uint32_t smem = smem_address(smem_bytes);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const ForwardBlock<Traits> block(p, *reinterpret_cast<Sequence*>(smem_bytes + Traits::kSequenceOffset));
  if (block.q >= block.sequence.len_q) return;
  const ForwardLoader<Traits> loader(p, block, smem, thread);

  const ScoreUnit unit(p.scale, p.softcap);
  const bool folded = !Traits::kBiased && unit.foldable() && (!Traits::kSlots || p.slots.bias == nullptr);
  OnlineSoftmax<kM> softmax(folded ? unit.scale_log2 : 1.f);
  float out[kM][kNO][4];
  clear(out);

  LiveTiles<Traits> live(p, block);
  const int key_tiles = Traits::kSlots
                            ? ceil_div(p.slots.used_slots(p.slots.list(block.b, block.kv_head)), Traits::kKeys)
                            : static_cast<int>(key_tile_count(block.q_end(), block.sequence.len_q, block.sequence.len_k,
                                                              p.is_causal, Traits::kKeys));
  int n = key_tiles - 1;
  n = live.next(n);

  loader.load_query();
  if (n >= 0) loader.load_key(n);
  copy_async_commit();
  const AddressA<typename Traits::QueryTile, Major::kK> query(smem + Traits::kQueryOffset, warp * Traits::kWarpRows, 0,
                                                              lane);
  const AddressB<typename Traits::KeyTile, Major::kK> key(smem + Traits::kKeyOffset, 0, 0, lane);
  const AddressB<typename Traits::KeyTile, Major::kMN> value(smem + Traits::kValueOffset, 0, 0, lane);

  while (n >= 0) {
    int following = n - 1;
    following = live.next(following);
    copy_async_wait<0>();
    __syncthreads();  // K(n), bias and mask are there; no warp still reads the previous V
    loader.load_value(n);
    copy_async_commit();

    float scores[kM][kN][4];
    clear(scores);
    gemm<T, Major::kK, Major::kK, Traits::kHeadDim / 16>(scores, query, key);
    finish_scores<Traits>(scores, p, block, unit, folded, smem_bytes, smem, n, warp, lane);

    copy_async_wait<0>();
    __syncthreads();  // V(n) is there; no warp still reads K(n), bias or mask
    if (following >= 0) loader.load_key(following);
    copy_async_commit();

    softmax.step(scores, out);
    uint32_t weights[kM][kN / 2][4];
    to_operand<T>(weights, scores);
    gemm_register_a<T, Major::kMN, kN / 2>(out, weights, value);
    n = following;
  }

  copy_async_wait<0>();
  __syncthreads();  // without a key tile the copy of Q may still be writing where the results are staged
  softmax.finish(out);
  store_result<Traits>(softmax, out, p, block, smem, warp, lane);
}

}  // namespace fdma::sm80
