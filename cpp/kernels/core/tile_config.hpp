// Tile shapes of the portable kernels, the only place that knows them. docs/kernels.md has the measurements.
#pragma once

#include <cstdint>

namespace fdma {

// How a kernel reads the bias.
enum class BiasForm {
  kNone,
  kSame,   // the dtype of the query, staged as it is
  kFloat,  // any dtype, staged as fp32
  kSlots   // one fp32 value a key, beside the positions that see the key: keys chosen by a mask, see policy/slots.hpp
};

struct ForwardTile {
  int queries, keys, warps;
  int ctas_per_sm;  // what the register budget is set for
};

// Fits 99 KB of shared memory (sm_86, sm_89, sm_120), bias stage included.
constexpr ForwardTile forward_tile(int head_dim, BiasForm bias) {
  const bool with_bias = bias == BiasForm::kSame || bias == BiasForm::kFloat;  // a bias with a tile of its own
  if (head_dim <= 64) return {128, with_bias ? 64 : 128, 4, 2};
  if (head_dim <= 128) return {128, 64, 4, 2};
  return {64, with_bias ? 32 : 64, 4, 2};
}

struct BackwardTile {
  int queries, keys, warps;
  int score_warps_q;  // warps along the queries for S and dP (the others along the keys)
  int key_warps_k;    // warps along the keys for dK and dV (the others along the head dim)
  int query_warps_q;  // warps along the queries for dQ (the others along the head dim)
  int query_stages;   // buffers for tiles of Q and dO
};

// `roomy`: the device gives a block more than 99 KB of shared memory (sm_80, sm_90, sm_100).
constexpr BackwardTile backward_tile(int head_dim, bool roomy) {
  if (head_dim <= 64) return {64, 128, 8, 2, 4, 2, 2};
  if (head_dim <= 128) return roomy ? BackwardTile{64, 128, 8, 2, 4, 2, 2} : BackwardTile{64, 64, 8, 2, 2, 2, 1};
  return roomy ? BackwardTile{64, 64, 8, 2, 2, 2, 1} : BackwardTile{32, 32, 4, 2, 1, 1, 1};
}

// Whether a head dim has a backward tile of its own for roomy devices.
constexpr bool has_roomy_backward(int head_dim) { return head_dim > 64; }

}  // namespace fdma
