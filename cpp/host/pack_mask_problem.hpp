// Packing of one dense mask, checked and normalised: what the backends are given.
#pragma once

#include "fdma/mask.h"
#include "host/problem.hpp"

namespace fdma {

struct PackMaskProblem {
  fdma_device device{};
  MaskProblem mask;  // kind DENSE, with packed_out
  int num_threads = 0;
};

// As make_forward_problem, see host/problem.hpp.
PackMaskProblem make_pack_mask_problem(const fdma_pack_mask_params& params, bool with_data);

}  // namespace fdma
