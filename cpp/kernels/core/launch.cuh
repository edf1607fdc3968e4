// Starts a kernel and reports what the runtime says of this launch alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fdma {

// A grid has at most 2^31 - 1 blocks.
template <typename Params>
cudaError_t launch(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes, cudaStream_t stream,
                   const Params& params) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, params);
}

// As launch, for kernels that need more shared memory than a block gets by default. The limit is a property of the
// kernel and the device, so it is set again only when the device is new to this kernel.
template <auto kKernel, typename Params>
cudaError_t launch_large(int64_t blocks, int threads, int shared_bytes, cudaStream_t stream, const Params& params) {
  constexpr int kDefaultBytes = 48 * 1024;
  if (shared_bytes > kDefaultBytes) {
    thread_local int last_device = -1;
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    if (device != last_device) {
      error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
      if (error != cudaSuccess) return error;
      last_device = device;
    }
  }
  return launch<Params>(kKernel, blocks, threads, shared_bytes, stream, params);
}

}  // namespace fdma
