// One token from one place to another, by a warp. Nothing is converted.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cache/params.hpp"

namespace fdma {

// The 16-bit elements of a key and a value row. Null sources are rows of zeros.
template <typename Chunk>
FDMA_DEVICE void copy_chunks(const uint16_t* key_from, const uint16_t* value_from, uint16_t* key_to, uint16_t* value_to,
                             int chunks) {
  for (int i = threadIdx.x % 32; i < 2 * chunks; i += 32) {  // the lanes share both rows
    const bool is_key = i < chunks;
    const int chunk = is_key ? i : i - chunks;
    const Chunk* from = reinterpret_cast<const Chunk*>(is_key ? key_from : value_from);
    reinterpret_cast<Chunk*>(is_key ? key_to : value_to)[chunk] = from == nullptr ? Chunk{} : from[chunk];
  }
}

FDMA_DEVICE void copy_token_rows(const CacheParams& p, const TokenArrays& source, int from, const TokenArrays& target,
                                 int to, int64_t b, int64_t h, bool zeros = false) {
  const uint16_t* key_from = zeros ? nullptr : source.key.at<const uint16_t>(b, h, from);
  const uint16_t* value_from = zeros ? nullptr : source.value.at<const uint16_t>(b, h, from);
  uint16_t* key_to = target.key.at<uint16_t>(b, h, to);
  uint16_t* value_to = target.value.at<uint16_t>(b, h, to);
  if (p.vector) {
    copy_chunks<uint4>(key_from, value_from, key_to, value_to, p.head_dim / 8);
  } else {
    copy_chunks<uint16_t>(key_from, value_from, key_to, value_to, p.head_dim);
  }
}

FDMA_DEVICE void copy_bias(const CacheParams& p, const TokenArrays& source, int from, const TokenArrays& target, int to,
                           int64_t b, int64_t h) {
  const int64_t i = source.bias.row(b, h) + from, j = target.bias.row(b, h) + to;
  if (p.type == ElementType::kFloat32) {
    static_cast<uint32_t*>(target.bias.data)[j] = static_cast<const uint32_t*>(source.bias.data)[i];
  } else {
    static_cast<uint16_t*>(target.bias.data)[j] = static_cast<const uint16_t*>(source.bias.data)[i];
  }
}

}  // namespace fdma
