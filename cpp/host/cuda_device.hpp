// What the CUDA backend needs to know of devices.
#pragma once

#include <cuda_runtime_api.h>

namespace fdma::cuda {

// Throws FDMA_CUDA_ERROR with what was being done.
void check(cudaError_t error, const char* doing);

struct DeviceInfo {
  int compute_capability;  // 90 for sm_90
  int multiprocessors;
  bool roomy;  // a block may use more than 99 KB of shared memory
};

// Read once a device, then cached.
const DeviceInfo& device_info(int device);

// Makes `device` current for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;  // -1: nothing to restore
};

}  // namespace fdma::cuda
