#include "host/mask_layout.hpp"

#include <limits>

#include "host/tensor_checks.hpp"
#include "host/text.hpp"

namespace fdma {

std::optional<int64_t> packed_mask_bytes(const PackedMaskLayout& layout) {
  // Roundings of the layout add less than 2^12 to an extent, and the tile bits take less room than the rows.
  constexpr int64_t kExtentLimit = std::numeric_limits<int64_t>::max() - (int64_t{1} << 12);
  if (layout.keys > kExtentLimit || layout.rows > kExtentLimit) return std::nullopt;
  int64_t words = layout.row_words() + layout.tile_words();
  for (const int64_t factor : {layout.rows, layout.heads, layout.batch, int64_t{4}}) {
    if (__builtin_mul_overflow(words, factor, &words)) return std::nullopt;
  }
  return layout.bytes();
}

int64_t packed_size_of_mask(const fdma_tensor& mask, int64_t len_k) {
  Reasons reasons;
  if (len_k < 0) reasons.add(FDMA_INVALID_ARGUMENT, concat("len_k is ", len_k, "; accepted: 0 or more"));
  std::optional<int64_t> bytes;
  if (check_rank(reasons, "mask", mask, 4, kScoreDims) && reasons.empty()) {
    if (mask.shape[3] != 1 && mask.shape[3] != len_k) {
      reasons.add(FDMA_INVALID_SHAPE,
                  concat("mask.shape is ", shape_text(mask), "; accepted: a last dimension of 1 or len_k = ", len_k));
    }
    bytes = packed_mask_bytes({mask.shape[0], mask.shape[1], mask.shape[2], len_k});
    if (!bytes) {
      reasons.add(FDMA_INVALID_SHAPE, concat("mask.shape is ", shape_text(mask), " with len_k = ", len_k,
                                             "; accepted: below 2^63 bytes of packed mask"));
    }
  }
  reasons.throw_if_any();
  return *bytes;
}

}  // namespace fdma
