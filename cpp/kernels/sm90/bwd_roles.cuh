// Backward, the consumers for head dims at which the sums of dK and dV do not both fit the registers of a warpgroup:
// both groups have the same 64 keys, and each has products of its own. One has the scores and dV, the other their
// gradients and dK; each has half of the columns of dQ. What they do to scores is what BackwardConsumer does.
//
// One query tile, with S^T = K Q^T and dP^T = V dO^T under way from the tile before:
//   scores:     P^T, to the other group | dV += P^T dO | S^T of the next tile | dS has come: dQ, block by block of
//   columns gradients:  P^T has come: dS^T, to shared memory | dQ, to its scratch while dK += dS^T Q runs | dP^T of the
//   next tile
#pragma once

#include "kernels/sm90/bwd_consumer.cuh"

namespace fdma::sm90 {

template <typename Traits>
class BackwardRoles : BackwardConsumer<Traits> {
  using Base = BackwardConsumer<Traits>;
  using T = typename Traits::T;
  using Block = sm80::BackwardBlock<Traits>;
  using Sum = typename Traits::Sum;
  using Base::block_, Base::lane_, Base::p_, Base::shared_, Base::warp_;
  using Base::grad_out_at_, Base::query_at_, Base::next_query, Base::release, Base::sum_stage;
  using typename Base::Operand;
  using typename Base::Scores;
  static constexpr int kNO = Traits::kNO, kDepth = Traits::kHeadDim / 16;
  static constexpr int kSumParts = Traits::kHeadDim / kBlockCols / 2;  // column blocks of dQ that a group computes
  enum Role { kScores, kGradients };                                   // of the first group, of the second
  static_assert(Traits::kStages == 2 && Traits::kN == Sum::kN && kSumParts == 2);

 public:
  FDMA_DEVICE BackwardRoles(const BackwardLaunch& launch, const BackwardShared<Traits>& shared, const Block& block)
      : Base(launch, shared, block, 0) {}

  FDMA_DEVICE void run() {
    float sum[1][kNO][4];
    sm80::clear(sum);
    const bool has_scores = uniform(threadIdx.x / kGroupThreads) - 1 == kScores;
    const QueryNote first = next_query();
    if (first.h >= 0) {
      shared_.keys().wait(0);
      this->clear_keys_behind();  // both groups, here: threads that wait at a barrier have to come from one place
      has_scores ? run_scores(first, sum) : run_gradients(first, sum);
    }
    has_scores ? store_sum(1, p_.grad_value, sum, 1.f) : store_sum(0, p_.grad_key, sum, p_.scale);
    wait_stores_read<0>();
  }

 private:
  FDMA_DEVICE void run_scores(QueryNote note, float (&grad_value)[1][kNO][4]) {
    this->load_spans();
    this->load_slot_bias(note.h);
    Scores weights;
    start_scores(weights, note.m);
    wait_products<0>();
    while (note.h >= 0) note = add_value_gradient(note, weights, grad_value);
  }

  FDMA_DEVICE void start_scores(Scores& scores, int m) const {
    const int offset = uniform(query_at_.stage()) * Traits::QueryTile::kBytes;
    clear_behind<kScores>(shared_.base + Traits::kQueryOffset + offset, m);
    hold(scores);
    begin_products();
    multiply<T, kDepth>(scores, anew(this->key_), 0, this->query_rows_, offset, false);
    commit_products();
  }

  // `weights` are S^T of the tile; afterwards of the next one, which is returned.
  FDMA_DEVICE QueryNote add_value_gradient(const QueryNote& note, Scores& weights, float (&grad_value)[1][kNO][4]) {
    hold(weights);
    this->finish_weights(weights, note.m, this->read_start(note.m));
    release(shared_.queries(), query_at_);
    free_stage();
    Sum::stage(sum_stage(warp_), weights, lane_);
    arrive_named(NamedBarrier::kWeights, 0, Traits::kConsumers);
    Operand operand;
    Base::to_operand(operand, weights);

    shared_.grad_outs().wait_full(grad_out_at_);
    if (ends_in(note.m)) sync_named(NamedBarrier::kCleared, 0, Traits::kConsumers);  // rows of dO, by the other group
    hold(operand);
    hold(grad_value);
    begin_products();
    multiply<T, Traits::kQueries / 16>(grad_value, operand, this->grad_out_cols_, 0);
    commit_products();
    const QueryNote next = next_query();
    start_scores(weights, next.m);  // behind the last tile, of whatever lies there: nobody reads it
    sync_named(NamedBarrier::kConsumers, 0, Traits::kConsumers);  // dS has come
    wait_products<1>();
    hold(grad_value);
    hold(operand);
    release(shared_.grad_outs(), grad_out_at_);
#pragma unroll
    for (int part = 0; part < kSumParts; ++part) {
      float grad_query[1][Sum::kN][4];
      hold(grad_query);
      begin_products();
      multiply<T, Traits::kKeys / 16>(grad_query, this->score_, 0, this->key_cols_, part * Traits::KeyTile::kBlockBytes,
                                      false);
      commit_products();
      wait_products<0>();
      hold(grad_query);
      free_stage();
      this->add_query_gradient(grad_query, note, part * 4 + warp_, sum_stage(warp_));
    }
    if (next.h != note.h) this->load_slot_bias(next.h);
    return next;
  }

