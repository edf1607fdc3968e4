// Packed masks as they should be, and memory for a call to write one.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/policy/mask_bits.hpp"
#include "tests/support/tensor.hpp"

namespace fdma::test {

// A score of a mask: (batch, head, row, key).
using VisibleScore = std::function<bool(int64_t b, int64_t h, int64_t q, int64_t k)>;

// The words of a packed mask, rows and then tiles, padding zero.
std::vector<uint32_t> packed_words(const PackedMaskLayout& layout, const VisibleScore& visible);

// Room for a packed mask, which the library sizes, in guarded memory.
class PackedOutput {
 public:
  PackedOutput(const PackedMaskLayout& layout, fdma_device device);

  fdma_tensor describe() const { return bytes_.describe(); }
  // What the device wrote. The test fails if that reaches past the mask.
  std::vector<uint32_t> words();

 private:
  Tensor bytes_;
};

}  // namespace fdma::test
