// Dynamic mask attention of one layer for one request: what an engine has to write around libfdma.
//
// Each key has a bias; a query attends to the `keep` keys of largest bias among those up to its position. A key that is
// pushed out of these never returns, so a prompt is read in chunks that see the survivors and themselves, and
// generation needs either the survivors alone (the bounded cache) or all keys in pages and a choice among them in each
// step.
#pragma once

#include <initializer_list>
#include <mutex>
#include <vector>

#include "model.hpp"

namespace engine {

// Memory and the view of it that libfdma takes. Contiguous.
class Array {
 public:
  Array() = default;
  Array(fdma_dtype dtype, std::initializer_list<int64_t> shape);
  const fdma_tensor& view() const { return view_; }
  template <class T>
  T* data() const {
    return static_cast<T*>(view_.data);
  }
  size_t bytes() const { return memory_.bytes(); }

 private:
  Buffer memory_;
  fdma_tensor view_{};
};

// Pages for the keys and values of all requests: (pages, page_size, H_kv, D) for each layer. A request takes page
// numbers that hold for all layers. Thread-safe.
class PagePool {
 public:
  PagePool(const Config& config, int64_t pages, int64_t page_size);
  std::vector<int32_t> take(int64_t count);

  const int64_t page_size;
  std::vector<Array> keys, values;  // of each layer

 private:
  std::mutex mutex_;
  std::vector<int32_t> free_;
};

// Rows of one call: projections of the layer, float32 (rows, heads * head_dim); bias is (rows, H_kv) before its
// softplus.
struct Projected {
  const float *query, *key, *value, *bias;
  const float* bias_scale;  // (H_kv)
  int64_t rows;
};

// Memory for one call at a time, shared by the layers of a request.
struct AttentionBuffers {
  AttentionBuffers(const Config& config, int64_t keep, int64_t chunk);
  Array query, out;        // (1, chunk, H, D)
  Array key, value, bias;  // the survivors and the chunk: (1, keep + chunk, H_kv, D), (1, H_kv, keep + chunk)
  Array end;               // (1, H_kv, keep + chunk), int32: the position at which each key is pushed out
};

class Attention {
 public:
  // With a pool every key is kept in pages; page_table (1, pages of the request) says in which.
  Attention(Queue& queue, const Config& config, int64_t keep, const PagePool* pool, int layer,
            const fdma_tensor& page_table);

  // The next rows of a prompt; out is (rows, heads * head_dim).
  void prefill(Queue& queue, AttentionBuffers& buffers, const Projected& x, float* out);
  // One new token. The same work each time: what changes is on the device.
  void step(Queue& queue, AttentionBuffers& buffers, const Projected& x, float* out);

  // What generation reads from: of the survivors, or of the request's pages.
  size_t cache_bytes() const;

 private:
  fdma_cache cache() const { return {key_.view(), value_.view(), bias_.view(), position_.view()}; }
  void append(Queue& queue, const fdma_tensor& key, const fdma_tensor& value, const fdma_tensor& bias);
  void write_to_pages(Queue& queue, const fdma_tensor& key, const fdma_tensor& value, const fdma_tensor& bias);

  int64_t keep_;
  Array key_, value_;      // the survivors: (1, keep, H_kv, D)
  Array bias_, position_;  // (1, H_kv, keep)
  Array tokens_;           // (1), int64: tokens so far, which is the position of the next one
  const PagePool* pool_;
  int layer_;
  fdma_tensor page_table_;
  Array all_bias_;  // (1, H_kv, pages * page_size), with a pool
};

}  // namespace engine
