// After backward: the fp32 sums of dQ become the gradient of the query.
#pragma once

#include "kernels/sm80/bwd_query_sum.cuh"
#include "kernels/sm80/tile_io.cuh"

namespace fdma::sm80 {

template <typename T_, int kHeadDim_, bool kRoomy_>
struct FinishTraits {
  using T = T_;
  static constexpr BackwardTile kTile = backward_tile(kHeadDim_, kRoomy_);
  using Sum = QuerySum<kHeadDim_, kTile.queries, kTile.warps, kTile.query_warps_q>;
  using Tile = SmemTile<kTile.queries, kHeadDim_>;
  static constexpr int kThreads = Sum::kThreads;
  static constexpr int kSharedBytes = Tile::kBytes;
};

// One block a query tile and head, with the threads of the backward kernel.
template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads) finish_backward_kernel(const __grid_constant__ BackwardParams p) {
  using T = typename Traits::T;
  using Sum = typename Traits::Sum;
  using Tile = typename Traits::Tile;
  extern __shared__ __align__(1024) char smem_bytes[];
  const uint32_t smem = smem_address(smem_bytes);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int q = blockIdx.x * Sum::kQueries;
  const int h = blockIdx.y, b = p.batch_begin + blockIdx.z;
  const Sequence sequence = p.sequences.at(b);
  if (q >= sequence.len_q) return;

  float grad[Sum::kM][Sum::kN][4];
  const int64_t row_tile = p.row_tiles.first(b, sequence.q_begin) + blockIdx.x;
  Sum::read(grad, Sum::tile(p.grad_query_sum, row_tile * p.heads_q + h), thread);
  store_accumulator<T, Tile>(smem, grad, Sum::warp_row(warp), Sum::warp_col(warp), p.scale, lane);
  __syncthreads();
  store_tile<Tile, Traits::kThreads>(smem, p.grad_query.at<T>(b, h, sequence.q_begin + q), p.grad_query.stride_row,
                                     sequence.len_q - q, p.head_dim, p.vector_grads, thread);
}

}  // namespace fdma::sm80
