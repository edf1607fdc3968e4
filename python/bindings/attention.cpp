#include "attention.hpp"

#include <cstdint>
#include <memory>
#include <new>

#include "error.hpp"
#include "fdma/attention.h"
#include "scalar.hpp"
#include "tensor.hpp"

namespace fdma::python {
namespace {

// Scratch of one call. On CUDA torch allocates it, so that its caching allocator orders reuse on the stream; on the CPU
// the call is over when the scratch goes, and asking torch would cost as much as the rest of a small call.
class Scratch {
 public:
  // `allocate(query, bytes)` returns a tensor of that many bytes on the device of query.
  Scratch(size_t bytes, fdma_device device, nb::handle query, nb::handle allocate) {
    if (bytes == 0) return;
    if (device.type == FDMA_DEVICE_CPU) {
      host_.reset(::operator new(bytes, kAlignment));
      data_ = host_.get();
    } else {
      tensor_ = allocate(query, bytes);
      data_ = read_tensor(tensor_, "workspace").tensor.data;
    }
  }
  void* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{FDMA_WORKSPACE_ALIGNMENT};
  struct Release {
    void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
  };

  std::unique_ptr<void, Release> host_;
  nb::object tensor_;
  void* data_ = nullptr;
};

fdma_tensor read_on(fdma_device device, nb::handle object, const char* name, DtypeSet dtypes = DtypeSet::kNumbers) {
  const TensorView view = read_tensor(object, name, dtypes);
  check_same_device(view, name, device);
  return view.tensor;
}

// None leaves the tensor "not given".
fdma_tensor read_optional(fdma_device device, nb::handle object, const char* name,
                          DtypeSet dtypes = DtypeSet::kNumbers) {
  return object.is_none() ? fdma_tensor{} : read_on(device, object, name, dtypes);
}

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

fdma_stream stream_from(uintptr_t stream) { return reinterpret_cast<fdma_stream>(stream); }

// Room for the packed form of a mask that has passed validation.
nb::object allocate_packed_mask(fdma_attention_forward_params& params, nb::handle query, nb::handle allocate) {
  size_t bytes = 0;
  const int64_t len_k = params.cu_seqlens_k.rank == 0 ? params.key.shape[1] : params.max_seqlen_k;
  check(fdma_mask_packed_size(&params.mask.tensor, len_k, &bytes));
  nb::object packed = allocate(query, bytes);
  params.packed_mask = read_tensor(packed, "packed_mask").tensor;
  return packed;
}

nb::object attention_forward(nb::handle query, nb::handle key, nb::handle value, nb::handle attn_mask,
                             nb::handle attn_bias, nb::handle scale, nb::handle is_causal, nb::handle softcap,
                             nb::handle sequences, nb::handle out, nb::handle lse, bool keep_mask, int32_t num_threads,
                             uintptr_t stream, nb::handle allocate) {
  fdma_attention_forward_params params;
  fdma_attention_forward_params_init(&params);
  read_inputs(params, query, key, value, attn_bias, scale, is_causal, softcap, sequences, num_threads);
  if (!sequences.is_none()) {
    params.block_table = read_optional(params.device, sequences[4], "block_table", DtypeSet::kPages);
  }
  if (!attn_mask.is_none()) {
    params.mask = {FDMA_MASK_DENSE, read_on(params.device, attn_mask, "attn_mask", DtypeSet::kMask)};
  }
  params.out = read_on(params.device, out, "out");
  params.lse = read_optional(params.device, lse, "lse");

  size_t bytes = 0;
  check(fdma_attention_forward_workspace_size(&params, &bytes));
  nb::object packed_mask = nb::none();
  if (keep_mask && params.mask.kind == FDMA_MASK_DENSE) {
    packed_mask = allocate_packed_mask(params, query, allocate);
    check(fdma_attention_forward_workspace_size(&params, &bytes));
  }
  const Scratch scratch(bytes, params.device, query, allocate);
  const auto status = [&] {
    const nb::gil_scoped_release nogil;
    return fdma_attention_forward(&params, scratch.data(), bytes, stream_from(stream));
  }();
  check(status);
  return packed_mask;
}

// A packed mask of the dense shape `shape`, or no mask.
fdma_mask read_packed_mask(fdma_device device, nb::handle packed_mask, nb::handle shape) {
  if (packed_mask.is_none()) return {};
  const fdma_tensor packed = read_on(device, packed_mask, "packed_mask");
  fdma_mask mask{FDMA_MASK_BITS, {packed.data, FDMA_UINT8, 4, {}, {}}};
  for (int i = 0; i < 4; ++i) mask.tensor.shape[i] = nb::cast<int64_t>(shape[i]);
  return mask;
}

void attention_backward(nb::handle grad_out, nb::handle grad_lse, nb::handle query, nb::handle key, nb::handle value,
                        nb::handle packed_mask, nb::handle mask_shape, nb::handle attn_bias, nb::handle out,
                        nb::handle lse, nb::handle scale, nb::handle is_causal, nb::handle softcap,
                        nb::handle sequences, bool deterministic, nb::handle grad_query, nb::handle grad_key,
                        nb::handle grad_value, nb::handle grad_bias, int32_t num_threads, uintptr_t stream,
                        nb::handle allocate) {
  fdma_attention_backward_params params;
  fdma_attention_backward_params_init(&params);
  read_inputs(params, query, key, value, attn_bias, scale, is_causal, softcap, sequences, num_threads);
  params.mask = read_packed_mask(params.device, packed_mask, mask_shape);
  params.deterministic = deterministic;
  params.out = read_on(params.device, out, "out");
  params.lse = read_on(params.device, lse, "lse");
  params.grad_out = read_on(params.device, grad_out, "grad_out");
  params.grad_lse = read_optional(params.device, grad_lse, "grad_lse");
  params.grad_query = read_optional(params.device, grad_query, "grad_query");
  params.grad_key = read_optional(params.device, grad_key, "grad_key");
  params.grad_value = read_optional(params.device, grad_value, "grad_value");
  params.grad_bias = read_optional(params.device, grad_bias, "grad_bias");

  size_t bytes = 0;
  check(fdma_attention_backward_workspace_size(&params, &bytes));
  const Scratch scratch(bytes, params.device, query, allocate);
  const auto status = [&] {
    const nb::gil_scoped_release nogil;
    return fdma_attention_backward(&params, scratch.data(), bytes, stream_from(stream));
  }();
  check(status);
}

}  // namespace

void bind_attention(nb::module_& module) {
  const auto optional = [](const char* name) { return nb::arg(name).none(); };
  module.def("attention_forward", &attention_forward, nb::arg("query"), nb::arg("key"), nb::arg("value"),
             optional("attn_mask"), optional("attn_bias"), optional("scale"), optional("is_causal"),
             optional("softcap"), optional("sequences"), nb::arg("out"), optional("lse"), nb::arg("keep_mask"),
             nb::arg("num_threads"), nb::arg("stream"), nb::arg("allocate"));
  module.def("attention_backward", &attention_backward, nb::arg("grad_out"), optional("grad_lse"), nb::arg("query"),
             nb::arg("key"), nb::arg("value"), optional("packed_mask"), optional("mask_shape"), optional("attn_bias"),
             nb::arg("out"), nb::arg("lse"), optional("scale"), optional("is_causal"), optional("softcap"),
             optional("sequences"), nb::arg("deterministic"), optional("grad_query"), optional("grad_key"),
             optional("grad_value"), optional("grad_bias"), nb::arg("num_threads"), nb::arg("stream"),
             nb::arg("allocate"));
}

}  // namespace fdma::python
