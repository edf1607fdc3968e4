// Function qualifiers that let index arithmetic serve device code, the CPU backend and plain C++ tests alike.
#pragma once

#if defined(__CUDACC__)
#define FDMA_HOST_DEVICE __host__ __device__ __forceinline__
#define FDMA_DEVICE __device__ __forceinline__
#else
#define FDMA_HOST_DEVICE inline
#endif
