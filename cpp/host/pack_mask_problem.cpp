#include "host/pack_mask_problem.hpp"

#include "host/attention_checks.hpp"
#include "host/device_checks.hpp"
#include "host/mask_layout.hpp"
#include "host/parameters.hpp"

namespace fdma {

PackMaskProblem make_pack_mask_problem(const fdma_pack_mask_params& caller_params, bool with_data) {
  const fdma_pack_mask_params params = read_parameters(caller_params);
  PackMaskProblem problem;
  Reasons reasons;
  check_reserved(reasons, "reserved", params.reserved);
  check_reserved(reasons, "reserved1", params.reserved1);
  problem.device = params.device;
  const bool device_known = check_device(reasons, params.device);
  check_num_threads(reasons, params.num_threads, params.device);
  problem.num_threads = params.num_threads;

  MaskProblem& mask = problem.mask;
  mask.kind = FDMA_MASK_DENSE;
  const std::optional<int64_t> bytes = check_dense_mask_shape(reasons, params.mask, params.len_k);
  if (bytes) {
    check_dense_mask(reasons, "mask", params.mask, with_data, mask);
    mask.layout = {params.mask.shape[0], params.mask.shape[1], params.mask.shape[2], params.len_k};
  }
  mask.packed_out = check_packed_output(reasons, params.packed_mask, bytes, with_data);
  check_distinct(reasons, {{"packed_mask", params.packed_mask}}, {{"mask", params.mask}});
  if (device_known) check_device_support(reasons, params.device);
  reasons.throw_if_any();
  return problem;
}

}  // namespace fdma
