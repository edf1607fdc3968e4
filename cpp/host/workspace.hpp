// Carves the caller's scratch into aligned pieces. The same carving code runs with a null base to count the bytes, so
// the size a caller is told cannot drift from what a call uses.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fdma/attention.h"
#include "kernels/core/math.hpp"

namespace fdma {

class Workspace {
 public:
  Workspace() = default;  // counts only
  explicit Workspace(void* base) : base_(static_cast<char*>(base)), counting_(false) {}

  // Room for `count` elements; null while counting.
  template <typename T>
  T* take(int64_t count) {
    char* piece = counting_ ? nullptr : base_ + used_;
    used_ += round_up<size_t>(static_cast<size_t>(count) * sizeof(T), FDMA_WORKSPACE_ALIGNMENT);
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
