// What the engine needs of a device: memory, an in-order queue of work, and the arithmetic of a layer that is not
// attention. device_cpu.cpp and device_cuda.cu implement it; the build takes one of the two.
#pragma once

#include <fdma/fdma.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

namespace engine {

constexpr float kNormEpsilon = 1e-6f;

fdma_device device();          // of all calls of libfdma
fdma_dtype attention_dtype();  // of queries, keys and values: FLOAT32 on the CPU, BFLOAT16 on CUDA

// Memory of the device, of zeros, at a multiple of FDMA_WORKSPACE_ALIGNMENT.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Work is done in the order in which it is given: a stream on CUDA, at once on the CPU. Each request has its own, and
// is served by one thread at a time.
class Queue {
 public:
  // `num_threads` is what libfdma may use for a call on the CPU; CUDA has no use for it.
  explicit Queue(int num_threads);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  fdma_stream stream() const { return stream_; }
  int num_threads() const { return num_threads_; }
  void upload(void* to, const void* from, size_t bytes);
  void download(void* to, const void* from, size_t bytes);  // these two and wait() return when it is done
  void wait();
  // Work that is the same each time, for many runs: a CUDA graph on CUDA, which is launched by calling the result. What
  // differs from run to run (a position, a token) has to be in the memory of the device.
  std::function<void()> record(const std::function<void()>& work);
  // Scratch for a call of libfdma. One is enough, since the calls of a queue do not overlap. It grows when it has to,
  // which must not be while work is recorded: so work is done once before it is recorded.
  void* scratch(size_t bytes) {
    if (bytes > scratch_.bytes()) {
      wait();
      scratch_ = Buffer(bytes);
    }
    return scratch_.data();
  }

 private:
  fdma_stream stream_ = nullptr;
  int num_threads_ = 0;
  Buffer scratch_;
};

// x is (rows, width) and contiguous unless said otherwise; float32. Tensors of libfdma are (1, rows, heads, head_dim)
// of attention_dtype(), strided. `position` points to the position of the first row, on the device.
void embed(Queue& queue, const int32_t* tokens, const float* table, float* x, int64_t rows, int64_t width);
void rms_norm(Queue& queue, const float* x, const float* weight, float* y, int64_t rows, int64_t width);
// y (rows, out) = x (rows, in) . w (in, out), or with `add` y += that
void matmul(Queue& queue, const float* x, const float* w, float* y, int64_t rows, int64_t in, int64_t out,
            bool add = false);
// Turns the pairs (i, i + head_dim / 2) of each head by position * theta^(-2 i / head_dim).
void rotary(Queue& queue, const float* x, const int64_t* position, float theta, fdma_tensor y);
void narrow(Queue& queue, const float* x, fdma_tensor y);
void widen(Queue& queue, fdma_tensor x, float* y);
// bias (1, heads, rows) = exp(a * softplus(x)), x (rows, heads), a (heads)
void key_bias(Queue& queue, const float* x, const float* a, fdma_tensor bias);
// gate = silu(gate) * up
void gated(Queue& queue, float* gate, const float* up, int64_t count);
// token = the index of the largest of `count` logits, the first of equal ones
void largest(Queue& queue, const float* logits, int64_t count, int32_t* token);
// Row t of `rows` (1, T, H, D) goes to row p % page_size of page table[p / page_size] of `pages`, p = position + t.
void write_pages(Queue& queue, fdma_tensor rows, fdma_tensor pages, const int32_t* table, const int64_t* position);
// all[h][position + t] = bias[h][t], for (1, heads, T) and (1, heads, capacity)
void write_bias(Queue& queue, fdma_tensor bias, fdma_tensor all, const int64_t* position);
// list[*count] = *token, *count += 1
void push(Queue& queue, const int32_t* token, int32_t* list, int64_t* count);
void advance(Queue& queue, int64_t* position, int64_t count);
void fill_float(Queue& queue, float* x, float with, int64_t count);
void fill_int64(Queue& queue, int64_t* x, int64_t with, int64_t count);

}  // namespace engine
