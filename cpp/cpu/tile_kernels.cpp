#include "cpu/tile_kernels.hpp"

#include <cstdlib>
#include <cstring>

namespace fdma::cpu {
namespace {

const TileKernels* choose_tile_kernels() {
#if defined(__x86_64__)
  const char* cap = std::getenv("FDMA_CPU_ISA");
  const bool up_to_avx2 = cap != nullptr && std::strcmp(cap, "avx2") == 0;
  const bool up_to_baseline = cap != nullptr && std::strcmp(cap, "baseline") == 0;
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && !up_to_avx2 && !up_to_baseline) return avx512::tile_kernels();
  if (has_avx2 && !up_to_baseline) return avx2::tile_kernels();
#endif
  return baseline::tile_kernels();
}

}  // namespace

const TileKernels& tile_kernels() {
  static const TileKernels* const chosen = choose_tile_kernels();
  return *chosen;
}

}  // namespace fdma::cpu
