// The gradient of the bias, one tile at a time, in the bias's own broadcast shape.
#pragma once

#include <cstdint>

#include "cpu/tile_kernels.hpp"
#include "host/problem.hpp"

namespace fdma::cpu {

// Sums what the score gradients add to one 64 x 64 tile of the bias, or to its one row or column where it broadcasts,
// and writes the tile when all of it is in. The caller visits all scores of a tile in a row; nobody else adds to it.
class BiasGradTile {
 public:
  static constexpr int64_t kScratchFloats = kTile * kTile;

  // `sums`: kScratchFloats floats.
  BiasGradTile(const BackwardProblem& problem, float* sums) : p_(problem), bias_(problem.bias), sums_(sums) {}

  // Starts the tile (batch, head, query tile, key tile) of the bias, in its own extents.
  void begin(int64_t batch, int64_t head, int64_t q_tile, int64_t k_tile);
  // Makes the tile that the scores (b, h, q_tile, k_tile) belong to the current one, writing the one before it.
  void select(int64_t b, int64_t h, int64_t q_tile, int64_t k_tile);
  // Where row r of a tile of score gradients is added: sums() + r * row_stride().
  float* sums() { return sums_; }
  int64_t row_stride() const { return bias_.rows == 1 ? 0 : kTile; }
  // Called after each tile of scores: a sum over all queries is taken tile by tile, then over tiles in double.
  void fold();
  // Writes the current tile, if there is one.
  void finish();

 private:
  const BackwardProblem& p_;
  const BiasProblem& bias_;
  float* sums_;           // [kTile][kTile], or [kTile] when all queries share a row
  double totals_[kTile];  // of that one row
  int64_t current_[4] = {-1, -1, -1, -1};
};

}  // namespace fdma::cpu
