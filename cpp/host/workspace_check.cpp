#include "host/workspace_check.hpp"

#include "fdma/attention.h"
#include "host/reasons.hpp"
#include "host/text.hpp"

namespace fdma {

void check_workspace(const void* workspace, size_t bytes, size_t needed) {
  if (needed == 0) return;
  Reasons reasons;
  if (workspace == nullptr) {
    reasons.add(FDMA_INVALID_WORKSPACE, concat("workspace is NULL; accepted: ", needed, " bytes on the call's device"));
  } else if (reinterpret_cast<uintptr_t>(workspace) % FDMA_WORKSPACE_ALIGNMENT != 0) {
    reasons.add(FDMA_INVALID_WORKSPACE,
                concat("workspace is ", workspace, "; accepted: a multiple of ", FDMA_WORKSPACE_ALIGNMENT, " bytes"));
  }
  if (bytes < needed) {
    reasons.add(FDMA_INVALID_WORKSPACE,
                concat("workspace_bytes is ", bytes, "; accepted: ", needed, " or more, as *_workspace_size says"));
  }
  reasons.throw_if_any();
}

}  // namespace fdma
