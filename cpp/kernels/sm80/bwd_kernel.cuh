// Backward: one block of threads owns a tile of keys of one kv head, keeps K, V and the sums of dK and dV, and walks
// the query tiles of the group's heads. dQ is added to an fp32 scratch tensor, tile by tile.
//
// With P = exp2(S - lse) and dP = dO V^T:   dS = P (dP - delta),  dV += P^T dO,  dK += dS^T Q,  dQ += dS K.
// P and dS cross from the score layout to the operand layouts through shared memory. The bias tile lands where they
// will be stored and is consumed before they are.
//
// Schedule of one query tile (Q has kStages buffers, dO one):
//   wait Q, dO | start next Q | S = Q K^T, bias, mask | P | dP = dO V^T | dS | barrier | dV | barrier | start next dO |
//   dQ | dK | barrier | start next bias
#pragma once

#include "kernels/policy/bias_grad.cuh"
#include "kernels/policy/mask.cuh"
#include "kernels/policy/score.cuh"
#include "kernels/sm80/bias_stage.cuh"
#include "kernels/sm80/bwd_query_sum.cuh"

namespace fdma::sm80 {

template <typename T_, int kHeadDim_, bool kRoomy_, BiasForm kBias_>
struct BackwardTraits {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr BiasForm kBias = kBias_;
  static constexpr bool kBiased = kBias != BiasForm::kNone;
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
  static constexpr int kGradScoreOffset = kGradOutOffset + QueryTile::kBytes;  // dS
  static constexpr int kWeightOffset = kGradScoreOffset + ScoreTile::kBytes;   // P
  static constexpr int kBiasOffset = kGradScoreOffset;  // 16-bit bias where dS will be, fp32 over dS and P
  static constexpr int kMaskOffset = kWeightOffset + ScoreTile::kBytes;
  static constexpr int kColumnSumOffset = kMaskOffset + kStages * Mask::kBytes;
  static constexpr int kSharedBytes = kColumnSumOffset + kScoreWarpsQ * kKeys * 4;
};

// Where a block works and which query tiles it has to visit.
template <typename Traits>
struct BackwardBlock {
  int b, kv_head, n;           // batch, kv head, key tile
  int first_tile, tile_count;  // query tiles [first_tile, tile_count) can see the keys

  FDMA_DEVICE explicit BackwardBlock(const BackwardParams& p) {
    const int tiles = ceil_div(p.len_k, Traits::kKeys);
    n = blockIdx.x % tiles;
    const int head = blockIdx.x / tiles;
    kv_head = head % p.heads_kv;
    b = head / p.heads_kv;
    tile_count = ceil_div(p.len_q, Traits::kQueries);
    first_tile =
        static_cast<int>(first_query_of_key(n * Traits::kKeys, p.len_q, p.len_k, p.is_causal)) / Traits::kQueries;
  }
  FDMA_DEVICE int k() const { return n * Traits::kKeys; }
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
        smem + Traits::kKeyOffset, p.key.at<const T>(block.b, block.kv_head, block.k()), p.key.stride_row,
        p.len_k - block.k(), p.head_dim, p.vector_rows, thread);
    load_tile<typename Traits::KeyTile, Traits::kThreads>(
        smem + Traits::kValueOffset, p.value.at<const T>(block.b, block.kv_head, block.k()), p.value.stride_row,
        p.len_k - block.k(), p.head_dim, p.vector_rows, thread);
  }
  // Q and mask of query tile m.
  FDMA_DEVICE void load_query(int h, int m, int stage) const {
    const int q = m * Traits::kQueries;
    load_tile<typename Traits::QueryTile, Traits::kThreads>(
        smem + Traits::kQueryOffset + stage * Traits::QueryTile::kBytes, p.query.at<const T>(block.b, h, q),
        p.query.stride_row, p.len_q - q, p.head_dim, p.vector_rows, thread);
    if (p.has_mask) {
      Traits::Mask::load(smem + Traits::kMaskOffset + stage * Traits::Mask::kBytes, p.mask, block.b, h, q, block.k(),
                         p.len_q, thread);
    }
  }
  FDMA_DEVICE void load_grad_out(int h, int m) const {
    const int q = m * Traits::kQueries;
    load_tile<typename Traits::QueryTile, Traits::kThreads>(
        smem + Traits::kGradOutOffset, p.grad_out.at<const T>(block.b, h, q), p.grad_out.stride_row, p.len_q - q,
        p.head_dim, p.vector_rows, thread);
  }
  FDMA_DEVICE void load_bias(int h, int m) const {
    if constexpr (Traits::kBiased) {
      const BiasTileSource source(p.bias, block.b, h, m * Traits::kQueries, block.k(), p.len_q, p.len_k);
      Traits::Bias::load(smem + Traits::kBiasOffset, source, thread);
    }
  }
};

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
        const int64_t row_tile = tile * Traits::kQueries / kMaskTile;
        live = (__ldg(p_.mask.row_tile(block_.b, h, row_tile) + key_tile / 32) & bits) != 0;
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