  // The warp's buffer in this group, where its part of P^T and then those of dQ lie: what was added last has left it.
  FDMA_DEVICE void free_stage() const {
    if (lane_ == 0) wait_stores_read<0>();
    __syncwarp();
  }

  FDMA_DEVICE void run_gradients(QueryNote note, float (&grad_key)[1][kNO][4]) {
    this->finish_bias_gradient(-1);
    Scores grad;
    Operand operand;  // dS^T, read until dK is there
    start_gradients(grad, note.m);
    for (;;) {
      add_key_gradient(note, grad, operand, grad_key);
      const QueryNote next = query_after();
      if (next.h != note.h) this->finish_bias_gradient(note.h);
      if (next.h < 0) break;
      start_gradients(grad, next.m);
      wait_products<1>();
      hold(grad_key);
      hold(operand);
      release(shared_.queries(), query_at_);
      note = next;
    }
    wait_products<0>();
    hold(grad_key);
    hold(operand);
  }

  // The one behind the tile whose buffers the group still reads.
  FDMA_DEVICE QueryNote query_after() const {
    RingPosition<Traits::kStages> at = query_at_;
    at.advance();
    shared_.queries().wait_full(at);
    return shared_.note(at.stage());
  }

  FDMA_DEVICE void start_gradients(Scores& grad, int m) const {
    shared_.grad_outs().wait_full(grad_out_at_);
    if (clear_behind<kGradients>(shared_.base + Traits::kGradOutOffset, m)) {
      arrive_named(NamedBarrier::kCleared, 0, Traits::kConsumers);
    }
    hold(grad);
    begin_products();
    multiply<T, kDepth>(grad, anew(this->value_), 0, anew(this->grad_out_rows_), 0, false);
    commit_products();
  }

  // `grad` is dP^T of the tile, under way. The product of dK is under way afterwards.
  FDMA_DEVICE void add_key_gradient(const QueryNote& note, Scores& grad, Operand& operand,
                                    float (&grad_key)[1][kNO][4]) {
    if (lane_ == 0) wait_stores_read<0>();  // what this lane stored a tile ago has left shared memory
    sync_named(NamedBarrier::kWeights, 0, Traits::kConsumers);  // P^T has come, and nobody still reads the previous dS
    wait_products<0>();
    hold(grad);
    release(shared_.grad_outs(), grad_out_at_);
    Scores weights;
    if constexpr (Traits::kCapped) this->load_slot_bias(note.h);  // of each tile: the sums leave no registers
    Sum::unstage(weights, sum_stage(warp_), lane_);
    this->finish_gradients(grad, weights);
    Base::to_operand(operand, grad);
    store_transposed(shared_.base + Traits::kScoreOffset, operand, warp_, lane_);
    publish_shared();
    sync_group<kGradients>();  // first: racecheck takes no arrival for the end of what a warp has read, here P^T
    arrive_named(NamedBarrier::kConsumers, 0, Traits::kConsumers);
    this->store_bias_gradient(note, 0);

    float grad_query[1][kSumParts * Sum::kN][4];
    hold(grad_query);
    hold(operand);
    hold(grad_key);
    begin_products();
    multiply<T, Traits::kKeys / 16>(grad_query, this->score_, 0, this->key_cols_,
                                    kSumParts * Traits::KeyTile::kBlockBytes, false);
    commit_products();
    multiply<T, Traits::kQueries / 16>(grad_key, operand, this->query_cols_,
                                       query_at_.stage() * Traits::QueryTile::kBytes);
    commit_products();
    wait_products<1>();
    hold(grad_query);
#pragma unroll
    for (int part = 0; part < kSumParts; ++part) {
      const auto& block = reinterpret_cast<const float(&)[1][Sum::kN][4]>(grad_query[0][part * Sum::kN]);
      this->add_query_gradient(block, note, (kSumParts + part) * 4 + warp_, sum_stage(4 + part * 4 + warp_));
    }
  }

  FDMA_DEVICE bool ends_in(int m) const {
    const int valid = this->queries_of(m);  // read first, see clear_queries_behind
    return valid < Traits::kQueries && p_.sequences.varies();
  }
  // Rows of a tile behind the last query of a sequence, see BackwardConsumer: Q and dO are cleared by the group that
  // reads them first. Whether there are such rows.
  template <Role kRole>
  FDMA_DEVICE bool clear_behind(uint32_t tile, int m) const {
    if (!ends_in(m)) return false;
    clear_rows<typename Traits::QueryTile, kGroupThreads>(tile, this->queries_of(m), threadIdx.x % kGroupThreads);
    publish_shared();
    sync_group<kRole>();
    return true;
  }
  template <Role kRole>
  FDMA_DEVICE static void sync_group() {
    sync_named(NamedBarrier::kGroup, kRole, kGroupThreads);
  }

  FDMA_DEVICE void store_sum(int which, const TensorView& target, const float (&sum)[1][kNO][4], float scale) const {
    if (Traits::kSplits && block_.part >= 0) {
      this->store_part(which, sum);
    } else {
      this->store(target, sum, scale);
    }
  }
};

}  // namespace fdma::sm90
