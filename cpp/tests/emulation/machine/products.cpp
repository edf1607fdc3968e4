// wgmma, ldmatrix and stmatrix: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions": the fragments of
// wgmma.mma_async.m64nNk16, "Shared Memory Matrix Layout" and "Matrix Descriptor Format" with the swizzle of 128 bytes;
// "Warp Level Matrix Instructions": ldmatrix, stmatrix. Sums are in fp32, one step after the other.
#include <cuda_fp16.h>

#include <cstring>
#include <utility>

#include "tests/emulation/machine/machine.hpp"

namespace fdma::emulation {
namespace {

constexpr int kRows = 64, kDepth = 16, kMaxColumns = 256;
constexpr int kRun = 8;  // elements on end in 16 bytes, which the swizzle leaves together

float as_float(uint16_t bits, bool is_bfloat16) {
  if (!is_bfloat16) {
    return __half2float(__half(__half_raw{bits}));
  }
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// An operand in shared memory: rows are m or n of the product, depth is summed.
class SharedOperand {
 public:
  SharedOperand(uint64_t descriptor, bool is_transposed)
      : start_(field(descriptor, 0)),
        leading_(field(descriptor, 16)),
        stride_(field(descriptor, 32)),
        is_transposed_(is_transposed) {
    require(descriptor >> 62 == 1, "a product of an operand without the swizzle of 128 bytes");
    require((descriptor >> 49 & 7) == 0, "a product of an operand with a base offset");
  }

  // values[depth * pitch + row] for all rows and the 16 of depth.
  void read(int rows, bool is_bfloat16, float* values, int pitch) const {
    for_each_run(rows, [&](int row, int depth, uint32_t at) {
      uint16_t run[kRun];
      require_published(at, sizeof(run));
      std::memcpy(run, shared_bytes_at(at, sizeof(run)), sizeof(run));
      for (int i = 0; i < kRun; ++i) {
        const int r = is_transposed_ ? row + i : row, d = is_transposed_ ? depth : depth + i;
        values[d * pitch + r] = as_float(run[i], is_bfloat16);
      }
    });
  }
  // Its reads, as the running thread's.
  void note_reads(int rows) const {
    for_each_run(rows, [](int, int, uint32_t at) { note_ordered_read(at, kSampleBytes); });
  }

 private:
  template <typename Body>
  void for_each_run(int rows, const Body& body) const {
    for (int row = 0; row < rows; row += is_transposed_ ? kRun : 1) {
      for (int depth = 0; depth < kDepth; depth += is_transposed_ ? 1 : kRun) body(row, depth, address(row, depth));
    }
  }
  static uint32_t field(uint64_t descriptor, int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; }
  // Lines of 128 bytes, 8 of them a swizzled block. K-major: a line a row. Else a line a step of depth, of 64 rows.
  uint32_t address(int row, int depth) const {
    const auto r = static_cast<uint32_t>(row), d = static_cast<uint32_t>(depth);
    const uint32_t linear = is_transposed_ ? start_ + r / 64 * leading_ + d / 8 * stride_ + d % 8 * 128 + r % 64 * 2
                                           : start_ + r / 8 * stride_ + r % 8 * 128 + d * 2;
    return linear ^ (linear >> 7 & 7) << 4;
  }

  uint32_t start_, leading_, stride_;
  bool is_transposed_;
};

// A thread has rows t / 4 and 8 below of its warp's 16, and two neighbours of every eight columns.
int row_of(int thread, int half) { return thread / 32 * 16 + thread % 32 / 4 + 8 * half; }

void read_registers(const GroupProduct& product, float (&a)[kDepth][kRows]) {
  for (int thread = 0; thread < kGroupThreads; ++thread) {
    for (int i = 0; i < 4; ++i) {
      for (int high = 0; high < 2; ++high) {
        const auto bits = static_cast<uint16_t>(product.registers[thread][i] >> (16 * high));
        a[8 * (i / 2) + 2 * (thread % 4) + high][row_of(thread, i % 2)] = as_float(bits, product.of_first.is_bfloat16);
      }
    }
  }
}

// Most of the arithmetic of a test: for the vectors of the machine at hand.
__attribute__((target_clones("avx512f", "avx2", "default"))) void add_product(const float (&a)[kDepth][kRows],
                                                                              const float (&b)[kDepth][kMaxColumns],
                                                                              int row, int columns, float* sums) {
  for (int depth = 0; depth < kDepth; ++depth) {
    const float factor = a[depth][row];
    for (int c = 0; c < columns; ++c) sums[c] += factor * b[depth][c];
  }
}

void execute(GroupProduct& product) {
  if (std::exchange(product.is_done, true)) return;
  static float a[kDepth][kRows], b[kDepth][kMaxColumns];
  const Product& p = product.of_first;
  if (p.registers != nullptr) {
    read_registers(product, a);
  } else {
    SharedOperand(p.a, p.a_transposed).read(kRows, p.is_bfloat16, a[0], kRows);
  }
  SharedOperand(p.b, p.b_transposed).read(p.columns, p.is_bfloat16, b[0], kMaxColumns);
  for (int quad = 0; quad < kGroupThreads; quad += 4) {
    for (int half = 0; half < 2; ++half) {
      const int row = row_of(quad, half);
      float sums[kMaxColumns];
      const auto element = [&](int column) -> float& {
        return product.accumulators[quad + column % 8 / 2][column / 8 * 4 + 2 * half + column % 2];
      };
      for (int c = 0; c < p.columns; ++c) sums[c] = p.adds ? element(c) : 0.0f;
      add_product(a, b, row, p.columns, sums);
      for (int c = 0; c < p.columns; ++c) element(c) = sums[c];
    }
  }
}

// What the warp of a thread reads for a product, from when it starts it until it has waited for it. By one lane: all of
// them start and wait.
void note_reads(const Product& p) {
  if (current % kWarpThreads != 0) return;
  if (p.registers == nullptr) SharedOperand(p.a, p.a_transposed).note_reads(kRows);
  SharedOperand(p.b, p.b_transposed).note_reads(p.columns);
}

bool is_same(const Product& x, const Product& y) {
  return x.a == y.a && x.b == y.b && (x.registers == nullptr) == (y.registers == nullptr) &&
         x.a_transposed == y.a_transposed && x.b_transposed == y.b_transposed && x.is_bfloat16 == y.is_bfloat16 &&
         x.adds == y.adds && x.columns == y.columns;
}

// Register i of a lane is one of matrix i, whose row r is at the address that lane 8 i + r gives.
template <typename Body>
void for_each_pair(uint32_t row, bool is_transposed, const Body& body) {
  uint32_t rows[kWarpThreads];
  exchange(0xffffffffu, &row, rows, sizeof(row));
  const int lane = current % kWarpThreads;
  for (int i = 0; i < 4; ++i) {
    for (int high = 0; high < 2; ++high) {
      const int pair = 2 * (lane % 4) + high;
      const int r = is_transposed ? pair : lane / 4, c = is_transposed ? lane / 4 : pair;
      const uint32_t address = rows[8 * i + r];
      shared_bytes_at(address, 16);
      body(i, high, address + static_cast<uint32_t>(2 * c));
    }
  }
}

void load_matrices(uint32_t (&r)[4], uint32_t row, bool is_transposed) {
  for_each_pair(row, is_transposed, [&](int i, int high, uint32_t address) {
    uint16_t element;
    load_shared(element, address);
    r[i] = (high == 0 ? 0 : r[i]) | static_cast<uint32_t>(element) << (16 * high);
  });
  char all[kWarpThreads];
  exchange(0xffffffffu, "", all, 1);  // no lane writes what another has not read
}
void store_matrices(uint32_t row, const uint32_t (&r)[4], bool is_transposed) {
  for_each_pair(row, is_transposed, [&](int i, int high, uint32_t address) {
    store_shared(address, static_cast<uint16_t>(r[i] >> (16 * high)));
  });
}

}  // namespace

void start_product(const Product& product) {
  require(static_cast<size_t>(current / kGroupThreads + 1) * kGroupThreads <= block.threads.size(),
          "a product of less than a warpgroup");
  require(self().fenced_products, "a product without wgmma.fence since products were waited for");
  note_reads(product);
  self().read_by_products.push_back(product);
  auto& products = group().products;
  const auto index = static_cast<size_t>(self().products++ - group().first);
  if (index == products.size()) products.push_back({product, {}, {}, 0, false});
  GroupProduct& started = products[index];
  if (!is_same(started.of_first, product)) fail("threads of a warpgroup differ in a product");
  started.accumulators[index_in_group()] = product.accumulator;
  started.registers[index_in_group()] = product.registers;
  if (++started.started == kGroupThreads && timing() == Timing::kEarly) execute(started);
  made_progress();
}

bool do_some_product() {
  const size_t groups = block.groups.size(), first = random_below(static_cast<unsigned>(groups));
  for (size_t i = 0; i < groups; ++i) {
    for (GroupProduct& product : block.groups[(first + i) % groups].products) {
      if (product.started < kGroupThreads) break;
      if (product.is_done) continue;
      execute(product);
      return true;
    }
  }
  return false;
}

void commit_products() { self().batches.push_back(self().products); }

void wait_products(int pending) {
  self().fenced_products = false;
  int64_t end = 0;
  auto& batches = self().batches;
  while (static_cast<int>(batches.size()) > pending) {
    end = batches.front();
    batches.erase(batches.begin());
  }
  Warpgroup& own = group();
  if (end > own.first) {
    wait_until("its warpgroup to start product", end - 1, [&] {
      return end <= own.first || own.products[static_cast<size_t>(end - 1 - own.first)].started == kGroupThreads;
    });
    if (timing() == Timing::kLateProducts) wait_for_standstill();
  }
  auto& reads = self().read_by_products;
  while (self().products - static_cast<int64_t>(reads.size()) < end) {
    note_reads(reads.front());
    reads.pop_front();
  }
  for (; own.first < end; ++own.first) {
    execute(own.products.front());
    own.products.pop_front();
  }
}

void load_matrix(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, uint32_t row) {
  uint32_t r[4];
  load_matrices(r, row, false);
  r0 = r[0], r1 = r[1], r2 = r[2], r3 = r[3];
}
void load_matrix_transposed(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, uint32_t row) {
  uint32_t r[4];
  load_matrices(r, row, true);
  r0 = r[0], r1 = r[1], r2 = r[2], r3 = r[3];
}
void store_matrix(uint32_t row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  store_matrices(row, {r0, r1, r2, r3}, false);
}
void store_matrix_transposed(uint32_t row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  store_matrices(row, {r0, r1, r2, r3}, true);
}

}  // namespace fdma::emulation
