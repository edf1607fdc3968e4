// Strided tensors in guarded memory, and where they lie for a call.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "fdma/types.h"
#include "tests/support/device_memory.hpp"

namespace fdma::test {

using Shape = std::vector<int64_t>;

enum class Layout {
  kContiguous,
  kHeadsFirst,  // the two dimensions before the last swapped in memory, as a transposed view has them
  kMisaligned,  // starts one element late, three elements between rows
  kExpanded     // first dimension with stride 0: all batches are one
};

// A tensor with its own copy on the device of a call. All bytes of its storage that belong to no element are 0xff, as
// are unwritten elements (NaN in every float dtype).
class Tensor {
 public:
  Tensor() = default;  // not given
  Tensor(fdma_dtype dtype, Shape shape, Layout layout = Layout::kContiguous);

  bool given() const { return dtype_ != FDMA_DTYPE_NONE; }
  fdma_dtype dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t size() const;

  // Elements in row-major order of the shape.
  double get(int64_t index) const;
  void set(int64_t index, double value);
  void erase(int64_t index);  // to 0xff bytes, before the upload
  std::vector<double> values() const;
  // With all that lies around the elements.
  const std::vector<unsigned char>& storage() const { return storage_; }
  unsigned char* bytes() { return storage_.data() + kGuardBytes; }

  // Copies the storage to `device` and back.
  void upload(fdma_device device);
  void download();
  // 0xff to every byte, here and on the device.
  void refill(fdma_device device);
  // The C struct of the uploaded tensor; of one that is not given otherwise.
  fdma_tensor describe() const;
  // True when every byte that belongs to no element is 0xff.
  bool surroundings_untouched() const;
  // True when the bytes on the device are those of the last upload; for inputs.
  bool unchanged_on_device() const;

 private:
  static constexpr int64_t kGuardBytes = 256;

  int64_t offset(int64_t index) const;  // in bytes, from the start of the storage

  fdma_dtype dtype_ = FDMA_DTYPE_NONE;
  Shape shape_, stride_;
  int64_t start_ = 0;  // elements before the first
  std::vector<unsigned char> storage_;
  DeviceMemory memory_;
};

// Seeded normal deviates.
void fill_normal(Tensor& tensor, std::mt19937_64& random, double scale = 1.0);

}  // namespace fdma::test
