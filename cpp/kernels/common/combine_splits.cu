// Puts the parts of split rows together (decode, the tail of forward: a block a row, each warp a share of the parts),
// and the gradients of split key tiles.
#include "kernels/core/launch.cuh"
#include "kernels/core/numeric.cuh"
#include "kernels/launchers.hpp"

namespace fdma {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kMaxHeadDim = 256;
constexpr int kLaneQuads = kMaxHeadDim / (32 * 4);

FDMA_DEVICE float warp_max(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}
FDMA_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) combine_splits_kernel(const __grid_constant__ CombineParams p) {
  __shared__ float4 parts[kWarps][kMaxHeadDim / 4];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t rows = p.parts.rows, row = blockIdx.x;
  const TileQueue::Place place = p.queue.at(p.first_tile + static_cast<int>(row / p.tile_rows));
  const int q = place.tile * p.tile_rows + static_cast<int>(row % p.tile_rows);
  if (q >= p.len_q) return;
  const float* lse = p.parts.lse + row;
  float reference = -INFINITY, total = 0.f;
  for (int s = lane; s < p.count; s += 32) reference = fmaxf(reference, lse[s * rows]);
  reference = warp_max(reference);
  const float shift = reference == -INFINITY ? 0.f : reference;
  for (int s = lane; s < p.count; s += 32) total += exp2_approx(lse[s * rows] - shift);
  total = warp_sum(total);

  float4 sums[kLaneQuads] = {};
#pragma unroll 4
  for (int s = warp; s < p.count; s += kWarps) {
    const float weight = exp2_approx(lse[s * rows] - shift);
    if (weight == 0.f) continue;  // a part without keys has written no output
    const auto* source = reinterpret_cast<const float4*>(p.parts.out + (s * rows + row) * p.head_dim);
#pragma unroll
    for (int i = 0; i < kLaneQuads; ++i) {
      if ((lane + 32 * i) * 4 >= p.head_dim) break;
      const float4 quad = source[lane + 32 * i];
      sums[i].x += weight * quad.x, sums[i].y += weight * quad.y;
      sums[i].z += weight * quad.z, sums[i].w += weight * quad.w;
    }
  }
#pragma unroll
  for (int i = 0; i < kLaneQuads; ++i) parts[warp][lane + 32 * i] = sums[i];
  __syncthreads();

  const int b = place.head / p.heads_q, h = place.head % p.heads_q;
  if (threadIdx.x == 0 && p.lse != nullptr) {
    p.lse[b * p.lse_stride_batch + h * p.lse_stride_head + q] =
        total == 0.f ? -INFINITY : (reference + log2f(total)) * kLn2;
  }
  const float inverse = total == 0.f ? 0.f : 1.f / total;
  T* out = p.out.template at<T>(b, h, q);
  for (int d = threadIdx.x; d < p.head_dim; d += kThreads) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += reinterpret_cast<const float*>(parts[w])[d];
    out[d] = Element<T>::from_float(sum * inverse);
  }
}

// A thread has four elements of a key's gradient.
template <typename T>
__global__ void __launch_bounds__(kThreads) combine_gradients_kernel(const __grid_constant__ BackwardParams p) {
  const TailSplit& tail = p.tail;
  const int tile_keys = p.tail_keys;
  const int quads = p.head_dim / 4;
  const int64_t tile_quads = int64_t{tile_keys} * quads;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= tail.tiles * 2 * tile_quads) return;
  const int key_tiles = ceil_div(p.sequences.max_k, tile_keys);
  const int64_t first = int64_t{key_tiles} * p.heads_kv * p.batch - tail.tiles;
  const int64_t tile = first + index / (2 * tile_quads);
  const bool of_value = index / tile_quads % 2 != 0;
  const int key = static_cast<int>(tile % key_tiles) * tile_keys + static_cast<int>(index % tile_quads / quads);
  const TensorView& target = of_value ? p.grad_value : p.grad_key;
  if (target.data == nullptr || key >= p.sequences.max_k) return;
  float4 sum = {};
  for (int part = 0; part < tail.parts; ++part) {
    const float4 quad = reinterpret_cast<const float4*>(p.tail_grads)[part * tail.tiles * 2 * tile_quads + index];
    sum.x += quad.x, sum.y += quad.y, sum.z += quad.z, sum.w += quad.w;
  }
  const float scale = of_value ? 1.f : p.scale;
  const int64_t head = tile / key_tiles;
  T* row = target.template at<T>(head / p.heads_kv, head % p.heads_kv, key) + index % quads * 4;
  row[0] = Element<T>::from_float(sum.x * scale), row[1] = Element<T>::from_float(sum.y * scale);
  row[2] = Element<T>::from_float(sum.z * scale), row[3] = Element<T>::from_float(sum.w * scale);
}

}  // namespace

cudaError_t launch_combine_splits(const CombineParams& p, ElementType type, cudaStream_t stream) {
  const bool is_half = type == ElementType::kFloat16;
  return launch(is_half ? combine_splits_kernel<half_t> : combine_splits_kernel<bfloat16_t>, p.parts.rows, kThreads, 0,
                stream, p);
}

cudaError_t launch_combine_gradients(const BackwardParams& p, ElementType type, cudaStream_t stream) {
  const int64_t quads = int64_t{p.tail.tiles} * 2 * p.tail_keys * (p.head_dim / 4);
  const bool is_half = type == ElementType::kFloat16;
  return launch(is_half ? combine_gradients_kernel<half_t> : combine_gradients_kernel<bfloat16_t>,
                ceil_div<int64_t>(quads, kThreads), kThreads, 0, stream, p);
}

}  // namespace fdma
