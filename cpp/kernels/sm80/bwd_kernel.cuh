// Backward: one block of threads owns a tile of keys of one kv head, keeps K, V and the sums of dK and dV, and walks
// the query tiles of the group's heads. dQ is added to an fp32 scratch tensor, tile by tile.
//
// With P = exp2(S - lse) and dP = dO V^T:   dS = P (dP - delta),  dV += P^T dO,  dK += dS^T Q,  dQ += dS K.
// P and dS cross from the score layout to the operand layouts through shared memory. The bias tile lands where they
// will be stored and is consumed before they are.
//
// Schedule of one query tile, Q and dO in two buffers:
//   wait Q, dO | start next Q, dO | S = Q K^T, bias, mask | P | dP = dO V^T | dS | barrier | dV | dQ | dK |
//   with a bias: barrier, start next bias
// In one buffer: the next dO starts after a barrier behind dV, the next Q after one behind dK.
#pragma once

#include "kernels/policy/bias_grad.cuh"
#include "kernels/policy/score.cuh"
#include "kernels/sm80/bwd_walk.cuh"

namespace fdma::sm80 {

// What the passes over one query tile share.
template <typename Traits>
struct BackwardContext {
  const BackwardParams& p;
  const BackwardBlock<Traits>& block;
  const ScoreUnit& unit;
  char* smem_bytes;
  uint32_t smem;
  int thread, warp, lane;

  FDMA_DEVICE int score_row() const { return warp / Traits::kScoreWarpsK * Traits::kScoreRows; }
  FDMA_DEVICE int score_col() const { return warp % Traits::kScoreWarpsK * Traits::kScoreCols; }
  FDMA_DEVICE int key_row() const { return warp / Traits::kKeyWarpsD * Traits::kKeyRows; }
  FDMA_DEVICE int key_col() const { return warp % Traits::kKeyWarpsD * Traits::kKeyCols; }
  FDMA_DEVICE uint32_t query_stage(int stage) const {
    return smem + Traits::kQueryOffset + stage * Traits::QueryTile::kBytes;
  }
  FDMA_DEVICE uint32_t grad_out_stage(int stage) const {
    return smem + Traits::kGradOutOffset + stage * Traits::QueryTile::kBytes;
  }
};

// x = A B^T of two tiles with rows of head_dim: S from Q and K, dP from dO and V.
template <typename Traits, int kM, int kN>
FDMA_DEVICE void score_product(float (&x)[kM][kN][4], const BackwardContext<Traits>& c, uint32_t query_side,
                               uint32_t key_side) {
  clear(x);
  const AddressA<typename Traits::QueryTile, Major::kK> a(query_side, c.score_row(), 0, c.lane);
  const AddressB<typename Traits::KeyTile, Major::kK> b(key_side, c.score_col(), 0, c.lane);
  gemm<typename Traits::T, Major::kK, Major::kK, Traits::kHeadDim / 16>(x, a, b);
}

// acc += X^T Y over the rows (queries) of a score tile X and a query tile Y: dV from P and dO, dK from dS and Q.
template <typename Traits, int kM, int kN>
FDMA_DEVICE void add_key_product(float (&acc)[kM][kN][4], const BackwardContext<Traits>& c, uint32_t score_tile,
                                 uint32_t query_tile) {
  const AddressA<typename Traits::ScoreTile, Major::kMN> a(score_tile, 0, c.key_row(), c.lane);
  const AddressB<typename Traits::QueryTile, Major::kMN> b(query_tile, 0, c.key_col(), c.lane);
  gemm<typename Traits::T, Major::kMN, Major::kMN, Traits::kQueries / 16>(acc, a, b);
}

// P = exp2(x * unit - lse), unit > 0.
template <int kM, int kN>
FDMA_DEVICE void weights_from_bits(float (&x)[kM][kN][4], const float2 (&stats)[kM][2], float unit) {
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int j = 0; j < kN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        x[i][j][e] = exp2_approx(fmaf(x[i][j][e], unit, -stats[i][e / 2].x));
      }
    }
  }
}

