// The instructions of a GPU, as functions: what translated asm statements, intrinsics and CuTe's atoms call. Arguments
// are in the order of the instruction's operands; addresses of shared memory are those of the 32-bit window.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include <cuda_runtime_api.h>

#include "tests/emulation/machine/emulator.hpp"

// Of the running thread, and the shape of its launch: fibers.cpp.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace fdma::emulation {

// Shared memory. `shared_bytes_at` checks that it is aligned and inside what the launch asked for.
void* dynamic_shared_memory();
uint32_t shared_address(const void* pointer);
char* shared_bytes_at(uint32_t address, int bytes);

// Proxies: proxies.cpp. A write through the generic proxy, of the running thread.
void note_write(uint32_t address, int bytes);
void fence_async();
void fence_products();
void publish_barriers();

// Races: races.cpp. Accesses through the generic proxy, of the running thread.
void note_ordered_read(uint32_t address, int bytes);
void note_ordered_write(uint32_t address, int bytes);

constexpr int kWarpThreads = 32;

// One value of up to kMaxExchange bytes of each lane to all lanes of the warp. All lanes take part.
constexpr int kMaxExchange = 16;
void exchange(uint32_t mask, const void* mine, void* all, int bytes);

// Barriers: barriers.cpp.
void barrier_sync(int barrier, int threads);
void barrier_arrive(int barrier, int threads);
int barrier_count(bool predicate);  // of barrier 0, all threads
void mbarrier_init(uint32_t barrier, int arrivals);
void mbarrier_arrive(uint32_t barrier);
void mbarrier_arrive_expect(uint32_t barrier, int bytes);
void mbarrier_arrive_after_copies(uint32_t barrier);
void mbarrier_wait(uint32_t barrier, int parity);

// Copies: copies.cpp.
void load_box(uint32_t smem, const void* map, int c0, int c1, int c2, int c3, uint32_t barrier, uint64_t hint);
void store_box(const void* map, int c0, int c1, int c2, int c3, uint32_t smem);
void load_bytes(uint32_t smem, const void* source, int bytes, uint32_t barrier);
void add_floats(float* target, uint32_t smem, int bytes);
void commit_stores();
void wait_stores(int pending);
void wait_stores_read(int pending);
void copy_async(uint32_t smem, const void* source, int bytes, int valid_bytes);
void commit_copies();
void wait_copies(int pending);

// Products: products.cpp. A fragment in registers is an array of the thread.
struct Product {
  float* accumulator;         // columns / 2 floats
  const uint32_t* registers;  // 4, or null: operand A is in shared memory
  uint64_t a, b;              // descriptors
  bool a_transposed, b_transposed, is_bfloat16, adds;
  int columns;
};
void start_product(const Product& product);
void commit_products();
void wait_products(int pending);
void load_matrix(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, uint32_t row);
void load_matrix_transposed(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, uint32_t row);
void store_matrix(uint32_t row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3);
void store_matrix_transposed(uint32_t row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3);

// Global memory: another thread may be what the caller waits for.
void load_acquire(int& value, const int* address);
void made_progress();
void reduce_add(int* address, int value);
inline void reduce_max(int* address, int value) {
  if (value > *address) *address = value;
  made_progress();
}
inline void reduce_add(float* address, float a, float b, float c, float d) {
  const float values[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) address[i] += values[i];
}

inline void exp2_approx(float& y, float x) { y = std::exp2(x); }
inline void log2_approx(float& y, float x) { y = std::log2(x); }

template <typename... T>
void load_shared_values(uint32_t address, T&... values) {
  constexpr int kBytes = (int{sizeof(T)} + ...);
  const char* source = shared_bytes_at(address, kBytes);
  note_ordered_read(address, kBytes);
  ((std::memcpy(&values, source, sizeof(T)), source += sizeof(T)), ...);
}
template <typename T>
void load_shared(T& a, uint32_t address) {
  load_shared_values(address, a);
}
template <typename T>
void load_shared(T& a, T& b, uint32_t address) {
  load_shared_values(address, a, b);
}
template <typename T>
void load_shared(T& a, T& b, T& c, T& d, uint32_t address) {
  load_shared_values(address, a, b, c, d);
}
template <typename... T>
void store_shared(uint32_t address, T... values) {
  constexpr int kBytes = (int{sizeof(T)} + ...);
  char* target = shared_bytes_at(address, kBytes);
  note_write(address, kBytes);
  note_ordered_write(address, kBytes);
  ((std::memcpy(target, &values, sizeof(T)), target += sizeof(T)), ...);
}

// Notes a launch, and what to call it: the function's own name where it has a symbol, else `name`, which may be
// mangled.
std::string kernel_name(const char* name, const void* kernel);

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

// What is left of kernel<<<...>>>(arguments).
template <typename... Parameters>
struct LaunchOf {
  const char* name;
  void (*kernel)(Parameters...);
  LaunchShape shape;

  template <typename... Arguments>
  void operator()(const Arguments&... arguments) const {
    run(kernel_name(name, reinterpret_cast<const void*>(kernel)), shape.grid, shape.block, shape.shared_bytes,
        [&] { kernel(arguments...); });
  }
};
template <typename... Parameters>
LaunchOf(const char*, void (*)(Parameters...), LaunchShape) -> LaunchOf<Parameters...>;

}  // namespace fdma::emulation