// Deterministic mode: key tiles add to a tile of dQ in ascending order. The counter of the tile says how many have; a
// block waits only for blocks with a smaller index, and those are started first.
class QuerySumOrder {
 public:
  FDMA_DEVICE QuerySumOrder(const BackwardParams& p, int b, int h, int m, int tiles)
      : counter_(p.tile_order + (static_cast<int64_t>(b) * p.heads_q + h) * tiles + m) {}

  FDMA_DEVICE void wait(int rank) const {
    if (threadIdx.x == 0) {
      int done;
      do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(done) : "l"(counter_) : "memory");
      } while (done != rank);
    }
    __syncthreads();
  }
  FDMA_DEVICE void release(int rank) const {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(counter_), "r"(rank + 1) : "memory");
    }
  }

 private:
  int* counter_;
};

// How many key tiles before tile n add to query tile m: all, or those in which the mask leaves a score.
template <typename Traits>
FDMA_DEVICE int query_sum_rank(const BackwardParams& p, int b, int h, int m, int n) {
  if (!p.has_mask) return n;
  constexpr bool kTwoMaskTiles = Traits::kKeys == 2 * kMaskTile;      // a key tile covers two mask tiles
  constexpr int kShared = max_of<int>(1, kMaskTile / Traits::kKeys);  // or a mask tile covers kShared key tiles
  const uint32_t* words = p.mask.row_tile(b, h, m * Traits::kQueries / kMaskTile);
  const int end = n * Traits::kKeys / static_cast<int>(kMaskTile);
  int rank = 0;
  for (int begin = 0; begin < end; begin += 32) {
    uint32_t live = __ldg(words + begin / 32);
    if (kTwoMaskTiles) live = (live | (live >> 1)) & 0x55555555u;
    if (end - begin < 32) live &= (1u << (end - begin)) - 1;
    rank += __popc(live) * kShared;
  }
  const int before = n % kShared;  // key tiles before n in n's own mask tile
  if (before > 0 && ((__ldg(words + end / 32) >> (end % 32)) & 1)) rank += before;
  return rank;
}

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
};

// x = A B^T of two tiles with rows of head_dim: S from Q and K, dP from dO and V.
template <typename Traits, int kM, int kN>
FDMA_DEVICE void score_product(float (&x)[kM][kN][4], const BackwardContext<Traits>& c, uint32_t query_side,
                               uint32_t key_side) {
  clear(x);
  const MatrixAddress<typename Traits::QueryTile> a(query_side, c.score_row(), 0, c.lane);
  const MatrixAddress<typename Traits::KeyTile> b(key_side, c.score_col(), 0, c.lane);
  gemm<typename Traits::T, Major::kK, Major::kK, Traits::kHeadDim / 16>(x, a, b);
}

