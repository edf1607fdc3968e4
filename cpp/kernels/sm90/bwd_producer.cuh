// Backward, the producer: one warp that brings K and V of the block's keys, then walks the query tiles that see them.
#pragma once

#include "kernels/policy/bias_grad.cuh"
#include "kernels/sm90/bwd_traits.cuh"

namespace fdma::sm90 {

template <typename Traits>
class BackwardProducer {
  static constexpr int kStages = Traits::kStages;
  using Block = sm80::BackwardBlock<Traits>;

 public:
  FDMA_DEVICE BackwardProducer(const BackwardLaunch& launch, const BackwardShared<Traits>& shared, const Block& block)
      : launch_(launch), p_(launch), shared_(shared), block_(block), lane_(threadIdx.x % 32) {}

  FDMA_DEVICE void run() {
    sm80::QueryWalk<Traits> walk(p_, block_);
    walk.advance();
    if (!walk.done()) load_keys();
    for (; !walk.done(); walk.advance()) {
      load_query(walk.h, walk.m);
      // One buffer of dO is free late, long after that of the bias.
      if constexpr (Traits::kBiased && Traits::kGradOutStages == 1) load_bias(walk.h, walk.m);
      load_grad_out(walk.h, walk.m);
      if constexpr (Traits::kBiased && Traits::kGradOutStages != 1) load_bias(walk.h, walk.m);
    }
    hand_out_end();
  }

 private:
  FDMA_DEVICE int row(int m) const { return static_cast<int>(block_.sequence.q_begin) + m * Traits::kQueries; }

  FDMA_DEVICE void load_keys() const {
    if (lane_ != 0) return;
    const Barrier full = shared_.keys();
    const int key = static_cast<int>(block_.sequence.k_begin) + block_.k();
    full.arrive_expecting(2 * Traits::KeyTile::kBytes);
    load_blocks<typename Traits::KeyTile>(launch_.key, shared_.base + Traits::kKeyOffset, full, 0, key, block_.kv_head,
                                          block_.b, Keep::kFirst);
    load_blocks<typename Traits::KeyTile>(launch_.value, shared_.base + Traits::kValueOffset, full, 0, key,
                                          block_.kv_head, block_.b, Keep::kFirst);
  }

  FDMA_DEVICE void load_query(int h, int m) {
    const Ring<kStages> ring = shared_.queries();
    ring.wait_empty(query_at_);
    const int stage = query_at_.stage();
    const Barrier full = ring.full(stage);
    const int64_t row_tile = block_.first_row_tile() + m;
    const int rank = p_.tile_order != nullptr ? sm80::query_sum_rank<Traits>(p_, block_, h, m) : 0;
    if (lane_ == 0) {
      shared_.note(stage) = {h, m, rank, static_cast<int>(row_tile * p_.heads_q + h)};
      full.arrive_expecting(Traits::QueryTile::kBytes + Traits::kStatsBytes);
      load_blocks<typename Traits::QueryTile>(launch_.query,
                                              shared_.base + Traits::kQueryOffset + stage * Traits::QueryTile::kBytes,
                                              full, 0, row(m), h, block_.b, Keep::kLast);
      load_bytes(shared_.stats(stage), p_.stats(row_tile, h), Traits::kStatsBytes, full);
    }
    if (p_.has_mask) {
      // Rows past the end repeat the last one: their weights are zero.
      for (int i = lane_; i < Traits::kQueries; i += 32) {
        const int q = min_of(m * Traits::kQueries + i, block_.sequence.len_q - 1);
        constexpr int kBytes = Traits::kMaskWords * 4;
        sm80::copy_async<kBytes>(shared_.mask(stage) + i * kBytes, p_.mask.row(block_.b, h, q) + block_.k() / 32,
                                 kBytes);
      }
      full.arrive_after_copies();
    }
    query_at_.advance();
  }

  FDMA_DEVICE void hand_out_end() {
    const Ring<kStages> ring = shared_.queries();
    ring.wait_empty(query_at_);
    if (lane_ == 0) {
      shared_.note(query_at_.stage()) = {-1, 0, 0, 0};
      ring.full(query_at_.stage()).arrive();
    }
    if (p_.has_mask) ring.full(query_at_.stage()).arrive();
  }

  FDMA_DEVICE void load_grad_out(int h, int m) {
    const Ring<Traits::kGradOutStages> ring = shared_.grad_outs();
    ring.wait_empty(grad_out_at_);
    if (lane_ == 0) {
      const Barrier full = ring.full(grad_out_at_.stage());
      full.arrive_expecting(Traits::QueryTile::kBytes);
      load_blocks<typename Traits::QueryTile>(
          launch_.grad_out, shared_.base + Traits::kGradOutOffset + grad_out_at_.stage() * Traits::QueryTile::kBytes,
          full, 0, row(m), h, block_.b, Keep::kLast);
    }
    grad_out_at_.advance();
  }

  FDMA_DEVICE void load_bias(int h, int m) {
    const Ring<1> ring = shared_.biases();
    ring.wait_empty(bias_at_);
    if (lane_ == 0) {
      ring.full(0).arrive_expecting(Traits::ScoreTile::kBytes);
      load_blocks<typename Traits::ScoreTile>(launch_.bias, shared_.base + Traits::kBiasOffset, ring.full(0),
                                              block_.k(), m * Traits::kQueries, h / p_.bias.heads_per_bias_head,
                                              block_.b, Keep::kFirst);
    }
    bias_at_.advance();
  }

  const BackwardLaunch& launch_;
  const BackwardParams& p_;
  const BackwardShared<Traits>& shared_;
  const Block& block_;
  const int lane_;
  RingPosition<kStages> query_at_;
  RingPosition<Traits::kGradOutStages> grad_out_at_;
  RingPosition<1> bias_at_;
};

// Zeros in the gradient of the bias wherever the walk does not come by, by `kThreads` threads that have nothing else to
// do. `warp_thread`: a multiple of whole warps walks together.
template <typename Traits, int kThreads>
FDMA_DEVICE void clear_bias_gradient_gaps(const BackwardParams& p, const sm80::BackwardBlock<Traits>& block,
                                          int thread) {
  int h = block.kv_head * p.group, row = 0;
  const int head_end = h + p.group;
  const auto clear = [&](int row_end) {
    const ScoreGradients target(p.grad_bias, p.bias.type, static_cast<int64_t>(block.b) * p.heads_q + h, p.bias_rows,
                                p.bias_keys);
    target.template clear<Traits::kKeys, kThreads>(row, row_end, block.k(), thread);
  };
  sm80::QueryWalk<Traits> walk(p, block);
  for (;;) {
    walk.advance();
    for (; h < (walk.done() ? head_end : walk.h); ++h, row = 0) clear(p.bias_rows);
    if (walk.done()) return;
    clear(walk.m * Traits::kQueries);
    row = (walk.m + 1) * Traits::kQueries;
  }
}

}  // namespace fdma::sm90
