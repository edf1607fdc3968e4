// Rules for the scratch that a caller brings.
#pragma once

#include <cstddef>

namespace fdma {

// Throws fdma::Error unless `workspace` has the `needed` bytes at the documented alignment. Nothing is asked of the
// workspace of a call that needs none.
void check_workspace(const void* workspace, size_t bytes, size_t needed);

}  // namespace fdma