// acc += X^T Y over the rows (queries) of a score tile X and a query tile Y: dV from P and dO, dK from dS and Q.
template <typename Traits, int kM, int kN>
FDMA_DEVICE void add_key_product(float (&acc)[kM][kN][4], const BackwardContext<Traits>& c, uint32_t score_tile,
                                 uint32_t query_tile) {
  const MatrixAddress<typename Traits::ScoreTile> a(score_tile, 0, c.key_row(), c.lane);
  const MatrixAddress<typename Traits::QueryTile> b(query_tile, 0, c.key_col(), c.lane);
  gemm<typename Traits::T, Major::kMN, Major::kMN, Traits::kQueries / 16>(acc, a, b);
}

// P = exp2(x * unit - lse). A masked score is -inf whatever the sign of the unit.
template <int kM, int kN>
FDMA_DEVICE void weights_from_bits(float (&x)[kM][kN][4], const float2 (&stats)[kM][2], float unit) {
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int j = 0; j < kN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float bits = x[i][j][e];
        x[i][j][e] = exp2_approx(bits == -INFINITY ? bits : fmaf(bits, unit, -stats[i][e / 2].x));
      }
    }
  }
}

// Turns q.k into P. The bias, where there is one, has landed; mask bits are those of `stage`.
template <typename Traits, int kM, int kN>
FDMA_DEVICE void scores_to_weights(float (&x)[kM][kN][4], const float2 (&stats)[kM][2],
                                   const BackwardContext<Traits>& c, int m, int stage) {
  const BackwardParams& p = c.p;
  const bool folded = !Traits::kBiased && !c.unit.capped();
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
  const int col0 = c.block.k() + c.score_col();
  if (col0 + Traits::kScoreCols > key_limit(row0, p.len_q, p.len_k, p.is_causal)) {
    apply_key_limit(x, row0, col0, p.len_q, p.len_k, p.is_causal, c.lane);
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
    if (!active_) return;
    for (; h_ < h; ++h_, row_ = 0) clear(c_.p.len_q);
    clear(q);
    row_ = q + rows;
  }
  FDMA_DEVICE void finish() { clear_until((c_.block.kv_head + 1) * c_.p.group, 0, 0); }

 private:
  FDMA_DEVICE void clear(int row_end) const {
    if (row_ >= row_end || h_ >= (c_.block.kv_head + 1) * c_.p.group) return;
    const BackwardParams& p = c_.p;
    const ScoreGradients target(p.grad_bias, p.bias.type, static_cast<int64_t>(c_.block.b) * p.heads_q + h_, p.len_q,
                                p.len_k);
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
    const ScoreGradients target(p.grad_bias, p.bias.type, static_cast<int64_t>(c.block.b) * p.heads_q + h, p.len_q,
                                p.len_k);
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
    if (c.block.k() + k < c.p.len_k) {
      c.p.grad_bias_keys[(static_cast<int64_t>(c.block.b) * c.p.heads_q + h) * c.p.len_k + c.block.k() + k] = total;
    }
  }
}

