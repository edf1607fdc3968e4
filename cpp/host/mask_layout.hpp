// Sizes of packed masks, checked against overflow.
#pragma once

#include <optional>

#include "fdma/types.h"
#include "kernels/policy/mask_bits.hpp"

namespace fdma {

inline constexpr int64_t kPackedMaskAlignment = 16;  // kernels read rows as 16-byte vectors

// Bytes of a packed mask of this layout; empty when they leave 63 bits. Extents are 0 or more.
std::optional<int64_t> packed_mask_bytes(const PackedMaskLayout& layout);

// The same for a dense mask tensor over `len_k` keys, of which rank and shape are read. Throws fdma::Error when they do
// not describe a mask.
int64_t packed_size_of_mask(const fdma_tensor& mask, int64_t len_k);

}  // namespace fdma
