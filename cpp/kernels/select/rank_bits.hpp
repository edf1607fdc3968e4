// Which bits of selection_rank (policy/selection.hpp) tell the values of a type apart.
#pragma once

#include "kernels/core/params.hpp"

namespace fdma {

// The lowest bit in which ranks of this type differ: none below it does unless one from it on does too.
FDMA_HOST_DEVICE int lowest_rank_bit(ElementType type) {
  switch (type) {
    case ElementType::kBFloat16:
      return 16;
    case ElementType::kFloat16:
      return 13;
    default:
      return 0;
  }
}

}  // namespace fdma