template <typename Traits>
FDMA_DEVICE void add_query_gradient(const BackwardContext<Traits>& c, int h, int m) {
  using Sum = typename Traits::QuerySum;
  const BackwardParams& p = c.p;
  float grad[Sum::kM][Sum::kN][4];
  clear(grad);
  const MatrixAddress<typename Traits::ScoreTile> a(c.smem + Traits::kGradScoreOffset, Sum::warp_row(c.warp), 0,
                                                    c.lane);
  const MatrixAddress<typename Traits::KeyTile> b(c.smem + Traits::kKeyOffset, 0, Sum::warp_col(c.warp), c.lane);
  gemm<typename Traits::T, Major::kK, Major::kMN, Traits::kKeys / 16>(grad, a, b);

  const int tiles = c.block.tile_count;
  float* tile = Sum::tile(p.grad_query_sum, static_cast<int64_t>(c.block.b) * p.heads_q + h, tiles, m);
  if (p.tile_order == nullptr) {
    Sum::add(tile, grad, c.thread);
  } else {
    const QuerySumOrder order(p, c.block.b, h, m, tiles);
    const int rank = query_sum_rank<Traits>(p, c.block.b, h, m, c.block.n);
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
  store_tile<typename Traits::KeyTile, Traits::kThreads>(stage, target.at<T>(c.block.b, c.block.kv_head, c.block.k()),
                                                         target.stride_row, c.p.len_k - c.block.k(), c.p.head_dim,
                                                         c.p.vector_grads, c.thread);
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) backward_kernel(const __grid_constant__ BackwardParams p) {
  constexpr int kStages = Traits::kStages;
  constexpr int kScoreM = Traits::kScoreRows / 16, kScoreN = Traits::kScoreCols / 8;
  constexpr int kKeyM = Traits::kKeyRows / 16, kKeyN = Traits::kKeyCols / 8;
  extern __shared__ __align__(1024) char smem_bytes[];
  const uint32_t smem = smem_address(smem_bytes);
  const int thread = threadIdx.x;
  const BackwardBlock<Traits> block(p);
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
  if (p.bias_grad == BiasGradMode::kKeys) {
    float* sums = reinterpret_cast<float*>(smem_bytes + Traits::kColumnSumOffset);
    for (int k = thread; k < Traits::kScoreWarpsQ * Traits::kKeys; k += Traits::kThreads) sums[k] = 0.f;
  }

  QueryWalk<Traits> walk(p, block);
  walk.advance();
  if (!walk.done()) {
    loader.load_key_value();
    loader.load_query(walk.h, walk.m, 0);
    loader.load_grad_out(walk.h, walk.m);
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
    __syncthreads();  // Q and dO of this tile are there; nobody still reads the previous Q
    if (kStages == 2) {
      if (more) loader.load_query(walk.h, walk.m, stage ^ 1);
      copy_async_commit();
    }

    float2 stats[kScoreM][2];
    const float2* row_stats = p.row_stats + (static_cast<int64_t>(block.b) * p.heads_q + h) * p.stats_rows +
                              m * Traits::kQueries + c.score_row() + c.lane / 4;
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
    score_product(grad_scores, c, smem + Traits::kGradOutOffset, smem + Traits::kValueOffset);
    to_grad_scores(grad_scores, weights, stats);
    if constexpr (Traits::kBias == BiasForm::kFloat) __syncthreads();  // the bias covers P and dS of other warps
    store_accumulator<typename Traits::T, typename Traits::ScoreTile>(smem + Traits::kWeightOffset, weights,
                                                                      c.score_row(), c.score_col(), 1.f, c.lane);
    if constexpr (Traits::kBiased) emit_bias_gradient(grad_scores, c, h, m);
    if (unit.capped()) apply_softcap_gradient(grad_scores, weights, c, stage);
    store_accumulator<typename Traits::T, typename Traits::ScoreTile>(smem + Traits::kGradScoreOffset, grad_scores,
                                                                      c.score_row(), c.score_col(), 1.f, c.lane);
    __syncthreads();  // P and dS are there

    if (wants_grad_value) add_key_product(grad_value, c, smem + Traits::kWeightOffset, smem + Traits::kGradOutOffset);
    __syncthreads();  // nobody still reads dO
    if (more) loader.load_grad_out(walk.h, walk.m);
    copy_async_commit();

    if (wants_grad_query) add_query_gradient(c, h, m);
    if (wants_grad_key) add_key_product(grad_key, c, smem + Traits::kGradScoreOffset, c.query_stage(stage));
    if (p.bias_grad == BiasGradMode::kKeys && (!more || walk.h != h)) flush_column_sums(c, h);

    if (Traits::kBiased || kStages == 1) {
      __syncthreads();  // nobody still reads Q and dS
      if (kStages == 1) {
        if (more) loader.load_query(walk.h, walk.m, 0);
        copy_async_commit();
      }
      if (more) loader.load_bias(walk.h, walk.m);
    }
    copy_async_commit();
    stage = kStages == 2 ? stage ^ 1 : 0;
  }

  gaps.finish();
  copy_async_wait<0>();
  __syncthreads();
  store_key_gradient(p.grad_key, grad_key, p.scale, c, smem + Traits::kKeyOffset);
  store_key_gradient(p.grad_value, grad_value, 1.f, c, smem + Traits::kValueOffset);
}

}  // namespace fdma::sm80
