#include "host/cache_problem.hpp"

#include <limits>

#include "host/attention_checks.hpp"
#include "host/device_checks.hpp"
#include "host/parameters.hpp"
#include "host/text.hpp"

namespace fdma {
namespace {

constexpr char kSlotDims[] = "(B, w, H_kv, D)";
constexpr char kSlotRowDims[] = "(B, H_kv, w)";
constexpr char kTokenDims[] = "(B, T, H_kv, D)";
constexpr char kTokenRowDims[] = "(B, H_kv, T)";
constexpr DtypeSet kPositionDtypes(FDMA_INT64);

template <typename Params>
class CacheChecker {
 public:
  CacheChecker(const Params& params, bool with_data, Reasons& reasons, CacheProblem& problem)
      : params_(params), with_data_(with_data), reasons_(reasons), problem_(problem) {}

  // All but the tensors outside the cache. `access`: what the operation does with the cache.
  void check_cache(Access access) {
    check_reserved(reasons_, "reserved", params_.reserved);
    check_reserved(reasons_, "reserved1", params_.reserved1);
    problem_.device = params_.device;
    device_known_ = check_device(reasons_, params_.device);
    check_num_threads(reasons_, params_.num_threads, params_.device);
    problem_.num_threads = params_.num_threads;
    const fdma_cache& cache = params_.cache;
    if (check_rank(reasons_, "cache.key", cache.key, 4, kSlotDims)) {
      read_extents(cache.key);
      problem_.cache.key = check_given_rows("cache.key", cache.key, problem_.slots, kSlotDims, access);
    }
    problem_.cache.value = check_slots("cache.value", cache.value, access);
    problem_.bias_dtype = cache.bias.dtype;
    problem_.cache.bias = check_row<void>("cache.bias", cache.bias, problem_.slots, kSlotRowDims, access);
    if (cache.bias.rank != 0) check_dtype(reasons_, "cache.bias", cache.bias, kBiasDtypes, "");
    problem_.cache.position = check_positions("cache.position", cache.position, access);
  }

  // Tensors with a row a slot: keys and values, biases, positions.
  View4 check_slots(const char* name, const fdma_tensor& tensor, Access access) {
    return check_rows(name, tensor, problem_.slots, kSlotDims, access);
  }
  HeadRows<void> check_slot_bias(const char* name, const fdma_tensor& tensor, Access access) {
    return check_bias(name, tensor, problem_.slots, kSlotRowDims, access);
  }
  HeadRows<int64_t> check_positions(const char* name, const fdma_tensor& tensor, Access access) {
    if (tensor.rank != 0) check_dtype(reasons_, name, tensor, kPositionDtypes, "");
    return check_row<int64_t>(name, tensor, problem_.slots, kSlotRowDims, access);
  }

  // (B, rows, H_kv, D) of the dtype of cache.key.
  View4 check_rows(const char* name, const fdma_tensor& tensor, int64_t rows, const char* dims, Access access) {
    if (!check_rank(reasons_, name, tensor, 4, dims)) return {};
    if (extents_known_) check_dtype_like(name, tensor, problem_.dtype, "cache.key");
    return check_given_rows(name, tensor, rows, dims, access);
  }

  // (B, H_kv, length) of the dtype of cache.bias.
  HeadRows<void> check_bias(const char* name, const fdma_tensor& tensor, int64_t length, const char* dims,
                            Access access) {
    if (tensor.rank != 0 && params_.cache.bias.rank != 0) {
      check_dtype_like(name, tensor, problem_.bias_dtype, "cache.bias");
    }
    return check_row<void>(name, tensor, length, dims, access);
  }

  // Reasons of the device itself come last: they hold whatever the arguments are.
  void check_device_support() {
    if (device_known_) fdma::check_device_support(reasons_, params_.device);
  }

 private:
  void read_extents(const fdma_tensor& key) {
    extents_known_ = true;
    problem_.dtype = key.dtype;
    problem_.batch = key.shape[0];
    problem_.slots = key.shape[1];
    problem_.heads = key.shape[2];
    problem_.head_dim = key.shape[3];
    const bool on_cuda = params_.device.type == FDMA_DEVICE_CUDA;
    check_dtype(reasons_, "cache.key", key, on_cuda ? kCudaDtypes : kCpuDtypes, on_cuda ? " on CUDA" : " on the CPU");
    if (problem_.slots < 1) {
      reasons_.add(FDMA_INVALID_SHAPE,
                   concat("cache.key.shape is ", shape_text(key), "; accepted: ", kSlotDims, " with w of 1 or more"));
    }
  }

  void check_dtype_like(const char* name, const fdma_tensor& tensor, fdma_dtype dtype, const char* other) {
    if (tensor.dtype == dtype) return;
    reasons_.add(FDMA_INVALID_DTYPE, concat(name, ".dtype is ", dtype_name(tensor.dtype),
                                            "; accepted: ", dtype_name(dtype), ", the dtype of ", other));
  }

