// The steps of backward that need no tensor cores: per-row numbers before it, fixed-order sums after it.
#include "kernels/core/launch.cuh"
#include "kernels/launchers.hpp"
#include "kernels/policy/bias_grad.cuh"
#include "kernels/sm80/tile_io.cuh"

namespace fdma {
namespace {

// What every tile of backward needs to know of a query row:
//   lse * log2(e), +inf for a row that sees no key and for the padding rows, so that exp2(score - lse) is 0 there
//   delta = sum_d dO O - grad_lse, so that dS = P (dP - delta)
constexpr int kPrepareWarps = 8;

// One warp a row, eight elements a lane. Rows are numbered (b, q, h): neighbours are neighbours in memory.
template <typename T>
__global__ void __launch_bounds__(kPrepareWarps * 32)
    prepare_backward_kernel(const __grid_constant__ BackwardParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPrepareWarps + threadIdx.x / 32;
  if (index >= static_cast<int64_t>(p.batch) * p.stats_rows * p.heads_q) return;
  const int lane = threadIdx.x % 32;
  const int h = static_cast<int>(index % p.heads_q);
  const int q = static_cast<int>(index / p.heads_q % p.stats_rows);
  const int b = static_cast<int>(index / p.heads_q / p.stats_rows);
  float2* target = p.row_stats + (static_cast<int64_t>(b) * p.heads_q + h) * p.stats_rows + q;
  if (q >= p.len_q) {
    if (lane == 0) *target = make_float2(INFINITY, 0.f);
    return;
  }
  float delta = 0.f;
  if (lane * sm80::kChunk < p.head_dim) {
    const T* out = p.out.at<const T>(b, h, q) + lane * sm80::kChunk;
    const T* grad = p.grad_out.at<const T>(b, h, q) + lane * sm80::kChunk;
    const uint4 x = p.vector_out ? *reinterpret_cast<const uint4*>(out) : sm80::load_unaligned_chunk(out);
    const uint4 y = p.vector_out ? *reinterpret_cast<const uint4*>(grad) : sm80::load_unaligned_chunk(grad);
    const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 a = Element<T>::unpack(xs[i]), c = Element<T>::unpack(ys[i]);
      delta = fmaf(a.x, c.x, fmaf(a.y, c.y, delta));
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) delta += __shfl_xor_sync(0xffffffffu, delta, distance);
  if (lane == 0) {
    const int64_t row = (static_cast<int64_t>(b) * p.heads_q + h) * p.len_q + q;
    const float lse = p.lse[row];
    const bool sees_nothing = lse == -INFINITY;
    if (p.grad_lse != nullptr && !sees_nothing) delta -= p.grad_lse[row];
    *target = make_float2(sees_nothing ? INFINITY : lse * kLog2e, delta);
  }
}

constexpr int kReduceThreads = 256;

// Mode kKeys: sums the per-head column sums (B, H, Lk) into (bias_batch, bias_heads, 1, Lk).
__global__ void __launch_bounds__(kReduceThreads)
    reduce_bias_gradient_keys_kernel(const __grid_constant__ BackwardParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (index >= static_cast<int64_t>(p.bias_batch) * p.bias_heads * p.len_k) return;
  const int k = static_cast<int>(index % p.len_k);
  const BiasSharers sharers(p, static_cast<int>(index / p.len_k / p.bias_heads),
                            static_cast<int>(index / p.len_k % p.bias_heads));
  float sum = 0.f;
  for (int b = sharers.batch_begin; b < sharers.batch_end; ++b) {
    for (int h = sharers.head_begin; h < sharers.head_end; ++h) {
      sum += p.grad_bias_keys[(static_cast<int64_t>(b) * p.heads_q + h) * p.len_k + k];
    }
  }
  store_element(p.grad_bias, p.bias.type, index, sum);
}

// Mode kRows: one bias element is added to all scores of a row. Softmax does not notice, lse moves by as much:
// the gradient is grad_lse of the rows that see a key, summed over broadcast dimensions.
__global__ void __launch_bounds__(kReduceThreads)
    reduce_bias_gradient_rows_kernel(const __grid_constant__ BackwardParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (index >= static_cast<int64_t>(p.bias_batch) * p.bias_heads * p.bias_rows) return;
  const int row = static_cast<int>(index % p.bias_rows);
  const BiasSharers sharers(p, static_cast<int>(index / p.bias_rows / p.bias_heads),
                            static_cast<int>(index / p.bias_rows % p.bias_heads));
  const int row_end = p.bias_rows == 1 ? p.len_q : row + 1;
  float sum = 0.f;
  if (p.grad_lse != nullptr) {
    for (int b = sharers.batch_begin; b < sharers.batch_end; ++b) {
      for (int h = sharers.head_begin; h < sharers.head_end; ++h) {
        const int64_t first = (static_cast<int64_t>(b) * p.heads_q + h) * p.len_q;
        for (int q = row; q < row_end; ++q) sum += p.lse[first + q] == -INFINITY ? 0.f : p.grad_lse[first + q];
      }
    }
  }
  store_element(p.grad_bias, p.bias.type, index, sum);
}

}  // namespace

cudaError_t kernel_image_error() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, reduce_bias_gradient_rows_kernel);
}

cudaError_t launch_prepare_backward(const BackwardParams& p, ElementType type, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(p.batch) * p.stats_rows * p.heads_q;
  const int64_t blocks = ceil_div<int64_t>(rows, kPrepareWarps);
  if (type == ElementType::kFloat16) {
    return launch(prepare_backward_kernel<half_t>, blocks, kPrepareWarps * 32, 0, stream, p);
  }
  return launch(prepare_backward_kernel<bfloat16_t>, blocks, kPrepareWarps * 32, 0, stream, p);
}

cudaError_t launch_reduce_bias_gradient(const BackwardParams& p, cudaStream_t stream) {
  const bool keys = p.bias_grad == BiasGradMode::kKeys;
  const int64_t elements = static_cast<int64_t>(p.bias_batch) * p.bias_heads * (keys ? p.len_k : p.bias_rows);
  const int64_t blocks = ceil_div<int64_t>(elements, kReduceThreads);
  return launch(keys ? reduce_bias_gradient_keys_kernel : reduce_bias_gradient_rows_kernel, blocks, kReduceThreads, 0,
                stream, p);
}

}  // namespace fdma