// Turns q.k into P. The bias, where there is one, has landed; mask bits are those of `stage`.
template <typename Traits, int kM, int kN>
FDMA_DEVICE void scores_to_weights(float (&x)[kM][kN][4], const float2 (&stats)[kM][2],
                                   const BackwardContext<Traits>& c, int m, int stage) {
  const BackwardParams& p = c.p;
  const bool folded = !Traits::kBiased && c.unit.foldable() && (!Traits::kSlots || p.slots.bias == nullptr);
  if (!folded) c.unit.to_bits(x);
  if constexpr (Traits::kBiased)
    Traits::Bias::add(x, c.smem + Traits::kBiasOffset, c.score_row(), c.score_col(), c.lane);
  if (p.has_mask) {
    const uint32_t* bits =
        reinterpret_cast<const uint32_t*>(c.smem_bytes + Traits::kMaskOffset + stage * Traits::Mask::kBytes);
    // A warp may start in the middle of a word.
    apply_mask_bits(x, bits + c.score_row() * Traits::Mask::kWords + c.score_col() / 32, Traits::Mask::kWords, c.lane,
                    c.score_col() % 32);
  }
  const int row0 = m * Traits::kQueries + c.score_row();
  if constexpr (Traits::kSlots) {
    const SpanSummary spans = tile_summary<Traits::kKeys>(c.block.slot_groups(), c.block.n);
    Traits::Bias::apply(x, c.smem + Traits::kBiasOffset, row0, c.score_col(),
                        !spans.all(row0, row0 + Traits::kScoreRows - 1), c.lane);
    return weights_from_bits(x, stats, folded ? c.unit.scale_log2 : 1.f);
  }
  const int col0 = c.block.k() + c.score_col();
  if (col0 + Traits::kScoreCols > key_limit(row0, c.block.sequence.len_q, c.block.sequence.len_k, p.is_causal)) {
    apply_key_limit(x, row0, col0, c.block.sequence.len_q, c.block.sequence.len_k, p.is_causal, c.lane);
  }
  weights_from_bits(x, stats, folded ? c.unit.scale_log2 : 1.f);
}

// dS = P (dP - delta), in place of dP.
template <int kM, int kN>
FDMA_DEVICE void to_grad_scores(float (&grad)[kM][kN][4], const float (&weights)[kM][kN][4],
                                const float2 (&stats)[kM][2]) {
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int j = 0; j < kN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) grad[i][j][e] = weights[i][j][e] * (grad[i][j][e] - stats[i][e / 2].y);
    }
  }
}

// Chain rule through the softcap: dS *= 1 - tanh^2. The scores are computed once more: keeping them would cost every
// other call the registers.
template <typename Traits, int kM, int kN>
FDMA_DEVICE void apply_softcap_gradient(float (&grad)[kM][kN][4], float (&x)[kM][kN][4],
                                        const BackwardContext<Traits>& c, int stage) {
  score_product(x, c, c.query_stage(stage), c.smem + Traits::kKeyOffset);
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int j = 0; j < kN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float t = tanh_exp2(x[i][j][e] * c.unit.scale_over_cap);
        grad[i][j][e] *= 1.f - t * t;
      }
    }
  }
}

// Clears the gradient of the bias wherever the walk does not come by.
template <typename Traits>
class BiasGradGaps {
 public:
  FDMA_DEVICE BiasGradGaps(const BackwardContext<Traits>& c)
      : c_(c), active_(c.p.bias_grad == BiasGradMode::kScores), h_(c.block.kv_head * c.p.group) {}

  // Everything before row q of head h; the caller then writes `rows` rows itself.
  FDMA_DEVICE void clear_until(int h, int q, int rows) {
    if constexpr (Traits::kBiased) {
      if (!active_) return;
      for (; h_ < h; ++h_, row_ = 0) clear(c_.p.bias_rows);
      clear(q);
      row_ = q + rows;
    }
  }
  FDMA_DEVICE void finish() { clear_until((c_.block.kv_head + 1) * c_.p.group, 0, 0); }

 private:
  FDMA_DEVICE void clear(int row_end) const {
    if (row_ >= row_end || h_ >= (c_.block.kv_head + 1) * c_.p.group) return;
    const BackwardParams& p = c_.p;
    const ScoreGradients target(p.grad_bias, p.bias.type, static_cast<int64_t>(c_.block.b) * p.heads_q + h_,
                                p.bias_rows, p.bias_keys);
    target.template clear<Traits::kKeys, Traits::kThreads>(row_, row_end, c_.block.k(), c_.thread);
  }
  const BackwardContext<Traits>& c_;
  bool active_;
  int h_, row_ = 0;
};

// What a tile of dS means for the bias.
template <typename Traits, int kM, int kN>
FDMA_DEVICE void emit_bias_gradient(const float (&grad)[kM][kN][4], const BackwardContext<Traits>& c, int h, int m) {
  const BackwardParams& p = c.p;
  if (p.bias_grad == BiasGradMode::kScores) {
    const ScoreGradients target(p.grad_bias, p.bias.type, static_cast<int64_t>(c.block.b) * p.heads_q + h, p.bias_rows,
                                p.bias_keys);
    target.store(grad, m * Traits::kQueries + c.score_row(), c.block.k() + c.score_col(), c.lane);
  } else if (p.bias_grad == BiasGradMode::kKeys) {
    float* sums = reinterpret_cast<float*>(c.smem_bytes + Traits::kColumnSumOffset);
    add_column_sums(sums + c.warp / Traits::kScoreWarpsK * Traits::kKeys + c.score_col(), grad, c.lane);
  }
}

