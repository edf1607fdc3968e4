#include "selection.hpp"

#include <cstdint>

#include "call.hpp"
#include "fdma/mask.h"
#include "fdma/select.h"
#include "tensor.hpp"

namespace fdma::python {
namespace {

constexpr const char* kBias = "attn_bias";

void select_keys(nb::handle attn_bias, nb::handle key_padding_mask, int64_t keep_window_size, nb::handle end,
                 nb::handle columns, nb::handle counts, nb::handle packed_mask, bool is_causal, int32_t num_threads,
                 uintptr_t stream, nb::handle allocate) {
  fdma_select_params params;
  fdma_select_params_init(&params);
  const TensorView bias = read_tensor(attn_bias, kBias);
  params.device = bias.device;
  params.bias = bias.tensor;
  params.key_mask = read_optional(params.device, key_padding_mask, "key_padding_mask", DtypeSet::kMask, kBias);
  params.keep_window_size = keep_window_size;
  params.num_threads = num_threads;
  params.end = read_optional(params.device, end, "end", DtypeSet::kNumbers, kBias);
  params.columns = read_optional(params.device, columns, "columns", DtypeSet::kNumbers, kBias);
  params.counts = read_optional(params.device, counts, "counts", DtypeSet::kNumbers, kBias);
  params.packed_mask = read_optional(params.device, packed_mask, "packed_mask", DtypeSet::kNumbers, kBias);
  params.is_causal = is_causal;
  run(params, fdma_select_workspace_size, fdma_select, attn_bias, stream, allocate,
      {{"key_mask", "key_padding_mask"}, {"bias", kBias}});
}

void pack_mask(nb::handle mask, int64_t len_k, nb::handle packed_mask, int32_t num_threads, uintptr_t stream,
               nb::handle allocate) {
  fdma_pack_mask_params params;
  fdma_pack_mask_params_init(&params);
  const TensorView view = read_tensor(mask, "mask", DtypeSet::kMask);
  params.device = view.device;
  params.mask = view.tensor;
  params.len_k = len_k;
  params.num_threads = num_threads;
  params.packed_mask = read_on(params.device, packed_mask, "packed_mask", DtypeSet::kNumbers, "mask");
  run(params, fdma_pack_mask_workspace_size, fdma_pack_mask, mask, stream, allocate);
}

}  // namespace

void bind_selection(nb::module_& module) {
  const auto optional = [](const char* name) { return nb::arg(name).none(); };
  module.def("select_keys", &select_keys, nb::arg("attn_bias"), optional("key_padding_mask"),
             nb::arg("keep_window_size"), optional("end"), optional("columns"), optional("counts"),
             optional("packed_mask"), nb::arg("is_causal"), nb::arg("num_threads"), nb::arg("stream"),
             nb::arg("allocate"));
  module.def("pack_mask", &pack_mask, nb::arg("mask"), nb::arg("len_k"), nb::arg("packed_mask"), nb::arg("num_threads"),
             nb::arg("stream"), nb::arg("allocate"));
}

}  // namespace fdma::python
