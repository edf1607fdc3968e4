/* Symbol visibility and C linkage. Everything that is not marked FDMA_API stays inside the library. */
#ifndef FDMA_EXPORT_H
#define FDMA_EXPORT_H

#if defined(__GNUC__) || defined(__clang__)
#define FDMA_API __attribute__((visibility("default")))
#else
#define FDMA_API
#endif

#ifdef __cplusplus
#define FDMA_EXTERN_C_BEGIN extern "C" {
#define FDMA_EXTERN_C_END }
/* With a fixed type every number is a value of an enum, so that the library can refuse those that mean nothing. */
#define FDMA_ENUM_TYPE : int
#else
#define FDMA_EXTERN_C_BEGIN
#define FDMA_EXTERN_C_END
#define FDMA_ENUM_TYPE
#endif

#endif
