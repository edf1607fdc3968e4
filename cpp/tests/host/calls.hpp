// Calls that are right in every respect, for tests that then break one thing.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "fdma/attention.h"

namespace fdma::testing {

inline constexpr int64_t kB = 2, kLq = 3, kLk = 5, kH = 4, kHkv = 2, kD = 16;
inline constexpr int64_t kPackedBytes = kB * kH * (kLq * 16 + 4);  // rows of 128 bits, one word of tile bits

// Owns the memory of the tensors of a call.
class Memory {
 public:
  // A contiguous tensor with zeroed memory of its own, at a multiple of 256 bytes.
  fdma_tensor tensor(fdma_dtype dtype, std::initializer_list<int64_t> shape);

 private:
  struct alignas(FDMA_WORKSPACE_ALIGNMENT) Chunk {
    char bytes[FDMA_WORKSPACE_ALIGNMENT];
  };
  std::vector<std::unique_ptr<Chunk[]>> chunks_;
};

// Cross attention on the CPU in float32: B 2, Lq 3, Lk 5, H 4, H_kv 2, D 16.
struct ForwardCall {
  ForwardCall();
  void add_mask(fdma_dtype dtype = FDMA_BOOL);
  void add_bits();
  void add_bias(fdma_dtype dtype = FDMA_FLOAT32);

  Memory memory;
  fdma_attention_forward_params params;
};

struct BackwardCall {
  BackwardCall();
  void add_bias(fdma_dtype dtype = FDMA_FLOAT32);

  Memory memory;
  fdma_attention_backward_params params;
};

}  // namespace fdma::testing
