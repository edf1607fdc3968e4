// What a block of the backward kernel is made of: its tiles in shared memory, where it works, which query tiles it
// visits in which order, and when it may add to dQ.
#pragma once

#include "kernels/policy/mask.cuh"
#include "kernels/sm80/bwd_query_sum.cuh"
#include "kernels/sm80/slot_stage.cuh"

namespace fdma::sm80 {

template <typename T_, int kHeadDim_, bool kRoomy_, BiasForm kBias_>
struct BackwardTraits {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr BiasForm kBias = kBias_;
  static constexpr bool kSlots = kBias == BiasForm::kSlots;
  static constexpr bool kBiased = kBias == BiasForm::kSame || kBias == BiasForm::kFloat;
  static constexpr bool kBiasGrad = kBias != BiasForm::kNone;  // there may be a gradient of the bias
  static constexpr bool kSplits = false;                       // takes parts of key tiles, see TailSplit
  static constexpr BackwardTile kTile = backward_tile(kHeadDim, kRoomy_);
  static constexpr int kQueries = kTile.queries, kKeys = kTile.keys;
  static constexpr int kWarps = kTile.warps, kThreads = kWarps * 32;
  static constexpr int kStages = kTile.query_stages;

  // Warp tiles: S and dP (queries x keys), dK and dV (keys x head dim), dQ (queries x head dim).
  static constexpr int kScoreWarpsQ = kTile.score_warps_q, kScoreWarpsK = kWarps / kScoreWarpsQ;
  static constexpr int kScoreRows = kQueries / kScoreWarpsQ, kScoreCols = kKeys / kScoreWarpsK;
  static constexpr int kKeyWarpsK = kTile.key_warps_k, kKeyWarpsD = kWarps / kKeyWarpsK;
  static constexpr int kKeyRows = kKeys / kKeyWarpsK, kKeyCols = kHeadDim / kKeyWarpsD;
  using QuerySum = sm80::QuerySum<kHeadDim, kQueries, kWarps, kTile.query_warps_q>;

  using QueryTile = SmemTile<kQueries, kHeadDim>;
  using KeyTile = SmemTile<kKeys, kHeadDim>;
  using ScoreTile = SmemTile<kQueries, kKeys>;
  using Bias = BiasStage<kBias, T, kQueries, kKeys, kThreads>;
  using Mask = MaskStage<kQueries, kKeys, kThreads>;

  static constexpr int kKeyOffset = 0;
  static constexpr int kValueOffset = kKeyOffset + KeyTile::kBytes;
  static constexpr int kQueryOffset = kValueOffset + KeyTile::kBytes;
  static constexpr int kGradOutOffset = kQueryOffset + kStages * QueryTile::kBytes;
  static constexpr int kGradScoreOffset = kGradOutOffset + kStages * QueryTile::kBytes;  // dS
  static constexpr int kWeightOffset = kGradScoreOffset + ScoreTile::kBytes;             // P
  static constexpr int kMaskOffset = kWeightOffset + ScoreTile::kBytes;
  static constexpr int kColumnSumOffset = kMaskOffset + kStages * Mask::kBytes;
  static constexpr int kSequenceOffset = kColumnSumOffset + kScoreWarpsQ * kKeys * 4;
  static constexpr int kSlotOffset = kSequenceOffset + round_up(static_cast<int>(sizeof(Sequence)), 16);
  // A tile of bias lies where dS will be, fp32 over dS and P; slots stay for the whole walk.
  static constexpr int kBiasOffset = kSlots ? kSlotOffset : kGradScoreOffset;
  static constexpr int kSharedBytes = kSlotOffset + (kSlots ? Bias::kBytes : 0);
};

// Where a block works and which query tiles it has to visit.
template <typename Traits>
struct BackwardBlock {
  int b, kv_head, n;           // batch, kv head, key tile
  int first_tile, tile_count;  // query tiles [first_tile, tile_count) can see the keys
  int part = -1;               // of a split key tile, see TailSplit
  int64_t tail_tile = 0;       // of those, the tile
  const BackwardParams& p;
  const Sequence& sequence;  // in shared memory

