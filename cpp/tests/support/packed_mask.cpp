#include "tests/support/packed_mask.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "fdma/mask.h"

namespace fdma::test {
namespace {

int64_t size_from_library(const PackedMaskLayout& layout) {
  fdma_tensor mask{};
  mask.rank = 4;
  const int64_t shape[] = {layout.batch, layout.heads, layout.rows, layout.keys};
  std::copy_n(shape, 4, mask.shape);
  size_t bytes = 0;
  EXPECT_EQ(fdma_mask_packed_size(&mask, layout.keys, &bytes), FDMA_SUCCESS) << fdma_last_error_message();
  return static_cast<int64_t>(bytes);
}

}  // namespace

std::vector<uint32_t> packed_words(const PackedMaskLayout& layout, const VisibleScore& visible) {
  std::vector<uint32_t> words(static_cast<size_t>(layout.bytes() / 4), 0u);
  for (int64_t b = 0; b < layout.batch; ++b) {
    for (int64_t h = 0; h < layout.heads; ++h) {
      for (int64_t q = 0; q < layout.rows; ++q) {
        for (int64_t k = 0; k < layout.keys; ++k) {
          if (!visible(b, h, q, k)) continue;
          const int64_t head = b * layout.heads + h;
          const int64_t row = (head * layout.rows + q) * layout.row_words();
          const int64_t tile_row = layout.rows_bytes() / 4 + (head * layout.row_tiles() + q / 64) * layout.tile_words();
          words[static_cast<size_t>(row + k / 32)] |= 1u << (k % 32);
          words[static_cast<size_t>(tile_row + k / 64 / 32)] |= 1u << (k / 64 % 32);
        }
      }
    }
  }
  return words;
}

PackedOutput::PackedOutput(const PackedMaskLayout& layout, fdma_device device)
    : bytes_(FDMA_UINT8, {size_from_library(layout)}) {
  bytes_.upload(device);
}

std::vector<uint32_t> PackedOutput::words() {
  bytes_.download();
  EXPECT_TRUE(bytes_.surroundings_untouched());
  std::vector<uint32_t> words(static_cast<size_t>(bytes_.size() / 4));
  if (!words.empty()) std::memcpy(words.data(), bytes_.bytes(), words.size() * sizeof(uint32_t));
  return words;
}

}  // namespace fdma::test
