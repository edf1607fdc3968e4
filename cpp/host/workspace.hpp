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
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    char* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += round_up<size_t>(static_cast<size_t>(count) * sizeof(T), FDMA_WORKSPACE_ALIGNMENT);
    return reinterpret_cast<T*>(piece);
  }

  size_t used() const { return used_; }
  bool counting() const { return base_ == nullptr; }

 private:
  char* base_ = nullptr;
  size_t used_ = 0;
};

}  // namespace fdma
