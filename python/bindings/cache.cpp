#include "cache.hpp"

#include <cstdint>

#include "call.hpp"
#include "fdma/cache.h"
#include "tensor.hpp"

namespace fdma::python {
namespace {

constexpr const char* kFirst = "cache.key";

// What append and gather have in common: `cache` is (key, value, bias, position), the others are tokens on their way.
template <typename Params>
void read_inputs(Params& params, nb::handle cache, nb::handle key, nb::handle value, nb::handle attn_bias,
                 int32_t num_threads) {
  const TensorView first = read_tensor(cache[0], kFirst);
  params.device = first.device;
  params.cache.key = first.tensor;
  params.cache.value = read_on(params.device, cache[1], "cache.value", DtypeSet::kNumbers, kFirst);
  params.cache.bias = read_on(params.device, cache[2], "cache.bias", DtypeSet::kNumbers, kFirst);
  params.cache.position = read_on(params.device, cache[3], "cache.position", DtypeSet::kNumbers, kFirst);
  params.key = read_on(params.device, key, "key", DtypeSet::kNumbers, kFirst);
  params.value = read_on(params.device, value, "value", DtypeSet::kNumbers, kFirst);
  params.bias = read_on(params.device, attn_bias, "attn_bias", DtypeSet::kNumbers, kFirst);
  params.num_threads = num_threads;
}

void cache_append(nb::handle cache, nb::handle next_position, nb::handle key, nb::handle value, nb::handle attn_bias,
                  int32_t num_threads, uintptr_t stream, nb::handle allocate) {
  fdma_cache_append_params params;
  fdma_cache_append_params_init(&params);
  read_inputs(params, cache, key, value, attn_bias, num_threads);
  params.next_position = read_on(params.device, next_position, "next_position", DtypeSet::kNumbers, kFirst);
  run(params, fdma_cache_append_workspace_size, fdma_cache_append, key, stream, allocate);
}

void cache_gather(nb::handle cache, nb::handle key, nb::handle value, nb::handle attn_bias, int32_t num_threads,
                  uintptr_t stream, nb::handle allocate) {
  fdma_cache_gather_params params;
  fdma_cache_gather_params_init(&params);
  read_inputs(params, cache, key, value, attn_bias, num_threads);
  run(params, fdma_cache_gather_workspace_size, fdma_cache_gather, key, stream, allocate);
}

}  // namespace

void bind_cache(nb::module_& module) {
  module.def("cache_append", &cache_append, nb::arg("cache"), nb::arg("next_position"), nb::arg("key"),
             nb::arg("value"), nb::arg("attn_bias"), nb::arg("num_threads"), nb::arg("stream"), nb::arg("allocate"));
  module.def("cache_gather", &cache_gather, nb::arg("cache"), nb::arg("key"), nb::arg("value"), nb::arg("attn_bias"),
             nb::arg("num_threads"), nb::arg("stream"), nb::arg("allocate"));
}

}  // namespace fdma::python
