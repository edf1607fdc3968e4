// The parts of CuTe that kernels use: addresses of shared memory, groups of copies, and Hopper's matrix instruction.
#pragma once

#include <cstdlib>
#include <type_traits>

#include "tests/emulation/machine/device_language.hpp"

namespace cute {

inline uint32_t cast_smem_ptr_to_uint(const void* pointer) { return fdma::emulation::shared_address(pointer); }
inline void cp_async_fence() { fdma::emulation::commit_copies(); }
template <int kPending>
void cp_async_wait() {
  fdma::emulation::wait_copies(kPending);
}

inline void warpgroup_arrive() { fdma::emulation::fence_products(); }
inline void warpgroup_commit_batch() { fdma::emulation::commit_products(); }
template <int kPending>
void warpgroup_wait() {
  fdma::emulation::wait_products(kPending);
}
// The value is in its place in memory here, where a product reads or writes it.
template <typename T>
void warpgroup_fence_operand(T& value) {
  asm volatile("" : "+m"(value)::"memory");
}

// The portable kernels' products: named by code that Hopper's kernels share with them, never run by these.
struct PortableProduct {
  template <typename... Operands>
  static void fma(Operands&&...) {
    throw fdma::emulation::EmulationError("mma.sync is not emulated");
  }
};
using SM80_16x8x16_F32BF16BF16F32_TN = PortableProduct;
using SM80_16x8x16_F32F16F16F32_TN = PortableProduct;

namespace SM90::GMMA {

enum class Major { K, MN };
enum class ScaleOut { Zero, One };

namespace detail {

// The accumulator is an array, whose elements are passed one by one and the scale behind.
template <int kColumns, typename First, typename... Rest>
void start(fdma::emulation::Product product, First& first, Rest&&... rest) {
  int position = 1;
  const auto take = [&](auto& operand) {
    if constexpr (std::is_same_v<std::decay_t<decltype(operand)>, ScaleOut>) {
      product.adds = operand == ScaleOut::One;
    } else if (&operand != &first + position++) {
      throw fdma::emulation::EmulationError("the accumulator of a product is not an array");
    }
  };
  (take(rest), ...);
  static_assert(sizeof...(Rest) == kColumns / 2);
  product.accumulator = &first;
  product.columns = kColumns;
  fdma::emulation::start_product(product);
}

}  // namespace detail

template <int kColumns, bool kBfloat16, Major kA, Major kB>
struct SharedProduct {
  template <typename... Operands>
  static void fma(uint64_t a, uint64_t b, Operands&&... accumulator) {
    detail::start<kColumns>({nullptr, nullptr, a, b, kA == Major::MN, kB == Major::MN, kBfloat16, true, 0},
                            accumulator...);
  }
};

template <int kColumns, bool kBfloat16, Major kA, Major kB>
struct RegisterProduct {
  template <typename... Operands>
  static void fma(const uint32_t& a0, const uint32_t& a1, const uint32_t& a2, const uint32_t& a3, uint64_t b,
                  Operands&&... accumulator) {
    static_assert(kA == Major::K);
    if (&a1 != &a0 + 1 || &a2 != &a0 + 2 || &a3 != &a0 + 3) {
      throw fdma::emulation::EmulationError("the operand of a product is not an array");
    }
    detail::start<kColumns>({nullptr, &a0, 0, b, false, kB == Major::MN, kBfloat16, true, 0}, accumulator...);
  }
};

#define FDMA_EMULATED_PRODUCT(columns)                                                \
  template <Major kA, Major kB>                                                       \
  using MMA_64x##columns##x16_F32F16F16_SS = SharedProduct<columns, false, kA, kB>;   \
  template <Major kA, Major kB>                                                       \
  using MMA_64x##columns##x16_F32BF16BF16_SS = SharedProduct<columns, true, kA, kB>;  \
  template <Major kA, Major kB>                                                       \
  using MMA_64x##columns##x16_F32F16F16_RS = RegisterProduct<columns, false, kA, kB>; \
  template <Major kA, Major kB>                                                       \
  using MMA_64x##columns##x16_F32BF16BF16_RS = RegisterProduct<columns, true, kA, kB>;
FDMA_EMULATED_PRODUCT(64)
FDMA_EMULATED_PRODUCT(128)
FDMA_EMULATED_PRODUCT(256)
#undef FDMA_EMULATED_PRODUCT

}  // namespace SM90::GMMA
}  // namespace cute
