// Forward, the producer: one warp that takes query tiles from the queue and walks their key tiles, from right to left,
// passing over those that no row sees, as far ahead of the consumers as there are buffers.
#pragma once

#include "kernels/policy/mask.cuh"
#include "kernels/policy/range.hpp"
#include "kernels/policy/slot_walk.cuh"
#include "kernels/sm90/fwd_traits.cuh"

namespace fdma::sm90 {

// Item `index` of the queue. Under causality long tiles come first.
template <typename Traits>
FDMA_DEVICE Work work_at(const ForwardLaunch& launch, int index) {
  const ForwardParams& p = launch.params;
  const PackedHeads packed = launch.packed<Traits>();
  const int tiles = launch.queue.heads * launch.queue.tiles_per_head;
  const QueueItem item(index, tiles, Traits::kSplits ? p.tail : TailSplit{});
  const TileQueue::Place place = launch.queue.at(item.tile);
  const int packs = p.heads_q >> packed.shift;  // tiles of several heads at a position
  Work work;
  work.b = place.head / packs;
  work.h = place.head % packs << packed.shift;
  work.q = place.tile * packed.position(Traits::kQueries);
  work.part = item.part;
  work.part_row = (item.tile - (tiles - p.tail.tiles)) * Traits::kQueries;
  work.sequence = p.sequences.at(work.b);
  return work;
}

// The key tiles of one query tile, from the last one down.
template <typename Traits>
class KeyWalk {
 public:
  FDMA_DEVICE KeyWalk(const ForwardParams& p, const Work& work) : p_(p), bits_(bits(p, work)) {
    if constexpr (Traits::kSlots) {
      const SlotView& slots = p.slots;
      const int last = min_of(work.q + slots.packed.position(Traits::kQueries), work.sequence.len_q) - 1;
      const int64_t list = slots.list(work.b, work.h / p.group);
      slots_ = LiveSlotTiles<Traits::kKeys>(slots, list, work.q, last);
      n = ceil_div(slots.used_slots(list), Traits::kKeys);
    } else {
      const PartRange range(static_cast<int>(key_tile_count(work.q + Traits::kQueries, work.sequence.len_q,
                                                            work.sequence.len_k, p.is_causal, Traits::kKeys)),
                            Traits::kSplits ? work.part : -1, p.tail.parts);
      n = range.end;
      if constexpr (Traits::kSplits) first_ = range.first;
    }
    advance();
  }
  FDMA_DEVICE void advance() {
    --n;
    if constexpr (Traits::kSlots) {
      n = slots_.next(n);
    } else if constexpr (Traits::kMasked) {
      n = bits_.next(n);
    } else if constexpr (Traits::kSplits) {
      if (n < first_) n = -1;
    }
  }
  FDMA_DEVICE KeyNote note() const {
    KeyNote note{n, 0, 0};
    if constexpr (Traits::kSlots) {
      if (n >= 0) {
        const SpanSummary summary = slots_.summary(n);
        note.last_begin = summary.last_begin, note.first_end = summary.first_end;
      }
    }
    return note;
  }

  int n;

 private:
  using Bits = LiveKeyTiles<Traits::kQueries, Traits::kKeys>;
  FDMA_DEVICE static Bits bits(const ForwardParams& p, const Work& work) {
    return Bits(p.mask, work.b, work.h, work.q, work.sequence.len_q);
  }
  const ForwardParams& p_;
  int first_ = 0;
  Bits bits_;
  LiveSlotTiles<Traits::kKeys> slots_;
};

template <typename Traits>
class ForwardProducer {
  static constexpr int kStages = Traits::kStages;

 public:
  FDMA_DEVICE ForwardProducer(const ForwardLaunch& launch, const ForwardShared<Traits>& shared)
      : launch_(launch), p_(launch.params), shared_(shared), leads_(threadIdx.x % 32 == 0) {}

  FDMA_DEVICE void run() {
    int tile = blockIdx.x;
    while (tile < launch_.items) {
      const Work work = work_at<Traits>(launch_, tile);
      if (work.q < work.sequence.len_q) {
        hand_out(work);
        tile = produce(work);
      } else {
        tile = next_tile();
      }
      tile = __shfl_sync(0xffffffffu, tile, 0);
    }
    hand_out(Work{0, 0, -1, -1, 0, {}});
  }

 private:
  // Known to the first lane. Asked for behind the last key tile of this query tile, as late as the answer comes in
  // time: a block that takes its next tile as it starts on a long one keeps it from blocks that are done.
  FDMA_DEVICE int next_tile() const {
    int next = launch_.items;
    if (leads_ && p_.work_counter != nullptr) next = gridDim.x + atomicAdd(p_.work_counter, 1);
    return next;
  }
  FDMA_DEVICE void hand_out(const Work& work) {
    const Ring<2> ring = shared_.works();
    ring.wait_empty(work_at_);
    if (leads_) {
      shared_.work(work_at_.stage()) = work;
      ring.full(work_at_.stage()).arrive();
    }
    work_at_.advance();
  }

  // The next tile.
  FDMA_DEVICE int produce(const Work& work) {
    const int kv_head = work.h / p_.group;
    KeyWalk<Traits> walk(p_, work);
    int previous = -1, following = 0;
    for (;;) {
      if (walk.n < 0) following = next_tile();
      load_key(work, kv_head, walk);
      const int n = walk.n;
      if (n >= 0 && previous < 0) load_query(work);
      if (previous >= 0) load_value(work, kv_head, previous);
      if (n < 0) return following;
      // Biases first: beside them a mask has one buffer, and what comes behind it waits for the tile before.
      if constexpr (Traits::kBiased) load_bias(work, n);
      if constexpr (Traits::kMasked) load_mask(work, n);
      previous = n;
      walk.advance();
    }
  }

