#include "host/attention_checks.hpp"
#include "host/mask_layout.hpp"
#include "host/parameters.hpp"
#include "host/text.hpp"

namespace fdma {
namespace {

void* check_packed_mask(const fdma_tensor& tensor, const MaskProblem& mask, bool with_data, Reasons& reasons) {
  if (mask.kind != FDMA_MASK_DENSE) {
    reasons.add(FDMA_INVALID_ARGUMENT, concat("packed_mask is given with mask.kind ", static_cast<int>(mask.kind),
                                              "; accepted with FDMA_MASK_DENSE (1) only"));
    return nullptr;
  }
  return check_packed_output(reasons, tensor, mask.dense ? packed_mask_bytes(mask.layout) : std::nullopt, with_data);
}

}  // namespace

ForwardProblem make_forward_problem(const fdma_attention_forward_params& caller_params, bool with_data) {
  const fdma_attention_forward_params params = read_parameters(caller_params);
  ForwardProblem problem;
  Reasons reasons;
  check_reserved(reasons, "reserved", params.reserved);
  AttentionChecker checker(attention_arguments(params, &params.block_table), with_data, reasons, problem);
  checker.check_inputs();
  problem.out = checker.check_query_like("out", params.out, Access::kWrite);
  if (params.lse.rank != 0) problem.lse = checker.check_row_statistic("lse", params.lse);
  if (params.packed_mask.rank != 0) {
    problem.mask.packed_out = check_packed_mask(params.packed_mask, problem.mask, with_data, reasons);
  }
  check_distinct(reasons, {{"out", params.out}, {"lse", params.lse}, {"packed_mask", params.packed_mask}},
                 {{"query", params.query},
                  {"key", params.key},
                  {"value", params.value},
                  {"mask.tensor", params.mask.tensor},
                  {"bias.tensor", params.bias.tensor},
                  {"cu_seqlens_q", params.cu_seqlens_q},
                  {"cu_seqlens_k", params.cu_seqlens_k},
                  {"block_table", params.block_table}});
  checker.check_device_support();
  reasons.throw_if_any();
  return problem;
}

}  // namespace fdma
