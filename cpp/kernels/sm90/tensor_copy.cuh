// The copy engine: boxes of a tensor, and runs of bytes, to shared memory and back.
#pragma once

#include "kernels/sm90/barrier.cuh"
#include "kernels/sm90/tensor_map.hpp"

namespace fdma::sm90 {

// How long a tensor's data is worth keeping in L2.
enum class Keep : uint64_t { kNormal = 0x1000000000000000, kFirst = 0x12f0000000000000, kLast = 0x14f0000000000000 };

FDMA_DEVICE void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map.map) : "memory");
}

// Box at column `col`, row `row` of head h in batch b; `barrier` counts its bytes, those outside the tensor too.
FDMA_DEVICE void load_box(const TensorMap& map, uint32_t smem, Barrier barrier, int col, int row, int h, int b,
                          Keep keep) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(smem),
      "l"(&map.map), "r"(barrier.address), "r"(col), "r"(row), "r"(h * map.head_step), "r"(b * map.batch_step),
      "l"(static_cast<uint64_t>(keep))
      : "memory");
}

// All column blocks of a BlockedTile.
template <typename Tile>
FDMA_DEVICE void load_blocks(const TensorMap& map, uint32_t smem, Barrier barrier, int col, int row, int h, int b,
                             Keep keep) {
#pragma unroll
  for (int block = 0; block < Tile::kBlocks; ++block) {
    load_box(map, smem + block * Tile::kBlockBytes, barrier, col + block * 64, row, h, b, keep);
  }
}

// Both addresses and `bytes` are multiples of 16.
FDMA_DEVICE void load_bytes(uint32_t smem, const void* source, int bytes, Barrier barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem),
               "l"(source), "r"(bytes), "r"(barrier.address)
               : "memory");
}

// Stores, and fp32 additions, of this thread. Shared memory is published before.
FDMA_DEVICE void store_box(const TensorMap& map, uint32_t smem, int col, int row, int h, int b) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map.map),
               "r"(smem), "r"(col), "r"(row), "r"(h * map.head_step), "r"(b * map.batch_step)
               : "memory");
}
FDMA_DEVICE void add_floats(float* target, uint32_t smem, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(target), "r"(smem),
               "r"(bytes)
               : "memory");
}
FDMA_DEVICE void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// The shared memory of all but kPending groups may be written again.
template <int kPending>
FDMA_DEVICE void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
// The groups are in global memory.
FDMA_DEVICE void wait_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

}  // namespace fdma::sm90
