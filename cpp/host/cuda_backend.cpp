// The CUDA backend: turns a checked problem into kernel parameters and starts the kernels.
#include <cuda_runtime_api.h>

#include <memory>

#include "host/backend.hpp"
#include "host/cuda_compact.hpp"
#include "host/cuda_device.hpp"
#include "host/cuda_hopper.hpp"
#include "host/cuda_kernels.hpp"
#include "host/cuda_params.hpp"
#include "host/cuda_slots.hpp"
#include "host/dtype.hpp"
#include "host/error.hpp"
#include "host/text.hpp"
#include "kernels/core/tile_config.hpp"
#include "kernels/launchers.hpp"

namespace fdma::cuda {
namespace {

// Heads are a dimension of the grid.
int32_t narrow_heads(int64_t value, const char* name) {
  constexpr int64_t kLimit = 65535;
  if (value > kLimit) {
    throw Error(FDMA_UNSUPPORTED, concat(name, " is ", value, "; accepted on CUDA: at most ", kLimit));
  }
  return static_cast<int32_t>(value);
}

void fill_attention(AttentionParams& params, const AttentionProblem& problem) {
  params.query = tensor_view(problem.query);
  params.key = tensor_view(problem.key);
  params.value = tensor_view(problem.value);
  params.batch = narrow(problem.batch, "the batch size");
  params.heads_q = narrow_heads(problem.heads_q, "the number of query heads");
  params.heads_kv = narrow_heads(problem.heads_kv, "the number of key heads");
  params.group = static_cast<int32_t>(problem.group());
  params.sequences = sequence_view(problem);
  const int64_t rows_q = problem.rows_q();
  params.lse_stride_head = rows_q;
  params.lse_stride_batch = params.sequences.packed ? 0 : problem.heads_q * rows_q;
  params.head_dim = static_cast<int32_t>(problem.head_dim);
  params.scale = problem.scale;
  params.softcap = problem.softcap;
  params.is_causal = problem.is_causal;
  params.vector_rows = vector_rows(problem.query) && vector_rows(problem.key) && vector_rows(problem.value);
  params.bias = bias_view(problem.bias, problem.heads_q);
}

// Gives the params the packed mask: the caller's, or one packed here from the dense mask.
void bind_mask(AttentionParams& params, const AttentionProblem& problem, Workspace& workspace, cudaStream_t stream) {
  const MaskProblem& mask = problem.mask;
  if (mask.kind == FDMA_MASK_NONE) return;
  params.has_mask = true;
  if (is_key_lists(mask.kind)) return bind_expanded_lists(params, problem, workspace, stream);
  const void* packed = mask.packed;
  if (mask.kind == FDMA_MASK_DENSE) {
    void* target = mask.packed_out != nullptr ? mask.packed_out : workspace.take<char>(mask.layout.bytes());
    packed = target;
    if (!workspace.counting()) {
      PackMaskParams pack = pack_mask_params(mask, target);
      pack.is_causal = problem.is_causal;
      pack.sequences = params.sequences;
      pack.shared_by_sequences = problem.sequences && mask.layout.batch != problem.batch;
      check(launch_pack_mask(pack, stream), "packing the mask");
    }
  }
  params.mask = packed_mask_view(mask.layout, packed, problem.heads_q);
}

// Gives the params what says which keys they see. Keys in an order of their own are for the result to gather.
std::unique_ptr<ReorderedCall> bind_keys(AttentionParams& params, const AttentionProblem& problem, Workspace& workspace,
                                         cudaStream_t stream) {
  if (problem.runs_on_slots()) return std::make_unique<SlotCall>(problem, params, workspace);
  bind_mask(params, problem, workspace, stream);
  if (problem.compacts()) return std::make_unique<CompactCall>(problem, params, workspace);
  return nullptr;
}

BiasGradMode bias_grad_mode(const BackwardProblem& problem) {
  const BiasProblem& bias = problem.bias;
  if (problem.grad_bias == nullptr) return BiasGradMode::kNone;
  if (bias.keys != problem.len_k) return BiasGradMode::kRows;
  if (bias.rows != problem.len_q) return BiasGradMode::kKeys;
  const bool shared = bias.batch != problem.batch || bias.heads != problem.heads_q;
  return shared ? BiasGradMode::kBatched : BiasGradMode::kScores;
}

int64_t grad_bias_bytes(const BiasProblem& bias) {
  return bias.batch * bias.heads * bias.rows * bias.keys * dtype_size(bias.dtype);
}

// Backward of a problem without scores: everything asked for is zero.
void clear_gradient(const View4& grad, int64_t batch, int64_t rows, int64_t heads, int64_t head_dim,
                    cudaStream_t stream) {
  if (!grad) return;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      char* first = static_cast<char*>(grad.data) + (b * grad.stride[0] + h * grad.stride[2]) * 2;
      // A dimension of extent 1 has stride 0, which a 2-d set does not take.
      const size_t pitch = static_cast<size_t>(rows > 1 ? grad.stride[1] * 2 : head_dim * 2);
      check(cudaMemset2DAsync(first, pitch, 0, static_cast<size_t>(head_dim) * 2, static_cast<size_t>(rows), stream),
            "clearing a gradient");
    }
  }
}