// Stores and resets the column sums of head h. Called between two barriers.
template <typename Traits>
FDMA_DEVICE void flush_column_sums(const BackwardContext<Traits>& c, int h) {
  float* sums = reinterpret_cast<float*>(c.smem_bytes + Traits::kColumnSumOffset);
  for (int k = c.thread; k < Traits::kKeys; k += Traits::kThreads) {
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < Traits::kScoreWarpsQ; ++w) {
      total += sums[w * Traits::kKeys + k];
      sums[w * Traits::kKeys + k] = 0.f;
    }
    if (c.block.k() + k < c.p.bias_keys) {
      c.p.grad_bias_keys[(static_cast<int64_t>(c.block.b) * c.p.heads_q + h) * c.p.bias_keys + c.block.k() + k] = total;
    }
  }
}

template <typename Traits>
FDMA_DEVICE void add_query_gradient(const BackwardContext<Traits>& c, int h, int m) {
  using Sum = typename Traits::QuerySum;
  const BackwardParams& p = c.p;
  float grad[Sum::kM][Sum::kN][4];
  clear(grad);
  const AddressA<typename Traits::ScoreTile, Major::kK> a(c.smem + Traits::kGradScoreOffset, Sum::warp_row(c.warp), 0,
                                                          c.lane);
  const AddressB<typename Traits::KeyTile, Major::kMN> b(c.smem + Traits::kKeyOffset, 0, Sum::warp_col(c.warp), c.lane);
  gemm<typename Traits::T, Major::kK, Major::kMN, Traits::kKeys / 16>(grad, a, b);

  const int64_t row_tile = c.block.first_row_tile() + m;
  float* tile = Sum::tile(p.grad_query_sum, row_tile * p.heads_q + h);
  if (p.tile_order == nullptr) {
    Sum::add(tile, grad, c.thread);
  } else {
    const QuerySumOrder order(p, row_tile, h);
    const int rank = query_sum_rank<Traits>(p, c.block, h, m);
    order.wait(rank);
    Sum::add(tile, grad, c.thread);
    order.release(rank);
  }
}

