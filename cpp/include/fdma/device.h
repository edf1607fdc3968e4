/* What this build can run on. */
#ifndef FDMA_DEVICE_H
#define FDMA_DEVICE_H

#include <fdma/export.h>
#include <fdma/status.h>
#include <fdma/types.h>

FDMA_EXTERN_C_BEGIN

/* 1 when the library was built with CUDA kernels. Touches no device. */
FDMA_API int fdma_cuda_built(void);

/* FDMA_SUCCESS when calls can run on `device`; otherwise FDMA_UNSUPPORTED_DEVICE, and fdma_last_error_message() says
   why (built without CUDA, no driver, no such device, compute capability without kernels). */
FDMA_API fdma_status fdma_device_supported(fdma_device device);

FDMA_EXTERN_C_END

#endif