void backward_without_scores(const BackwardProblem& problem, cudaStream_t stream) {
  const int64_t batch = problem.batches();
  const int64_t rows_q = problem.rows_q(), rows_k = problem.rows_k();
  if (rows_q > 0) clear_gradient(problem.grad_query, batch, rows_q, problem.heads_q, problem.head_dim, stream);
  if (rows_k > 0) {
    clear_gradient(problem.grad_key, batch, rows_k, problem.heads_kv, problem.head_dim, stream);
    clear_gradient(problem.grad_value, batch, rows_k, problem.heads_kv, problem.head_dim, stream);
  }
  const int64_t bytes = problem.grad_bias == nullptr ? 0 : grad_bias_bytes(problem.bias);
  if (bytes > 0) {
    check(cudaMemsetAsync(problem.grad_bias, 0, static_cast<size_t>(bytes), stream), "clearing grad_bias");
  }
}

// Zeros in the rows of an output that no sequence reaches; with `lse`, -inf there.
void clear_unreached_rows(const AttentionParams& params, const View4& output, bool of_keys, float* lse,
                          cudaStream_t stream) {
  if (!params.sequences.varies() || !output) return;
  ClearRowsParams clear;
  clear.sequences = params.sequences;
  clear.of_keys = of_keys;
  clear.batch = params.batch;
  clear.heads = of_keys ? params.heads_kv : params.heads_q;
  clear.head_dim = params.head_dim;
  clear.tensor = tensor_view(output);
  clear.lse = lse;
  clear.lse_stride_batch = params.lse_stride_batch;
  clear.lse_stride_head = params.lse_stride_head;
  check(launch_clear_rows(clear, stream), "clearing rows outside the sequences");
}

// Scratch of backward, carved in one place.
struct BackwardScratch {
  size_t order_bytes = 0, keys_bytes = 0;

