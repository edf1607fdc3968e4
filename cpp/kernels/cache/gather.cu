// The slots of a cache in order of position. Blocks of slots are sorted by themselves; the place of a slot among all is
// then its place in its block and, for every other block, how many of that are older: a binary search.
#include "kernels/cache/copy.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/launchers.hpp"

namespace fdma {
namespace {

constexpr int kSortThreads = kSortedSlots / 2;  // one comparison a thread and step
constexpr int kGatherWarps = 8;
constexpr int64_t kNoSlot = INT64_MAX;  // age of what pads a block

// Bitonic sort of {age, slot}. No two slots of a row have one age.
FDMA_DEVICE void sort_block(int64_t (&ages)[kSortedSlots], int32_t (&slots)[kSortedSlots]) {
  for (int run = 2; run <= kSortedSlots; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      __syncthreads();
      const int low = 2 * threadIdx.x - threadIdx.x % distance, high = low + distance;
      const bool rising = (low & run) == 0;
      if ((ages[low] > ages[high]) == rising) {
        const int64_t age = ages[low];
        ages[low] = ages[high];
        ages[high] = age;
        const int32_t slot = slots[low];
        slots[low] = slots[high];
        slots[high] = slot;
      }
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kSortThreads) sort_slots_kernel(const __grid_constant__ CacheGatherParams p) {
  __shared__ int64_t ages[kSortedSlots];
  __shared__ int32_t slots[kSortedSlots];
  const int64_t row = blockIdx.x / p.blocks();
  const int first = static_cast<int>(blockIdx.x % p.blocks()) * kSortedSlots;
  const int64_t* position = p.cache.position.data + p.cache.position.row(row / p.heads, row % p.heads);
  for (int i = threadIdx.x; i < kSortedSlots; i += kSortThreads) {
    const int slot = first + i;
    int64_t age = kNoSlot;
    if (slot < p.slots) {
      // Empty slots, in their own order, are older than any token.
      age = position[slot];
      if (age < 0) age = slot - p.slots;
    }
    ages[i] = age;
    slots[i] = slot;
  }
  sort_block(ages, slots);
  const int64_t offset = row * p.padded_slots() + first;
  for (int i = threadIdx.x; i < kSortedSlots; i += kSortThreads) {
    p.ages[offset + i] = ages[i];
    p.aged_slots[offset + i] = slots[i];
  }
}

// Slots of a sorted block that are older than `age`.
FDMA_DEVICE int count_older(const int64_t* ages, int64_t age) {
  int count = 0;
#pragma unroll
  for (int step = kSortedSlots / 2; step > 0; step /= 2) {
    if (ages[count + step - 1] < age) count += step;
  }
  return count + (ages[count] < age ? 1 : 0);
}

// One warp a slot.
__global__ void __launch_bounds__(kGatherWarps * 32) gather_slots_kernel(const __grid_constant__ CacheGatherParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kGatherWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t row = index / p.padded_slots();
  if (row >= p.rows()) return;
  const int64_t age = p.ages[index];
  if (age == kNoSlot) return;
  const int place = static_cast<int>(index % p.padded_slots());
  const int64_t* ages = p.ages + row * p.padded_slots();
  int older = lane == 0 ? place % kSortedSlots : 0;
  for (int block = lane; block < p.blocks(); block += 32) {
    if (block != place / kSortedSlots) older += count_older(ages + block * kSortedSlots, age);
  }
  const int target = __reduce_add_sync(0xffffffffu, older);
  const int slot = p.aged_slots[index];
  const int64_t b = row / p.heads, h = row % p.heads;
  copy_token_rows(p, p.cache, slot, p.sorted, target, b, h, age < 0);
  if (lane != 0) return;
  copy_bias(p, p.cache, slot, p.sorted, target, b, h);
  if (p.sorted.position.data != nullptr) {
    p.sorted.position.data[p.sorted.position.row(b, h) + target] =
        p.cache.position.data[p.cache.position.row(b, h) + slot];
  }
}

}  // namespace

cudaError_t launch_cache_gather(const CacheGatherParams& p, cudaStream_t stream) {
  const cudaError_t error = launch(sort_slots_kernel, p.rows() * p.blocks(), kSortThreads, 0, stream, p);
  if (error != cudaSuccess) return error;
  const int64_t blocks = ceil_div<int64_t>(p.rows() * p.padded_slots(), kGatherWarps);
  return launch(gather_slots_kernel, blocks, kGatherWarps * 32, 0, stream, p);
}

}  // namespace fdma
