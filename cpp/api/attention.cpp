#include "fdma/attention.h"

#include "api/guard.hpp"
#include "host/backend.hpp"
#include "host/mask_layout.hpp"
#include "host/parameters.hpp"
#include "host/workspace_check.hpp"

namespace fdma {
namespace {

ForwardProblem make_problem(const fdma_attention_forward_params* params, bool with_data) {
  return make_forward_problem(deref(params, "params is NULL; accepted: fdma_attention_forward_params"), with_data);
}

BackwardProblem make_problem(const fdma_attention_backward_params* params, bool with_data) {
  return make_backward_problem(deref(params, "params is NULL; accepted: fdma_attention_backward_params"), with_data);
}

template <typename Problem>
size_t scratch_bytes(const Problem& problem) {
  Workspace counter;
  run(problem, counter, nullptr);
  return counter.used();
}

// The three entry points of an op. Support is what remains of a call when nothing is run.
template <typename Params>
fdma_status supported(const Params* params) {
  return guard([&] { scratch_bytes(make_problem(params, /*with_data=*/false)); });
}

template <typename Params>
fdma_status workspace_size(const Params* params, size_t* bytes) {
  return guard([&] {
    size_t& result = deref(bytes, "bytes is NULL; accepted: where to write the size");
    result = scratch_bytes(make_problem(params, /*with_data=*/false));
  });
}

template <typename Params>
fdma_status call(const Params* params, void* workspace, size_t workspace_bytes, fdma_stream stream) {
  return guard([&] {
    const auto problem = make_problem(params, /*with_data=*/true);
    check_workspace(workspace, workspace_bytes, scratch_bytes(problem));
    Workspace scratch(workspace);
    run(problem, scratch, stream);
  });
}

}  // namespace
}  // namespace fdma

void fdma_attention_forward_params_init_sized(fdma_attention_forward_params* params, size_t struct_size) {
  fdma::init_parameters(params, struct_size);
}

void fdma_attention_backward_params_init_sized(fdma_attention_backward_params* params, size_t struct_size) {
  fdma::init_parameters(params, struct_size);
}

fdma_status fdma_attention_forward_supported(const fdma_attention_forward_params* params) {
  return fdma::supported(params);
}

fdma_status fdma_attention_forward_workspace_size(const fdma_attention_forward_params* params, size_t* bytes) {
  return fdma::workspace_size(params, bytes);
}

fdma_status fdma_attention_forward(const fdma_attention_forward_params* params, void* workspace, size_t workspace_bytes,
                                   fdma_stream stream) {
  return fdma::call(params, workspace, workspace_bytes, stream);
}

fdma_status fdma_attention_backward_supported(const fdma_attention_backward_params* params) {
  return fdma::supported(params);
}

fdma_status fdma_attention_backward_workspace_size(const fdma_attention_backward_params* params, size_t* bytes) {
  return fdma::workspace_size(params, bytes);
}

fdma_status fdma_attention_backward(const fdma_attention_backward_params* params, void* workspace,
                                    size_t workspace_bytes, fdma_stream stream) {
  return fdma::call(params, workspace, workspace_bytes, stream);
}

fdma_status fdma_mask_packed_size(const fdma_tensor* mask, int64_t len_k, size_t* bytes) {
  return fdma::guard([&] {
    const fdma_tensor& tensor = fdma::deref(mask, "mask is NULL; accepted: a tensor with rank and shape");
    size_t& result = fdma::deref(bytes, "bytes is NULL; accepted: where to write the size");
    result = static_cast<size_t>(fdma::packed_size_of_mask(tensor, len_k));
  });
}
