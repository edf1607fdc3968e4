// In place of CUB's header of this name: a sort by the first thread of the block, with the same result.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace cub {

template <typename Key, int kThreads, int kItems, typename Value>
class BlockRadixSort {
 public:
  struct TempStorage {
    Key keys[kThreads * kItems];
    Value values[kThreads * kItems];
  };

  explicit BlockRadixSort(TempStorage& storage) : storage_(storage) {}

  // Items of thread t before: t * kItems and following. Item i of it after: i * kThreads + t.
  void SortBlockedToStriped(Key (&keys)[kItems], Value (&values)[kItems], int begin_bit, int end_bit) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = 0; i < kItems; ++i) {
      storage_.keys[thread * kItems + i] = keys[i];
      storage_.values[thread * kItems + i] = values[i];
    }
    __syncthreads();
    if (thread == 0) sort(begin_bit, end_bit);
    __syncthreads();
    for (int i = 0; i < kItems; ++i) {
      keys[i] = storage_.keys[i * kThreads + thread];
      values[i] = storage_.values[i * kThreads + thread];
    }
    __syncthreads();
  }

 private:
  void sort(int begin_bit, int end_bit) {
    const auto bits = [&](int item) {
      const auto key = static_cast<uint64_t>(storage_.keys[item]);
      return (key & ((uint64_t{1} << end_bit) - 1)) >> begin_bit;
    };
    std::vector<int> order(kThreads * kItems);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return bits(a) < bits(b); });
    const std::vector<Key> keys(storage_.keys, storage_.keys + order.size());
    const std::vector<Value> values(storage_.values, storage_.values + order.size());
    for (size_t i = 0; i < order.size(); ++i) {
      storage_.keys[i] = keys[static_cast<size_t>(order[i])];
      storage_.values[i] = values[static_cast<size_t>(order[i])];
    }
  }

  TempStorage& storage_;
};

}  // namespace cub
