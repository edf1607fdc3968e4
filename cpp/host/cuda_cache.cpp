// The bounded cache on CUDA: kernel parameters and scratch.
#include <cuda_runtime_api.h>

#include "host/backend.hpp"
#include "host/cuda_device.hpp"
#include "host/cuda_params.hpp"
#include "kernels/launchers.hpp"

namespace fdma::cuda {
namespace {

template <typename T>
HeadRowsView<T> row_view(const HeadRows<T>& rows) {
  return {rows.data, rows.stride_batch, rows.stride_head};
}

TokenArrays token_arrays(const CacheSlots& slots) {
  return {tensor_view(slots.key), tensor_view(slots.value), row_view(slots.bias), row_view(slots.position)};
}

// What the operations share. Keys and values outside the cache have a part in how rows are copied.
void fill_cache(CacheParams& params, const CacheProblem& problem, const View4& other_key, const View4& other_value) {
  params.batch = narrow(problem.batch, "the batch size");
  params.heads = narrow(problem.heads, "the number of kv heads");
  params.slots = narrow(problem.slots, "the number of slots");
  params.head_dim = narrow(problem.head_dim, "head_dim");
  params.type = element_type(problem.bias_dtype);
  params.cache = token_arrays(problem.cache);
  params.vector = problem.head_dim % 8 == 0 && vector_rows(problem.cache.key) && vector_rows(problem.cache.value) &&
                  vector_rows(other_key) && vector_rows(other_value);
}

}  // namespace

void cache_append(const CacheAppendProblem& problem, Workspace& workspace, fdma_stream stream) {
  const DeviceGuard guard(problem.device.index);
  CacheAppendParams params;
  fill_cache(params, problem, problem.key, problem.value);
  params.tokens = narrow(problem.tokens, "the number of tokens");
  params.added = {tensor_view(problem.key), tensor_view(problem.value), row_view(problem.bias), {}};
  params.first_position = problem.first_position;
  params.next_position = problem.next_position;
  if (params.tokens > kFewTokens) {
    params.free_slots = workspace.take<int32_t>(problem.rows() * problem.slots);
    params.entrants = workspace.take<int32_t>(problem.rows() * problem.slots);
    params.counts = workspace.take<int32_t>(problem.rows());
  }
  if (workspace.counting()) return;
  check(launch_cache_append(params, stream), "appending to the cache");
}

void cache_gather(const CacheGatherProblem& problem, Workspace& workspace, fdma_stream stream) {
  const DeviceGuard guard(problem.device.index);
  CacheGatherParams params;
  fill_cache(params, problem, problem.sorted.key, problem.sorted.value);
  params.sorted = token_arrays(problem.sorted);
  params.ages = workspace.take<int64_t>(params.rows() * params.padded_slots());
  params.aged_slots = workspace.take<int32_t>(params.rows() * params.padded_slots());
  if (workspace.counting()) return;
  check(launch_cache_gather(params, stream), "gathering the cache");
}

}  // namespace fdma::cuda
