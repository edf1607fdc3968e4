// Selection on CUDA: kernel parameters and scratch.
#include <cuda_runtime_api.h>

#include "host/backend.hpp"
#include "host/cuda_device.hpp"
#include "host/cuda_params.hpp"
#include "kernels/launchers.hpp"

namespace fdma::cuda {
namespace {

// The parameters that the kernels of all forms share.
template <typename Params>
void fill_inputs(Params& params, const SelectProblem& problem) {
  params.heads = narrow(problem.heads, "the number of heads");
  params.keep = narrow(problem.keep, "keep_window_size");
  params.bias = problem.bias;
  params.type = element_type(problem.dtype);
  params.bias_stride_batch = problem.bias_stride[0];
  params.bias_stride_head = problem.bias_stride[1];
  params.key_mask = problem.key_mask;
  params.key_mask_stride = problem.key_mask_stride;
  if (problem.key_mask != nullptr) {
    params.key_mask_bytes = static_cast<int32_t>(dtype_size(problem.key_mask_dtype));
    params.key_mask_is_float = kFloatDtypes.contains(problem.key_mask_dtype);
  }
}

SelectParams select_params(const SelectProblem& problem) {
  SelectParams params;
  params.rows = narrow(problem.rows(), "the number of rows (batch times heads)");
  params.keys = narrow(problem.keys, "the number of keys");
  fill_inputs(params, problem);
  params.end = problem.end;
  params.columns = problem.columns;
  params.counts = problem.counts;
  return params;
}

SelectRowsParams select_rows_params(const SelectProblem& problem) {
  SelectRowsParams params;
  fill_inputs(params, problem);
  params.batch = narrow(problem.batch, "the batch size");
  params.len_q = narrow(problem.queries, "the number of queries");
  params.len_k = narrow(problem.keys, "the number of keys");
  params.is_causal = problem.is_causal;
  params.bias_stride_row = problem.bias_stride[2];
  params.vector_rows = rows_aligned(params.bias, element_bytes(params.type), 16,
                                    {params.bias_stride_batch, params.bias_stride_head, params.bias_stride_row});
  params.layout = problem.layout();
  params.rows = problem.packed_mask;
  params.tiles = params.rows + params.layout.rows_bytes() / 4;
  return params;
}

SelectScratch carve(const SelectProblem& problem, const SelectParams& params, Workspace& workspace) {
  SelectScratch scratch;
  const int64_t elements = problem.rows() * problem.keys;
  for (uint32_t*& ranks : scratch.ranks) ranks = workspace.take<uint32_t>(elements);
  for (uint32_t*& order : scratch.order) order = workspace.take<uint32_t>(elements);
  if (problem.is_interval()) {
    scratch.planes = workspace.take<uint2>(select_plane_words(params));
    scratch.kept = workspace.take<int32_t>(problem.rows());
  } else {
    scratch.bitmap = workspace.take<uint32_t>(problem.rows() * ceil_div<int64_t>(problem.keys, 32));
  }
  check(select_sort_bytes(params, scratch.sort_bytes), "the scratch of sorting keys");
  scratch.sort = workspace.take<char>(static_cast<int64_t>(scratch.sort_bytes));
  return scratch;
}

}  // namespace

void select(const SelectProblem& problem, Workspace& workspace, fdma_stream stream) {
  const DeviceGuard guard(problem.device.index);
  if (problem.is_bits()) {
    const SelectRowsParams params = select_rows_params(problem);  // needs no scratch
    if (workspace.counting() || params.layout.bytes() == 0) return;
    return check(launch_select_rows(params, stream), "selection for every query");
  }
  const SelectParams params = select_params(problem);
  const SelectScratch scratch = carve(problem, params, workspace);
  if (workspace.counting()) return;
  if (problem.keys == 0 && problem.counts != nullptr && problem.rows() > 0) {
    check(cudaMemsetAsync(problem.counts, 0, static_cast<size_t>(problem.rows()) * sizeof(int32_t), stream),
          "clearing counts");
  }
  check(launch_select(params, scratch, stream), "selection");
}

}  // namespace fdma::cuda
