// One request: its prompt, its caches and its queue.
#pragma once

#include <functional>
#include <vector>

#include "attention.hpp"

namespace engine {

struct Limits {
  int64_t keep;      // keys that a query attends to
  int64_t chunk;     // tokens of a prompt that are read at once
  int64_t produce;   // tokens to generate, 1 or more
  bool keep_logits;  // of each generated token: the host then waits for each
};

class Request {
 public:
  // With a pool the keys are kept in pages, without in the bounded cache.
  Request(const Model& model, const Limits& limits, std::vector<int32_t> prompt, PagePool* pool, int num_threads);

  // Reads the prompt and chooses the first new token.
  void prefill();
  // The other new tokens, one after the other, each the most likely one.
  void generate();

  int64_t prompt_length() const { return static_cast<int64_t>(prompt_.size()); }
  std::vector<int32_t> tokens();                                // those that were generated
  const std::vector<float>& logits() const { return logits_; }  // (produce, vocab)
  size_t cache_bytes() const;                                   // of survivors, or of pages

 private:
  void layers(int64_t rows, bool is_step);
  void choose(const float* x);
  void step();
  void save_logits();

  const Model& model_;
  Limits limits_;
  std::vector<int32_t> prompt_;
  PagePool* pool_;
  Queue queue_;
  Array page_table_;  // (1, pages), int32
  Array ids_;         // of the rows of a call; the first is the token to go on with
  Array produced_;    // (produce), int32
  Array next_;        // (1), int64: where in produced_ the next token goes
  AttentionBuffers buffers_;
  std::vector<Attention> attention_;
  Buffer x_, normed_, query_, key_, value_, bias_, context_, gate_, up_;  // (chunk, ..)
  Buffer scores_;                                                         // (vocab)
  std::vector<float> logits_;
};

}  // namespace engine
