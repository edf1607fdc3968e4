#include "fdma/device.h"

#include "api/guard.hpp"
#include "host/backend.hpp"
#include "host/device_checks.hpp"

int fdma_cuda_built(void) {
#if defined(FDMA_WITH_CUDA)
  return 1;
#else
  return 0;
#endif
}

fdma_status fdma_device_supported(fdma_device device) {
  return fdma::guard([&] {
    fdma::Reasons reasons;
    if (fdma::check_device(reasons, device)) fdma::check_device_support(reasons, device);
    reasons.throw_if_any();
  });
}
