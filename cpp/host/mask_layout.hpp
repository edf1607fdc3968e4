// Sizes of packed masks, checked against overflow.
#pragma once

#include <optional>

#include "fdma/types.h"
#include "host/reasons.hpp"
#include "kernels/policy/mask_bits.hpp"

namespace fdma {

inline constexpr int64_t kPackedMaskAlignment = 16;  // kernels read rows as 16-byte vectors

// Bytes of a packed mask of this layout; empty when they leave 63 bits. Extents are 0 or more.
std::optional<int64_t> packed_mask_bytes(const PackedMaskLayout& layout);

// Adds a reason unless the tensor, of which rank and shape are read, is a dense mask over `len_k` keys. The bytes of
// its packed mask, or empty.
std::optional<int64_t> check_dense_mask_shape(Reasons& reasons, const fdma_tensor& mask, int64_t len_k);

// The bytes alone; throws fdma::Error with the reasons.
int64_t packed_size_of_mask(const fdma_tensor& mask, int64_t len_k);

// The bytes of `layout`, the mask that a call makes of the tensor `name`; adds a reason and is empty when there are too
// many.
std::optional<int64_t> check_packed_size(Reasons& reasons, const char* name, const fdma_tensor& tensor,
                                         const PackedMaskLayout& layout);

// Address of the output packed_mask, which has `bytes` bytes, or any number while that is not known.
void* check_packed_output(Reasons& reasons, const fdma_tensor& packed_mask, std::optional<int64_t> bytes,
                          bool with_data);

}  // namespace fdma
