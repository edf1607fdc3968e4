// Tile shapes of Hopper's kernels, the only place that knows them. docs/kernels.md has the measurements.
#pragma once

#include "kernels/core/macros.hpp"

namespace fdma::sm90 {

inline constexpr int kMaxSharedBytes = 227 * 1024;  // of a block

struct ForwardTile {
  int groups;  // warpgroups of consumers, 64 query rows each
  int keys;
  int consumer_registers, producer_registers;
  constexpr int queries() const { return groups * 64; }
};
// `adds`: a softcap, a bias, or the biases and spans of slots take registers, too.
constexpr ForwardTile forward_tile(int head_dim, bool adds) {
  if (head_dim <= 64 && !adds) return {3, 128, 160, 32};
  if (head_dim <= 128) return {2, 128, 240, 24};
  return {2, 64, 240, 24};
}

// Two warpgroups of consumers: with 128 keys each has 64 of them; with 64, where the sums of dK and dV of 64 keys do
// not both fit the registers of one, each has the same keys and one of the sums.
struct BackwardTile {
  int queries, keys;
};
constexpr int kBackwardGroups = 2;
constexpr BackwardTile backward_tile(int head_dim) {
  if (head_dim <= 64) return {128, 128};
  if (head_dim <= 128) return {64, 128};
  return {64, 64};
}

}  // namespace fdma::sm90
