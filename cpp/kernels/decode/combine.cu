// Puts the splits of a decode call together: a block a row, each warp a share of the splits.
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
__global__ void __launch_bounds__(kThreads) combine_splits_kernel(const __grid_constant__ DecodeParams p) {
  __shared__ float4 parts[kWarps][kMaxHeadDim / 4];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t rows = p.rows(), row = blockIdx.x;
  const float* lse = p.partial_lse + row;
  float reference = -INFINITY, total = 0.f;
  for (int s = lane; s < p.splits; s += 32) reference = fmaxf(reference, lse[s * rows]);
  reference = warp_max(reference);
  const float shift = reference == -INFINITY ? 0.f : reference;
  for (int s = lane; s < p.splits; s += 32) total += exp2_approx(lse[s * rows] - shift);
  total = warp_sum(total);

  float4 sums[kLaneQuads] = {};
#pragma unroll 4
  for (int s = warp; s < p.splits; s += kWarps) {
    const float weight = exp2_approx(lse[s * rows] - shift);
    if (weight == 0.f) continue;  // a split without keys has written no output
    const auto* source = reinterpret_cast<const float4*>(p.partial_out + (s * rows + row) * p.head_dim);
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

  const int64_t q = row % p.len_q, head = row / p.len_q;
  if (threadIdx.x == 0 && p.lse != nullptr) p.lse[row] = total == 0.f ? -INFINITY : (reference + log2f(total)) * kLn2;
  const float inverse = total == 0.f ? 0.f : 1.f / total;
  T* out = p.out.template at<T>(head / p.heads_q, head % p.heads_q, q);
  for (int d = threadIdx.x; d < p.head_dim; d += kThreads) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += reinterpret_cast<const float*>(parts[w])[d];
    out[d] = Element<T>::from_float(sum * inverse);
  }
}

}  // namespace

cudaError_t launch_combine_splits(const DecodeParams& p, ElementType type, cudaStream_t stream) {
  const bool is_half = type == ElementType::kFloat16;
  return launch(is_half ? combine_splits_kernel<half_t> : combine_splits_kernel<bfloat16_t>, p.rows(), kThreads, 0,
                stream, p);
}

}  // namespace fdma