// Stores dK or dV through shared memory that is not read any more.
template <typename Traits, int kM, int kN>
FDMA_DEVICE void store_key_gradient(const TensorView& target, const float (&grad)[kM][kN][4], float scale,
                                    const BackwardContext<Traits>& c, uint32_t stage) {
  using T = typename Traits::T;
  if (target.data == nullptr) return;
  store_accumulator<T, typename Traits::KeyTile>(stage, grad, c.key_row(), c.key_col(), scale, c.lane);
  __syncthreads();
  store_tile<typename Traits::KeyTile, Traits::kThreads>(
      stage, target.at<T>(c.block.b, c.block.kv_head, c.block.sequence.k_begin + c.block.k()), target.stride_row,
      c.block.sequence.len_k - c.block.k(), c.p.head_dim, c.p.vector_grads, c.thread);
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) backward_kernel(const __grid_constant__ BackwardParams p) {
  constexpr int kStages = Traits::kStages;
  constexpr int kScoreM = Traits::kScoreRows / 16, kScoreN = Traits::kScoreCols / 8;
  constexpr int kKeyM = Traits::kKeyRows / 16, kKeyN = Traits::kKeyCols / 8;
  extern __shared__ __align__(1024) char smem_bytes[];
  const uint32_t smem = smem_address(smem_bytes);
  const int thread = threadIdx.x;
  const BackwardBlock<Traits> block(p, *reinterpret_cast<Sequence*>(smem_bytes + Traits::kSequenceOffset));
  const ScoreUnit unit(p.scale, p.softcap);
  const BackwardContext<Traits> c{p, block, unit, smem_bytes, smem, thread, thread / 32, thread % 32};
  const BackwardLoader<Traits> loader{p, block, smem, thread};
  BiasGradGaps<Traits> gaps(c);
  const bool wants_grad_value = p.grad_value.data != nullptr;
  const bool wants_grad_key = p.grad_key.data != nullptr;
  const bool wants_grad_query = p.grad_query_sum != nullptr;

  float grad_key[kKeyM][kKeyN][4], grad_value[kKeyM][kKeyN][4];
  clear(grad_key);
  clear(grad_value);
  if (Traits::kBiasGrad && p.bias_grad == BiasGradMode::kKeys) {
    float* sums = reinterpret_cast<float*>(smem_bytes + Traits::kColumnSumOffset);
    for (int k = thread; k < Traits::kScoreWarpsQ * Traits::kKeys; k += Traits::kThreads) sums[k] = 0.f;
  }

  QueryWalk<Traits> walk(p, block);
  walk.advance();
  if (!walk.done()) {
    loader.load_key_value();
    loader.load_slots(walk.h);
    loader.load_query(walk.h, walk.m, 0);
    loader.load_grad_out(walk.h, walk.m, 0);
    copy_async_commit();
    loader.load_bias(walk.h, walk.m);
    copy_async_commit();
  }

  int stage = 0;
  while (!walk.done()) {
    const int h = walk.h, m = walk.m;
    walk.advance();
    const bool more = !walk.done();
    gaps.clear_until(h, m * Traits::kQueries, Traits::kQueries);
    copy_async_wait<1>();
    __syncthreads();  // Q and dO of this tile are there; nobody still reads the previous ones
    if (kStages == 2) {
      if (more) {
        loader.load_query(walk.h, walk.m, stage ^ 1);
        loader.load_grad_out(walk.h, walk.m, stage ^ 1);
      }
      copy_async_commit();
    }

    float2 stats[kScoreM][2];
    const float2* row_stats = p.stats(block.first_row_tile() + m, h) + c.score_row() + c.lane / 4;
#pragma unroll
    for (int i = 0; i < kScoreM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) stats[i][half] = __ldg(row_stats + 16 * i + 8 * half);
    }

    float weights[kScoreM][kScoreN][4], grad_scores[kScoreM][kScoreN][4];
    score_product(weights, c, c.query_stage(stage), smem + Traits::kKeyOffset);
    if constexpr (Traits::kBiased) {
      copy_async_wait<kStages == 2 ? 1 : 0>();
      __syncthreads();  // the bias is there
    }
    scores_to_weights(weights, stats, c, m, stage);
    score_product(grad_scores, c, c.grad_out_stage(stage), smem + Traits::kValueOffset);
    to_grad_scores(grad_scores, weights, stats);
    if constexpr (Traits::kBias == BiasForm::kFloat) __syncthreads();  // the bias covers P and dS of other warps
    store_accumulator<typename Traits::T, typename Traits::ScoreTile>(smem + Traits::kWeightOffset, weights,
                                                                      c.score_row(), c.score_col(), 1.f, c.lane);
    if constexpr (Traits::kBiasGrad) emit_bias_gradient(grad_scores, c, h, m);
    if (unit.capped()) apply_softcap_gradient(grad_scores, weights, c, stage);
    store_accumulator<typename Traits::T, typename Traits::ScoreTile>(smem + Traits::kGradScoreOffset, grad_scores,
                                                                      c.score_row(), c.score_col(), 1.f, c.lane);
    __syncthreads();  // P and dS are there

    if (wants_grad_value) add_key_product(grad_value, c, smem + Traits::kWeightOffset, c.grad_out_stage(stage));
    if (kStages == 1) {
      __syncthreads();  // nobody still reads dO
      if (more) loader.load_grad_out(walk.h, walk.m, 0);
      copy_async_commit();
    }

    if (wants_grad_query) add_query_gradient(c, h, m);
    if (wants_grad_key) add_key_product(grad_key, c, smem + Traits::kGradScoreOffset, c.query_stage(stage));
    if (Traits::kBiasGrad && p.bias_grad == BiasGradMode::kKeys && (!more || walk.h != h)) flush_column_sums(c, h);

    if (Traits::kBiased || kStages == 1) {
      __syncthreads();  // nobody still reads Q and dS
      if (kStages == 1) {
        if (more) loader.load_query(walk.h, walk.m, 0);
        copy_async_commit();
      }
      if (more) loader.load_bias(walk.h, walk.m);
    }
    copy_async_commit();
    if (Traits::kSlots && more && walk.h != h) loader.load_slots(walk.h);
    stage = kStages == 2 ? stage ^ 1 : 0;
  }

  gaps.finish();
  copy_async_wait<0>();
  __syncthreads();
  store_key_gradient(p.grad_key, grad_key, p.scale, c, smem + Traits::kKeyOffset);
  store_key_gradient(p.grad_value, grad_value, 1.f, c, smem + Traits::kValueOffset);
}

}  // namespace fdma::sm80
