#include "tests/support/tensor.hpp"

#include <algorithm>
#include <utility>

#include "tests/support/dtype.hpp"

namespace fdma::test {

Tensor::Tensor(fdma_dtype dtype, Shape shape, Layout layout) : dtype_(dtype), shape_(std::move(shape)) {
  const size_t rank = shape_.size();
  std::vector<size_t> order(rank);  // of the dimensions in memory, outermost first
  for (size_t i = 0; i < rank; ++i) order[i] = i;
  if (layout == Layout::kHeadsFirst) std::swap(order[rank - 3], order[rank - 2]);
  stride_.assign(rank, 0);
  int64_t elements = 1;
  for (size_t i = rank; i-- > 0;) {
    const size_t dim = order[i];
    if (layout == Layout::kExpanded && dim == 0) continue;
    stride_[dim] = elements;
    elements *= shape_[dim];
    if (layout == Layout::kMisaligned && i == rank - 1) elements += 3;
  }
  if (layout == Layout::kMisaligned) start_ = 1;
  storage_.assign(static_cast<size_t>(2 * kGuardBytes + (start_ + elements) * element_size(dtype_)), 0xff);
}

int64_t Tensor::size() const {
  int64_t size = 1;
  for (int64_t extent : shape_) size *= extent;
  return size;
}

int64_t Tensor::offset(int64_t index) const {
  int64_t element = start_;
  for (size_t dim = shape_.size(); dim-- > 0;) {
    element += index % shape_[dim] * stride_[dim];
    index /= shape_[dim];
  }
  return kGuardBytes + element * element_size(dtype_);
}

double Tensor::get(int64_t index) const { return read_element(storage_.data() + offset(index), dtype_); }

void Tensor::set(int64_t index, double value) { write_element(storage_.data() + offset(index), dtype_, value); }

void Tensor::erase(int64_t index) {
  std::fill_n(storage_.begin() + offset(index), element_size(dtype_), static_cast<unsigned char>(0xff));
}

std::vector<double> Tensor::values() const {
  std::vector<double> values(static_cast<size_t>(size()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = get(static_cast<int64_t>(i));
  return values;
}

void Tensor::upload(fdma_device device) {
  if (!given()) return;
  if (memory_.data() == nullptr) memory_ = DeviceMemory(device, storage_.size());
  memory_.upload(storage_.data(), storage_.size());
}

void Tensor::download() {
  if (given()) memory_.download(storage_.data(), storage_.size());
}

void Tensor::refill(fdma_device device) {
  std::fill(storage_.begin(), storage_.end(), static_cast<unsigned char>(0xff));
  upload(device);
}

fdma_tensor Tensor::describe() const {
  fdma_tensor tensor{};
  if (!given()) return tensor;
  tensor.data = static_cast<unsigned char*>(memory_.data()) + kGuardBytes + start_ * element_size(dtype_);
  tensor.dtype = dtype_;
  tensor.rank = static_cast<int32_t>(shape_.size());
  std::copy(shape_.begin(), shape_.end(), tensor.shape);
  std::copy(stride_.begin(), stride_.end(), tensor.stride);
  return tensor;
}

bool Tensor::surroundings_untouched() const {
  std::vector<bool> is_element(storage_.size());
  for (int64_t i = 0; i < size(); ++i) {
    std::fill_n(is_element.begin() + offset(i), element_size(dtype_), true);
  }
  for (size_t i = 0; i < storage_.size(); ++i) {
    if (!is_element[i] && storage_[i] != 0xff) return false;
  }
  return true;
}

bool Tensor::unchanged_on_device() const {
  std::vector<unsigned char> there(storage_.size());
  memory_.download(there.data(), there.size());
  return there == storage_;
}

void fill_normal(Tensor& tensor, std::mt19937_64& random, double scale) {
  std::normal_distribution<double> normal(0.0, scale);
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.set(i, normal(random));
}

}  // namespace fdma::test
