// What a backend offers to cpp/api. Each op is one function that carves its scratch and, unless the workspace only
// counts, runs: `Workspace ws; forward(p, ws, nullptr); ws.used()` is the size.
#pragma once

#include "fdma/types.h"
#include "host/problem.hpp"
#include "host/workspace.hpp"

namespace fdma {

namespace cpu {
void forward(const ForwardProblem& problem, Workspace& workspace);
void backward(const BackwardProblem& problem, Workspace& workspace);
}  // namespace cpu

#if defined(FDMA_WITH_CUDA)
namespace cuda {
// Empty when `device` can run the kernels of this build, otherwise the reason.
std::string unsupported_reason(int device);
void forward(const ForwardProblem& problem, Workspace& workspace, fdma_stream stream);
void backward(const BackwardProblem& problem, Workspace& workspace, fdma_stream stream);
}  // namespace cuda
#endif

}  // namespace fdma
