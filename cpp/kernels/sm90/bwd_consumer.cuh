// Backward, the consumers: two warpgroups of 64 keys each, which keep the sums of dK and dV in registers. Scores are
// computed transposed, keys along the rows, so that P^T and dS^T are operands of the next products as they lie in
// registers; only dS crosses shared memory, for dQ = dS K.
//
// One query tile: S^T = K Q^T | dP^T = V dO^T | P^T | dS^T | dV += P^T dO | dS to shared memory, barrier of both groups
// | dQ = dS K | dK += dS^T Q | dQ to its scratch while dK runs.
#pragma once

#include "kernels/policy/mask.cuh"
#include "kernels/policy/score.cuh"
#include "kernels/sm90/bwd_traits.cuh"
#include "kernels/sm90/tile_io.cuh"
#include "kernels/sm90/transposed.cuh"

namespace fdma::sm90 {

template <typename Traits>
class BackwardConsumer {
 protected:
  using T = typename Traits::T;
  using Block = sm80::BackwardBlock<Traits>;
  using Sum = typename Traits::Sum;
  static constexpr int kStages = Traits::kStages, kN = Traits::kN, kNO = Traits::kNO;
  using Scores = float[1][kN][4];
  using Operand = uint32_t[1][kN / 2][4];

 public:
  // `group`: which 64 of the block's keys.
  FDMA_DEVICE BackwardConsumer(const BackwardLaunch& launch, const BackwardShared<Traits>& shared, const Block& block,
                               int group)
      : launch_(launch),
        p_(launch),
        shared_(shared),
        block_(block),
        group_(group),
        warp_(threadIdx.x % kGroupThreads / 32),
        lane_(threadIdx.x % 32),
        unit_(p_.scale, p_.softcap),
        folded_(!Traits::kBiased && unit_.foldable() && (!Traits::kSlots || p_.slots.bias == nullptr)),
        key_(shared.base + Traits::kKeyOffset, group_ * kGroupRows),
        value_(shared.base + Traits::kValueOffset, group_ * kGroupRows),
        query_rows_(shared.base + Traits::kQueryOffset),
        grad_out_rows_(shared.base + Traits::kGradOutOffset),
        query_cols_(shared.base + Traits::kQueryOffset),
        grad_out_cols_(shared.base + Traits::kGradOutOffset),
        score_(shared.base + Traits::kScoreOffset, Sum::kSplitRows ? group_ * kGroupRows : 0),
        key_cols_(shared.base + Traits::kKeyOffset, Sum::kSplitRows ? 0 : group_ * kBlockCols) {}

  FDMA_DEVICE void run() {
    float grad_key[1][kNO][4], grad_value[1][kNO][4];
    sm80::clear(grad_key);
    sm80::clear(grad_value);
    QueryNote note = next_query();
    if (note.h >= 0) {
      load_spans();
      shared_.keys().wait(0);
      clear_keys_behind();
      int head = -1;
      while (note.h >= 0) {
        if (note.h != head) begin_head(head, note.h);
        head = note.h;
        step(note, grad_key, grad_value);
        note = next_query();
      }
      begin_head(head, -1);
    }
    if (Traits::kSplits && block_.part >= 0) {
      store_part(0, grad_key);
      store_part(1, grad_value);
    } else {
      store(p_.grad_key, grad_key, p_.scale);
      store(p_.grad_value, grad_value, 1.f);
    }
    wait_stores_read<0>();
  }

 protected:
  template <int kRingStages>
  FDMA_DEVICE void release(const Ring<kRingStages>& ring, RingPosition<kRingStages>& at) const {
    ring.release(at, lane_);
  }
  FDMA_DEVICE QueryNote next_query() const {
    shared_.queries().wait_full(query_at_);
    return shared_.note(query_at_.stage());
  }
  FDMA_DEVICE int key0() const { return block_.k() + group_ * kGroupRows + warp_ * 16; }  // the warp's first key

