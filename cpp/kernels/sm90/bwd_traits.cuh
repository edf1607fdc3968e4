// What a block of Hopper's backward kernel is made of: tiles and shared memory.
#pragma once

#include "kernels/sm80/bwd_walk.cuh"
#include "kernels/sm90/bwd_query_sum.cuh"
#include "kernels/sm90/tensor_copy.cuh"

namespace fdma::sm90 {

// Everything that a launch gives the kernel.
struct BackwardLaunch : BackwardParams {
  TensorMap query, key, value, grad_out;
  TensorMap bias, grad_bias;  // form kSame only; grad_bias: mode kScores only
};

// A query tile, as the producer hands it to the consumers.
struct QueryNote {
  int h, m;  // h: -1: there are no more
  int rank;  // deterministic mode: key tiles that add to dQ of the tile before this block
  int sum;   // of the scratch in which dQ is added up, the tile: row tile * query heads + head
};

// `kCapped_`: with a softcap, whose code would take 3 % of the speed of calls that have none.
template <typename T_, int kHeadDim_, BiasForm kBias_, bool kCapped_>
struct BackwardTraits {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr BiasForm kBias = kBias_;
  static constexpr bool kSlots = kBias == BiasForm::kSlots;
  static constexpr bool kBiased = kBias == BiasForm::kSame;
  static constexpr bool kCapped = kCapped_;
  static_assert(!(kCapped && kBiased), "the dS that is the gradient of a bias is not that of Q and K under a softcap");
  static constexpr int kQueries = backward_tile(kHeadDim).queries, kKeys = backward_tile(kHeadDim).keys;
  static constexpr int kGroups = kBackwardGroups;
  static constexpr bool kRoles = kKeys == kGroupRows;  // the groups have the same keys, see BackwardRoles
  static constexpr int kConsumers = kGroups * kGroupThreads, kThreads = kConsumers + kGroupThreads;
  static constexpr int kN = kQueries / 8, kNO = kHeadDim / 8;
  static constexpr int kStages = 2, kGradOutStages = kRoles ? 1 : kStages;
  static constexpr int kMaskWords = kKeys / 32;
  // Clearing what the walk leaves out of a bias gradient takes registers, too, where products leave any.
  static constexpr int kProducerRegisters = kBiased && !kRoles ? 40 : 24;
  static constexpr int kConsumerRegisters = kBiased && !kRoles ? 232 : 240;
  static constexpr bool kKeepsSpans =
      kSlots && kQueries == 64;  // in registers, of which wider tiles have none to spare
  static constexpr bool kSplits = kBias == BiasForm::kNone;
  using Sum = sm90::QuerySum<kHeadDim>;

  using QueryTile = BlockedTile<kQueries, kHeadDim>;
  using KeyTile = BlockedTile<kKeys, kHeadDim>;
  using ScoreTile = BlockedTile<kQueries, kKeys>;  // dS, and the bias

  static constexpr int kStatsBytes = kQueries * static_cast<int>(sizeof(float2));
  static constexpr int kMaskBytes = kQueries * kMaskWords * 4;
  static constexpr int kKeyOffset = 0;
  static constexpr int kValueOffset = kKeyOffset + KeyTile::kBytes;
  static constexpr int kQueryOffset = kValueOffset + KeyTile::kBytes;
  static constexpr int kGradOutOffset = kQueryOffset + kStages * QueryTile::kBytes;
  static constexpr int kScoreOffset = kGradOutOffset + kGradOutStages * QueryTile::kBytes;  // dS
  static constexpr int kScoreStages = kRoles || (kBiased && kQueries == 128) ? 1 : 2;
  static constexpr int kBiasOffset = kScoreOffset + kScoreStages * ScoreTile::kBytes;
  static constexpr int kSumOffset = kBiasOffset + (kBiased ? ScoreTile::kBytes : 0);
  static constexpr int kSumStages = kConsumers / 32 + (kRoles ? 4 : 0);  // of the second group's warps, two each
  static constexpr int kStatsOffset = kSumOffset + kSumStages * Sum::kWarpElements * 4;
  static constexpr int kMaskOffset = kStatsOffset + kStages * kStatsBytes;
  static constexpr int kNoteOffset = kMaskOffset + kStages * kMaskBytes;
  static constexpr int kSequenceOffset = kNoteOffset + kStages * 16;
  static constexpr int kRingOffset = kSequenceOffset + round_up(static_cast<int>(sizeof(Sequence)), 16);
  static constexpr int kSharedBytes = kRingOffset + (kStages + kGradOutStages + 1 + 1) * 16;
  static_assert(kSharedBytes <= 227 * 1024);
};

// The block's shared memory by name.
template <typename Traits>
struct BackwardShared {
  static constexpr int kStages = Traits::kStages;
  char* bytes;
  uint32_t base;

  FDMA_DEVICE QueryNote& note(int stage) const {
    return *reinterpret_cast<QueryNote*>(bytes + Traits::kNoteOffset + stage * 16);
  }
  FDMA_DEVICE uint32_t stats(int stage) const { return base + Traits::kStatsOffset + stage * Traits::kStatsBytes; }
  FDMA_DEVICE uint32_t mask(int stage) const { return base + Traits::kMaskOffset + stage * Traits::kMaskBytes; }
  FDMA_DEVICE Ring<kStages> queries() const { return {base + Traits::kRingOffset}; }  // Q, its statistics and mask
  FDMA_DEVICE Ring<Traits::kGradOutStages> grad_outs() const { return {queries().address + Ring<kStages>::kBytes}; }
  FDMA_DEVICE Ring<1> biases() const { return {grad_outs().address + Ring<Traits::kGradOutStages>::kBytes}; }
  FDMA_DEVICE Barrier keys() const { return {biases().address + Ring<1>::kBytes}; }

  FDMA_DEVICE void init_barriers(bool has_mask) const {
    constexpr int kWarps = Traits::kConsumers / 32;
    queries().init(has_mask ? 33 : 1, kWarps);
    grad_outs().init(1, kWarps);
    biases().init(1, Traits::kRoles ? kWarps / 2 : kWarps);
    keys().init(1);
    publish_barriers();
  }
};

}  // namespace fdma::sm90
