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

std::optional<int64_t> check_dense_mask_shape(Reasons& reasons, const fdma_tensor& mask, int64_t len_k) {
  if (len_k < 0) reasons.add(FDMA_INVALID_ARGUMENT, concat("len_k is ", len_k, "; accepted: 0 or more"));
  if (!check_rank(reasons, "mask", mask, 4, kScoreDims) || len_k < 0) return std::nullopt;
  if (mask.shape[3] != 1 && mask.shape[3] != len_k) {
    reasons.add(FDMA_INVALID_SHAPE,
                concat("mask.shape is ", shape_text(mask), "; accepted: a last dimension of 1 or len_k = ", len_k));
    return std::nullopt;
  }
  const std::optional<int64_t> bytes = packed_mask_bytes({mask.shape[0], mask.shape[1], mask.shape[2], len_k});
  if (!bytes) {
    reasons.add(FDMA_INVALID_SHAPE, concat("mask.shape is ", shape_text(mask), " with len_k = ", len_k,
                                           "; accepted: below 2^63 bytes of packed mask"));
  }
  return bytes;
}

int64_t packed_size_of_mask(const fdma_tensor& mask, int64_t len_k) {
  Reasons reasons;
  const std::optional<int64_t> bytes = check_dense_mask_shape(reasons, mask, len_k);
  reasons.throw_if_any();
  return *bytes;
}

std::optional<int64_t> check_packed_size(Reasons& reasons, const char* name, const fdma_tensor& tensor,
                                         const PackedMaskLayout& layout) {
  const std::optional<int64_t> bytes = packed_mask_bytes(layout);
  if (!bytes) {
    reasons.add(FDMA_INVALID_SHAPE,
                concat(name, ".shape is ", shape_text(tensor), "; accepted: below 2^63 bytes of packed mask"));
  }
  return bytes;
}

void* check_packed_output(Reasons& reasons, const fdma_tensor& packed_mask, std::optional<int64_t> bytes,
                          bool with_data) {
  constexpr char kName[] = "packed_mask";
  if (!check_rank(reasons, kName, packed_mask, 1, "(bytes,)")) return nullptr;
  if (bytes) check_shape(reasons, kName, packed_mask, {*bytes}, "(fdma_mask_packed_size bytes,)");
  check_dtype(reasons, kName, packed_mask, DtypeSet(FDMA_UINT8), "");
  check_contiguous(reasons, kName, packed_mask);
  check_data(reasons, kName, packed_mask, with_data, kPackedMaskAlignment);
  return address_of(packed_mask);
}

}  // namespace fdma
