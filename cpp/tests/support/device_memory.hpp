// Memory on the device of a call: the heap, or a GPU in builds with CUDA.
#pragma once

#include <cstddef>
#include <string>

#include "fdma/types.h"

namespace fdma::test {

inline constexpr fdma_device kCpu{FDMA_DEVICE_CPU, 0};
inline constexpr fdma_device kCuda{FDMA_DEVICE_CUDA, 0};

class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(fdma_device device, size_t bytes);  // starts at a multiple of FDMA_WORKSPACE_ALIGNMENT
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceMemory();

  void* data() const { return data_; }
  // Both wait until the copy is done.
  void upload(const void* source, size_t bytes);
  void download(void* destination, size_t bytes) const;

 private:
  void swap(DeviceMemory& other);

  fdma_device device_ = kCpu;
  void* data_ = nullptr;
};

// Why calls cannot run on the device here; empty when they can.
std::string unavailable_reason(fdma_device device);
// Waits for all work on the device.
void synchronize(fdma_device device);

}  // namespace fdma::test
