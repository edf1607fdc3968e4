#include "calls.hpp"

#include <algorithm>

#include "host/dtype.hpp"

namespace fdma::testing {

fdma_tensor Memory::tensor(fdma_dtype dtype, std::initializer_list<int64_t> shape) {
  fdma_tensor tensor{};
  tensor.dtype = dtype;
  tensor.rank = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), tensor.shape);
  int64_t elements = 1;
  for (int i = tensor.rank - 1; i >= 0; --i) {
    tensor.stride[i] = elements;
    elements *= tensor.shape[i];
  }
  const auto bytes = static_cast<size_t>(elements * dtype_size(dtype));
  chunks_.push_back(std::make_unique<Chunk[]>(bytes / sizeof(Chunk) + 1));
  tensor.data = chunks_.back().get();
  return tensor;
}

ForwardCall::ForwardCall() {
  fdma_attention_forward_params_init(&params);
  params.query = memory.tensor(FDMA_FLOAT32, {kB, kLq, kH, kD});
  params.key = memory.tensor(FDMA_FLOAT32, {kB, kLk, kHkv, kD});
  params.value = memory.tensor(FDMA_FLOAT32, {kB, kLk, kHkv, kD});
  params.out = memory.tensor(FDMA_FLOAT32, {kB, kLq, kH, kD});
}

void ForwardCall::add_mask(fdma_dtype dtype) {
  params.mask = {FDMA_MASK_DENSE, memory.tensor(dtype, {kB, kH, kLq, kLk})};
}

void ForwardCall::add_bits() {
  params.mask = {FDMA_MASK_BITS, memory.tensor(FDMA_UINT8, {kB, kH, kLq, kLk})};
  params.mask.tensor.data = memory.tensor(FDMA_UINT8, {kPackedBytes}).data;
}

void ForwardCall::add_bias(fdma_dtype dtype) {
  params.bias = {FDMA_BIAS_DENSE, memory.tensor(dtype, {kB, kH, kLq, kLk})};
}

BackwardCall::BackwardCall() {
  fdma_attention_backward_params_init(&params);
  params.query = memory.tensor(FDMA_FLOAT32, {kB, kLq, kH, kD});
  params.key = memory.tensor(FDMA_FLOAT32, {kB, kLk, kHkv, kD});
  params.value = memory.tensor(FDMA_FLOAT32, {kB, kLk, kHkv, kD});
  params.out = memory.tensor(FDMA_FLOAT32, {kB, kLq, kH, kD});
  params.lse = memory.tensor(FDMA_FLOAT32, {kB, kH, kLq});
  params.grad_out = memory.tensor(FDMA_FLOAT32, {kB, kLq, kH, kD});
  params.grad_query = memory.tensor(FDMA_FLOAT32, {kB, kLq, kH, kD});
  params.grad_key = memory.tensor(FDMA_FLOAT32, {kB, kLk, kHkv, kD});
  params.grad_value = memory.tensor(FDMA_FLOAT32, {kB, kLk, kHkv, kD});
}

void BackwardCall::add_bias(fdma_dtype dtype) {
  params.bias = {FDMA_BIAS_DENSE, memory.tensor(dtype, {kB, kH, kLq, kLk})};
  params.grad_bias = memory.tensor(dtype, {kB, kH, kLq, kLk});
}

}  // namespace fdma::testing
