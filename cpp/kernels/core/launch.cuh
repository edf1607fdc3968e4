// Starts a kernel and reports what the runtime says of this launch alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fdma {

template <typename Params>
cudaError_t launch_grid(void (*kernel)(Params), dim3 grid, int threads, int shared_bytes, cudaStream_t stream,
                        const Params& params) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, params);
}

// One dimension of blocks, of which a grid has at most 2^31 - 1.
template <typename Params>
cudaError_t launch(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes, cudaStream_t stream,
                   const Params& params) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch_grid(kernel, dim3(static_cast<unsigned>(blocks)), threads, shared_bytes, stream, params);
}

// Lets a kernel use more shared memory than a block gets by default. The limit is a property of the kernel and the
// device, so it is set again only when the device is new to this kernel.
template <auto kKernel>
cudaError_t allow_shared_memory(int shared_bytes) {
  constexpr int kDefaultBytes = 48 * 1024;
  if (shared_bytes <= kDefaultBytes) return cudaSuccess;
  thread_local int last_device = -1;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess || device == last_device) return error;
  error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error == cudaSuccess) last_device = device;
  return error;
}

// As launch, for kernels with much shared memory.
template <auto kKernel, typename Params>
cudaError_t launch_large(int64_t blocks, int threads, int shared_bytes, cudaStream_t stream, const Params& params) {
  const cudaError_t error = allow_shared_memory<kKernel>(shared_bytes);
  if (error != cudaSuccess) return error;
  return launch<Params>(kKernel, blocks, threads, shared_bytes, stream, params);
}

// Blocks (tile, head, batch): tiles of one head are neighbours. A grid takes 65535 batches; more are more launches.
template <auto kKernel, typename Params>
cudaError_t launch_over_heads(int64_t tiles, int heads, int threads, int shared_bytes, cudaStream_t stream,
                              Params params) {
  constexpr int kMaxGrid = 65535;
  if (tiles == 0 || heads == 0) return cudaSuccess;
  if (tiles > INT32_MAX || heads > kMaxGrid) return cudaErrorInvalidConfiguration;
  cudaError_t error = allow_shared_memory<kKernel>(shared_bytes);
  for (int begin = 0; begin < params.batch && error == cudaSuccess; begin += kMaxGrid) {
    params.batch_begin = begin;
    const int batches = params.batch - begin < kMaxGrid ? params.batch - begin : kMaxGrid;
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(heads), static_cast<unsigned>(batches));
    error = launch_grid<Params>(kKernel, grid, threads, shared_bytes, stream, params);
  }
  return error;
}

}  // namespace fdma
