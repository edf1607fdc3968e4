#include "decoder.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace engine {
namespace {

Buffer rows_of(int64_t rows, int64_t width) { return Buffer(rows * width * sizeof(float)); }

}  // namespace

Request::Request(const Model& model, const Limits& limits, std::vector<int32_t> prompt, PagePool* pool, int num_threads)
    : model_(model),
      limits_(limits),
      prompt_(std::move(prompt)),
      pool_(pool),
      queue_(num_threads),
      ids_(FDMA_INT32, {limits.chunk}),
      produced_(FDMA_INT32, {limits.produce}),
      next_(FDMA_INT64, {1}),
      buffers_(model.config, limits.keep, limits.chunk) {
  const Config& config = model.config;
  for (const int32_t token : prompt_) {
    if (token < 0 || token >= config.vocab) {
      throw std::invalid_argument("a token of the prompt is " + std::to_string(token) + "; accepted: 0 to " +
                                  std::to_string(config.vocab - 1));
    }
  }
  if (prompt_.empty()) throw std::invalid_argument("a prompt is empty; accepted: 1 token or more");
  if (pool != nullptr) {
    const int64_t tokens = prompt_length() + limits.produce;
    const std::vector<int32_t> pages = pool->take((tokens + pool->page_size - 1) / pool->page_size);
    page_table_ = Array(FDMA_INT32, {1, static_cast<int64_t>(pages.size())});
    queue_.upload(page_table_.data<void>(), pages.data(), page_table_.bytes());
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    attention_.emplace_back(queue_, config, limits.keep, pool, layer, page_table_.view());
  }
  const int64_t heads = int64_t{config.heads} * config.head_dim, kv_heads = int64_t{config.kv_heads} * config.head_dim;
  x_ = rows_of(limits.chunk, config.hidden);
  normed_ = rows_of(limits.chunk, config.hidden);
  query_ = rows_of(limits.chunk, heads);
  key_ = rows_of(limits.chunk, kv_heads);
  value_ = rows_of(limits.chunk, kv_heads);
  bias_ = rows_of(limits.chunk, config.kv_heads);
  context_ = rows_of(limits.chunk, heads);
  gate_ = rows_of(limits.chunk, config.ffn);
  up_ = rows_of(limits.chunk, config.ffn);
  scores_ = rows_of(1, config.vocab);
}

// All layers on the first `rows` rows of x_.
void Request::layers(int64_t rows, bool is_step) {
  const Config& config = model_.config;
  const int64_t hidden = config.hidden, ffn = config.ffn;
  const int64_t heads = int64_t{config.heads} * config.head_dim, kv_heads = int64_t{config.kv_heads} * config.head_dim;
  float *x = x_.floats(), *normed = normed_.floats(), *value = value_.floats(), *context = context_.floats();
  for (int i = 0; i < config.layers; ++i) {
    const LayerWeights& layer = model_.layers[i];
    rms_norm(queue_, x, layer.attention_norm, normed, rows, hidden);
    matmul(queue_, normed, layer.query, query_.floats(), rows, hidden, heads);
    matmul(queue_, normed, layer.key, key_.floats(), rows, hidden, kv_heads);
    matmul(queue_, normed, layer.value, value, rows, hidden, kv_heads);
    matmul(queue_, value, layer.bias, bias_.floats(), rows, kv_heads, config.kv_heads);
    const Projected projected{query_.floats(), key_.floats(), value, bias_.floats(), layer.bias_scale, rows};
    if (is_step) {
      attention_[i].step(queue_, buffers_, projected, context);
    } else {
      attention_[i].prefill(queue_, buffers_, projected, context);
    }
    matmul(queue_, context, layer.out, x, rows, heads, hidden, /*add=*/true);
    rms_norm(queue_, x, layer.ffn_norm, normed, rows, hidden);
    matmul(queue_, normed, layer.gate, gate_.floats(), rows, hidden, ffn);
    matmul(queue_, normed, layer.up, up_.floats(), rows, hidden, ffn);
    gated(queue_, gate_.floats(), up_.floats(), rows * ffn);
    matmul(queue_, gate_.floats(), layer.down, x, rows, ffn, hidden, /*add=*/true);
  }
}

// The next token, from the last row of x.
void Request::choose(const float* x) {
  const Config& config = model_.config;
  rms_norm(queue_, x, model_.norm, normed_.floats(), 1, config.hidden);
  matmul(queue_, normed_.floats(), model_.head, scores_.floats(), 1, config.hidden, config.vocab);
  largest(queue_, scores_.floats(), config.vocab, ids_.data<int32_t>());
  push(queue_, ids_.data<int32_t>(), produced_.data<int32_t>(), next_.data<int64_t>());
}

void Request::prefill() {
  const int64_t hidden = model_.config.hidden;
  int64_t rows = 0;
  for (int64_t first = 0; first < prompt_length(); first += rows) {
    rows = std::min(limits_.chunk, prompt_length() - first);
    queue_.upload(ids_.data<void>(), prompt_.data() + first, rows * sizeof(int32_t));
    embed(queue_, ids_.data<int32_t>(), model_.embedding, x_.floats(), rows, hidden);
    layers(rows, /*is_step=*/false);
  }
  choose(x_.floats() + (rows - 1) * hidden);
  save_logits();
  queue_.wait();
}

void Request::step() {
  embed(queue_, ids_.data<int32_t>(), model_.embedding, x_.floats(), 1, model_.config.hidden);
  layers(1, /*is_step=*/true);
  choose(x_.floats());
}

void Request::generate() {
  std::function<void()> run = [this] { step(); };
  for (int64_t i = 1; i < limits_.produce; ++i) {
    if (i == 2) run = queue_.record(run);  // the first run has sized the scratch
    run();
    save_logits();
  }
  queue_.wait();
}

void Request::save_logits() {
  if (!limits_.keep_logits) return;
  const size_t vocab = model_.config.vocab;
  logits_.resize(logits_.size() + vocab);
  queue_.download(logits_.data() + logits_.size() - vocab, scores_.data(), scores_.bytes());
}

std::vector<int32_t> Request::tokens() {
  std::vector<int32_t> tokens(limits_.produce);
  queue_.download(tokens.data(), produced_.data<void>(), produced_.bytes());
  return tokens;
}

size_t Request::cache_bytes() const {
  size_t bytes = 0;
  for (const Attention& attention : attention_) bytes += attention.cache_bytes();
  return bytes;
}

}  // namespace engine