  // All threads of the block construct it together.
  FDMA_DEVICE BackwardBlock(const BackwardParams& params, Sequence& shared) : p(params), sequence(shared) {
    unsigned tile = blockIdx.x;
    kv_head = blockIdx.y;
    unsigned batch = blockIdx.z;
    if constexpr (Traits::kSlots) {
      // Walks differ in length, and the longest are those of the first tiles: all heads start with them.
      const unsigned index = blockIdx.y * gridDim.x + blockIdx.x;
      tile = index / gridDim.y;
      kv_head = index % gridDim.y;
      if (p.block_order != nullptr) {
        const int of_all = p.block_order[static_cast<int64_t>(blockIdx.z) * gridDim.y * gridDim.x + index];
        tile = of_all % gridDim.x;
        kv_head = of_all / gridDim.x % gridDim.y;
        batch = of_all / gridDim.x / gridDim.y;
      }
    }
    if constexpr (Traits::kSplits) {
      if (p.tail.any()) {
        const int tiles = ceil_div(p.sequences.max_k, Traits::kKeys), all = tiles * p.heads_kv * p.batch;
        const QueueItem item(blockIdx.x, all, p.tail);
        tile = item.tile % tiles;
        kv_head = item.tile / tiles % p.heads_kv;
        batch = item.tile / tiles / p.heads_kv;
        part = item.part;
        tail_tile = item.tile - (all - p.tail.tiles);
      }
    }
    n = p.tile_order == nullptr ? tile : gridDim.x - 1 - tile;  // see QuerySumOrder
    b = p.batch_begin + batch;
    if (threadIdx.x == 0) shared = p.sequences.at(b);
    __syncthreads();
    tile_count = ceil_div(sequence.len_q, Traits::kQueries);
    first_tile =
        static_cast<int>(first_query_of_key(k(), sequence.len_q, sequence.len_k, p.is_causal)) / Traits::kQueries;
    if (k() >= sequence.len_k) first_tile = tile_count;
    if constexpr (Traits::kSlots) {
      const QueryTiles tiles =
          query_tiles(tile_summary<Traits::kKeys>(slot_groups(), n), sequence.len_q, Traits::kQueries);
      first_tile = tiles.first;
      tile_count = tiles.end;
    }
    if constexpr (Traits::kSplits) {
      const PartRange range(tile_count - first_tile, part, p.tail.parts);
      tile_count = first_tile + range.end;
      first_tile += range.first;
    }
  }
  FDMA_DEVICE const SpanSummary* slot_groups() const { return p.slots.groups_of(p.slots.list(b, kv_head)); }
  FDMA_DEVICE int k() const { return n * Traits::kKeys; }
  // Of the sequence, in scratch.
  FDMA_DEVICE int64_t first_row_tile() const { return p.row_tiles.first(b, sequence.q_begin); }
};

template <typename Traits>
struct BackwardLoader {
  using T = typename Traits::T;
  const BackwardParams& p;
  const BackwardBlock<Traits>& block;
  uint32_t smem;
  int thread;

