#include "fdma/decode.h"

#include "api/operation.hpp"
#include "host/decode_problem.hpp"
#include "host/parameters.hpp"

namespace {

constexpr fdma::Operation kDecode{"fdma_decode_params", fdma::make_decode_problem};

}  // namespace

void fdma_decode_params_init_sized(fdma_decode_params* params, size_t struct_size) {
  fdma::init_parameters(params, struct_size);
}

fdma_status fdma_decode_supported(const fdma_decode_params* params) { return kDecode.supported(params); }

fdma_status fdma_decode_workspace_size(const fdma_decode_params* params, size_t* bytes) {
  return kDecode.workspace_size(params, bytes);
}

fdma_status fdma_decode(const fdma_decode_params* params, void* workspace, size_t workspace_bytes, fdma_stream stream) {
  return kDecode.call(params, workspace, workspace_bytes, stream);
}
