#include "host/backend.hpp"

#include "build_config.hpp"

namespace fdma {

std::string device_unsupported_reason(fdma_device device) {
  if (device.type == FDMA_DEVICE_CPU) return {};
#if defined(FDMA_WITH_CUDA)
  return cuda::unsupported_reason(device.index);
#else
  return "device is CUDA, but this libfdma was built " FDMA_BUILD_CUDA
         "; accepted: FDMA_DEVICE_CPU, or a library configured with -DFDMA_CUDA=ON";
#endif
}

void run(const ForwardProblem& problem, Workspace& workspace, fdma_stream stream) {
#if defined(FDMA_WITH_CUDA)
  if (problem.device.type == FDMA_DEVICE_CUDA) return cuda::forward(problem, workspace, stream);
#else
  (void)stream;  // the CPU has none, as fdma/types.h says
#endif
  cpu::forward(problem, workspace);
}

void run(const BackwardProblem& problem, Workspace& workspace, fdma_stream stream) {
#if defined(FDMA_WITH_CUDA)
  if (problem.device.type == FDMA_DEVICE_CUDA) return cuda::backward(problem, workspace, stream);
#else
  (void)stream;
#endif
  cpu::backward(problem, workspace);
}

void run(const SelectProblem& problem, Workspace& workspace, fdma_stream stream) {
#if defined(FDMA_WITH_CUDA)
  if (problem.device.type == FDMA_DEVICE_CUDA) return cuda::select(problem, workspace, stream);
#else
  (void)stream;
#endif
  cpu::select(problem, workspace);
}

void run(const PackMaskProblem& problem, Workspace& workspace, fdma_stream stream) {
#if defined(FDMA_WITH_CUDA)
  if (problem.device.type == FDMA_DEVICE_CUDA) return cuda::pack_mask(problem, workspace, stream);
#else
  (void)stream;
#endif
  cpu::pack_mask(problem, workspace);
}

void run(const CacheAppendProblem& problem, Workspace& workspace, fdma_stream stream) {
#if defined(FDMA_WITH_CUDA)
  if (problem.device.type == FDMA_DEVICE_CUDA) return cuda::cache_append(problem, workspace, stream);
#else
  (void)stream;
#endif
  cpu::cache_append(problem, workspace);
}

void run(const CacheGatherProblem& problem, Workspace& workspace, fdma_stream stream) {
#if defined(FDMA_WITH_CUDA)
  if (problem.device.type == FDMA_DEVICE_CUDA) return cuda::cache_gather(problem, workspace, stream);
#else
  (void)stream;
#endif
  cpu::cache_gather(problem, workspace);
}

}  // namespace fdma