  FDMA_DEVICE void load_key_value() const {
    load_tile<typename Traits::KeyTile, Traits::kThreads>(
        smem + Traits::kKeyOffset, p.key.at<const T>(block.b, block.kv_head, block.sequence.k_begin + block.k()),
        p.key.stride_row, block.sequence.len_k - block.k(), p.head_dim, p.vector_rows, thread);
    load_tile<typename Traits::KeyTile, Traits::kThreads>(
        smem + Traits::kValueOffset, p.value.at<const T>(block.b, block.kv_head, block.sequence.k_begin + block.k()),
        p.value.stride_row, block.sequence.len_k - block.k(), p.head_dim, p.vector_rows, thread);
  }
  // Q and mask of query tile m.
  FDMA_DEVICE void load_query(int h, int m, int stage) const {
    const int q = m * Traits::kQueries;
    load_tile<typename Traits::QueryTile, Traits::kThreads>(
        smem + Traits::kQueryOffset + stage * Traits::QueryTile::kBytes,
        p.query.at<const T>(block.b, h, block.sequence.q_begin + q), p.query.stride_row, block.sequence.len_q - q,
        p.head_dim, p.vector_rows, thread);
    if (p.has_mask) {
      const uint32_t* source = Traits::Mask::source(p.mask, block.b, h, q, block.sequence.len_q, thread);
      Traits::Mask::load(smem + Traits::kMaskOffset + stage * Traits::Mask::kBytes, source, block.k(), thread);
    }
  }
  FDMA_DEVICE void load_grad_out(int h, int m, int stage) const {
    const int q = m * Traits::kQueries;
    load_tile<typename Traits::QueryTile, Traits::kThreads>(
        smem + Traits::kGradOutOffset + stage * Traits::QueryTile::kBytes,
        p.grad_out.at<const T>(block.b, h, block.sequence.q_begin + q), p.grad_out.stride_row, block.sequence.len_q - q,
        p.head_dim, p.vector_rows, thread);
  }
  // Spans and biases of the block's slots for head h.
  FDMA_DEVICE void load_slots(int h) const {
    if constexpr (Traits::kSlots) {
      const SlotView& slots = p.slots;
      const float* bias = slots.bias == nullptr ? nullptr : slots.bias + slots.bias_row(block.b, h) * slots.slots;
      Traits::Bias::template load<false>(smem + Traits::kBiasOffset,
                                         slots.spans + slots.list(block.b, block.kv_head) * slots.slots, bias, block.n,
                                         thread);
    }
  }
  FDMA_DEVICE void load_bias(int h, int m) const {
    if constexpr (Traits::kBiased) {
      const int q = m * Traits::kQueries;
      const BiasTileSource source(p.bias, p.bias.offset(block.b, h, q), block.k(), block.sequence.len_q - q,
                                  block.sequence.len_k - block.k());
      Traits::Bias::load(smem + Traits::kBiasOffset, source, thread);
    }
  }
};

// Word `word` of the mask's tile bits, for query tile m of head h.
template <typename Traits>
FDMA_DEVICE uint32_t mask_tile_word(const BackwardParams& p, const BackwardBlock<Traits>& block, int h, int m,
                                    int word) {
  constexpr int kTile = static_cast<int>(kMaskTile);
  const int first = m * Traits::kQueries / kTile;
  uint32_t bits = __ldg(p.mask.row_tile(block.b, h, first) + word);
  if constexpr (Traits::kQueries > kTile) {
    static_assert(Traits::kQueries == 2 * kTile);
    const int last = min_of(first + 1, (block.sequence.len_q - 1) / kTile);
    bits |= __ldg(p.mask.row_tile(block.b, h, last) + word);
  }
  return bits;
}

// The query tiles of all heads of the group, in the order a block visits them: head by head, tiles ascending, without
// those in which the mask leaves no score.
template <typename Traits>
class QueryWalk {
 public:
  FDMA_DEVICE QueryWalk(const BackwardParams& p, const BackwardBlock<Traits>& block)
      : p_(p), block_(block), head_end((block.kv_head + 1) * p.group) {
    h = block.kv_head * p.group;
    m = block.first_tile - 1;
  }
  int h, m;
  FDMA_DEVICE bool done() const { return h >= head_end; }
  FDMA_DEVICE void advance() {
    ++m;
    while (h < head_end) {
      m = p_.has_mask ? next_live() : m;
      if (m < block_.tile_count) return;
      ++h;
      m = block_.first_tile;
    }
  }