  FDMA_DEVICE void load_query(const Work& work) {
    const Ring<1> ring = shared_.queries();
    ring.wait_empty(query_at_);
    if (leads_) {
      ring.full(0).arrive_expecting(Traits::QueryTile::kBytes);
      int row = static_cast<int>(work.sequence.q_begin) + work.q, head = work.h;
      if (launch_.packed<Traits>().shift > 0) {  // see make_tensor_map
        const int of_row = row;
        row = head, head = of_row;
      }
      load_blocks<typename Traits::QueryTile>(launch_.query, shared_.base + Traits::kQueryOffset, ring.full(0), 0, row,
                                              head, work.b, Keep::kFirst);
    }
    query_at_.advance();
  }

  // K of the walk's tile, with the note and, for slots, what is in the mask and the bias; or the note that there is
  // none.
  FDMA_DEVICE void load_key(const Work& work, int kv_head, const KeyWalk<Traits>& walk) {
    const Ring<kStages> ring = shared_.keys();
    const KeyNote note = walk.note();
    ring.wait_empty(key_at_);
    if (leads_) {
      const int stage = key_at_.stage();
      const Barrier full = ring.full(stage);
      shared_.note(stage) = note;
      if (walk.n < 0) {
        full.arrive();
      } else {
        int bytes = Traits::KeyTile::kBytes;
        const float* bias = nullptr;
        if constexpr (Traits::kSlots) {
          if (p_.slots.bias != nullptr) bias = p_.slots.bias + p_.slots.bias_row(work.b, work.h) * p_.slots.slots;
          bytes += Traits::Slots::kSpanBytes + (bias != nullptr ? Traits::kKeys * 4 : 0);
        }
        full.arrive_expecting(bytes);
        load_blocks<typename Traits::KeyTile>(
            launch_.key, shared_.base + Traits::kKeyOffset + stage * Traits::KeyTile::kBytes, full, 0,
            static_cast<int>(work.sequence.k_begin) + walk.n * Traits::kKeys, kv_head, work.b, Keep::kLast);
        if constexpr (Traits::kSlots) {
          const Span* spans = p_.slots.spans + p_.slots.list(work.b, kv_head) * p_.slots.slots;
          load_bytes(shared_.slots(stage), spans + walk.n * Traits::kKeys, Traits::Slots::kSpanBytes, full);
          if (bias != nullptr) {
            load_bytes(shared_.slots(stage) + Traits::Slots::kSpanBytes, bias + walk.n * Traits::kKeys,
                       Traits::kKeys * 4, full);
          }
        }
      }
    }
    key_at_.advance();
  }

  FDMA_DEVICE void load_value(const Work& work, int kv_head, int n) {
    const Ring<kStages> ring = shared_.values();
    ring.wait_empty(value_at_);
    if (leads_) {
      const Barrier full = ring.full(value_at_.stage());
      full.arrive_expecting(Traits::KeyTile::kBytes);
      load_blocks<typename Traits::KeyTile>(
          launch_.value, shared_.base + Traits::kValueOffset + value_at_.stage() * Traits::KeyTile::kBytes, full, 0,
          static_cast<int>(work.sequence.k_begin) + n * Traits::kKeys, kv_head, work.b, Keep::kLast);
    }
    value_at_.advance();
  }

  FDMA_DEVICE void load_mask(const Work& work, int n) {
    constexpr int kRowBytes = Traits::kMaskWords * 4;
    const Ring<Traits::kMaskStages> ring = shared_.masks();
    ring.wait_empty(mask_at_);
    for (int i = threadIdx.x % 32; i < Traits::kQueries; i += 32) {
      // Rows past the end repeat the last one: their results are not stored.
      const int q = min_of(work.q + i, work.sequence.len_q - 1);
      sm80::copy_async<kRowBytes>(shared_.mask(mask_at_.stage()) + i * kRowBytes,
                                  p_.mask.row(work.b, work.h, q) + n * Traits::kMaskWords, kRowBytes);
    }
    ring.full(mask_at_.stage()).arrive_after_copies();
    mask_at_.advance();
  }

  FDMA_DEVICE void load_bias(const Work& work, int n) {
    const Ring<kStages> ring = shared_.biases();
    ring.wait_empty(bias_at_);
    if (leads_) {
      const Barrier full = ring.full(bias_at_.stage());
      full.arrive_expecting(Traits::BiasTile::kBytes);
      load_blocks<typename Traits::BiasTile>(launch_.bias, shared_.bias(bias_at_.stage()), full, n * Traits::kKeys,
                                             work.q, work.h / p_.bias.heads_per_bias_head, work.b, Keep::kFirst);
    }
    bias_at_.advance();
  }

  const ForwardLaunch& launch_;
  const ForwardParams& p_;
  const ForwardShared<Traits>& shared_;
  const bool leads_;
  RingPosition<kStages> key_at_, value_at_, bias_at_;
  RingPosition<Traits::kMaskStages> mask_at_;
  RingPosition<2> work_at_;
  RingPosition<1> query_at_;
};

}  // namespace fdma::sm90
