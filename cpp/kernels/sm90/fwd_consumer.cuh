// Forward, the consumers: each warpgroup owns 64 query rows of the tile. The products of key tile n and the softmax of
// tile n - 1 overlap twice: inside a group, S(n) = Q K(n)^T is started before P(n - 1) V(n - 1) and the softmax of S(n)
// runs under the latter; between groups, turns make the products of one fall under the softmax of another.
#pragma once

#include "kernels/policy/mask.cuh"
#include "kernels/policy/range.hpp"
#include "kernels/policy/score.cuh"
#include "kernels/policy/softmax.cuh"
#include "kernels/sm90/fwd_traits.cuh"
#include "kernels/sm90/tile_io.cuh"

namespace fdma::sm90 {

template <typename Traits>
class ForwardConsumer {
  using T = typename Traits::T;
  static constexpr int kStages = Traits::kStages, kN = Traits::kN, kNO = Traits::kNO;
  // The scale is that of the instruction that adds the bias, and scores are not in bits.
  static constexpr bool kScalesWithBias = Traits::kBiased && !Traits::kCapped;
  // With a mask or a bias the work on scores outweighs the products, and a group that is ready need not wait its turn.
  static constexpr bool kTakesTurns = !Traits::kBiased && !Traits::kMasked;

 public:
  FDMA_DEVICE ForwardConsumer(const ForwardLaunch& launch, const ForwardShared<Traits>& shared)
      : p_(launch.params),
        shared_(shared),
        packed_(launch.packed<Traits>()),
        group_(uniform(threadIdx.x / kGroupThreads) - 1),
        warp_(threadIdx.x % kGroupThreads / 32),
        lane_(threadIdx.x % 32),
        unit_(p_.scale, p_.softcap),
        folded_(unit_.foldable() && (!Traits::kSlots || p_.slots.bias == nullptr)),
        query_(shared.base + Traits::kQueryOffset, group_ * kGroupRows),
        key_(shared.base + Traits::kKeyOffset),
        value_(shared.base + Traits::kValueOffset) {}

  FDMA_DEVICE void run() {
    if (kTakesTurns && group_ == Traits::kGroups - 1) pass_turn();  // the first group has the first turn
    RingPosition<2> work_at;
    for (;;) {
      shared_.works().wait_full(work_at);
      const Work& work = shared_.work(work_at.stage());
      if (work.q < 0) return;
      attend(work);
      release(shared_.works(), work_at);
    }
  }

 private:
  template <int kRingStages>
  FDMA_DEVICE void release(const Ring<kRingStages>& ring, RingPosition<kRingStages>& at) const {
    ring.release(at, lane_);
  }
  FDMA_DEVICE void take_turn() const { sync_named(NamedBarrier::kTurn, group_, 2 * kGroupThreads); }
  FDMA_DEVICE void pass_turn() const {
    arrive_named(NamedBarrier::kTurn, (group_ + 1) % Traits::kGroups, 2 * kGroupThreads);
  }
  FDMA_DEVICE int tile_row0() const { return group_ * kGroupRows + warp_ * 16; }  // the warp's first in the tile
  FDMA_DEVICE int row0(const Work& work) const { return work.q + packed_.position(tile_row0()); }

