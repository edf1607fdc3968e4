#include "tests/support/device_memory.hpp"

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "fdma/fdma.h"
#include "kernels/core/math.hpp"

#if defined(FDMA_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace fdma::test {
namespace {

#if defined(FDMA_WITH_CUDA)
void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
#endif

}  // namespace

DeviceMemory::DeviceMemory(fdma_device device, size_t bytes) : device_(device) {
  if (device.type == FDMA_DEVICE_CPU) {
    data_ = std::aligned_alloc(FDMA_WORKSPACE_ALIGNMENT,
                               round_up<size_t>(bytes == 0 ? 1 : bytes, FDMA_WORKSPACE_ALIGNMENT));
    if (data_ == nullptr) throw std::bad_alloc();
    return;
  }
#if defined(FDMA_WITH_CUDA)
  check(cudaMalloc(&data_, bytes == 0 ? 1 : bytes), "cudaMalloc");
#endif
}

DeviceMemory::~DeviceMemory() {
  if (device_.type == FDMA_DEVICE_CPU) std::free(data_);
#if defined(FDMA_WITH_CUDA)
  if (device_.type == FDMA_DEVICE_CUDA) cudaFree(data_);
#endif
}

void DeviceMemory::swap(DeviceMemory& other) {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
}

void DeviceMemory::upload(const void* source, size_t bytes) {
  if (device_.type == FDMA_DEVICE_CPU) std::memcpy(data_, source, bytes);
#if defined(FDMA_WITH_CUDA)
  if (device_.type == FDMA_DEVICE_CUDA) {
    check(cudaMemcpy(data_, source, bytes, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
#endif
}

void DeviceMemory::download(void* destination, size_t bytes) const {
  if (device_.type == FDMA_DEVICE_CPU) std::memcpy(destination, data_, bytes);
#if defined(FDMA_WITH_CUDA)
  if (device_.type == FDMA_DEVICE_CUDA) {
    check(cudaMemcpy(destination, data_, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy from the device");
  }
#endif
}

std::string unavailable_reason(fdma_device device) {
  return fdma_device_supported(device) == FDMA_SUCCESS ? "" : fdma_last_error_message();
}

void synchronize(fdma_device device) {
#if defined(FDMA_WITH_CUDA)
  if (device.type == FDMA_DEVICE_CUDA) check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
#else
  static_cast<void>(device);
#endif
}

}  // namespace fdma::test
