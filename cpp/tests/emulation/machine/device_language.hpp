// CUDA's device language for a compiler of the CPU: qualifiers, the place of a thread, intrinsics. CUDA C++ Programming
// Guide, "C++ Language Extensions"; those that kernels use.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "tests/emulation/machine/instructions.hpp"

// CUDA's headers, which choose by it, are above. Kernels choose Hopper's instructions.
#define __CUDA_ARCH__ 900

#undef __shared__
#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // one block runs at a time

inline void __syncthreads() { fdma::emulation::barrier_sync(0, static_cast<int>(blockDim.x)); }
inline int __syncthreads_count(int predicate) { return fdma::emulation::barrier_count(predicate != 0); }
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0; }
inline void __threadfence() {}
inline void __threadfence_block() {}

// Warps. All lanes take part in all of these.
namespace fdma::emulation {

inline int lane() { return static_cast<int>(threadIdx.x % kWarpThreads); }

template <typename T>
T from_lane(uint32_t mask, T value, int lane) {
  T all[kWarpThreads];
  exchange(mask, &value, all, sizeof(T));
  return all[lane % kWarpThreads];
}

template <typename T, typename Operation>
T over_lanes(uint32_t mask, T value, Operation operation) {
  T all[kWarpThreads];
  exchange(mask, &value, all, sizeof(T));
  T result = all[0];
  for (int i = 1; i < kWarpThreads; ++i) result = operation(result, all[i]);
  return result;
}

}  // namespace fdma::emulation

inline void __syncwarp(uint32_t mask = 0xffffffffu) { fdma::emulation::from_lane(mask, char{0}, 0); }
template <typename T>
T __shfl_sync(uint32_t mask, T value, int lane) {
  return fdma::emulation::from_lane(mask, value, lane);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits) {
  return fdma::emulation::from_lane(mask, value, fdma::emulation::lane() ^ bits);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, int distance) {
  const int lane = fdma::emulation::lane();
  return fdma::emulation::from_lane(mask, value, lane >= distance ? lane - distance : lane);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, int distance) {
  const int lane = fdma::emulation::lane();
  return fdma::emulation::from_lane(mask, value,
                                    lane + distance < fdma::emulation::kWarpThreads ? lane + distance : lane);
}
inline uint32_t __ballot_sync(uint32_t mask, bool predicate) {
  const uint32_t bit = predicate ? uint32_t{1} << fdma::emulation::lane() : 0;
  return fdma::emulation::over_lanes(mask, bit, [](uint32_t a, uint32_t b) { return a | b; });
}
inline int __any_sync(uint32_t mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, bool predicate) { return __ballot_sync(mask, predicate) == mask; }
template <typename T>
T __reduce_add_sync(uint32_t mask, T value) {
  return fdma::emulation::over_lanes(mask, value, [](T a, T b) { return a + b; });
}
template <typename T>
T __reduce_max_sync(uint32_t mask, T value) {
  return fdma::emulation::over_lanes(mask, value, [](T a, T b) { return std::max(a, b); });
}
template <typename T>
T __reduce_min_sync(uint32_t mask, T value) {
  return fdma::emulation::over_lanes(mask, value, [](T a, T b) { return std::min(a, b); });
}
template <typename T>
T __reduce_or_sync(uint32_t mask, T value) {
  return fdma::emulation::over_lanes(mask, value, [](T a, T b) { return a | b; });
}

// Bits.
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __popcll(uint64_t x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  }
  return result;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline uint32_t __brev(uint32_t x) {
  uint32_t result = 0;
  for (int i = 0; i < 32; ++i) result |= (x >> i & 1) << (31 - i);
  return result;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += (a >> (8 * i) & 0xff) * (b >> (8 * i) & 0xff);
  return c;
}

// Numbers.
template <typename To, typename From>
To fdma_emulation_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline uint32_t __float_as_uint(float x) { return fdma_emulation_bits<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return fdma_emulation_bits<float>(x); }
inline int __float_as_int(float x) { return fdma_emulation_bits<int>(x); }
inline float __int_as_float(int x) { return fdma_emulation_bits<float>(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __log2f(float x) { return std::log2(x); }
inline float __logf(float x) { return std::log(x); }
inline float __expf(float x) { return std::exp(x); }

// Memory.
template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}
template <typename T, typename U>
T fdma_emulation_replace(T* address, U value) {
  const T old = *address;
  *address = value;
  return old;
}
template <typename T>
T atomicAdd(T* address, T value) {
  return fdma_emulation_replace(address, *address + value);
}
template <typename T>
T atomicOr(T* address, T value) {
  return fdma_emulation_replace(address, *address | value);
}
template <typename T>
T atomicMax(T* address, T value) {
  return fdma_emulation_replace(address, std::max(*address, value));
}
template <typename T>
T atomicMin(T* address, T value) {
  return fdma_emulation_replace(address, std::min(*address, value));
}

// The half of the runtime that is templates.
template <typename Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters),
                               const Parameters& parameters) {
  const fdma::emulation::LaunchShape shape = {config->gridDim, config->blockDim, config->dynamicSmemBytes,
                                              config->stream};
  fdma::emulation::LaunchOf<Parameters>{"a kernel", kernel, shape}(parameters);
  return cudaSuccess;
}
template <typename Function>
cudaError_t cudaFuncSetAttribute(Function*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <typename Function>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Function*) {
  *attributes = {};
  return cudaSuccess;
}
