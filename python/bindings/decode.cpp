#include "decode.hpp"

#include <cstdint>

#include "call.hpp"
#include "fdma/decode.h"
#include "scalar.hpp"
#include "tensor.hpp"

namespace fdma::python {
namespace {

void decode(nb::handle query, nb::handle key_cache, nb::handle value_cache, nb::handle attn_bias,
            nb::handle cache_seqlens, nb::handle block_table, int64_t keep_window_size, nb::handle scale,
            nb::handle is_causal, nb::handle softcap, nb::handle out, nb::handle lse, int32_t num_threads,
            uintptr_t stream, nb::handle allocate) {
  fdma_decode_params params;
  fdma_decode_params_init(&params);
  const TensorView query_view = read_tensor(query, "query");
  params.device = query_view.device;
  params.query = query_view.tensor;
  params.key = read_on(params.device, key_cache, "key_cache");
  params.value = read_on(params.device, value_cache, "value_cache");
  if (!attn_bias.is_none()) params.bias = {FDMA_BIAS_DENSE, read_on(params.device, attn_bias, "attn_bias")};
  params.seqlens_k = read_optional(params.device, cache_seqlens, "cache_seqlens", DtypeSet::kOffsets);
  params.block_table = read_optional(params.device, block_table, "block_table", DtypeSet::kPages);
  params.keep_window_size = keep_window_size;
  params.scale = number_or(scale, "scale", FDMA_SCALE_DEFAULT);
  params.is_causal = flag_or(is_causal, "is_causal", false);
  params.softcap = number_or(softcap, "softcap", 0.0f);
  params.num_threads = num_threads;
  params.out = read_on(params.device, out, "out");
  params.lse = read_optional(params.device, lse, "lse");
  run(params, fdma_decode_workspace_size, fdma_decode, query, stream, allocate,
      {{"seqlens_k", "cache_seqlens"},
       {"key.", "key_cache."},
       {"value.", "value_cache."},
       {"pages of key", "pages of key_cache"}});
}

}  // namespace

void bind_decode(nb::module_& module) {
  const auto optional = [](const char* name) { return nb::arg(name).none(); };
  module.def("decode", &decode, nb::arg("query"), nb::arg("key_cache"), nb::arg("value_cache"), optional("attn_bias"),
             optional("cache_seqlens"), optional("block_table"), nb::arg("keep_window_size"), optional("scale"),
             optional("is_causal"), optional("softcap"), nb::arg("out"), optional("lse"), nb::arg("num_threads"),
             nb::arg("stream"), nb::arg("allocate"));
}

}  // namespace fdma::python
