// Gradient of a bias that has an element for every (query, key) but is shared by batches or heads (pair biases,
// relative positions): one block of threads owns a tile of the gradient, recomputes dS of every (batch, head) that
// shares it and sums in registers. Two products more than backward has, but no scratch of the size of the scores, no
// atomics, and one fixed order.
#pragma once

#include "kernels/sm80/bwd_kernel.cuh"

namespace fdma::sm80 {

// Everything a block of backward has, with room for one operand pair at a time and the warps 2 x 2.
template <typename T_, int kHeadDim_>
struct BiasGradTraits {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kQueries = 64, kKeys = 64, kThreads = 128;
  static constexpr int kRows = 32, kCols = 32;  // of a warp
  static constexpr int kM = kRows / 16, kN = kCols / 8;
  using Tile = SmemTile<kQueries, kHeadDim>;
  using Bias = BiasStage<BiasForm::kFloat, T, kQueries, kKeys, kThreads>;
  using Mask = MaskStage<kQueries, kKeys, kThreads>;
  static constexpr int kLeftOffset = 0;
  static constexpr int kRightOffset = kLeftOffset + Tile::kBytes;
  static constexpr int kBiasOffset = kRightOffset + Tile::kBytes;
  static constexpr int kMaskOffset = kBiasOffset + Bias::kBytes;
  static constexpr int kSharedBytes = kMaskOffset + Mask::kBytes;
};

template <typename Traits>
struct BiasGradContext {
  const BackwardParams& p;
  char* smem_bytes;
  uint32_t smem;
  int q, k, thread, warp, lane;  // q, k: corner of the tile, inside a sequence

