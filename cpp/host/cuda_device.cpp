#include "host/cuda_device.hpp"

#include <array>
#include <mutex>
#include <string>

#include "host/backend.hpp"
#include "host/error.hpp"
#include "host/text.hpp"
#include "kernels/launchers.hpp"

namespace fdma::cuda {
namespace {

constexpr int kMaxDevices = 64;
constexpr int kMinimumCapability = 80;

struct DeviceEntry {
  std::once_flag once;
  DeviceInfo info{};
  std::string unsupported;  // why the device cannot run the kernels, or empty
};

std::string describe_error(cudaError_t error) {
  return concat(cudaGetErrorName(error), " (", cudaGetErrorString(error), ")");
}

std::string read_device(int device, DeviceInfo& info) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return concat("device is CUDA ", device, ", but the CUDA driver cannot be used: ", describe_error(error));
  }
  if (device >= count) {
    return concat("device.index is ", device, "; this machine has ", count, " CUDA device(s), the first is 0");
  }
  int major = 0, minor = 0, shared_bytes = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "reading the compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "reading the compute capability");
  check(cudaDeviceGetAttribute(&info.multiprocessors, cudaDevAttrMultiProcessorCount, device), "counting SMs");
  check(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "reading the shared memory of a block");
  info.compute_capability = major * 10 + minor;
  constexpr int kRoomyBytes = 163 * 1024;  // sm_80; the tiles for roomy devices fit this
  info.roomy = shared_bytes >= kRoomyBytes;
  if (info.compute_capability < kMinimumCapability) {
    return concat("CUDA device ", device, " has compute capability ", major, ".", minor, "; accepted: 8.0 and newer");
  }
  const DeviceGuard guard(device);
  const cudaError_t image = kernel_image_error();
  if (image != cudaSuccess) {
    return concat("CUDA device ", device, " has compute capability ", major, ".", minor,
                  ", for which this libfdma holds no kernels: ", describe_error(image),
                  "; rebuild with -DFDMA_CUDA_ARCHS=", info.compute_capability);
  }
  return {};
}

const DeviceEntry& device_entry(int device) {
  static std::array<DeviceEntry, kMaxDevices> entries;
  if (device < 0 || device >= kMaxDevices) {
    throw Error(FDMA_UNSUPPORTED_DEVICE, concat("device.index is ", device, "; accepted: 0 to ", kMaxDevices - 1));
  }
  DeviceEntry& entry = entries[static_cast<size_t>(device)];
  std::call_once(entry.once, [&] { entry.unsupported = read_device(device, entry.info); });
  return entry;
}

}  // namespace

void check(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here, so it should not surface again in the caller's next check
  throw Error(FDMA_CUDA_ERROR, concat(doing, ": ", describe_error(error)));
}

const DeviceInfo& device_info(int device) { return device_entry(device).info; }

std::string unsupported_reason(int device) { return device_entry(device).unsupported; }

DeviceGuard::DeviceGuard(int device) {
  int current = 0;
  check(cudaGetDevice(&current), "reading the current device");
  if (current == device) return;
  check(cudaSetDevice(device), "making the device current");
  previous_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

}  // namespace fdma::cuda
