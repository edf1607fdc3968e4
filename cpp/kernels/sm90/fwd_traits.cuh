// What a block of Hopper's forward kernel is made of: tiles, shared memory, the queue of work.
#pragma once

#include "kernels/core/tile_config.hpp"
#include "kernels/sm80/slot_stage.cuh"
#include "kernels/sm90/tensor_copy.cuh"
#include "kernels/sm90/tile_config.hpp"
#include "kernels/sm90/wgmma.cuh"

namespace fdma::sm90 {

// Everything that a launch gives the kernel.
struct ForwardLaunch {
  ForwardParams params;
  TensorMap query, key, value, bias;  // bias: form kSame only
  TileQueue queue;
  int32_t items = 0;  // of the queue, parts of its tail included

  // A tile of slots may have several heads.
  template <typename Traits>
  FDMA_HOST_DEVICE PackedHeads packed() const {
    return Traits::kSlots ? params.slots.packed : PackedHeads{};
  }
};

// A query tile, as the producer hands it to the consumers.
struct Work {
  int b, h, q;   // first head, first query row; q = -1: there is no more work
  int part;      // of a split tile, or -1
  int part_row;  // of the tile's first row among those of split tiles
  Sequence sequence;
};

// What the consumers need to know of a key tile beside its data.
struct KeyNote {
  int n;                      // -1: the query tile has no more keys
  int last_begin, first_end;  // slots: positions in between see all of the tile
};

// `kCapped_`: with a softcap, whose code would take a third of the main loop's instructions, and their cache, from the
// others.
template <typename T_, int kHeadDim_, bool kMasked_, BiasForm kBias_, bool kCapped_>
struct ForwardTraits {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kMasked = kMasked_, kCapped = kCapped_;
  static constexpr BiasForm kBias = kBias_;
  static constexpr bool kSlots = kBias == BiasForm::kSlots;
  static constexpr bool kBiased = kBias == BiasForm::kSame;
  static constexpr bool kSplits = kBias == BiasForm::kNone && !kMasked;  // takes parts of tiles, see TailSplit
  static constexpr ForwardTile kTile = forward_tile(kHeadDim, kCapped || kBiased || kSlots);
  static constexpr int kGroups = kTile.groups;  // of consumers
  // The copies of masks beside all else take the producer more registers.
  static constexpr bool kBusyProducer = kMasked && kBiased;
  static constexpr int kProducerRegisters = kTile.producer_registers + (kBusyProducer ? 16 : 0);
  static constexpr int kConsumerRegisters = kTile.consumer_registers - (kBusyProducer ? 8 : 0);
  static constexpr int kConsumers = kGroups * kGroupThreads;
  static constexpr int kThreads = kConsumers + kGroupThreads;
  static constexpr int kQueries = kGroups * kGroupRows, kKeys = kTile.keys;
  static constexpr int kN = kKeys / 8, kNO = kHeadDim / 8;
  static constexpr int kStages = 2;
  static constexpr int kMaskWords = kKeys / 32;  // of a mask row, in a key tile
  static constexpr int kMaskBytes = kMasked ? kQueries * kMaskWords * 4 : 0;

  using QueryTile = BlockedTile<kQueries, kHeadDim>;
  using KeyTile = BlockedTile<kKeys, kHeadDim>;
  using BiasTile = BlockedTile<kQueries, kKeys>;
  using BiasBlock = sm80::BiasStage<BiasForm::kSame, T, kQueries, kBlockCols, kGroupThreads>;
  using Slots = sm80::BiasStage<BiasForm::kSlots, T, kQueries, kKeys, kGroupThreads>;

  static constexpr int kQueryOffset = 0;
  static constexpr int kKeyOffset = kQueryOffset + QueryTile::kBytes;
  static constexpr int kValueOffset = kKeyOffset + kStages * KeyTile::kBytes;
  static constexpr int kBiasOffset = kValueOffset + kStages * KeyTile::kBytes;
  static constexpr int kMaskOffset = kBiasOffset + (kBiased ? kStages * BiasTile::kBytes : 0);
  // Beside biases there may be room for one.
  static constexpr int kMaskStages = kMaskOffset + kStages * kMaskBytes + 1024 <= kMaxSharedBytes ? kStages : 1;
  static constexpr int kSlotOffset = kMaskOffset + kMaskStages * kMaskBytes;
  static constexpr int kNoteOffset = kSlotOffset + (kSlots ? kStages * Slots::kBytes : 0);
  static constexpr int kNoteBytes = 16;
  static_assert(sizeof(KeyNote) <= kNoteBytes);
  static constexpr int kWorkOffset = kNoteOffset + kStages * kNoteBytes;
  static constexpr int kRingOffset = kWorkOffset + round_up(2 * static_cast<int>(sizeof(Work)), 16);
  static constexpr int kSharedBytes = kRingOffset + (3 * kStages + kMaskStages + 2 + 1) * 16;
  static_assert(kSharedBytes <= kMaxSharedBytes);
};

// The block's shared memory by name.
template <typename Traits>
struct ForwardShared {
  static constexpr int kStages = Traits::kStages;
  char* bytes;
  uint32_t base;

  FDMA_DEVICE KeyNote& note(int stage) const {
    return *reinterpret_cast<KeyNote*>(bytes + Traits::kNoteOffset + stage * Traits::kNoteBytes);
  }
  FDMA_DEVICE Work& work(int stage) const { return reinterpret_cast<Work*>(bytes + Traits::kWorkOffset)[stage]; }
  FDMA_DEVICE uint32_t slots(int stage) const { return base + Traits::kSlotOffset + stage * Traits::Slots::kBytes; }
  FDMA_DEVICE Ring<kStages> keys() const { return {base + Traits::kRingOffset}; }
  FDMA_DEVICE Ring<kStages> values() const { return {keys().address + Ring<kStages>::kBytes}; }
  FDMA_DEVICE uint32_t bias(int stage) const { return base + Traits::kBiasOffset + stage * Traits::BiasTile::kBytes; }
  FDMA_DEVICE uint32_t mask(int stage) const { return base + Traits::kMaskOffset + stage * Traits::kMaskBytes; }
  FDMA_DEVICE Ring<kStages> biases() const { return {values().address + Ring<kStages>::kBytes}; }
  FDMA_DEVICE Ring<Traits::kMaskStages> masks() const { return {biases().address + Ring<kStages>::kBytes}; }
  FDMA_DEVICE Ring<2> works() const { return {masks().address + Ring<Traits::kMaskStages>::kBytes}; }
  FDMA_DEVICE Ring<1> queries() const { return {works().address + Ring<2>::kBytes}; }

  FDMA_DEVICE void init_barriers() const {
    constexpr int kWarps = Traits::kConsumers / 32;
    keys().init(1, kWarps);
    values().init(1, kWarps);
    biases().init(1, kWarps);
    masks().init(32, kWarps);
    works().init(1, kWarps);
    queries().init(1, kWarps);
    publish_barriers();
  }
};

}  // namespace fdma::sm90
