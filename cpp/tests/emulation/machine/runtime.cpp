// The CUDA runtime as far as the library and its tests call it: one device of compute capability 9.0 whose memory is
// the host's and whose streams are done at once. CUDA Runtime API; "cuTensorMapEncodeTiled" of the CUDA Driver API,
// with the limits that it sets.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "tests/emulation/machine/instructions.hpp"
#include "tests/emulation/machine/tensor_map.hpp"

namespace fdma::emulation {
namespace {

// Few, so that small calls have more tiles than the device has multiprocessors.
constexpr int kMultiprocessors = 5;
constexpr size_t kMemoryAlignment = 1024;

std::vector<std::string> launches;

// Namespace, name and template arguments of a function.
std::string demangle(const char* symbol) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> demangled(abi::__cxa_demangle(symbol, nullptr, nullptr, &status),
                                                         std::free);
  if (status != 0) return symbol;
  std::string name = demangled.get();
  name.resize(std::min(name.size(), name.rfind('(')));
  const std::string type = "void ";
  return name.compare(0, type.size(), type) == 0 ? name.substr(type.size()) : name;
}

CUresult encode(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* size,
                const cuuint64_t* stride, const cuuint32_t* box, const cuuint32_t* element_stride,
                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                CUtensorMapFloatOOBfill fill) {
  const bool is_two_bytes = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  if (!is_two_bytes || rank != kRank || reinterpret_cast<uintptr_t>(base) % 16 != 0 ||
      interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || swizzle != CU_TENSOR_MAP_SWIZZLE_128B ||
      fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE || box[0] * 2 != 128) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  BoxMap encoded{kMapMark, static_cast<char*>(base), {}, {}, {}};
  for (int d = 0; d < kRank; ++d) {
    if (size[d] == 0 || size[d] > uint64_t{1} << 32 || box[d] == 0 || box[d] > 256 || element_stride[d] != 1) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    const uint64_t bytes = d == 0 ? 2 : stride[d - 1];
    if (d > 0 && (bytes % 16 != 0 || bytes >= uint64_t{1} << 40)) return CUDA_ERROR_INVALID_VALUE;
    encoded.size[d] = size[d], encoded.stride[d] = bytes, encoded.box[d] = box[d];
  }
  std::memset(map, 0, sizeof(*map));
  std::memcpy(map, &encoded, sizeof(encoded));
  return CUDA_SUCCESS;
}

}  // namespace

std::string kernel_name(const char* name, const void* kernel) {
  Dl_info info{};
  const bool has_symbol = dladdr(kernel, &info) != 0 && info.dli_sname != nullptr && info.dli_saddr == kernel;
  launches.push_back(has_symbol ? demangle(info.dli_sname) : name);
  return launches.back();
}

std::vector<std::string> take_launches() { return std::exchange(launches, {}); }

}  // namespace fdma::emulation

using namespace fdma::emulation;

extern "C" {

// Device.
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = kMultiprocessors, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = 227 * 1024, cudaSuccess;
    default:
      return cudaErrorNotSupported;
  }
}
// Errors: calls return them, and launches throw.
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "an error of the emulated runtime"; }
const char* cudaGetErrorString(cudaError_t) { return "the emulation does not offer this, or was called wrongly"; }

// Memory. New memory is NaN.
cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  const size_t rounded = (bytes / kMemoryAlignment + 1) * kMemoryAlignment;
  *pointer = std::aligned_alloc(kMemoryAlignment, rounded);
  if (*pointer == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*pointer, 0xff, rounded);
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) { return std::free(pointer), cudaSuccess; }
cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(target, source, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(target, source, bytes, kind);
}
cudaError_t cudaMemset(void* target, int value, size_t bytes) { return std::memset(target, value, bytes), cudaSuccess; }
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(target, value, bytes);
}
cudaError_t cudaMemset2DAsync(void* target, size_t pitch, int value, size_t width, size_t height, cudaStream_t) {
  for (size_t row = 0; row < height; ++row) std::memset(static_cast<char*>(target) + row * pitch, value, width);
  return cudaSuccess;
}

// The driver's function that makes tensor maps is the only one that is asked for.
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  if (std::strcmp(symbol, "cuTensorMapEncodeTiled") != 0) return cudaErrorNotSupported;
  *function = reinterpret_cast<void*>(encode);
  *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

}  // extern "C"
