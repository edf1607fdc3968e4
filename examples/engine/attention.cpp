#include "attention.hpp"

#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

namespace engine {
namespace {

size_t element_size(fdma_dtype dtype) {
  switch (dtype) {
    case FDMA_BFLOAT16:
      return 2;
    case FDMA_FLOAT32:
    case FDMA_INT32:
      return 4;
    case FDMA_INT64:
      return 8;
    default:
      throw std::invalid_argument("the engine has no arrays of dtype " + std::to_string(dtype));
  }
}

// `count` places of dimension `dim`, from `first` on. Nothing is copied.
fdma_tensor part(fdma_tensor tensor, int dim, int64_t first, int64_t count) {
  tensor.data = static_cast<char*>(tensor.data) + first * tensor.stride[dim] * element_size(tensor.dtype);
  tensor.shape[dim] = count;
  return tensor;
}

// The bias (1, H_kv, Lk) of keys as attention takes it, the same for all queries: (1, H_kv, 1, Lk).
fdma_bias for_all_queries(const fdma_tensor& bias) {
  fdma_tensor rows = bias;
  rows.rank = 4;
  rows.shape[2] = 1, rows.shape[3] = bias.shape[2];
  rows.stride[2] = 0, rows.stride[3] = bias.stride[2];
  return {FDMA_BIAS_DENSE, rows};
}

void check(fdma_status status) {
  if (status == FDMA_SUCCESS) return;
  throw std::runtime_error(std::string(fdma_status_name(status)) + ": " + fdma_last_error_message());
}

// Every operation of libfdma is called like this: ask for the bytes of scratch, hand them over. Sizes depend on shapes
// and are cheap to ask for.
template <class Params>
void call(Queue& queue, Params& params, fdma_status (*workspace_size)(const Params*, size_t*),
          fdma_status (*operation)(const Params*, void*, size_t, fdma_stream)) {
  params.device = device();
  params.num_threads = queue.num_threads();
  size_t bytes = 0;
  check(workspace_size(&params, &bytes));
  check(operation(&params, queue.scratch(bytes), bytes, queue.stream()));
}

}  // namespace

Array::Array(fdma_dtype dtype, std::initializer_list<int64_t> shape) {
  view_.dtype = dtype;
  view_.rank = static_cast<int32_t>(shape.size());
  int64_t count = 1;
  for (int dim = view_.rank - 1; dim >= 0; --dim) {
    view_.shape[dim] = shape.begin()[dim];
    view_.stride[dim] = count;
    count *= view_.shape[dim];
  }
  memory_ = Buffer(count * element_size(dtype));
  view_.data = memory_.data();
}

PagePool::PagePool(const Config& config, int64_t pages, int64_t size) : page_size(size), free_(pages) {
  std::iota(free_.begin(), free_.end(), 0);
  for (int layer = 0; layer < config.layers; ++layer) {
    keys.emplace_back(attention_dtype(), std::initializer_list<int64_t>{pages, size, config.kv_heads, config.head_dim});
    values.emplace_back(attention_dtype(),
                        std::initializer_list<int64_t>{pages, size, config.kv_heads, config.head_dim});
  }
}

std::vector<int32_t> PagePool::take(int64_t count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (count > static_cast<int64_t>(free_.size())) {
    throw std::runtime_error("a request needs " + std::to_string(count) + " pages and " + std::to_string(free_.size()) +
                             " are free");
  }
  std::vector<int32_t> taken(free_.rbegin(), free_.rbegin() + count);
  free_.resize(free_.size() - count);
  return taken;
}

AttentionBuffers::AttentionBuffers(const Config& config, int64_t keep, int64_t chunk)
    : query(attention_dtype(), {1, chunk, config.heads, config.head_dim}),
      out(attention_dtype(), {1, chunk, config.heads, config.head_dim}),
      key(attention_dtype(), {1, keep + chunk, config.kv_heads, config.head_dim}),
      value(attention_dtype(), {1, keep + chunk, config.kv_heads, config.head_dim}),
      bias(FDMA_FLOAT32, {1, config.kv_heads, keep + chunk}),
      end(FDMA_INT32, {1, config.kv_heads, keep + chunk}) {}

Attention::Attention(Queue& queue, const Config& config, int64_t keep, const PagePool* pool, int layer,
                     const fdma_tensor& page_table)
    : keep_(keep),
      key_(attention_dtype(), {1, keep, config.kv_heads, config.head_dim}),
      value_(attention_dtype(), {1, keep, config.kv_heads, config.head_dim}),
      bias_(FDMA_FLOAT32, {1, config.kv_heads, keep}),
      position_(FDMA_INT64, {1, config.kv_heads, keep}),
      tokens_(FDMA_INT64, {1}),
      pool_(pool),
      layer_(layer),
      page_table_(page_table) {
  // An empty cache: zeros, which new memory is, but a bias of -inf and a position of -1.
  fill_float(queue, bias_.data<float>(), -std::numeric_limits<float>::infinity(), config.kv_heads * keep);
  fill_int64(queue, position_.data<int64_t>(), -1, config.kv_heads * keep);
  if (pool != nullptr) {
    all_bias_ = Array(FDMA_FLOAT32, {1, config.kv_heads, page_table.shape[1] * pool->page_size});
  }
}

void Attention::prefill(Queue& queue, AttentionBuffers& buffers, const Projected& x, float* out) {
  const int64_t* position = tokens_.data<int64_t>();
  const fdma_tensor query = part(buffers.query.view(), 1, 0, x.rows);
  const fdma_tensor context = part(buffers.out.view(), 1, 0, x.rows);
  const int64_t length = keep_ + x.rows;  // of the survivors and the chunk behind them
  const fdma_tensor key = part(buffers.key.view(), 1, 0, length);
  const fdma_tensor value = part(buffers.value.view(), 1, 0, length);
  const fdma_tensor bias = part(buffers.bias.view(), 2, 0, length);
  const fdma_tensor new_key = part(key, 1, keep_, x.rows), new_value = part(value, 1, keep_, x.rows);
  const fdma_tensor new_bias = part(bias, 2, keep_, x.rows);

  // 1. The survivors in order of position, then the chunk.
  fdma_cache_gather_params gather;
  fdma_cache_gather_params_init(&gather);
  gather.cache = cache();
  gather.key = part(key, 1, 0, keep_);
  gather.value = part(value, 1, 0, keep_);
  gather.bias = part(bias, 2, 0, keep_);
  call(queue, gather, fdma_cache_gather_workspace_size, fdma_cache_gather);
  rotary(queue, x.query, position, Config::kTheta, query);
  rotary(queue, x.key, position, Config::kTheta, new_key);
  narrow(queue, x.value, new_value);
  key_bias(queue, x.bias, x.bias_scale, new_bias);

  // 2. Which of them each position keeps: one number a key. `end` is contiguous, so it is made for this length.
  fdma_tensor end = buffers.end.view();
  end.shape[2] = length;
  end.stride[1] = length, end.stride[0] = end.shape[1] * length;
  fdma_select_params select;
  fdma_select_params_init(&select);
  select.bias = bias;
  select.keep_window_size = keep_;
  select.end = end;
  call(queue, select, fdma_select_workspace_size, fdma_select);

  // 3. Attention on these keys alone.
  fdma_attention_forward_params attention;
  fdma_attention_forward_params_init(&attention);
  attention.query = query;
  attention.key = key;
  attention.value = value;
  attention.out = context;
  attention.mask = {FDMA_MASK_INTERVAL, end};
  attention.bias = for_all_queries(bias);
  call(queue, attention, fdma_attention_forward_workspace_size, fdma_attention_forward);
  widen(queue, context, out);

  // 4. The survivors of both. This moves the position on.
  if (pool_ != nullptr) write_to_pages(queue, new_key, new_value, new_bias);
  append(queue, new_key, new_value, new_bias);
}

void Attention::step(Queue& queue, AttentionBuffers& buffers, const Projected& x, float* out) {
  int64_t* position = tokens_.data<int64_t>();
  const fdma_tensor query = part(buffers.query.view(), 1, 0, 1), context = part(buffers.out.view(), 1, 0, 1);
  const fdma_tensor key = part(buffers.key.view(), 1, 0, 1), value = part(buffers.value.view(), 1, 0, 1);
  const fdma_tensor bias = part(buffers.bias.view(), 2, 0, 1);
  rotary(queue, x.query, position, Config::kTheta, query);
  rotary(queue, x.key, position, Config::kTheta, key);
  narrow(queue, x.value, value);
  key_bias(queue, x.bias, x.bias_scale, bias);

  fdma_decode_params decode;
  fdma_decode_params_init(&decode);
  decode.query = query;
  decode.out = context;
  if (pool_ == nullptr) {
    // The slots hold what this query keeps, and nothing else: attention to all of them.
    append(queue, key, value, bias);
    decode.key = key_.view();
    decode.value = value_.view();
    decode.bias = {FDMA_BIAS_DENSE, bias_.view()};
  } else {
    write_to_pages(queue, key, value, bias);
    advance(queue, position, 1);
    decode.key = pool_->keys[layer_].view();
    decode.value = pool_->values[layer_].view();
    decode.bias = {FDMA_BIAS_DENSE, all_bias_.view()};
    decode.block_table = page_table_;
    decode.seqlens_k = tokens_.view();
    decode.keep_window_size = keep_;
  }
  call(queue, decode, fdma_decode_workspace_size, fdma_decode);
  widen(queue, context, out);
}

size_t Attention::cache_bytes() const {
  if (pool_ == nullptr) return key_.bytes() + value_.bytes() + bias_.bytes() + position_.bytes();
  const Array& pages = pool_->keys[layer_];
  return all_bias_.bytes() + 2 * pages.bytes() / pages.view().shape[0] * page_table_.shape[1];
}

void Attention::append(Queue& queue, const fdma_tensor& key, const fdma_tensor& value, const fdma_tensor& bias) {
  fdma_cache_append_params params;
  fdma_cache_append_params_init(&params);
  params.cache = cache();
  params.key = key;
  params.value = value;
  params.bias = bias;
  params.next_position = tokens_.view();
  call(queue, params, fdma_cache_append_workspace_size, fdma_cache_append);
}

void Attention::write_to_pages(Queue& queue, const fdma_tensor& key, const fdma_tensor& value,
                               const fdma_tensor& bias) {
  const int64_t* position = tokens_.data<int64_t>();
  const int32_t* table = static_cast<const int32_t*>(page_table_.data);
  write_pages(queue, key, pool_->keys[layer_].view(), table, position);
  write_pages(queue, value, pool_->values[layer_].view(), table, position);
  write_bias(queue, bias, all_bias_.view(), position);
}

}  // namespace engine
