// Carves the caller's scratch into aligned pieces. The same carving code runs with a null base to count the bytes, so
// the size a caller is told cannot drift from what a call uses.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fdma/attention.h"
#include "host/error.hpp"

namespace fdma {

class Workspace {
 public:
  Workspace() = default;  // counts only
  explicit Workspace(void* base) : base_(static_cast<char*>(base)), counting_(false) {}

  // Room for `count` elements; null while counting. Throws fdma::Error when the sum leaves 63 bits.
  template <typename T>
  T* take(int64_t count) {
    char* piece = counting_ ? nullptr : base_ + used_;
    int64_t bytes = 0;
    int64_t used = 0;
    if (__builtin_mul_overflow(count, static_cast<int64_t>(sizeof(T)), &bytes) ||
        __builtin_add_overflow(bytes, static_cast<int64_t>(used_ + FDMA_WORKSPACE_ALIGNMENT - 1), &used)) {
      throw Error(FDMA_INVALID_SHAPE, "the call needs 2^63 bytes of scratch or more; accepted: smaller extents");
    }
    used_ = static_cast<size_t>(used) / FDMA_WORKSPACE_ALIGNMENT * FDMA_WORKSPACE_ALIGNMENT;
    return reinterpret_cast<T*>(piece);
  }

  size_t used() const { return used_; }
  bool counting() const { return counting_; }

 private:
  char* base_ = nullptr;
  size_t used_ = 0;
  bool counting_ = true;
};

}  // namespace fdma
