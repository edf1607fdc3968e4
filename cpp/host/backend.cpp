#include "host/backend.hpp"

#include "build_config.hpp"

namespace fdma {
namespace {

// Runs a problem by the function of its device. A build without CUDA has checked that no problem is there, and of the
// CPU there is no stream, as fdma/types.h says.
template <typename Problem>
void run_on_device(const Problem& problem, Workspace& workspace, fdma_stream stream,
                   void (*on_cuda)(const Problem&, Workspace&, fdma_stream),
                   void (*on_cpu)(const Problem&, Workspace&)) {
  if (on_cuda != nullptr && problem.device.type == FDMA_DEVICE_CUDA) return on_cuda(problem, workspace, stream);
  on_cpu(problem, workspace);
}

#if defined(FDMA_WITH_CUDA)
#define FDMA_BACKENDS(operation) cuda::operation, cpu::operation
#else
#define FDMA_BACKENDS(operation) nullptr, cpu::operation
#endif

}  // namespace

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
  run_on_device<ForwardProblem>(problem, workspace, stream, FDMA_BACKENDS(forward));
}

void run(const BackwardProblem& problem, Workspace& workspace, fdma_stream stream) {
  run_on_device<BackwardProblem>(problem, workspace, stream, FDMA_BACKENDS(backward));
}

void run(const SelectProblem& problem, Workspace& workspace, fdma_stream stream) {
  run_on_device<SelectProblem>(problem, workspace, stream, FDMA_BACKENDS(select));
}

void run(const PackMaskProblem& problem, Workspace& workspace, fdma_stream stream) {
  run_on_device<PackMaskProblem>(problem, workspace, stream, FDMA_BACKENDS(pack_mask));
}

void run(const DecodeProblem& problem, Workspace& workspace, fdma_stream stream) {
  run_on_device<DecodeProblem>(problem, workspace, stream, FDMA_BACKENDS(decode));
}

void run(const CacheAppendProblem& problem, Workspace& workspace, fdma_stream stream) {
  run_on_device<CacheAppendProblem>(problem, workspace, stream, FDMA_BACKENDS(cache_append));
}

void run(const CacheGatherProblem& problem, Workspace& workspace, fdma_stream stream) {
  run_on_device<CacheGatherProblem>(problem, workspace, stream, FDMA_BACKENDS(cache_gather));
}

#undef FDMA_BACKENDS

}  // namespace fdma
