// The device is the first NVIDIA GPU: memory of the CUDA runtime, a stream a queue, kernels written to be read.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>

#include "device.hpp"

#define ENGINE_DEVICE __device__

namespace engine {
namespace {

using Element = __nv_bfloat16;

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

template <class F>
__global__ void for_each_kernel(int64_t count, F f) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) f(i);
}

template <class F>
void for_each(Queue& queue, int64_t count, F f) {
  constexpr int kThreads = 256;
  for_each_kernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0, queue.stream()>>>(count, f);
  check(cudaGetLastError(), "kernel launch");
}

}  // namespace
}  // namespace engine

#include "ops.inl"

namespace engine {
namespace {

constexpr int kWarp = 32;
constexpr int kSlices = 16;  // warps of a block, each with a part of a sum

// The sum of `x` over the threads of a block of kWarp * kSlices; every thread gets it.
__device__ float block_sum(float x) {
  __shared__ float parts[kSlices];
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < kSlices; ++i) sum += parts[i];
  return sum;
}

// One block a row.
__global__ void rms_norm_kernel(const float* x, const float* weight, float* y, int64_t width) {
  x += blockIdx.x * width;
  y += blockIdx.x * width;
  float squares = 0.0f;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) squares += x[i] * x[i];
  const float factor = rsqrtf(block_sum(squares) / static_cast<float>(width) + kNormEpsilon);
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) y[i] = x[i] * factor * weight[i];
}

// One block for kRows rows and kWarp columns: each warp sums a slice of `in`, reading w along its columns once for the
// rows.
constexpr int kRows = 8;

__global__ void matmul_kernel(const float* x, const float* w, float* y, int64_t rows, int64_t in, int64_t out,
                              bool add) {
  __shared__ float parts[kSlices][kRows][kWarp];
  const int lane = threadIdx.x % kWarp, slice = threadIdx.x / kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kRows;
  const int here = static_cast<int>(rows - first < kRows ? rows - first : kRows);
  float sums[kRows] = {};
  if (column < out) {
    for (int64_t k = slice; k < in; k += kSlices) {
      const float factor = w[k * out + column];
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        if (row < here) sums[row] += x[(first + row) * in + k] * factor;
      }
    }
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) parts[slice][row][lane] = sums[row];
  __syncthreads();
  // Warp r adds up row r.
  if (slice < here && column < out) {
    float sum = 0.0f;
    for (int i = 0; i < kSlices; ++i) sum += parts[i][slice][lane];
    float& to = y[(first + slice) * out + column];
    to = add ? to + sum : sum;
  }
}

// One warp.
__global__ void largest_kernel(const float* logits, int64_t count, int32_t* token) {
  float best = -INFINITY;
  int index = 0;
  for (int i = threadIdx.x; i < count; i += kWarp) {
    if (logits[i] > best) best = logits[i], index = i;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(~0u, best, step);
    const int other_index = __shfl_xor_sync(~0u, index, step);
    if (other > best || (other == best && other_index < index)) best = other, index = other_index;
  }
  if (threadIdx.x == 0) *token = index;
}

}  // namespace

fdma_device device() { return {FDMA_DEVICE_CUDA, 0}; }
fdma_dtype attention_dtype() { return FDMA_BFLOAT16; }

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  check(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), "cudaMalloc");
  check(cudaMemset(data_, 0, bytes), "cudaMemset");
  check(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");  // no queue waits for that stream
}

Buffer::~Buffer() { cudaFree(data_); }

Queue::Queue(int) { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }

Queue::~Queue() { cudaStreamDestroy(stream_); }

void Queue::upload(void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync to the device");
  wait();
}

void Queue::download(void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync from the device");
  wait();
}

void Queue::wait() { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

std::function<void()> Queue::record(const std::function<void()>& work) {
  // Other threads go on allocating and launching meanwhile.
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  work();
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(error, "cudaGraphInstantiate");
  const std::shared_ptr<CUgraphExec_st> shared(executable, cudaGraphExecDestroy);
  return [shared, stream = stream_] { check(cudaGraphLaunch(shared.get(), stream), "cudaGraphLaunch"); };
}

void rms_norm(Queue& queue, const float* x, const float* weight, float* y, int64_t rows, int64_t width) {
  rms_norm_kernel<<<static_cast<unsigned>(rows), kWarp * kSlices, 0, queue.stream()>>>(x, weight, y, width);
  check(cudaGetLastError(), "rms_norm");
}

void matmul(Queue& queue, const float* x, const float* w, float* y, int64_t rows, int64_t in, int64_t out, bool add) {
  const dim3 grid(static_cast<unsigned>((out + kWarp - 1) / kWarp), static_cast<unsigned>((rows + kRows - 1) / kRows));
  matmul_kernel<<<grid, kWarp * kSlices, 0, queue.stream()>>>(x, w, y, rows, in, out, add);
  check(cudaGetLastError(), "matmul");
}

void largest(Queue& queue, const float* logits, int64_t count, int32_t* token) {
  largest_kernel<<<1, kWarp, 0, queue.stream()>>>(logits, count, token);
  check(cudaGetLastError(), "largest");
}

}  // namespace engine
