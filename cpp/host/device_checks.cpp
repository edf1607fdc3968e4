#include "host/device_checks.hpp"

#include "host/backend.hpp"
#include "host/text.hpp"

namespace fdma {

bool check_device(Reasons& reasons, fdma_device device) {
  if (device.type == FDMA_DEVICE_CPU) {
    if (device.index == 0) return true;
    reasons.add(FDMA_INVALID_ARGUMENT, concat("device.index is ", device.index, "; accepted for the CPU: 0"));
  } else if (device.type == FDMA_DEVICE_CUDA) {
    if (device.index >= 0) return true;
    reasons.add(FDMA_INVALID_ARGUMENT,
                concat("device.index is ", device.index, "; accepted for CUDA: a device ordinal, 0 or more"));
  } else {
    reasons.add(FDMA_INVALID_ARGUMENT, concat("device.type is ", static_cast<int>(device.type),
                                              "; accepted: FDMA_DEVICE_CPU (1), FDMA_DEVICE_CUDA (2)"));
  }
  return false;
}

bool check_device_support(Reasons& reasons, fdma_device device) {
  const std::string reason = device_unsupported_reason(device);
  if (!reason.empty()) reasons.add(FDMA_UNSUPPORTED_DEVICE, reason);
  return reason.empty();
}

void check_num_threads(Reasons& reasons, int32_t num_threads, fdma_device device) {
  if (num_threads < 0) {
    reasons.add(FDMA_INVALID_ARGUMENT,
                concat("num_threads is ", num_threads, "; accepted: 0 (all available) or a positive number"));
  } else if (num_threads > 0 && device.type == FDMA_DEVICE_CUDA) {
    reasons.add(FDMA_INVALID_ARGUMENT,
                concat("num_threads is ", num_threads, "; accepted on CUDA: 0, the threads are those of the CPU"));
  }
}

}  // namespace fdma
