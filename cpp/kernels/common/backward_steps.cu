// The steps around the main kernels that need no tensor cores: per-row numbers before backward, fixed-order sums after
// it, zeros in rows that belong to no sequence.
#include "kernels/core/launch.cuh"
#include "kernels/launchers.hpp"
#include "kernels/policy/bias_grad.cuh"
#include "kernels/sm80/tile_io.cuh"

namespace fdma {
namespace {

// What every tile of backward needs to know of a query row:
//   lse * log2(e), +inf for a row that sees no key and for the padding rows, so that exp2(score - lse) is 0 there
//   delta = sum_d dO O - grad_lse, so that dS = P (dP - delta)
constexpr int kPrepareThreads = 256;
constexpr int kPrepareLanes = 16;  // of a row at a time, eight elements each
constexpr int kPrepareRows = 4;    // of a group of lanes, one behind the other: their loads are under way together

// A block's share of the sums of dQ becomes zero. Stores wait for nothing, and run beside the loads that follow.
FDMA_DEVICE void clear_query_sums(const BackwardParams& p) {
  const int64_t quads = p.grad_query_elements / 4, share = ceil_div<int64_t>(quads, gridDim.x);
  const int64_t first = blockIdx.x * share, end = min_of(first + share, quads);
  float4* sums = reinterpret_cast<float4*>(p.grad_query_sum);
  for (int64_t i = first + threadIdx.x; i < end; i += kPrepareThreads) sums[i] = make_float4(0.f, 0.f, 0.f, 0.f);
}

// Rows are numbered (b, q, h): neighbours are neighbours in memory.
template <typename T>
__global__ void __launch_bounds__(kPrepareThreads) prepare_backward_kernel(const __grid_constant__ BackwardParams p) {
  constexpr int kGroups = kPrepareThreads / kPrepareLanes;
  const int lane = threadIdx.x % kPrepareLanes;
  const int rows = round_up(p.sequences.max_q, p.row_tiles.tile);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kGroups * kPrepareRows + threadIdx.x / kPrepareLanes;
  float delta[kPrepareRows] = {};
  clear_query_sums(p);
#pragma unroll
  for (int i = 0; i < kPrepareRows; ++i) {
    const int64_t index = first + i * kGroups;
    const int h = static_cast<int>(index % p.heads_q);
    const int q = static_cast<int>(index / p.heads_q % rows);
    const int64_t b = index / p.heads_q / rows;
    if (b >= p.batch) continue;
    const Sequence sequence = p.sequences.at(b);
    if (q >= sequence.len_q) continue;
    const T* out = p.out.at<const T>(b, h, sequence.q_begin + q);
    const T* grad = p.grad_out.at<const T>(b, h, sequence.q_begin + q);
    for (int d = lane * sm80::kChunk; d < p.head_dim; d += kPrepareLanes * sm80::kChunk) {
      const uint4 x = p.vector_out ? *reinterpret_cast<const uint4*>(out + d) : sm80::load_unaligned_chunk(out + d);
      const uint4 y = p.vector_out ? *reinterpret_cast<const uint4*>(grad + d) : sm80::load_unaligned_chunk(grad + d);
      const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const float2 a = Element<T>::unpack(xs[pair]), c = Element<T>::unpack(ys[pair]);
        delta[i] = fmaf(a.x, c.x, fmaf(a.y, c.y, delta[i]));
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kPrepareRows; ++i) {
#pragma unroll
    for (int distance = kPrepareLanes / 2; distance > 0; distance /= 2) {
      delta[i] += __shfl_xor_sync(0xffffffffu, delta[i], distance);
    }
  }
  if (lane >= kPrepareRows) return;
  // Lane i writes row i.
  const float own = lane == 0 ? delta[0] : lane == 1 ? delta[1] : lane == 2 ? delta[2] : delta[3];
  static_assert(kPrepareRows == 4);
  const int64_t index = first + lane * kGroups;
  const int h = static_cast<int>(index % p.heads_q);
  const int q = static_cast<int>(index / p.heads_q % rows);
  const int64_t b = index / p.heads_q / rows;
  if (b >= p.batch) return;
  const Sequence sequence = p.sequences.at(b);
  if (q >= round_up(sequence.len_q, p.row_tiles.tile)) return;
  float2* target = p.stats(p.row_tiles.first(b, sequence.q_begin), h) + q;
  if (q >= sequence.len_q) {
    *target = make_float2(INFINITY, 0.f);
    return;
  }
  const int64_t row = b * p.lse_stride_batch + h * p.lse_stride_head + sequence.q_begin + q;
  const float lse = p.lse[row];
  const bool sees_nothing = lse == -INFINITY;
  const float grad_lse = p.grad_lse != nullptr && !sees_nothing ? p.grad_lse[row] : 0.f;
  *target = make_float2(sees_nothing ? INFINITY : lse * kLog2e, own - grad_lse);
}

constexpr int kReduceThreads = 256;

// Mode kKeys: sums the per-head column sums (B, H, bias_keys) into (bias_batch, bias_heads, 1, bias_keys).
__global__ void __launch_bounds__(kReduceThreads)
    reduce_bias_gradient_keys_kernel(const __grid_constant__ BackwardParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (index >= static_cast<int64_t>(p.bias_batch) * p.bias_heads * p.bias_keys) return;
  const int k = static_cast<int>(index % p.bias_keys);
  const BiasSharers sharers(p, static_cast<int>(index / p.bias_keys / p.bias_heads),
                            static_cast<int>(index / p.bias_keys % p.bias_heads));
  float sum = 0.f;
  for (int b = sharers.batch_begin; b < sharers.batch_end; ++b) {
    for (int h = sharers.head_begin; h < sharers.head_end; ++h) {
      sum += p.grad_bias_keys[(static_cast<int64_t>(b) * p.heads_q + h) * p.bias_keys + k];
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
  float sum = 0.f;
  for (int b = sharers.batch_begin; b < sharers.batch_end && p.grad_lse != nullptr; ++b) {
    const Sequence sequence = p.sequences.at(b);
    const int row_end = p.bias_rows == 1 ? sequence.len_q : min_of(row + 1, sequence.len_q);
    for (int h = sharers.head_begin; h < sharers.head_end; ++h) {
      const int64_t first = b * p.lse_stride_batch + h * p.lse_stride_head + sequence.q_begin;
      for (int q = row; q < row_end; ++q) sum += p.lse[first + q] == -INFINITY ? 0.f : p.grad_lse[first + q];
    }
  }
  store_element(p.grad_bias, p.bias.type, index, sum);
}

constexpr int kClearThreads = 256;
constexpr int kClearBlocks = 64;  // for each sequence, and for what lies behind the last

// Block column x < batch clears behind sequence x up to where the next one may start, column `batch` what no sequence
// reaches. The ranges are mostly empty.
__global__ void __launch_bounds__(kClearThreads) clear_rows_kernel(const __grid_constant__ ClearRowsParams p) {
  const SequenceView& s = p.sequences;
  const int64_t b = blockIdx.x / kClearBlocks;
  const void* cu = p.of_keys ? s.cu_k : s.cu_q;
  const int64_t rows = p.of_keys ? s.rows_k : s.rows_q;
  const auto cut = [&](int64_t row) { return max_of<int64_t>(0, min_of(row, rows)); };
  int64_t begin, end;
  if (b == p.batch) {
    begin = s.packed ? cut(s.boundary(cu, p.batch)) : rows;
    end = rows;
  } else {
    const Sequence sequence = s.at(b);
    begin = p.of_keys ? sequence.k_begin + sequence.len_k : sequence.q_begin + sequence.len_q;
    end = s.packed ? cut(s.boundary(cu, b + 1)) : rows;
  }
  const int64_t batch = b == p.batch ? 0 : b;
  const int64_t row_elements = static_cast<int64_t>(p.heads) * p.head_dim;
  for (int64_t i = (blockIdx.x % kClearBlocks) * kClearThreads + threadIdx.x; i < (end - begin) * row_elements;
       i += kClearBlocks * kClearThreads) {
    const int64_t row = begin + i / row_elements;
    const int h = static_cast<int>(i / p.head_dim % p.heads);
    const int d = static_cast<int>(i % p.head_dim);
    p.tensor.at<uint16_t>(batch, h, row)[d] = 0;
    if (d == 0 && p.lse != nullptr) p.lse[batch * p.lse_stride_batch + h * p.lse_stride_head + row] = -INFINITY;
  }
}

}  // namespace

cudaError_t launch_clear_rows(const ClearRowsParams& p, cudaStream_t stream) {
  return launch(clear_rows_kernel, (p.batch + int64_t{1}) * kClearBlocks, kClearThreads, 0, stream, p);
}

cudaError_t kernel_image_error() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, reduce_bias_gradient_rows_kernel);
}

cudaError_t launch_prepare_backward(const BackwardParams& p, ElementType type, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(p.batch) * round_up(p.sequences.max_q, p.row_tiles.tile) * p.heads_q;
  const int64_t blocks = ceil_div<int64_t>(rows, kPrepareThreads / kPrepareLanes * kPrepareRows);
  if (type == ElementType::kFloat16) {
    return launch(prepare_backward_kernel<half_t>, blocks, kPrepareThreads, 0, stream, p);
  }
  return launch(prepare_backward_kernel<bfloat16_t>, blocks, kPrepareThreads, 0, stream, p);
}

cudaError_t launch_reduce_bias_gradient(const BackwardParams& p, cudaStream_t stream) {
  const bool keys = p.bias_grad == BiasGradMode::kKeys;
  const int64_t elements = static_cast<int64_t>(p.bias_batch) * p.bias_heads * (keys ? p.bias_keys : p.bias_rows);
  const int64_t blocks = ceil_div<int64_t>(elements, kReduceThreads);
  return launch(keys ? reduce_bias_gradient_keys_kernel : reduce_bias_gradient_rows_kernel, blocks, kReduceThreads, 0,
                stream, p);
}

}  // namespace fdma