  View4 check_given_rows(const char* name, const fdma_tensor& tensor, int64_t rows, const char* dims, Access access) {
    if (extents_known_) {
      check_shape(reasons_, name, tensor, {problem_.batch, rows, problem_.heads, problem_.head_dim}, dims);
    }
    check_strides(reasons_, name, tensor, access);
    check_data(reasons_, name, tensor, with_data_, dtype_size(tensor.dtype));
    return view4(tensor);
  }

  template <typename T>
  HeadRows<T> check_row(const char* name, const fdma_tensor& tensor, int64_t length, const char* dims, Access access) {
    if (!check_rank(reasons_, name, tensor, 3, dims)) return {};
    if (extents_known_) check_shape(reasons_, name, tensor, {problem_.batch, problem_.heads, length}, dims);
    check_strides(reasons_, name, tensor, access);
    check_data(reasons_, name, tensor, with_data_, dtype_size(tensor.dtype));
    const View4 view = view4(tensor);
    return {static_cast<T*>(view.data), view.stride[1], view.stride[2]};
  }

  const Params& params_;
  const bool with_data_;
  Reasons& reasons_;
  CacheProblem& problem_;
  bool device_known_ = false;
  bool extents_known_ = false;  // cache.key has its rank
};

// One of the two places that say where new tokens are.
void check_positions(const fdma_cache_append_params& params, bool with_data, Reasons& reasons,
                     CacheAppendProblem& problem) {
  const fdma_tensor& next = params.next_position;
  const bool host = params.first_position != FDMA_POSITION_NONE, device = next.rank != 0;
  if (host == device) {
    reasons.add(FDMA_INVALID_ARGUMENT, concat("first_position is ", params.first_position, " and next_position is ",
                                              device ? "" : "not ", "given; accepted: one of them"));
    return;
  }
  if (host) {
    problem.first_position = params.first_position;
    if (params.first_position < 0 || params.first_position > std::numeric_limits<int64_t>::max() - problem.tokens) {
      reasons.add(FDMA_INVALID_ARGUMENT, concat("first_position is ", params.first_position, " for ", problem.tokens,
                                                " tokens; accepted: positions from 0 to 2^63 - 1"));
    }
    return;
  }
  if (!check_rank(reasons, "next_position", next, 1, "(B)")) return;
  check_shape(reasons, "next_position", next, {problem.batch}, "(B)");
  check_dtype(reasons, "next_position", next, kPositionDtypes, "");
  check_contiguous(reasons, "next_position", next);
  check_data(reasons, "next_position", next, with_data, dtype_size(FDMA_INT64));
  problem.next_position = static_cast<int64_t*>(address_of(next));
}

}  // namespace

CacheAppendProblem make_cache_append_problem(const fdma_cache_append_params& caller_params, bool with_data) {
  const fdma_cache_append_params params = read_parameters(caller_params);
  CacheAppendProblem problem;
  Reasons reasons;
  CacheChecker checker(params, with_data, reasons, problem);
  checker.check_cache(Access::kWrite);
  problem.tokens = params.key.rank == 4 ? params.key.shape[1] : 0;
  problem.key = checker.check_rows("key", params.key, problem.tokens, kTokenDims, Access::kRead);
  problem.value = checker.check_rows("value", params.value, problem.tokens, kTokenDims, Access::kRead);
  problem.bias = checker.check_bias("bias", params.bias, problem.tokens, kTokenRowDims, Access::kRead);
  check_positions(params, with_data, reasons, problem);
  check_distinct(reasons,
                 {{"cache.key", params.cache.key},
                  {"cache.value", params.cache.value},
                  {"cache.bias", params.cache.bias},
                  {"cache.position", params.cache.position},
                  {"next_position", params.next_position}},
                 {{"key", params.key}, {"value", params.value}, {"bias", params.bias}});
  checker.check_device_support();
  reasons.throw_if_any();
  return problem;
}

CacheGatherProblem make_cache_gather_problem(const fdma_cache_gather_params& caller_params, bool with_data) {
  const fdma_cache_gather_params params = read_parameters(caller_params);
  CacheGatherProblem problem;
  Reasons reasons;
  CacheChecker checker(params, with_data, reasons, problem);
  checker.check_cache(Access::kRead);
  CacheSlots& sorted = problem.sorted;
  sorted.key = checker.check_slots("key", params.key, Access::kWrite);
  sorted.value = checker.check_slots("value", params.value, Access::kWrite);
  sorted.bias = checker.check_slot_bias("bias", params.bias, Access::kWrite);
  if (params.position.rank != 0) {
    sorted.position = checker.check_positions("position", params.position, Access::kWrite);
  }
  check_distinct(reasons,
                 {{"key", params.key}, {"value", params.value}, {"bias", params.bias}, {"position", params.position}},
                 {{"cache.key", params.cache.key},
                  {"cache.value", params.cache.value},
                  {"cache.bias", params.cache.bias},
                  {"cache.position", params.cache.position}});
  checker.check_device_support();
  reasons.throw_if_any();
  return problem;
}

}  // namespace fdma
