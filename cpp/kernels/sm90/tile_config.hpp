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

// Two warpgroups of consumers, 64 keys each.
struct BackwardTile {
  int queries;
};
constexpr int kBackwardKeys = 128, kBackwardGroups = 2;
constexpr BackwardTile backward_tile(int head_dim) { return {head_dim <= 64 ? 128 : 64}; }
// Larger head dims have no room for the sums of dK and dV in registers.
constexpr bool has_backward(int head_dim) { return head_dim <= 128; }

}  // namespace fdma::sm90