  // `queries`: rows of a query tile of the main kernel.
  BackwardScratch(BackwardParams& params, const BackwardProblem& problem, Workspace& workspace, int bucket,
                  int queries) {
    params.row_tiles.tile = queries;
    params.row_tiles.per_sequence = ceil_div<int64_t>(problem.len_q, queries);
    params.row_tiles.packed = problem.sequences.packed;
    const int64_t tiles = row_tile_total(params.row_tiles, params.batch, problem.rows_q());
    params.stats_stride_head = tiles * queries;
    params.row_stats = workspace.take<float2>(params.stats_stride_head * problem.heads_q);
    if (problem.grad_query) {
      const int64_t elements = tiles * problem.heads_q * queries * bucket;
      params.grad_query_sum = workspace.take<float>(elements);
      params.grad_query_elements = elements;
      if (problem.deterministic) {
        // As many as smaller tiles would need: which kernels run depends on addresses that are not known when the size
        // is asked for.
        const int64_t counters = tiles * ceil_div(queries, 64) * problem.heads_q;
        params.tile_order = workspace.take<int32_t>(counters);
        order_bytes = static_cast<size_t>(counters) * sizeof(int32_t);
      }
    }
    const int64_t heads = int64_t{params.batch} * params.heads_q;
    if (params.bias_grad == BiasGradMode::kKeys) {
      params.grad_bias_keys = workspace.take<float>(heads * params.bias_keys);
      keys_bytes = static_cast<size_t>(heads * params.bias_keys) * sizeof(float);
    }
  }

  void clear(const BackwardParams& params, cudaStream_t stream) const {
    if (order_bytes > 0) check(cudaMemsetAsync(params.tile_order, 0, order_bytes, stream), "clearing tile counters");
    if (keys_bytes > 0) check(cudaMemsetAsync(params.grad_bias_keys, 0, keys_bytes, stream), "clearing column sums");
  }
};

BackwardParams backward_params(const BackwardProblem& problem) {
  BackwardParams params;
  fill_attention(params, problem);
  params.out = tensor_view(problem.out);
  params.grad_out = tensor_view(problem.grad_out);
  params.grad_query = tensor_view(problem.grad_query);
  params.grad_key = tensor_view(problem.grad_key);
  params.grad_value = tensor_view(problem.grad_value);
  params.vector_rows = params.vector_rows && vector_rows(problem.grad_out);
  params.vector_out = vector_rows(problem.out) && vector_rows(problem.grad_out);
  params.vector_grads =
      vector_rows(problem.grad_query) && vector_rows(problem.grad_key) && vector_rows(problem.grad_value);
  params.lse = problem.lse;
  params.grad_lse = problem.grad_lse;
  params.bias_grad = bias_grad_mode(problem);
  params.grad_bias = problem.grad_bias;
  params.bias_batch = static_cast<int32_t>(problem.bias.batch);
  params.bias_heads = static_cast<int32_t>(problem.bias.heads);
  params.bias_rows = static_cast<int32_t>(problem.bias.rows);
  params.bias_keys = static_cast<int32_t>(problem.bias.keys);
  return params;
}

}  // namespace

thread_local KernelFamily kernel_family = KernelFamily::kBest;

const AttentionKernels& kernels_for(const AttentionProblem& problem) {
  const AttentionKernels* kernels =
      find_attention_kernels(element_type(problem.dtype), static_cast<int>(problem.head_dim));
  if (kernels == nullptr) {
    throw Error(FDMA_UNSUPPORTED, concat("head_dim is ", problem.head_dim,
                                         "; this libfdma was built without a CUDA kernel for it (FDMA_HEAD_DIMS)"));
  }
  return *kernels;
}

void forward(const ForwardProblem& problem, Workspace& workspace, fdma_stream stream) {
  const DeviceGuard guard(problem.device.index);
  const AttentionKernels& kernels = kernels_for(problem);
  ForwardParams params;
  fill_attention(params, problem);
  params.out = tensor_view(problem.out);
  params.vector_out = vector_rows(problem.out);
  params.lse = problem.lse;
  params.pages.table = problem.pages.table;
  params.pages.pages_per_sequence = problem.pages.pages_per_sequence;
  params.pages.page_size = problem.pages ? narrow(problem.pages.page_size, "the page size") : 1;
  params.pages.pages = narrow(problem.pages.pages, "the number of pages");
  const DeviceInfo& device = device_info(problem.device.index);
  params.work_counter = workspace.take<int32_t>(1);
  const AttentionParams natural = params;  // keys may get an order of their own
  const std::unique_ptr<ReorderedCall> reordered = bind_keys(params, problem, workspace, stream);
  params.tail = forward_tail(params, kernels, device);
  if (params.tail.any()) {
    SplitParts& parts = params.tail_parts;
    parts.rows = int64_t{params.tail.tiles} * equal_tile(params, kernels).queries();
    parts.out = workspace.take<float>(params.tail.parts * parts.rows * params.head_dim);
    parts.lse = workspace.take<float>(params.tail.parts * parts.rows);
  }
  if (workspace.counting()) return;
  if (reordered) reordered->gather(params, stream);
  const bool hopper = hopper_serves_forward(params, kernels, device);
  clear_unreached_rows(natural, problem.out, false, problem.lse, stream);
  check(hopper ? kernels.forward_sm90(params, device.multiprocessors, stream) : kernels.forward(params, stream),
        "attention forward");
}