  FDMA_DEVICE void attend(const Work& work) {
    float out[1][kNO][4], scores[1][kN][4];
    uint32_t weights[1][kN / 2][4];
    OnlineSoftmax<1> softmax(kScalesWithBias ? kLog2e : folded_ ? unit_.scale_log2 : 1.f);
    sm80::clear(out);
    KeyNote note = next_key();
    if (note.n >= 0) {
      shared_.queries().wait_full(query_at_);
      begin_products();
      multiply<T, Traits::kHeadDim / 16>(scores, query_, 0, key_, key_offset(), false);
      commit_products();
      wait_products<0>();
      hold(scores);
      turn_into_bits(scores, work, note);
      softmax.advance(scores);
      to_operand(weights, scores);
      clear_values_behind(work, note.n);

      for (;;) {
        note = next_key();
        if (note.n < 0) break;
        shared_.values().wait_full(value_at_);
        if constexpr (kTakesTurns) take_turn();
        hold(scores);
        hold(weights);
        hold(out);
        begin_products();
        multiply<T, Traits::kHeadDim / 16>(scores, query_, 0, key_, key_offset(), false);
        commit_products();
        multiply<T, Traits::kKeys / 16>(out, weights, value_, value_offset());
        commit_products();
        if constexpr (kTakesTurns) pass_turn();
        wait_products<1>();
        hold(scores);
        turn_into_bits(scores, work, note);
        const bool moves = softmax.advance(scores);
        wait_products<0>();
        hold(out);
        hold(weights);
        release(shared_.values(), value_at_);
        to_operand(weights, scores);
        if (moves) softmax.rescale(out);
      }
      release(shared_.keys(), key_at_);
      release(shared_.queries(), query_at_);
      shared_.values().wait_full(value_at_);
      hold(weights);
      hold(out);
      begin_products();
      multiply<T, Traits::kKeys / 16>(out, weights, value_, value_offset());
      commit_products();
      wait_products<0>();
      hold(out);
      release(shared_.values(), value_at_);
    } else {
      release(shared_.keys(), key_at_);
    }
    softmax.finish(out);
    store(softmax, out, work);
  }

  FDMA_DEVICE KeyNote next_key() const {
    shared_.keys().wait_full(key_at_);
    return shared_.note(key_at_.stage());
  }
  FDMA_DEVICE int key_offset() const { return key_at_.stage() * Traits::KeyTile::kBytes; }
  FDMA_DEVICE int value_offset() const { return value_at_.stage() * Traits::KeyTile::kBytes; }

  // Turns q.k into what the softmax takes, and gives the buffer of K back.
  FDMA_DEVICE void turn_into_bits(float (&scores)[1][kN][4], const Work& work, const KeyNote& note) {
    if constexpr (!Traits::kSlots) release(shared_.keys(), key_at_);
    finish_scores(scores, work, note);
    if constexpr (Traits::kSlots) release(shared_.keys(), key_at_);
  }
  FDMA_DEVICE void finish_scores(float (&scores)[1][kN][4], const Work& work, const KeyNote& note) {
    if constexpr (Traits::kCapped) {
      unit_.to_bits_capped(scores);
    } else if constexpr (!kScalesWithBias) {
      if (!folded_) unit_.to_bits_uncapped(scores);
    }
    const int row = row0(work);
    const MaskWords mask = take_mask();
    add_bias(scores);
    apply_mask(scores, mask);
    if constexpr (Traits::kSlots) {
      const bool all = note.last_begin <= row && note.first_end > row + packed_.position(15);
      Traits::Slots::apply(scores, shared_.slots(key_at_.stage()), row, 0, !all, lane_, packed_);
    } else {
      const int col = note.n * Traits::kKeys;
      if (col + Traits::kKeys > key_limit(row, work.sequence.len_q, work.sequence.len_k, p_.is_causal)) {
        apply_key_limit(scores, row, col, work.sequence.len_q, work.sequence.len_k, p_.is_causal, lane_);
      }
    }
  }