 private:
  // The first query tile from m on whose mask has a bit for the block's keys. Lanes look at 32 tiles at a time.
  FDMA_DEVICE int next_live() const {
    constexpr int kMaskTiles = max_of<int>(1, Traits::kKeys / kMaskTile);
    const int key_tile = block_.k() / static_cast<int>(kMaskTile);
    const uint32_t bits = (0xffffffffu >> (32 - kMaskTiles)) << (key_tile % 32);
    for (int base = m; base < block_.tile_count; base += 32) {
      const int tile = base + threadIdx.x % 32;
      bool live = false;
      if (tile < block_.tile_count) {
        live = (mask_tile_word<Traits>(p_, block_, h, tile, key_tile / 32) & bits) != 0;
      }
      const uint32_t ballot = __ballot_sync(0xffffffffu, live);
      if (ballot != 0) return base + __ffs(ballot) - 1;
    }
    return block_.tile_count;
  }
  const BackwardParams& p_;
  const BackwardBlock<Traits>& block_;
  int head_end;
};

// Deterministic mode: key tiles add to a tile of dQ from the right to the left, under causality from the diagonal on,
// so that every block can start with its first query tile. The counter of the tile says how many have added; a block
// waits only for blocks further right, and those have smaller indices and were started first.
class QuerySumOrder {
 public:
  FDMA_DEVICE QuerySumOrder(const BackwardParams& p, int64_t row_tile, int h)
      : counter_(p.tile_order + row_tile * p.heads_q + h) {}

  FDMA_DEVICE void wait(int rank) const {
    if (threadIdx.x == 0) {
      int done;
      do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(done) : "l"(counter_) : "memory");
      } while (done < rank);
    }
    __syncthreads();
  }
  FDMA_DEVICE void release(int rank) const {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      // Sequences overlap where offsets on the device fall: a counter that never falls lets their blocks end.
      asm volatile("red.release.gpu.global.max.s32 [%0], %1;" ::"l"(counter_), "r"(rank + 1) : "memory");
    }
  }

 private:
  int* counter_;
};

// Key tiles before tile n in which the mask leaves query tile m a score.
template <typename Traits>
FDMA_DEVICE int live_key_tiles(const BackwardParams& p, const BackwardBlock<Traits>& block, int h, int m, int n) {
  if (!p.has_mask) return n;
  constexpr bool kTwoMaskTiles = Traits::kKeys == 2 * kMaskTile;      // a key tile covers two mask tiles
  constexpr int kShared = max_of<int>(1, kMaskTile / Traits::kKeys);  // or a mask tile covers kShared key tiles
  const int end = static_cast<int>(n * static_cast<int64_t>(Traits::kKeys) / kMaskTile);
  int count = 0;
#pragma unroll 1  // a producer of few registers counts, too
  for (int begin = 0; begin < end; begin += 32) {
    uint32_t live = mask_tile_word(p, block, h, m, begin / 32);
    if (kTwoMaskTiles) live = (live | (live >> 1)) & 0x55555555u;
    if (end - begin < 32) live &= (1u << (end - begin)) - 1;
    count += __popc(live) * kShared;
  }
  const int before = n % kShared;  // key tiles before n in n's own mask tile
  if (before > 0 && ((mask_tile_word(p, block, h, m, end / 32) >> (end % 32)) & 1)) count += before;
  return count;
}

// How many key tiles add to query tile m before tile n does.
template <typename Traits>
FDMA_DEVICE int query_sum_rank(const BackwardParams& p, const BackwardBlock<Traits>& block, int h, int m) {
  if constexpr (Traits::kSlots) {
    const int first = m * Traits::kQueries;
    const int last = min_of(first + Traits::kQueries, block.sequence.len_q) - 1;
    const int64_t list = p.slots.list(block.b, block.kv_head);
    const LiveSlotTiles<Traits::kKeys> live(p.slots, list, first, last);
    const int used = p.slots.used_slots(list);
    return live.count_from(block.n + 1, ceil_div(used, Traits::kKeys));
  }
  const int end =
      static_cast<int>(key_tile_count((m + 1) * static_cast<int64_t>(Traits::kQueries), block.sequence.len_q,
                                      block.sequence.len_k, p.is_causal, Traits::kKeys));
  return live_key_tiles(p, block, h, m, end) - live_key_tiles(p, block, h, m, block.n + 1);
}

}  // namespace fdma::sm80