  FDMA_DEVICE void step(const QueryNote& note, float (&grad_key)[1][kNO][4], float (&grad_value)[1][kNO][4]) {
    constexpr int kTileBytes = Traits::QueryTile::kBytes;
    const int query_offset = query_at_.stage() * kTileBytes, grad_out_offset = grad_out_at_.stage() * kTileBytes;
    Scores weights, grad;
    const int valid = queries_of(note.m);
    shared_.grad_outs().wait_full(grad_out_at_);
    clear_queries_behind(valid);
    hold(weights);
    hold(grad);
    begin_products();
    multiply<T, Traits::kHeadDim / 16>(weights, key_, 0, query_rows_, query_offset, false);
    commit_products();
    multiply<T, Traits::kHeadDim / 16>(grad, value_, 0, grad_out_rows_, grad_out_offset, false);
    commit_products();
    const TileStart start = read_start(note.m);
    wait_products<1>();
    hold(weights);
    finish_weights(weights, note.m, start);
    Operand weight_operand, grad_operand;
    to_operand(weight_operand, weights);
    wait_products<0>();
    hold(grad);
    finish_gradients(grad, weights);
    to_operand(grad_operand, grad);
    hold(weight_operand);
    hold(grad_value);
    begin_products();
    multiply<T, Traits::kQueries / 16>(grad_value, weight_operand, grad_out_cols_, grad_out_offset);
    commit_products();

    if (lane_ == 0) wait_stores_read<0>();            // what this lane stored a step ago has left shared memory
    if (Traits::kScoreStages == 1) sync_consumers();  // nobody still reads the previous dS
    const int score_offset = score_stage_ * Traits::ScoreTile::kBytes;
    store_transposed(shared_.base + Traits::kScoreOffset + score_offset + group_ * Traits::ScoreTile::kBlockBytes,
                     grad_operand, warp_, lane_);
    publish_shared();
    sync_consumers();
    score_stage_ = (score_stage_ + 1) % Traits::kScoreStages;
    store_bias_gradient(note, score_offset);

    float grad_query[1][Sum::kN][4];
    hold(grad_query);
    hold(grad_operand);
    hold(grad_key);
    begin_products();
    multiply<T, Traits::kKeys / 16>(grad_query, score_, score_offset, key_cols_, 0, false);
    commit_products();
    multiply<T, Traits::kQueries / 16>(grad_key, grad_operand, query_cols_, query_offset);
    commit_products();
    wait_products<1>();
    hold(grad_query);
    hold(grad_value);
    hold(weight_operand);
    release(shared_.grad_outs(), grad_out_at_);
    const int part = group_ * 4 + warp_;
    add_query_gradient(grad_query, note, part, sum_stage(part));
    wait_products<0>();
    hold(grad_key);
    hold(grad_operand);
    release(shared_.queries(), query_at_);
  }

  FDMA_DEVICE static void sync_consumers() { sync_named(NamedBarrier::kConsumers, 0, Traits::kConsumers); }

  FDMA_DEVICE uint32_t stats_address() const { return shared_.stats(query_at_.stage()) + lane_ % 4 * 16; }
  // Queries of tile m that the sequence has.
  FDMA_DEVICE int queries_of(int m) const { return block_.sequence.len_q - m * Traits::kQueries; }
  // What is read of a query tile before its scores are waited for: behind them, nothing would hide how long it takes.
  struct TileStart {
    bool ends;     // some query of the tile does not see all of the warp's keys, by causality or since they end
    float4 stats;  // of the first block column, see load_stats
  };
  FDMA_DEVICE TileStart read_start(int m) const {
    const bool ends = !Traits::kSlots && key0() + 16 > key_limit(m * Traits::kQueries, block_.sequence.len_q,
                                                                 block_.sequence.len_k, p_.is_causal);
    return {ends, load_stats(stats_address(), 0)};
  }
  // Turns k.q into P^T.
  FDMA_DEVICE void finish_weights(Scores& x, int m, const TileStart& start) {
    if constexpr (Traits::kCapped) unit_.to_bits_capped(x);
    if constexpr (Traits::kSlots) {
      if (!folded_) scale_and_shift(x, Traits::kCapped ? 1.f : unit_.scale_log2, slot_bias_);
    } else if constexpr (!Traits::kCapped) {
      if (!folded_) unit_.to_bits_uncapped(x);
    }
    if constexpr (Traits::kBiased) {
      shared_.biases().wait_full(bias_at_);
      add_transposed_bias<T>(x, shared_.base + Traits::kBiasOffset + group_ * Traits::ScoreTile::kBlockBytes, warp_,
                             lane_);
      release(shared_.biases(), bias_at_);
    }
    const int q = m * Traits::kQueries;
    if (Traits::kBiased && p_.sequences.varies()) {
      // What the tensor holds of the bias behind the sequence may be anything.
      hide_queries_behind(x, block_.sequence.len_q - q, lane_);
    }
    if (!Traits::kSlots && p_.has_mask) {
      const int key = group_ * kGroupRows + warp_ * 16;  // in the tile
      apply_transposed_mask<Traits::kMaskWords * 4>(x, shared_.mask(query_at_.stage()) + key / 32 * 4, key % 32, lane_);
    }
    if constexpr (Traits::kSlots) {
      const Span spans[2] = {span(0), span(1)};
      apply_transposed_spans(x, spans, q, lane_);
    } else if (start.ends) {
      apply_transposed_key_limit(x, key0(), q, block_.sequence, p_.is_causal, lane_);
    }
    transposed_weights_from_bits(x, start.stats, stats_address(), folded_ ? unit_.scale_log2 : 1.f);
  }