  FDMA_DEVICE int row() const { return warp / 2 * Traits::kRows; }
  FDMA_DEVICE int col() const { return warp % 2 * Traits::kCols; }
};

// x = A B^T for rows q.. of `left` and k.. of `right`.
template <typename Traits>
FDMA_DEVICE void bias_grad_product(float (&x)[Traits::kM][Traits::kN][4], const BiasGradContext<Traits>& c,
                                   const TensorView& left, const TensorView& right, const Sequence& sequence, int b,
                                   int h) {
  using T = typename Traits::T;
  using Tile = typename Traits::Tile;
  const BackwardParams& p = c.p;
  load_tile<Tile, Traits::kThreads>(c.smem + Traits::kLeftOffset, left.at<const T>(b, h, sequence.q_begin + c.q),
                                    left.stride_row, sequence.len_q - c.q, p.head_dim, p.vector_rows, c.thread);
  load_tile<Tile, Traits::kThreads>(c.smem + Traits::kRightOffset,
                                    right.at<const T>(b, h / p.group, sequence.k_begin + c.k), right.stride_row,
                                    sequence.len_k - c.k, p.head_dim, p.vector_rows, c.thread);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  clear(x);
  const AddressA<Tile, Major::kK> a(c.smem + Traits::kLeftOffset, c.row(), 0, c.lane);
  const AddressB<Tile, Major::kK> b_address(c.smem + Traits::kRightOffset, c.col(), 0, c.lane);
  gemm<T, Major::kK, Major::kK, Traits::kHeadDim / 16>(x, a, b_address);
}

// Adds dS of one (batch, head) to `sum`.
template <typename Traits>
FDMA_DEVICE void add_shared_gradient(float (&sum)[Traits::kM][Traits::kN][4], const BiasGradContext<Traits>& c,
                                     const ScoreUnit& unit, const Sequence& sequence, int b, int h) {
  const BackwardParams& p = c.p;
  float2 stats[Traits::kM][2];
  const float2* row_stats = p.stats(p.row_tiles.first(b, sequence.q_begin), h);
#pragma unroll
  for (int i = 0; i < Traits::kM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // The tile may be larger than those the statistics are padded to.
      const int row = c.q + c.row() + c.lane / 4 + 16 * i + 8 * half;
      stats[i][half] = row < sequence.len_q ? __ldg(row_stats + row) : make_float2(INFINITY, 0.f);
    }
  }
  float weights[Traits::kM][Traits::kN][4], grad[Traits::kM][Traits::kN][4];
  if (p.has_mask) {
    const uint32_t* source = Traits::Mask::source(p.mask, b, h, c.q, sequence.len_q, c.thread);
    Traits::Mask::load(c.smem + Traits::kMaskOffset, source, c.k, c.thread);
  }
  bias_grad_product(weights, c, p.query, p.key, sequence, b, h);
  unit.to_bits(weights);
  Traits::Bias::add(weights, c.smem + Traits::kBiasOffset, c.row(), c.col(), c.lane);
  if (p.has_mask) {
    const uint32_t* bits = reinterpret_cast<const uint32_t*>(c.smem_bytes + Traits::kMaskOffset);
    apply_mask_bits(weights, bits + c.row() * Traits::Mask::kWords + c.col() / 32, Traits::Mask::kWords, c.lane);
  }
  apply_key_limit(weights, c.q + c.row(), c.k + c.col(), sequence.len_q, sequence.len_k, p.is_causal, c.lane);
  weights_from_bits(weights, stats, 1.f);
  __syncthreads();
  bias_grad_product(grad, c, p.grad_out, p.value, sequence, b, h);
  to_grad_scores(grad, weights, stats);
#pragma unroll
  for (int i = 0; i < Traits::kM; ++i) {
#pragma unroll
    for (int j = 0; j < Traits::kN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // The tile of the bias is that of the longest sequence: behind this one it may hold anything.
        if (stats[i][e / 2].x != INFINITY) sum[i][j][e] += grad[i][j][e];
      }
    }
  }
  __syncthreads();
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 2) bias_gradient_kernel(const __grid_constant__ BackwardParams p) {
  extern __shared__ __align__(1024) char smem_bytes[];
  const uint32_t smem = smem_address(smem_bytes);
  const int thread = threadIdx.x;
  const int key_tiles = ceil_div(p.bias_keys, Traits::kKeys), query_tiles = ceil_div(p.bias_rows, Traits::kQueries);
  const int k_tile = blockIdx.x % key_tiles;
  const int q_tile = blockIdx.x / key_tiles % query_tiles;
  const int bias_head = blockIdx.x / key_tiles / query_tiles % p.bias_heads;
  const int bias_batch = blockIdx.x / key_tiles / query_tiles / p.bias_heads;
  const BiasGradContext<Traits> c{p,      smem_bytes,  smem,       q_tile * Traits::kQueries, k_tile * Traits::kKeys,
                                  thread, thread / 32, thread % 32};
  const BiasSharers sharers(p, bias_batch, bias_head);
  const ScoreUnit unit(p.scale, p.softcap);
  float sum[Traits::kM][Traits::kN][4];
  clear(sum);

  const int64_t row_element = p.bias.offset(sharers.batch_begin, sharers.head_begin, c.q);
  const BiasTileSource source(p.bias, row_element, c.k, p.bias_rows - c.q, p.bias_keys - c.k);
  Traits::Bias::load(smem + Traits::kBiasOffset, source, thread);
  for (int b = sharers.batch_begin; b < sharers.batch_end; ++b) {
    const Sequence sequence = p.sequences.at(b);
    const int q_last = min_of(c.q + Traits::kQueries, sequence.len_q) - 1;
    if (c.q > q_last || c.k >= key_limit(q_last, sequence.len_q, sequence.len_k, p.is_causal)) continue;
    for (int h = sharers.head_begin; h < sharers.head_end; ++h) {
      if (p.has_mask && !((__ldg(p.mask.row_tile(b, h, q_tile) + k_tile / 32) >> (k_tile % 32)) & 1)) continue;
      add_shared_gradient(sum, c, unit, sequence, b, h);
    }
  }
  copy_async_wait<0>();
  const ScoreGradients target(p.grad_bias, p.bias.type, static_cast<int64_t>(bias_batch) * p.bias_heads + bias_head,
                              p.bias_rows, p.bias_keys);
  target.store(sum, c.q + c.row(), c.k + c.col(), c.lane);
}

}  // namespace fdma::sm80
