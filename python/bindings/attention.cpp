#include "attention.hpp"

#include <cstdint>

#include "call.hpp"
#include "error.hpp"
#include "fdma/attention.h"
#include "scalar.hpp"
#include "tensor.hpp"

namespace fdma::python {
namespace {

// None, or (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, block_table).
template <typename Params>
void read_sequences(Params& params, nb::handle sequences) {
  if (sequences.is_none()) return;
  params.cu_seqlens_q = read_on(params.device, sequences[0], "cu_seqlens_q", DtypeSet::kOffsets);
  params.cu_seqlens_k = read_on(params.device, sequences[1], "cu_seqlens_k", DtypeSet::kOffsets);
  params.max_seqlen_q = nb::cast<int64_t>(sequences[2]);
  params.max_seqlen_k = nb::cast<int64_t>(sequences[3]);
}

// What forward and backward have in common but the mask.
template <typename Params>
void read_inputs(Params& params, nb::handle query, nb::handle key, nb::handle value, nb::handle attn_bias,
                 nb::handle scale, nb::handle is_causal, nb::handle softcap, nb::handle sequences,
                 int32_t num_threads) {
  const TensorView query_view = read_tensor(query, "query");
  params.device = query_view.device;
  params.query = query_view.tensor;
  params.key = read_on(params.device, key, "key");
  params.value = read_on(params.device, value, "value");
  if (!attn_bias.is_none()) params.bias = {FDMA_BIAS_DENSE, read_on(params.device, attn_bias, "attn_bias")};
  params.scale = number_or(scale, "scale", FDMA_SCALE_DEFAULT);
  params.is_causal = flag_or(is_causal, "is_causal", false);
  params.softcap = number_or(softcap, "softcap", 0.0f);
  read_sequences(params, sequences);
  params.num_threads = num_threads;
}

// A mask of any kind. Bits stand for scores of the dense shape `shape`; other kinds have their tensor's.
fdma_mask read_mask(fdma_device device, nb::handle mask, int mask_kind, nb::handle shape, const char* name) {
  if (mask.is_none()) return {};
  const DtypeSet dtypes = mask_kind == FDMA_MASK_DENSE ? DtypeSet::kMask : DtypeSet::kNumbers;
  fdma_tensor tensor = read_on(device, mask, name, dtypes);
  if (mask_kind == FDMA_MASK_BITS) {
    tensor = {tensor.data, tensor.dtype, 4, {}, {}};
    for (int i = 0; i < 4; ++i) tensor.shape[i] = nb::cast<int64_t>(shape[i]);
  }
  return {static_cast<fdma_mask_kind>(mask_kind), tensor};
}

// Room for the packed form of a mask that has passed validation.
nb::object allocate_packed_mask(fdma_attention_forward_params& params, nb::handle query, nb::handle allocate) {
  size_t bytes = 0;
  const int64_t len_k = params.cu_seqlens_k.rank == 0 ? params.key.shape[1] : params.max_seqlen_k;
  check(fdma_mask_packed_size(&params.mask.tensor, len_k, &bytes));
  nb::object packed = allocate(query, bytes);
  params.packed_mask = read_tensor(packed, "packed_mask").tensor;
  return packed;
}

nb::object attention_forward(nb::handle query, nb::handle key, nb::handle value, nb::handle attn_mask, int mask_kind,
                             nb::handle mask_shape, nb::handle attn_bias, nb::handle scale, nb::handle is_causal,
                             nb::handle softcap, nb::handle sequences, nb::handle out, nb::handle lse, bool keep_mask,
                             int32_t num_threads, uintptr_t stream, nb::handle allocate) {
  fdma_attention_forward_params params;
  fdma_attention_forward_params_init(&params);
  read_inputs(params, query, key, value, attn_bias, scale, is_causal, softcap, sequences, num_threads);
  if (!sequences.is_none()) {
    params.block_table = read_optional(params.device, sequences[4], "block_table", DtypeSet::kPages);
  }
  params.mask = read_mask(params.device, attn_mask, mask_kind, mask_shape, "attn_mask");
  params.out = read_on(params.device, out, "out");
  params.lse = read_optional(params.device, lse, "lse");

  nb::object packed_mask = nb::none();
  if (keep_mask && params.mask.kind == FDMA_MASK_DENSE) {
    check(fdma_attention_forward_supported(&params));
    packed_mask = allocate_packed_mask(params, query, allocate);
  }
  run(params, fdma_attention_forward_workspace_size, fdma_attention_forward, query, stream, allocate);
  return packed_mask;
}

void attention_backward(nb::handle grad_out, nb::handle grad_lse, nb::handle query, nb::handle key, nb::handle value,
                        nb::handle kept_mask, int mask_kind, nb::handle mask_shape, nb::handle attn_bias,
                        nb::handle out, nb::handle lse, nb::handle scale, nb::handle is_causal, nb::handle softcap,
                        nb::handle sequences, bool deterministic, nb::handle grad_query, nb::handle grad_key,
                        nb::handle grad_value, nb::handle grad_bias, int32_t num_threads, uintptr_t stream,
                        nb::handle allocate) {
  fdma_attention_backward_params params;
  fdma_attention_backward_params_init(&params);
  read_inputs(params, query, key, value, attn_bias, scale, is_causal, softcap, sequences, num_threads);
  params.mask = read_mask(params.device, kept_mask, mask_kind, mask_shape, "kept_mask");
  params.deterministic = deterministic;
  params.out = read_on(params.device, out, "out");
  params.lse = read_on(params.device, lse, "lse");
  params.grad_out = read_on(params.device, grad_out, "grad_out");
  params.grad_lse = read_optional(params.device, grad_lse, "grad_lse");
  params.grad_query = read_optional(params.device, grad_query, "grad_query");
  params.grad_key = read_optional(params.device, grad_key, "grad_key");
  params.grad_value = read_optional(params.device, grad_value, "grad_value");
  params.grad_bias = read_optional(params.device, grad_bias, "grad_bias");
  run(params, fdma_attention_backward_workspace_size, fdma_attention_backward, query, stream, allocate);
}

}  // namespace

void bind_attention(nb::module_& module) {
  module.attr("MASK_DENSE") = static_cast<int>(FDMA_MASK_DENSE);
  module.attr("MASK_BITS") = static_cast<int>(FDMA_MASK_BITS);
  module.attr("MASK_COLUMNS") = static_cast<int>(FDMA_MASK_COLUMNS);
  module.attr("MASK_INTERVAL") = static_cast<int>(FDMA_MASK_INTERVAL);
  const auto optional = [](const char* name) { return nb::arg(name).none(); };
  module.def("attention_forward", &attention_forward, nb::arg("query"), nb::arg("key"), nb::arg("value"),
             optional("attn_mask"), nb::arg("mask_kind"), optional("mask_shape"), optional("attn_bias"),
             optional("scale"), optional("is_causal"), optional("softcap"), optional("sequences"), nb::arg("out"),
             optional("lse"), nb::arg("keep_mask"), nb::arg("num_threads"), nb::arg("stream"), nb::arg("allocate"));
  module.def("attention_backward", &attention_backward, nb::arg("grad_out"), optional("grad_lse"), nb::arg("query"),
             nb::arg("key"), nb::arg("value"), optional("kept_mask"), nb::arg("mask_kind"), optional("mask_shape"),
             optional("attn_bias"), nb::arg("out"), nb::arg("lse"), optional("scale"), optional("is_causal"),
             optional("softcap"), optional("sequences"), nb::arg("deterministic"), optional("grad_query"),
             optional("grad_key"), optional("grad_value"), optional("grad_bias"), nb::arg("num_threads"),
             nb::arg("stream"), nb::arg("allocate"));
}

}  // namespace fdma::python