  // Turns dP^T into dS^T, by the way into the gradient of the biases of slots.
  FDMA_DEVICE void finish_gradients(Scores& grad, const Scores& weights) {
    const uint32_t stats = stats_address();
    to_transposed_grad_scores(grad, weights, stats);
    add_bias_gradient(grad);
    if constexpr (Traits::kCapped && Traits::kSlots) {
      apply_transposed_cap(grad, weights, stats, unit_.cap_log2, slot_bias_);
    } else if constexpr (Traits::kCapped) {
      apply_transposed_cap(grad, weights, stats, unit_.cap_log2, {0.f, 0.f});
    }
  }

  FDMA_DEVICE static void to_operand(Operand& a, const Scores& acc) {
#pragma unroll
    for (int k = 0; k < kN / 2; ++k) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {  // (rows 0-7, 8-15) of the first block, then of the second
        const float* pair = acc[0][2 * k + part / 2] + 2 * (part % 2);
        a[0][k][part] = Element<T>::pack(pair[0], pair[1]);
      }
    }
  }

  // Sums of dS over the queries, of the thread's two keys.
  FDMA_DEVICE void add_bias_gradient(const Scores& grad) {
    if constexpr (Traits::kSlots) {
      if (p_.bias_grad != BiasGradMode::kKeys) return;
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) key_sums_[e / 2] += grad[0][j][e];
      }
    }
  }
  // Between the heads of a group: the sums of the last one are stored, the biases of the next one are read. A head of
  // -1 is none.
  FDMA_DEVICE void begin_head(int last, int next) {
    finish_bias_gradient(last);
    load_slot_bias(next);
  }
  FDMA_DEVICE void finish_bias_gradient(int h) {
    if constexpr (Traits::kSlots) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int slot = key0() + 8 * half + lane_ / 4;
        if (h >= 0 && p_.bias_grad == BiasGradMode::kKeys) {
          const float sum = quad_sum(key_sums_[half]);
          if (lane_ % 4 == 0) {
            p_.grad_bias_keys[(static_cast<int64_t>(block_.b) * p_.heads_q + h) * p_.bias_keys + slot] = sum;
          }
        }
        key_sums_[half] = 0.f;
      }
    }
  }
  FDMA_DEVICE void load_slot_bias(int h) {
    if constexpr (Traits::kSlots) {
      const SlotView& slots = p_.slots;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int slot = key0() + 8 * half + lane_ / 4;
        slot_bias_[half] =
            h >= 0 && slots.bias != nullptr ? slots.bias[slots.bias_row(block_.b, h) * slots.slots + slot] : 0.f;
      }
    }
  }
  FDMA_DEVICE void load_spans() {
    if constexpr (Traits::kKeepsSpans) spans_[0] = load_span(0), spans_[1] = load_span(1);
  }
  FDMA_DEVICE Span span(int half) const { return Traits::kKeepsSpans ? spans_[half] : load_span(half); }
  FDMA_DEVICE Span load_span(int half) const {
    const SlotView& slots = p_.slots;
    const int64_t slot = slots.list(block_.b, block_.kv_head) * slots.slots + key0() + 8 * half + lane_ / 4;
    const int2 raw = __ldg(reinterpret_cast<const int2*>(slots.spans + slot));
    return {raw.x, raw.y};
  }

  // dS is the gradient of a bias that has an element for every score.
  FDMA_DEVICE void store_bias_gradient(const QueryNote& note, int score_offset) const {
    if constexpr (Traits::kBiased) {
      if (p_.bias_grad != BiasGradMode::kScores || warp_ != 0 || lane_ != 0) return;
      store_box(launch_.grad_bias,
                shared_.base + Traits::kScoreOffset + score_offset + group_ * Traits::ScoreTile::kBlockBytes,
                block_.k() + group_ * kGroupRows, note.m * Traits::kQueries, note.h, block_.b);
      commit_stores();
    }
  }

  FDMA_DEVICE uint32_t sum_stage(int index) const {
    return shared_.base + Traits::kSumOffset + index * Sum::kWarpElements * 4;
  }
  // Adds part `part` of a tile of dQ through the buffer `stage`, from which nothing is being read any more.
  FDMA_DEVICE void add_query_gradient(const float (&grad)[1][Sum::kN][4], const QueryNote& note, int part,
                                      uint32_t stage) const {
    if (p_.grad_query_sum == nullptr) return;
    Sum::stage(stage, grad, lane_);
    publish_shared();
    __syncwarp();
    if (lane_ != 0) return;
    float* target = Sum::tile(p_.grad_query_sum, note.sum) + part * Sum::kWarpElements;
    if (p_.tile_order == nullptr) {
      add_floats(target, stage, Sum::kWarpElements * 4);
      commit_stores();
      return;
    }
    add_in_order(target, stage, note);
  }
  // Deterministic mode, see sm80::QuerySumOrder: the counter of the tile counts parts.
  FDMA_DEVICE void add_in_order(float* target, uint32_t stage, const QueryNote& note) const {
    int32_t* counter = p_.tile_order + note.sum;
    const int before = note.rank * Sum::kParts;
    int done;
    do {
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(done) : "l"(counter) : "memory");
    } while (done < before);
    add_floats(target, stage, Sum::kWarpElements * 4);
    commit_stores();
    wait_stores();
    __threadfence();
    asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter) : "memory");
  }

  // Rows behind the last key and the last query of a sequence are those of another, or nobody's: a weight of zero does
  // not make up for a NaN there.
  FDMA_DEVICE void clear_keys_behind() const {
    if (Traits::kSlots || !p_.sequences.varies()) return;
    const int valid = block_.sequence.len_k - block_.k();
    if (valid >= Traits::kKeys) return;
    clear_tile<typename Traits::KeyTile>(shared_.base + Traits::kKeyOffset, valid);
    clear_tile<typename Traits::KeyTile>(shared_.base + Traits::kValueOffset, valid);
    publish_shared();
    sync_consumers();
  }
  // `valid`: queries_of(the tile). Read first: with the sequence read under a condition alone, the compiler takes what
  // follows for the work of lanes that have parted, and moves every descriptor of a product to uniform registers anew
  // (859 instructions for 594).
  FDMA_DEVICE void clear_queries_behind(int valid) const {
    if (valid >= Traits::kQueries || !p_.sequences.varies()) return;
    using Tile = typename Traits::QueryTile;
    clear_tile<Tile>(shared_.base + Traits::kQueryOffset + query_at_.stage() * Tile::kBytes, valid);
    clear_tile<Tile>(shared_.base + Traits::kGradOutOffset + grad_out_at_.stage() * Tile::kBytes, valid);
    publish_shared();
    sync_consumers();
  }
  template <typename Tile>
  FDMA_DEVICE static void clear_tile(uint32_t tile, int valid) {
    clear_rows<Tile, Traits::kConsumers>(tile, valid, threadIdx.x - kGroupThreads);
  }

  FDMA_DEVICE void store(const TensorView& target, const float (&grad)[1][kNO][4], float scale) const {
    if (target.data == nullptr) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = key0() + 8 * half + lane_ / 4;
      store_row<T>(grad, half, scale, target.at<T>(block_.b, block_.kv_head, block_.sequence.k_begin + key),
                   key < block_.sequence.len_k, p_.head_dim, p_.vector_grads, lane_);
    }
  }

  // Of a split key tile: `which` is 0 for dK, 1 for dV.
  FDMA_DEVICE void store_part(int which, const float (&grad)[1][kNO][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = group_ * kGroupRows + warp_ * 16 + 8 * half + lane_ / 4;  // in the tile
      const int64_t tile = (int64_t{block_.part} * p_.tail.tiles + block_.tail_tile) * 2 + which;
      store_float_row(grad, half, p_.tail_grads + (tile * Traits::kKeys + key) * p_.head_dim, p_.head_dim, lane_);
    }
  }

  const BackwardLaunch& launch_;
  const BackwardParams& p_;
  const BackwardShared<Traits>& shared_;
  const Block& block_;
  const int group_, warp_, lane_;
  const ScoreUnit unit_;
  const bool folded_;
  const RowOperand<typename Traits::KeyTile> key_, value_;
  const RowOperand<typename Traits::QueryTile> query_rows_, grad_out_rows_;
  const ColumnOperand<typename Traits::QueryTile> query_cols_, grad_out_cols_;
  const RowOperand<typename Traits::ScoreTile> score_;
  const ColumnOperand<typename Traits::KeyTile> key_cols_;
  RingPosition<kStages> query_at_;
  RingPosition<Traits::kGradOutStages> grad_out_at_;
  RingPosition<1> bias_at_;
  int score_stage_ = 0;
  Span spans_[2];
  float slot_bias_[2], key_sums_[2];
};

}  // namespace fdma::sm90
