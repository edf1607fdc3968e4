#include "fdma/attention.h"

#include "api/operation.hpp"
#include "host/parameters.hpp"

namespace {

constexpr fdma::Operation kForward{"fdma_attention_forward_params", fdma::make_forward_problem};
constexpr fdma::Operation kBackward{"fdma_attention_backward_params", fdma::make_backward_problem};

}  // namespace

void fdma_attention_forward_params_init_sized(fdma_attention_forward_params* params, size_t struct_size) {
  fdma::init_parameters(params, struct_size);
}

void fdma_attention_backward_params_init_sized(fdma_attention_backward_params* params, size_t struct_size) {
  fdma::init_parameters(params, struct_size);
}

fdma_status fdma_attention_forward_supported(const fdma_attention_forward_params* params) {
  return kForward.supported(params);
}

fdma_status fdma_attention_forward_workspace_size(const fdma_attention_forward_params* params, size_t* bytes) {
  return kForward.workspace_size(params, bytes);
}

fdma_status fdma_attention_forward(const fdma_attention_forward_params* params, void* workspace, size_t workspace_bytes,
                                   fdma_stream stream) {
  return kForward.call(params, workspace, workspace_bytes, stream);
}

fdma_status fdma_attention_backward_supported(const fdma_attention_backward_params* params) {
  return kBackward.supported(params);
}

fdma_status fdma_attention_backward_workspace_size(const fdma_attention_backward_params* params, size_t* bytes) {
  return kBackward.workspace_size(params, bytes);
}

fdma_status fdma_attention_backward(const fdma_attention_backward_params* params, void* workspace,
                                    size_t workspace_bytes, fdma_stream stream) {
  return kBackward.call(params, workspace, workspace_bytes, stream);
}
