// Decode on CUDA: kernel parameters, scratch, and how many splits.
#include <cuda_runtime_api.h>

#include "host/backend.hpp"
#include "host/cuda_device.hpp"
#include "host/cuda_kernels.hpp"
#include "host/cuda_params.hpp"
#include "kernels/launchers.hpp"

namespace fdma::cuda {
namespace {

CacheLengths lengths_of(const DecodeProblem& problem) {
  CacheLengths lengths;
  lengths.values = problem.seqlens_k;
  lengths.is_64bit = problem.seqlens_64bit;
  lengths.max = narrow(problem.len_k, "the number of keys");
  return lengths;
}

DecodeParams decode_params(const DecodeProblem& problem) {
  DecodeParams params;
  params.query = tensor_view(problem.query);
  params.key = tensor_view(problem.key);
  params.value = tensor_view(problem.value);
  params.out = tensor_view(problem.out);
  params.batch = narrow(problem.batch, "the batch size");
  params.heads_q = narrow(problem.heads_q, "the number of query heads");
  params.heads_kv = narrow(problem.heads_kv, "the number of key heads");
  params.group = static_cast<int32_t>(problem.group());
  params.len_q = static_cast<int32_t>(problem.len_q);
  params.head_dim = static_cast<int32_t>(problem.head_dim);
  params.head_units = static_cast<int32_t>(problem.head_units());
  params.query_units = static_cast<int32_t>(problem.query_units());
  params.unit_rows = narrow(problem.unit_rows(), "the number of rows that share their keys");
  params.row_tiles = ceil_div(params.unit_rows, kDecodeRows);
  params.lengths = lengths_of(problem);
  params.pages.table = problem.pages.table;
  params.pages.pages_per_sequence = problem.pages.pages_per_sequence;
  params.pages.page_size = problem.pages ? narrow(problem.pages.page_size, "the page size") : 1;
  params.pages.pages = narrow(problem.pages.pages, "the number of pages");
  params.bias = bias_view(problem.bias, problem.heads_q);
  params.hides_nan = problem.hides_nan;
  params.is_causal = problem.is_causal && problem.keep == 0;
  params.keep = narrow(problem.keep, "keep_window_size");
  params.list_heads = static_cast<int32_t>(problem.bias.heads);
  params.scale = problem.scale;
  params.softcap = problem.softcap;
  params.vector_rows = vector_rows(problem.query) && vector_rows(problem.key) && vector_rows(problem.value);
  params.vector_out = vector_rows(problem.out);
  params.lse = problem.lse;
  return params;
}

DecodeSelectParams select_params(const DecodeProblem& problem, const DecodeParams& decode) {
  DecodeSelectParams params;
  params.batch = decode.batch;
  params.heads = decode.list_heads;
  params.keep = decode.keep;
  params.queries = decode.query_units;
  params.len_q = decode.len_q;
  params.is_causal = problem.is_causal;
  params.lengths = decode.lengths;
  params.bias = decode.bias;
  return params;
}

// Enough blocks for every SM to hold as many as fit, twice over where there are enough keys: the SM that is done first
// then takes what is left.
int splits_of(const DecodeParams& params, int64_t keys, int bucket, int multiprocessors) {
  const int64_t blocks = params.units() * params.row_tiles;
  const int64_t step = decode_warps(bucket) * kDecodeWarpKeys;
  const int64_t room = int64_t{multiprocessors} * kDecodeBlocksPerSm;
  constexpr int64_t kStepsWorthASplit = 4;
  const int64_t filled = blocks == 0 ? 1 : room / blocks;  // one wave
  const int64_t twice = blocks == 0 ? 1 : ceil_div(2 * room, blocks);
  const int64_t most = max_of<int64_t>(1, ceil_div(keys, step));
  const int64_t worthwhile = ceil_div(keys, step * kStepsWorthASplit);
  return static_cast<int>(min_of(most, max_of<int64_t>(1, max_of(filled, min_of(twice, worthwhile)))));
}

// Every (batch, head) pair is a tile of the queue.
CombineParams combine_params(const DecodeParams& params) {
  CombineParams combine;
  combine.parts = params.parts;
  combine.count = params.splits;
  combine.queue.heads = params.batch * params.heads_q;
  combine.tile_rows = params.len_q;
  combine.heads_q = params.heads_q;
  combine.len_q = params.len_q;
  combine.head_dim = params.head_dim;
  combine.out = params.out;
  combine.lse = params.lse;
  combine.lse_stride_head = params.len_q;
  combine.lse_stride_batch = int64_t{params.heads_q} * params.len_q;
  return combine;
}

}  // namespace

void decode(const DecodeProblem& problem, Workspace& workspace, fdma_stream stream) {
  const DeviceGuard guard(problem.device.index);
  const ElementType type = element_type(problem.dtype);
  const AttentionKernels& kernels = kernels_for(problem);
  DecodeParams params = decode_params(problem);
  DecodeSelectParams select = select_params(problem, params);
  if (problem.keep > 0) {
    const DecodeSelectPlan plan = plan_decode_select(select.bias.type, select.rows(), problem.len_k);
    select.chunks = plan.chunks;
    select.histograms = workspace.take<uint32_t>(plan.histogram_words);
    select.kept = workspace.take<KeptKey>(select.rows() * problem.keep);
    select.counts = workspace.take<int32_t>(select.rows());
    params.kept = select.kept;
    params.counts = select.counts;
  }
  const int64_t keys = problem.keep > 0 ? problem.keep : problem.len_k;
  params.splits = splits_of(params, keys, kernels.head_dim, device_info(problem.device.index).multiprocessors);
  if (params.splits > 1) {
    params.parts.rows = params.rows();
    params.parts.out = workspace.take<float>(params.splits * params.rows() * problem.head_dim);
    params.parts.lse = workspace.take<float>(params.splits * params.rows());
  }
  if (workspace.counting()) return;
  if (problem.keep > 0) check(launch_decode_select(select, stream), "selection for decode");
  check(kernels.decode(params, stream), "decode");
  if (params.splits > 1) check(launch_combine_splits(combine_params(params), type, stream), "combining splits");
}

}  // namespace fdma::cuda
