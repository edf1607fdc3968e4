// What a backend offers to cpp/api. Each op is one function that carves its scratch and, unless the workspace only
// counts, runs: `Workspace ws; forward(p, ws, nullptr); ws.used()` is the size.
#pragma once

#include <string>

#include "fdma/types.h"
#include "host/cache_problem.hpp"
#include "host/decode_problem.hpp"
#include "host/pack_mask_problem.hpp"
#include "host/problem.hpp"
#include "host/select_problem.hpp"
#include "host/workspace.hpp"

namespace fdma {

namespace cpu {
void forward(const ForwardProblem& problem, Workspace& workspace);
void backward(const BackwardProblem& problem, Workspace& workspace);
void select(const SelectProblem& problem, Workspace& workspace);
void pack_mask(const PackMaskProblem& problem, Workspace& workspace);
void cache_append(const CacheAppendProblem& problem, Workspace& workspace);
void cache_gather(const CacheGatherProblem& problem, Workspace& workspace);
void decode(const DecodeProblem& problem, Workspace& workspace);
}  // namespace cpu

#if defined(FDMA_WITH_CUDA)
namespace cuda {
// Empty when `device` can run the kernels of this build, otherwise the reason.
std::string unsupported_reason(int device);
void forward(const ForwardProblem& problem, Workspace& workspace, fdma_stream stream);
void backward(const BackwardProblem& problem, Workspace& workspace, fdma_stream stream);
void select(const SelectProblem& problem, Workspace& workspace, fdma_stream stream);
void pack_mask(const PackMaskProblem& problem, Workspace& workspace, fdma_stream stream);
void cache_append(const CacheAppendProblem& problem, Workspace& workspace, fdma_stream stream);
void cache_gather(const CacheGatherProblem& problem, Workspace& workspace, fdma_stream stream);
void decode(const DecodeProblem& problem, Workspace& workspace, fdma_stream stream);
// Which of the kernels that a device can run the calls of this thread take. Tests try the others on a large GPU.
enum class KernelFamily {
  kBest,
  kPortable,   // none of one architecture alone
  kSmallTiles  // of the portable ones those for devices with 99 KB of shared memory a block
};
extern thread_local KernelFamily kernel_family;
}  // namespace cuda
#endif

// Empty when this build can run on `device`, otherwise the reason. `device` is of a known type.
std::string device_unsupported_reason(fdma_device device);

// Runs a problem on its device, or counts its scratch when the workspace counts.
void run(const ForwardProblem& problem, Workspace& workspace, fdma_stream stream);
void run(const BackwardProblem& problem, Workspace& workspace, fdma_stream stream);
void run(const SelectProblem& problem, Workspace& workspace, fdma_stream stream);
void run(const PackMaskProblem& problem, Workspace& workspace, fdma_stream stream);
void run(const CacheAppendProblem& problem, Workspace& workspace, fdma_stream stream);
void run(const CacheGatherProblem& problem, Workspace& workspace, fdma_stream stream);
void run(const DecodeProblem& problem, Workspace& workspace, fdma_stream stream);

}  // namespace fdma
