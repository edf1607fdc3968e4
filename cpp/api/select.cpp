#include "fdma/select.h"

#include "api/operation.hpp"
#include "host/parameters.hpp"
#include "host/select_problem.hpp"

namespace {

constexpr fdma::Operation kSelect{"fdma_select_params", fdma::make_select_problem};

}  // namespace

void fdma_select_params_init_sized(fdma_select_params* params, size_t struct_size) {
  fdma::init_parameters(params, struct_size);
}

fdma_status fdma_select_supported(const fdma_select_params* params) { return kSelect.supported(params); }

fdma_status fdma_select_workspace_size(const fdma_select_params* params, size_t* bytes) {
  return kSelect.workspace_size(params, bytes);
}

fdma_status fdma_select(const fdma_select_params* params, void* workspace, size_t workspace_bytes, fdma_stream stream) {
  return kSelect.call(params, workspace, workspace_bytes, stream);
}