  FDMA_DEVICE void add_bias(float (&scores)[1][kN][4]) {
    if constexpr (Traits::kBiased) {
      shared_.biases().wait_full(bias_at_);
#pragma unroll
      for (int block = 0; block < Traits::BiasTile::kBlocks; ++block) {
        auto& part = reinterpret_cast<float(&)[1][8][4]>(scores[0][8 * block]);
        const uint32_t bias = shared_.bias(bias_at_.stage()) + block * Traits::BiasTile::kBlockBytes;
        if constexpr (kScalesWithBias) {
          Traits::BiasBlock::scale_and_add(part, p_.scale, bias, tile_row0(), 0, lane_);
        } else {
          Traits::BiasBlock::add(part, bias, tile_row0(), 0, lane_);
        }
      }
      release(shared_.biases(), bias_at_);
    }
  }
  // The words of the thread's two rows, from its first column on. Taken before the bias is added: where the mask has
  // one buffer, the next one is on its way meanwhile.
  struct MaskWords {
    uint32_t of[2][4];
  };
  FDMA_DEVICE MaskWords take_mask() {
    MaskWords words;
    if constexpr (Traits::kMasked) {
      constexpr int kWords = Traits::kMaskWords;
      shared_.masks().wait_full(mask_at_);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t address = shared_.mask(mask_at_.stage()) + (tile_row0() + 8 * half + lane_ / 4) * kWords * 4;
        if constexpr (kWords == 4) {
          const uint4 all = sm80::load_shared_16(address);
          words.of[half][0] = all.x, words.of[half][1] = all.y, words.of[half][2] = all.z, words.of[half][3] = all.w;
        } else {
          static_assert(kWords == 2);
          words.of[half][0] = sm80::load_shared_4(address), words.of[half][1] = sm80::load_shared_4(address + 4);
        }
      }
      release(shared_.masks(), mask_at_);
    }
    return words;
  }
  FDMA_DEVICE void apply_mask(float (&scores)[1][kN][4], const MaskWords& words) const {
    if constexpr (Traits::kMasked) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int word = 0; word < Traits::kMaskWords; ++word) {
          apply_mask_word(scores, 0, half, word, words.of[half][word] >> (2 * (lane_ % 4)));
        }
      }
    }
  }

  FDMA_DEVICE static void to_operand(uint32_t (&a)[1][kN / 2][4], const float (&acc)[1][kN][4]) {
#pragma unroll
    for (int k = 0; k < kN / 2; ++k) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {  // (rows 0-7, 8-15) of the first block, then of the second
        const float* pair = acc[0][2 * k + part / 2] + 2 * (part % 2);
        a[0][k][part] = Element<T>::pack(pair[0], pair[1]);
      }
    }
  }

  // Rows of V behind the last key of a sequence are those of another, or nobody's: a weight of zero does not make up
  // for a NaN there. The tile with the end is the first that is visited.
  FDMA_DEVICE void clear_values_behind(const Work& work, int n) const {
    if (Traits::kSlots || !p_.sequences.varies()) return;
    const int valid = work.sequence.len_k - n * Traits::kKeys;
    if (valid >= Traits::kKeys) return;
    shared_.values().wait_full(value_at_);
    clear_rows<typename Traits::KeyTile, Traits::kConsumers>(shared_.base + Traits::kValueOffset + value_offset(),
                                                             valid, threadIdx.x - kGroupThreads);
    publish_shared();
    sync_named(NamedBarrier::kConsumers, 0, Traits::kConsumers);
  }

  FDMA_DEVICE void store(const OnlineSoftmax<1>& softmax, const float (&out)[1][kNO][4], const Work& work) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile_row0() + 8 * half + lane_ / 4;
      const int q = work.q + packed_.position(row), h = work.h + packed_.head(row);
      const bool valid = q < work.sequence.len_q;
      const int64_t q_row = work.sequence.q_begin + q;
      if (Traits::kSplits && work.part >= 0) {
        store_part(softmax, out, half, work.part * p_.tail_parts.rows + work.part_row + row);
        continue;
      }
      if (valid && p_.lse != nullptr && lane_ % 4 == 0) {
        p_.lse[work.b * p_.lse_stride_batch + h * p_.lse_stride_head + q_row] = softmax.lse(0, half);
      }
      store_row<T>(out, half, 1.f, p_.out.at<T>(work.b, h, q_row), valid, p_.head_dim, p_.vector_out, lane_);
    }
  }

  // A row of a part. Rows that are nobody's are there, too.
  FDMA_DEVICE void store_part(const OnlineSoftmax<1>& softmax, const float (&out)[1][kNO][4], int half,
                              int64_t row) const {
    if (lane_ % 4 == 0) p_.tail_parts.lse[row] = softmax.lse_bits(0, half);
    store_float_row(out, half, p_.tail_parts.out + row * p_.head_dim, p_.head_dim, lane_);
  }

  const ForwardParams& p_;
  const ForwardShared<Traits>& shared_;
  const PackedHeads packed_;
  const int group_, warp_, lane_;
  const ScoreUnit unit_;
  const bool folded_;
  const RowOperand<typename Traits::QueryTile> query_;
  const RowOperand<typename Traits::KeyTile> key_;
  const ColumnOperand<typename Traits::KeyTile> value_;
  RingPosition<kStages> key_at_, value_at_, bias_at_;
  RingPosition<Traits::kMaskStages> mask_at_;
  RingPosition<1> query_at_;
};

}  // namespace fdma::sm90
