// Which kernels serve a call.
#pragma once

#include "host/problem.hpp"
#include "kernels/launchers.hpp"

namespace fdma::cuda {

// Throws FDMA_UNSUPPORTED where this build has none for the head dim.
const AttentionKernels& kernels_for(const AttentionProblem& problem);

}  // namespace fdma::cuda
