#pragma once

#include "host/problem.hpp"
#include "host/workspace.hpp"

namespace fdma::cpu {

// The packed mask of a problem, or null when it has none. A dense mask is packed into problem.mask.packed_out or, when
// the caller does not want to keep it, into `workspace`; nothing is packed while the workspace only counts.
const void* packed_mask(const AttentionProblem& problem, Workspace& workspace);

}  // namespace fdma::cpu
