// The device is the CPU. Work is done when it is given, in the thread that gives it.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "device.hpp"

#define ENGINE_DEVICE

namespace engine {
namespace {

using Element = float;

template <class F>
void for_each(Queue&, int64_t count, F f) {
  for (int64_t i = 0; i < count; ++i) f(i);
}

}  // namespace
}  // namespace engine

#include "ops.inl"

namespace engine {

fdma_device device() { return {FDMA_DEVICE_CPU, 0}; }
fdma_dtype attention_dtype() { return FDMA_FLOAT32; }

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  const size_t rounded = (bytes / FDMA_WORKSPACE_ALIGNMENT + 1) * FDMA_WORKSPACE_ALIGNMENT;
  data_ = std::aligned_alloc(FDMA_WORKSPACE_ALIGNMENT, rounded);
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0, rounded);
}

Buffer::~Buffer() { std::free(data_); }

Queue::Queue(int num_threads) : num_threads_(num_threads) {}
Queue::~Queue() = default;
void Queue::upload(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void Queue::download(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void Queue::wait() {}
std::function<void()> Queue::record(const std::function<void()>& work) { return work; }

void rms_norm(Queue&, const float* x, const float* weight, float* y, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
    float squares = 0.0f;
    for (int64_t i = 0; i < width; ++i) squares += x[i] * x[i];
    const float factor = 1.0f / std::sqrt(squares / static_cast<float>(width) + kNormEpsilon);
    for (int64_t i = 0; i < width; ++i) y[i] = x[i] * factor * weight[i];
  }
}

void matmul(Queue&, const float* x, const float* w, float* y, int64_t rows, int64_t in, int64_t out, bool add) {
  for (int64_t row = 0; row < rows; ++row, x += in, y += out) {
    if (!add) std::fill(y, y + out, 0.0f);
    for (int64_t k = 0; k < in; ++k) {
      const float factor = x[k];
      for (int64_t i = 0; i < out; ++i) y[i] += factor * w[k * out + i];
    }
  }
}

void largest(Queue&, const float* logits, int64_t count, int32_t* token) {
  *token = static_cast<int32_t>(std::max_element(logits, logits + count) - logits);
}

}  // namespace engine
