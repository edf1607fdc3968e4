#include "host/attention_checks.hpp"
#include "host/parameters.hpp"
#include "host/text.hpp"

namespace fdma {
namespace {

void* check_grad_bias(const fdma_tensor& tensor, const fdma_bias& bias, bool with_data, Reasons& reasons) {
  if (bias.kind == FDMA_BIAS_NONE) {
    reasons.add(FDMA_INVALID_ARGUMENT,
                "grad_bias is given with bias.kind FDMA_BIAS_NONE (0); accepted with a bias only");
    return nullptr;
  }
  if (!check_rank(reasons, "grad_bias", tensor, 4, "(shape of bias)")) return nullptr;
  if (bias.tensor.rank == 4) {
    const int64_t* shape = bias.tensor.shape;
    check_shape(reasons, "grad_bias", tensor, {shape[0], shape[1], shape[2], shape[3]}, "the shape of bias");
  }
  if (tensor.dtype != bias.tensor.dtype) {
    reasons.add(FDMA_INVALID_DTYPE, concat("grad_bias.dtype is ", dtype_name(tensor.dtype),
                                           "; accepted: ", dtype_name(bias.tensor.dtype), ", the dtype of bias"));
  }
  check_contiguous(reasons, "grad_bias", tensor);
  check_data(reasons, "grad_bias", tensor, with_data, dtype_size(tensor.dtype));
  return address_of(tensor);
}

void check_gradients(const fdma_attention_backward_params& params, bool with_data, AttentionChecker& checker,
                     Reasons& reasons, BackwardProblem& problem) {
  if (params.grad_query.rank != 0) {
    problem.grad_query = checker.check_query_like("grad_query", params.grad_query, Access::kWrite);
  }
  if (params.grad_key.rank != 0) {
    problem.grad_key = checker.check_key_like("grad_key", params.grad_key, Access::kWrite);
  }
  if (params.grad_value.rank != 0) {
    problem.grad_value = checker.check_key_like("grad_value", params.grad_value, Access::kWrite);
  }
  if (params.grad_bias.rank != 0) {
    problem.grad_bias = check_grad_bias(params.grad_bias, params.bias, with_data, reasons);
  }
  if (params.grad_query.rank == 0 && params.grad_key.rank == 0 && params.grad_value.rank == 0 &&
      params.grad_bias.rank == 0) {
    reasons.add(FDMA_INVALID_ARGUMENT,
                "no gradient is given; accepted: at least one of grad_query, grad_key, grad_value, grad_bias");
  }
  check_distinct(reasons,
                 {{"grad_query", params.grad_query},
                  {"grad_key", params.grad_key},
                  {"grad_value", params.grad_value},
                  {"grad_bias", params.grad_bias}},
                 {{"query", params.query},
                  {"key", params.key},
                  {"value", params.value},
                  {"mask.tensor", params.mask.tensor},
                  {"bias.tensor", params.bias.tensor},
                  {"out", params.out},
                  {"lse", params.lse},
                  {"grad_out", params.grad_out},
                  {"grad_lse", params.grad_lse},
                  {"cu_seqlens_q", params.cu_seqlens_q},
                  {"cu_seqlens_k", params.cu_seqlens_k}});
}

}  // namespace

BackwardProblem make_backward_problem(const fdma_attention_backward_params& caller_params, bool with_data) {
  const fdma_attention_backward_params params = read_parameters(caller_params);
  BackwardProblem problem;
  Reasons reasons;
  check_reserved(reasons, "reserved", params.reserved);
  check_reserved(reasons, "reserved1", params.reserved1);
  AttentionChecker checker(attention_arguments(params, nullptr), with_data, reasons, problem);
  checker.check_inputs();
  check_flag(reasons, "deterministic", params.deterministic);
  problem.deterministic = params.deterministic != 0;

  problem.out = checker.check_query_like("out", params.out, Access::kRead);
  problem.lse = checker.check_row_statistic("lse", params.lse);
  problem.grad_out = checker.check_query_like("grad_out", params.grad_out, Access::kRead);
  if (params.grad_lse.rank != 0) problem.grad_lse = checker.check_row_statistic("grad_lse", params.grad_lse);

  check_gradients(params, with_data, checker, reasons, problem);
  checker.check_device_support();
  reasons.throw_if_any();
  return problem;
}

}  // namespace fdma
