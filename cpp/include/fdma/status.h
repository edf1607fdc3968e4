/* Status codes. Values are pinned and grouped by the thousand; new codes go into the gaps. */
#ifndef FDMA_STATUS_H
#define FDMA_STATUS_H

#include <fdma/export.h>

FDMA_EXTERN_C_BEGIN

typedef enum fdma_status FDMA_ENUM_TYPE {
  FDMA_SUCCESS = 0,
  /* 1xxx: the caller's arguments contradict the documentation. */
  FDMA_INVALID_ARGUMENT = 1000,  /* a value out of its range, a null pointer, a struct that was not initialised */
  FDMA_INVALID_SHAPE = 1010,     /* rank or extents do not fit together */
  FDMA_INVALID_DTYPE = 1020,     /* dtype not among those the argument takes */
  FDMA_INVALID_LAYOUT = 1030,    /* strides or pointer alignment */
  FDMA_INVALID_WORKSPACE = 1040, /* workspace missing, misaligned or too small */
  /* 2xxx: a valid request that this build, device or version does not serve. */
  FDMA_UNSUPPORTED = 2000,
  FDMA_UNSUPPORTED_DEVICE = 2010, /* library built without CUDA, no driver, or a GPU no kernel was built for */
  /* 3xxx: the CUDA runtime reported an error. */
  FDMA_CUDA_ERROR = 3000,
  /* 4xxx: a defect of the library. */
  FDMA_INTERNAL_ERROR = 4000
} fdma_status;

/* Name of a code, "FDMA_INVALID_SHAPE" for example; "FDMA_UNKNOWN_STATUS" for any other number. Static storage. */
FDMA_API const char* fdma_status_name(fdma_status status);

/* What the last call of this thread that did not return FDMA_SUCCESS found: the argument, its value and what is
   accepted. Empty before the first failure. Valid until this thread's next failing call. */
FDMA_API const char* fdma_last_error_message(void);

FDMA_EXTERN_C_END

#endif
