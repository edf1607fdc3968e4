// The model: its sizes and its weights, random or from a file.
#pragma once

#include <string>
#include <vector>

#include "device.hpp"

namespace engine {

struct Config {
  int32_t layers = 4;
  int32_t hidden = 512;
  int32_t heads = 8;
  int32_t kv_heads = 2;
  int32_t head_dim = 64;
  int32_t ffn = 1024;
  int32_t vocab = 1024;
  static constexpr float kTheta = 10000.0f;  // of the rotary positions
};

// Matrices are (in, out), all float32. They point into Model's one buffer on the device.
struct LayerWeights {
  const float* attention_norm;  // (hidden)
  const float* query;           // (hidden, heads * head_dim)
  const float* key;             // (hidden, kv_heads * head_dim)
  const float* value;           // (hidden, kv_heads * head_dim)
  const float* bias;            // (kv_heads * head_dim, kv_heads): from the values to a score a key
  const float* bias_scale;      // (kv_heads)
  const float* out;             // (heads * head_dim, hidden)
  const float* ffn_norm;        // (hidden)
  const float* gate;            // (hidden, ffn)
  const float* up;              // (hidden, ffn)
  const float* down;            // (ffn, hidden)
};

class Model {
 public:
  // Weights of normal distribution, the same for the same seed.
  Model(Queue& queue, const Config& config, unsigned seed);
  // The file: "FDMAENG1", the seven int32 of Config, then as float32 the embedding (vocab, hidden), the weights of each
  // layer in the order of LayerWeights, the last norm (hidden) and the head (hidden, vocab). Little endian.
  Model(Queue& queue, const std::string& path);

  Config config;
  const float* embedding = nullptr;
  std::vector<LayerWeights> layers;
  const float* norm = nullptr;
  const float* head = nullptr;

 private:
  // Fills `weights` and lets the pointers above point to them: make(count, in) gives the next `count` numbers, of a
  // matrix with `in` rows, of a norm with in = 0.
  template <class Make>
  void build(Queue& queue, const Make& make);
  Buffer memory_;
};

}  // namespace engine
