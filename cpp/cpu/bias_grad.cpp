#include "cpu/bias_grad.hpp"

#include <algorithm>
#include <numeric>

#include "host/dtype.hpp"

namespace fdma::cpu {

void BiasGradTile::begin(int64_t batch, int64_t head, int64_t q_tile, int64_t k_tile) {
  const int64_t tile[4] = {batch, head, q_tile, k_tile};
  std::copy_n(tile, 4, current_);
  std::fill_n(sums_, bias_.rows == 1 ? kTile : kTile * kTile, 0.0f);
  std::fill_n(totals_, kTile, 0.0);
}

void BiasGradTile::select(int64_t b, int64_t h, int64_t q_tile, int64_t k_tile) {
  const int64_t tile[4] = {bias_.batch == 1 ? 0 : b, h / (p_.heads_q / bias_.heads), bias_.rows == 1 ? 0 : q_tile,
                           bias_.keys == 1 ? 0 : k_tile};
  if (std::equal(tile, tile + 4, current_)) return;
  finish();
  begin(tile[0], tile[1], tile[2], tile[3]);
}

void BiasGradTile::fold() {
  if (bias_.rows != 1) return;
  for (int64_t k = 0; k < kTile; ++k) totals_[k] += static_cast<double>(sums_[k]);
  std::fill_n(sums_, kTile, 0.0f);
}

void BiasGradTile::finish() {
  if (current_[0] < 0) return;
  const int64_t q0 = current_[2] * kTile;
  const int64_t k0 = current_[3] * kTile;
  const int64_t rows = min_of(kTile, bias_.rows - q0);
  const int64_t keys = min_of(kTile, bias_.keys - k0);
  if (bias_.rows == 1) {
    for (int64_t k = 0; k < kTile; ++k) sums_[k] = static_cast<float>(totals_[k]);
  }
  if (bias_.keys == 1) {
    const bool one_row = bias_.rows == 1;
    for (int64_t r = 0; r < rows; ++r) {
      const double total = one_row ? std::accumulate(totals_, totals_ + kTile, 0.0)
                                   : std::accumulate(sums_ + r * kTile, sums_ + (r + 1) * kTile, 0.0);
      sums_[r * kTile] = static_cast<float>(total);
    }
  }
  float ones[kTile];
  std::fill_n(ones, kTile, 1.0f);
  const int64_t offset = ((current_[0] * bias_.heads + current_[1]) * bias_.rows + q0) * bias_.keys + k0;
  char* data = static_cast<char*>(p_.grad_bias) + offset * dtype_size(bias_.dtype);
  tile_kernels().store_rows(sums_, kTile, ones, keys, {data, bias_.dtype, bias_.keys, rows});
}

}  // namespace fdma::cpu