void backward(const BackwardProblem& problem, Workspace& workspace, fdma_stream stream) {
  const DeviceGuard guard(problem.device.index);
  const DeviceInfo& device = device_info(problem.device.index);
  const bool roomy = device.roomy && kernel_family != KernelFamily::kSmallTiles;
  const AttentionKernels& kernels = kernels_for(problem);
  BackwardParams params = backward_params(problem);
  const AttentionParams natural = params;  // keys may get an order of their own
  std::unique_ptr<ReorderedCall> reordered;
  if (problem.has_scores()) reordered = bind_keys(params, problem, workspace, stream);
  if (reordered) reordered->take_gradients(problem, params, workspace);
  const bool hopper = hopper_serves_backward(params, kernels, device);
  const BackwardTile portable = backward_tile(kernels.head_dim, roomy);
  const sm90::BackwardTile own = sm90::backward_tile(kernels.head_dim);
  const int queries = hopper ? own.queries : portable.queries;
  if (reordered) reordered->order_blocks(problem, params, workspace, hopper ? own.keys : portable.keys, queries);
  const BackwardScratch scratch(params, problem, workspace, kernels.head_dim, queries);
  params.tail = problem.has_scores() ? backward_tail(params, kernels, device, problem.deterministic) : TailSplit{};
  if (params.tail.any()) {
    params.tail_keys = own.keys;
    params.tail_grads =
        workspace.take<float>(int64_t{2} * params.tail.parts * params.tail.tiles * params.tail_keys * params.head_dim);
  }
  if (workspace.counting()) return;
  if (!problem.has_scores()) return backward_without_scores(problem, stream);
  if (reordered) reordered->gather(params, stream);

  clear_unreached_rows(natural, problem.grad_query, false, nullptr, stream);
  clear_unreached_rows(natural, problem.grad_key, true, nullptr, stream);
  clear_unreached_rows(natural, problem.grad_value, true, nullptr, stream);
  check(launch_prepare_backward(params, kernels.type, stream), "preparing backward");
  scratch.clear(params, stream);
  const bool main_kernel = problem.grad_query || problem.grad_key || problem.grad_value ||
                           params.bias_grad == BiasGradMode::kScores || params.bias_grad == BiasGradMode::kKeys;
  if (main_kernel) {
    check(hopper ? kernels.backward_sm90(params, stream) : kernels.backward(params, roomy, stream),
          "attention backward");
  }
  if (problem.grad_query) {
    check(hopper ? kernels.finish_backward_sm90(params, stream) : kernels.finish_backward(params, roomy, stream),
          "the gradient of the query");
  }
  if (params.bias_grad == BiasGradMode::kBatched) {
    check(kernels.bias_gradient(params, stream), "the gradient of the bias");
  } else if (params.bias_grad == BiasGradMode::kKeys || params.bias_grad == BiasGradMode::kRows) {
    if (reordered) {
      reordered->reduce_bias_gradient(params, stream);
    } else {
      check(launch_reduce_bias_gradient(params, stream), "the gradient of the bias");
    }
  }
  if (reordered) reordered->scatter(problem, params, stream);
}

}  // namespace fdma::cuda
