#include "fdma/cache.h"

#include "api/operation.hpp"
#include "host/cache_problem.hpp"
#include "host/parameters.hpp"

namespace {

constexpr fdma::Operation kAppend{"fdma_cache_append_params", fdma::make_cache_append_problem};
constexpr fdma::Operation kGather{"fdma_cache_gather_params", fdma::make_cache_gather_problem};

}  // namespace

void fdma_cache_append_params_init_sized(fdma_cache_append_params* params, size_t struct_size) {
  fdma::init_parameters(params, struct_size);
}

void fdma_cache_gather_params_init_sized(fdma_cache_gather_params* params, size_t struct_size) {
  fdma::init_parameters(params, struct_size);
}

fdma_status fdma_cache_append_supported(const fdma_cache_append_params* params) { return kAppend.supported(params); }

fdma_status fdma_cache_append_workspace_size(const fdma_cache_append_params* params, size_t* bytes) {
  return kAppend.workspace_size(params, bytes);
}

fdma_status fdma_cache_append(const fdma_cache_append_params* params, void* workspace, size_t workspace_bytes,
                              fdma_stream stream) {
  return kAppend.call(params, workspace, workspace_bytes, stream);
}

fdma_status fdma_cache_gather_supported(const fdma_cache_gather_params* params) { return kGather.supported(params); }

fdma_status fdma_cache_gather_workspace_size(const fdma_cache_gather_params* params, size_t* bytes) {
  return kGather.workspace_size(params, bytes);
}

fdma_status fdma_cache_gather(const fdma_cache_gather_params* params, void* workspace, size_t workspace_bytes,
                              fdma_stream stream) {
  return kGather.call(params, workspace, workspace_bytes, stream);
}
