/* Version of the library. The build (CMake, pyproject.toml) reads it from these three lines. */
#ifndef FDMA_VERSION_H
#define FDMA_VERSION_H

#include <fdma/export.h>

#define FDMA_VERSION_MAJOR 2
#define FDMA_VERSION_MINOR 0
#define FDMA_VERSION_PATCH 0

FDMA_EXTERN_C_BEGIN

/* Version of the loaded library: major * 10000 + minor * 100 + patch. */
FDMA_API int fdma_version(void);

/* One line for bug reports: version, compiler, CUDA architectures, CPU instruction set in use. Static storage. */
FDMA_API const char* fdma_build_info(void);

FDMA_EXTERN_C_END

#endif
