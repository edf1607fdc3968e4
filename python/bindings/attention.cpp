#include "attention.hpp"

#include <cstdint>

#include "error.hpp"
#include "fdma/attention.h"
#include "scalar.hpp"
#include "tensor.hpp"

namespace fdma::python {
namespace {

// Scratch of one call. torch allocates it, so that its caching allocator orders reuse on the stream.
class Scratch {
 public:
  // `allocate(query, bytes)` returns a tensor of that many bytes on the device of query.
  Scratch(size_t bytes, nb::handle query, nb::handle allocate) {
    if (bytes == 0) return;
    // torch aligns CPU memory to less than the library asks for.
    owner_ = allocate(query, bytes + FDMA_WORKSPACE_ALIGNMENT - 1);
    const auto address = reinterpret_cast<uintptr_t>(read_tensor(owner_, "workspace").tensor.data);
    const uintptr_t mask = FDMA_WORKSPACE_ALIGNMENT - 1;
    data_ = reinterpret_cast<void*>((address + mask) & ~mask);
  }
  void* data() const { return data_; }

 private:
  nb::object owner_;
  void* data_ = nullptr;
};

fdma_tensor read_on(fdma_device device, nb::handle object, const char* name, DtypeSet dtypes = DtypeSet::kAny) {
  const TensorView view = read_tensor(object, name, dtypes);
  check_same_device(view, name, device);
  return view.tensor;
}

// None leaves the tensor "not given".
fdma_tensor read_optional(fdma_device device, nb::handle object, const char* name) {
  return object.is_none() ? fdma_tensor{} : read_on(device, object, name);
}

// What forward and backward have in common but the mask.
template <typename Params>
void read_inputs(Params& params, nb::handle query, nb::handle key, nb::handle value, nb::handle attn_bias,
                 nb::handle scale, nb::handle is_causal, nb::handle softcap, int32_t num_threads) {
  const TensorView query_view = read_tensor(query, "query");
  params.device = query_view.device;
  params.query = query_view.tensor;
  params.key = read_on(params.device, key, "key");
  params.value = read_on(params.device, value, "value");
  if (!attn_bias.is_none()) params.bias = {FDMA_BIAS_DENSE, read_on(params.device, attn_bias, "attn_bias")};
  params.scale = number_or(scale, "scale", FDMA_SCALE_DEFAULT);
  params.is_causal = flag_or(is_causal, "is_causal", false);
  params.softcap = number_or(softcap, "softcap", 0.0f);
  params.num_threads = num_threads;
}

fdma_stream stream_from(uintptr_t stream) { return reinterpret_cast<fdma_stream>(stream); }

void attention_forward(nb::handle query, nb::handle key, nb::handle value, nb::handle attn_mask, nb::handle attn_bias,
                       nb::handle scale, nb::handle is_causal, nb::handle softcap, nb::handle out, nb::handle lse,
                       nb::handle packed_mask, int32_t num_threads, uintptr_t stream, nb::handle allocate) {
  fdma_attention_forward_params params;
  fdma_attention_forward_params_init(&params);
  read_inputs(params, query, key, value, attn_bias, scale, is_causal, softcap, num_threads);
  if (!attn_mask.is_none()) {
    params.mask = {FDMA_MASK_DENSE, read_on(params.device, attn_mask, "attn_mask", DtypeSet::kMask)};
  }
  params.out = read_on(params.device, out, "out");
  params.lse = read_optional(params.device, lse, "lse");
  params.packed_mask = read_optional(params.device, packed_mask, "packed_mask");

  size_t bytes = 0;
  check(fdma_attention_forward_workspace_size(&params, &bytes));
  const Scratch scratch(bytes, query, allocate);
  const auto status = [&] {
    const nb::gil_scoped_release nogil;
    return fdma_attention_forward(&params, scratch.data(), bytes, stream_from(stream));
  }();
  check(status);
}

// A packed mask of the dense shape `shape`, or no mask.
fdma_mask read_packed_mask(fdma_device device, nb::handle packed_mask, nb::handle shape) {
  if (packed_mask.is_none()) return {};
  const fdma_tensor packed = read_on(device, packed_mask, "packed_mask");
  fdma_mask mask{FDMA_MASK_BITS, {packed.data, FDMA_UINT8, 4, {}, {}}};
  for (int i = 0; i < 4; ++i) mask.tensor.shape[i] = nb::cast<int64_t>(shape[i]);
  return mask;
}

void attention_backward(nb::handle grad_out, nb::handle query, nb::handle key, nb::handle value, nb::handle packed_mask,
                        nb::handle mask_shape, nb::handle attn_bias, nb::handle out, nb::handle lse, nb::handle scale,
                        nb::handle is_causal, nb::handle softcap, bool deterministic, nb::handle grad_query,
                        nb::handle grad_key, nb::handle grad_value, nb::handle grad_bias, int32_t num_threads,
                        uintptr_t stream, nb::handle allocate) {
  fdma_attention_backward_params params;
  fdma_attention_backward_params_init(&params);
  read_inputs(params, query, key, value, attn_bias, scale, is_causal, softcap, num_threads);
  params.mask = read_packed_mask(params.device, packed_mask, mask_shape);
  params.deterministic = deterministic;
  params.out = read_on(params.device, out, "out");
  params.lse = read_on(params.device, lse, "lse");
  params.grad_out = read_on(params.device, grad_out, "grad_out");
  params.grad_query = read_optional(params.device, grad_query, "grad_query");
  params.grad_key = read_optional(params.device, grad_key, "grad_key");
  params.grad_value = read_optional(params.device, grad_value, "grad_value");
  params.grad_bias = read_optional(params.device, grad_bias, "grad_bias");

  size_t bytes = 0;
  check(fdma_attention_backward_workspace_size(&params, &bytes));
  const Scratch scratch(bytes, query, allocate);
  const auto status = [&] {
    const nb::gil_scoped_release nogil;
    return fdma_attention_backward(&params, scratch.data(), bytes, stream_from(stream));
  }();
  check(status);
}

size_t packed_mask_size(nb::handle attn_mask, int64_t len_k) {
  const TensorView mask = read_tensor(attn_mask, "attn_mask", DtypeSet::kMask);
  size_t bytes = 0;
  check(fdma_mask_packed_size(&mask.tensor, len_k, &bytes));
  return bytes;
}

}  // namespace

void bind_attention(nb::module_& module) {
  module.def("attention_forward", &attention_forward);
  module.def("attention_backward", &attention_backward);
  module.def("packed_mask_size", &packed_mask_size);
}

}  // namespace fdma::python
