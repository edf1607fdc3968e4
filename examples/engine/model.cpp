#include "model.hpp"

#include <cmath>
#include <cstring>
#include <fstream>
#include <random>
#include <stdexcept>

namespace engine {
namespace {

constexpr char kMagic[] = "FDMAENG1";

void check(const Config& config) {
  for (const int32_t size :
       {config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim, config.ffn, config.vocab}) {
    if (size < 1)
      throw std::invalid_argument("a size of the model is " + std::to_string(size) + "; accepted: 1 or more");
  }
}

}  // namespace

template <class Make>
void Model::build(Queue& queue, const Make& make) {
  check(config);
  std::vector<float> weights;
  std::vector<std::pair<const float**, size_t>> places;  // who points where
  layers.resize(config.layers);
  const auto add = [&](const float*& to, int64_t in, int64_t out) {
    places.emplace_back(&to, weights.size());
    const std::vector<float> next = make(in == 0 ? out : in * out, in);
    weights.insert(weights.end(), next.begin(), next.end());
  };
  const int64_t hidden = config.hidden, ffn = config.ffn;
  const int64_t query = int64_t{config.heads} * config.head_dim, key = int64_t{config.kv_heads} * config.head_dim;
  add(embedding, config.vocab, hidden);
  for (LayerWeights& layer : layers) {
    add(layer.attention_norm, 0, hidden);
    add(layer.query, hidden, query);
    add(layer.key, hidden, key);
    add(layer.value, hidden, key);
    add(layer.bias, key, config.kv_heads);
    add(layer.bias_scale, 0, config.kv_heads);
    add(layer.out, query, hidden);
    add(layer.ffn_norm, 0, hidden);
    add(layer.gate, hidden, ffn);
    add(layer.up, hidden, ffn);
    add(layer.down, ffn, hidden);
  }
  add(norm, 0, hidden);
  add(head, hidden, config.vocab);

  memory_ = Buffer(weights.size() * sizeof(float));
  queue.upload(memory_.data(), weights.data(), memory_.bytes());
  for (const auto& [to, offset] : places) *to = memory_.floats() + offset;
}

Model::Model(Queue& queue, const Config& sizes, unsigned seed) : config(sizes) {
  std::mt19937 random(seed);
  build(queue, [&](int64_t count, int64_t in) {
    std::vector<float> numbers(count, 1.0f);
    std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(static_cast<float>(in)));
    if (in > 0) {
      for (float& number : numbers) number = normal(random);
    }
    return numbers;
  });
}

Model::Model(Queue& queue, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  const auto read = [&](void* to, size_t bytes) {
    if (!file.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes))) {
      throw std::runtime_error(path + " is too short for a model of its sizes");
    }
  };
  char magic[sizeof(kMagic)] = {};
  read(magic, sizeof(kMagic) - 1);
  if (std::strcmp(magic, kMagic) != 0) throw std::runtime_error(path + " does not start with " + kMagic);
  for (int32_t* size : {&config.layers, &config.hidden, &config.heads, &config.kv_heads, &config.head_dim, &config.ffn,
                        &config.vocab}) {
    read(size, sizeof(*size));
  }
  build(queue, [&](int64_t count, int64_t) {
    std::vector<float> numbers(count);
    read(numbers.data(), numbers.size() * sizeof(float));
    return numbers;
  });
  if (file.peek() != std::ifstream::traits_type::eof()) throw std::runtime_error(path + " is too long for its sizes");
}

}  // namespace engine
