// Every rule of fdma/decode.h on each device and dtype, against the reference on the keys that the definition keeps.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fdma/decode.h"
#include "tests/support/compare.hpp"
#include "tests/support/reference.hpp"
#include "tests/support/selection_case.hpp"
#include "tests/support/tensor.hpp"

namespace fdma::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum class BiasValues {
  kNormal,
  kTies,      // five values
  kConstant,  // the newest keys win
  kSlots,     // most slots are empty: -inf
  kSpecials,  // -inf, NaN, both zeros
  kHidden     // -inf throughout
};

struct DecodeCase {
  explicit DecodeCase(std::string name_) : name(std::move(name_)) {}

  DecodeCase& lengths(std::vector<int64_t> used_, int64_t room) { return used = std::move(used_), len_k = room, *this; }
  DecodeCase& queries(int64_t n, bool causal) { return len_q = n, is_causal = causal, *this; }
  DecodeCase& heads(int64_t q, int64_t kv) { return heads_q = q, heads_kv = kv, *this; }
  DecodeCase& dim(int64_t d) { return head_dim = d, *this; }
  // Heads: 0 = none, else 1, H_kv or H.
  DecodeCase& bias(fdma_dtype dtype, int64_t heads, BiasValues values_ = BiasValues::kNormal) {
    return bias_dtype = dtype, bias_heads = heads, values = values_, *this;
  }
  DecodeCase& shared_bias() { return bias_batch = 1, *this; }
  DecodeCase& rank_4() { return has_row_dim = true, *this; }
  DecodeCase& keeping(int64_t n) { return keep = n, *this; }
  DecodeCase& capped(float cap) { return softcap = cap, *this; }
  DecodeCase& scaled(float by) { return scale = by, *this; }
  DecodeCase& pages(int64_t size) { return page_size = size, *this; }
  DecodeCase& layout(Layout l) { return tensors = l, *this; }
  DecodeCase& wide() { return length_dtype = FDMA_INT64, *this; }
  DecodeCase& whole() { return has_lengths = false, *this; }

  std::string name;
  std::vector<int64_t> used = {70, 33};
  int64_t len_q = 1, len_k = 80, heads_q = 4, heads_kv = 2, head_dim = 32;
  int64_t bias_batch = 0, bias_heads = 0, keep = 0, page_size = 0;
  fdma_dtype bias_dtype = FDMA_FLOAT32, length_dtype = FDMA_INT32;
  BiasValues values = BiasValues::kNormal;
  float softcap = 0.0f, scale = FDMA_SCALE_DEFAULT;
  bool is_causal = false, has_row_dim = false, has_lengths = true;
  Layout tensors = Layout::kContiguous;

  int64_t batch() const { return static_cast<int64_t>(used.size()); }
};

std::ostream& operator<<(std::ostream& stream, const DecodeCase& c) { return stream << c.name; }

double bias_value(BiasValues kind, std::mt19937_64& random) {
  const double normal = std::normal_distribution<double>()(random);
  const uint64_t pick = random();
  switch (kind) {
    case BiasValues::kTies:
      return static_cast<double>(pick % 5) - 2.0;
    case BiasValues::kConstant:
      return -1.5;
    case BiasValues::kSlots:
      return pick % 4 == 0 ? normal : -kInfinity;
    case BiasValues::kSpecials: {
      const double values[] = {-kInfinity, std::nan(""), -0.0, 0.0, normal};
      return values[pick % 5];
    }
    case BiasValues::kHidden:
      return -kInfinity;
    default:
      return normal;
  }
}

class DecodeCall {
 public:
  DecodeCall(const DecodeCase& c, fdma_dtype dtype, fdma_device device) : c_(c), dtype_(dtype), device_(device) {
    std::mt19937_64 random(29);
    query_ = Tensor(dtype, {c.batch(), c.len_q, c.heads_q, c.head_dim}, c.tensors);
    fill_normal(query_, random);
    make_cache(random);
    make_bias(random);
    select();
    erase_unread();
    lengths_ = Tensor(c.length_dtype, {c.batch()});
    for (int64_t b = 0; b < c.batch(); ++b) lengths_.set(b, static_cast<double>(c.used[static_cast<size_t>(b)]));
    for (Tensor* tensor : inputs()) {
      if (tensor->given()) tensor->upload(device);
    }
    out_ = Tensor(dtype, query_.shape(), c.tensors);
    lse_ = Tensor(FDMA_FLOAT32, {c.batch(), c.heads_q, c.len_q});
  }

  void run(int num_threads = 0) {
    fdma_decode_params params;
    fdma_decode_params_init(&params);
    params.device = device_;
    params.query = query_.describe();
    params.key = key_.describe();
    params.value = value_.describe();
    if (bias_.given()) params.bias = {FDMA_BIAS_DENSE, bias_.describe()};
    params.scale = c_.scale;
    params.softcap = c_.softcap;
    params.is_causal = c_.is_causal ? 1 : 0;
    params.num_threads = num_threads;
    params.keep_window_size = c_.keep;
    if (c_.has_lengths) params.seqlens_k = lengths_.describe();
    params.block_table = table_.describe();
    out_.refill(device_);
    lse_.refill(device_);
    params.out = out_.describe();
    params.lse = lse_.describe();
    ASSERT_EQ(fdma_decode_supported(&params), FDMA_SUCCESS) << fdma_last_error_message();
    size_t bytes = 0;
    ASSERT_EQ(fdma_decode_workspace_size(&params, &bytes), FDMA_SUCCESS) << fdma_last_error_message();
    DeviceMemory workspace(device_, bytes);
    ASSERT_EQ(fdma_decode(&params, workspace.data(), bytes, nullptr), FDMA_SUCCESS) << fdma_last_error_message();
    synchronize(device_);
    out_.download();
    lse_.download();
  }

  void expect_matches() const {
    const ReferenceProblem problem = reference_problem();
    const ReferenceOutput exact = Reference<double>(problem, FDMA_FLOAT64).forward();
    const ReferenceOutput eager = Reference<float>(problem, dtype_).forward();
    expect_close("out", out_, exact.out, eager.out);
    expect_close("lse", lse_, exact.lse, eager.lse);
    EXPECT_TRUE(out_.surroundings_untouched() && lse_.surroundings_untouched());
    for (const Tensor* tensor : {&query_, &key_, &value_, &bias_, &lengths_, &table_}) {
      EXPECT_TRUE(!tensor->given() || tensor->unchanged_on_device());
    }
  }

  std::vector<double> outputs() const {
    std::vector<double> all = out_.values();
    const std::vector<double> lse = lse_.values();
    all.insert(all.end(), lse.begin(), lse.end());
    return all;
  }

 private:
  std::vector<Tensor*> inputs() { return {&query_, &key_, &value_, &bias_, &lengths_, &table_}; }

  // Row of key k of batch entry b in the cache.
  int64_t cache_row(int64_t b, int64_t k) const {
    if (c_.page_size == 0) return b * c_.len_k + k;
    return static_cast<int64_t>(table_.get(b * table_.shape()[1] + k / c_.page_size)) * c_.page_size + k % c_.page_size;
  }

  void make_cache(std::mt19937_64& random) {
    Shape shape = {c_.batch(), c_.len_k, c_.heads_kv, c_.head_dim};
    if (c_.page_size > 0) {
      const int64_t width = c_.len_k / c_.page_size, spare = 3;
      ASSERT_EQ(width * c_.page_size, c_.len_k) << "the room of a paged case is whole pages";
      shape = {c_.batch() * width + spare, c_.page_size, c_.heads_kv, c_.head_dim};
      std::vector<double> order(static_cast<size_t>(shape[0]));
      for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<double>(i);
      std::shuffle(order.begin(), order.end(), random);
      table_ = Tensor(FDMA_INT32, {c_.batch(), width});
      for (int64_t i = 0; i < table_.size(); ++i) table_.set(i, order[static_cast<size_t>(i)]);
    }
    for (Tensor* tensor : {&key_, &value_}) {
      *tensor = Tensor(dtype_, shape, c_.tensors);
      fill_normal(*tensor, random);
    }
    const int64_t width = c_.heads_kv * c_.head_dim;
    for (int64_t b = 0; b < c_.batch(); ++b) {
      for (int64_t i = 0; i < c_.len_k * width; ++i) {
        const int64_t element = cache_row(b, i / width) * width + i % width;
        key_values_.push_back(key_.get(element));
        value_values_.push_back(value_.get(element));
      }
    }
  }

  void make_bias(std::mt19937_64& random) {
    if (c_.bias_heads == 0) return;
    const int64_t batch = c_.bias_batch == 1 ? 1 : c_.batch();
    Shape shape = {batch, c_.bias_heads, c_.len_k};
    if (c_.has_row_dim) shape = {batch, c_.bias_heads, 1, c_.len_k};
    bias_ = Tensor(c_.bias_dtype, shape, c_.tensors == Layout::kMisaligned ? c_.tensors : Layout::kContiguous);
    for (int64_t i = 0; i < bias_.size(); ++i) bias_.set(i, bias_value(c_.values, random));
  }

  double bias_of(int64_t b, int64_t h, int64_t k) const {
    if (!bias_.given()) return 0.0;
    const int64_t head = h / (c_.heads_q / c_.bias_heads);
    return bias_.get(((bias_.shape()[0] == 1 ? 0 : b) * c_.bias_heads + head) * c_.len_k + k);
  }

  // The keys that each query attends to.
  void select() {
    seen_.assign(static_cast<size_t>(c_.batch() * c_.heads_q * c_.len_q * c_.len_k), false);
    for (int64_t i = 0; i < c_.batch() * c_.heads_q * c_.len_q; ++i) {
      const int64_t q = i % c_.len_q, h = i / c_.len_q % c_.heads_q, b = i / c_.len_q / c_.heads_q;
      const int64_t used = c_.used[static_cast<size_t>(b)];
      const int64_t limit = c_.is_causal ? std::max<int64_t>(0, used - c_.len_q + q + 1) : used;
      if (c_.keep > 0) {
        const auto best = best_keys(
            limit, c_.keep, [&](int64_t k) { return bias_of(b, h, k); }, [](int64_t) { return true; });
        for (int64_t k : best) seen_[static_cast<size_t>(i * c_.len_k + k)] = true;
      } else {
        for (int64_t k = 0; k < limit; ++k)
          seen_[static_cast<size_t>(i * c_.len_k + k)] = bias_of(b, h, k) != -kInfinity;
      }
    }
  }
  bool sees(int64_t b, int64_t h, int64_t q, int64_t k) const {
    return seen_[static_cast<size_t>(((b * c_.heads_q + h) * c_.len_q + q) * c_.len_k + k)];
  }

  // Makes NaN of the cache and the bias where nothing may be read.
  void erase_unread() {
    const int64_t group = c_.heads_q / c_.heads_kv;
    std::vector<bool> read(static_cast<size_t>(key_.size() / c_.head_dim));
    for (int64_t b = 0; b < c_.batch(); ++b) {
      for (int64_t k = 0; k < c_.used[static_cast<size_t>(b)]; ++k) {
        for (int64_t h = 0; h < c_.heads_q; ++h) {
          if (bias_of(b, h, k) == -kInfinity) continue;
          read[static_cast<size_t>(cache_row(b, k) * c_.heads_kv + h / group)] = true;
        }
      }
    }
    for (int64_t i = 0; i < key_.size(); ++i) {
      if (read[static_cast<size_t>(i / c_.head_dim)]) continue;
      key_.erase(i);
      value_.erase(i);
    }
  }

  ReferenceProblem reference_problem() const {
    ReferenceProblem problem{};
    for (int64_t b = 0; b < c_.batch(); ++b) {
      problem.sequences.push_back({c_.len_q, c_.used[static_cast<size_t>(b)], b * c_.len_q, b * c_.len_k});
    }
    problem.max_q = c_.len_q;
    problem.max_k = c_.len_k;
    problem.lse_rows = c_.len_q;
    problem.heads_q = c_.heads_q;
    problem.heads_kv = c_.heads_kv;
    problem.head_dim = c_.head_dim;
    problem.query = query_.values();
    problem.key = key_values_;
    problem.value = value_values_;
    problem.mask = [this](int64_t b, int64_t h, int64_t q, int64_t k) { return sees(b, h, q, k); };
    problem.bias = [this](int64_t b, int64_t h, int64_t, int64_t k) { return bias_of(b, h, k); };
    problem.scale = c_.scale == FDMA_SCALE_DEFAULT ? 1.0 / std::sqrt(static_cast<double>(c_.head_dim)) : c_.scale;
    problem.softcap = c_.softcap;
    return problem;
  }

  DecodeCase c_;
  fdma_dtype dtype_;
  fdma_device device_;
  Tensor query_, key_, value_, bias_, lengths_, table_, out_, lse_;
  std::vector<double> key_values_, value_values_;  // (B, Lk, H_kv, D), before anything is erased
  std::vector<bool> seen_;                         // (B, H, Lq, Lk)
};

using D = DecodeCase;

std::vector<D> decode_cases() {
  constexpr fdma_dtype kHalf = FDMA_FLOAT16, kBrain = FDMA_BFLOAT16, kFloat = FDMA_FLOAT32;
  std::vector<D> cases = {
      D("plain"),
      D("whole").lengths({80, 80}, 80).whole(),
      D("int64").wide(),
      D("lengths_of_nothing").lengths({0, 5, 80}, 80),
      D("no_room").lengths({0, 0}, 0),
      D("no_batch").lengths({}, 40),
      D("several").queries(5, false),
      D("several_causal").queries(5, true).lengths({70, 3, 5, 0}, 80),
      D("most_queries").queries(16, true).heads(8, 1),
      D("many_heads").heads(40, 2),
      D("softcap").capped(2.0f).bias(kFloat, 2),
      D("negative_scale").scaled(-0.3f),
      D("long").lengths({1500, 700}, 1600),
      D("misaligned").layout(Layout::kMisaligned).bias(kBrain, 2),
      D("heads_first").layout(Layout::kHeadsFirst).bias(kHalf, 2).keeping(20),
      D("bias").bias(kFloat, 2),
      D("bias_rank_4").bias(kHalf, 2).rank_4(),
      D("bias_shared").bias(kBrain, 1).shared_bias(),
      D("bias_of_heads").bias(kBrain, 4).queries(3, true),
      D("slots").bias(kFloat, 2, BiasValues::kSlots).lengths({256, 256}, 256).whole(),
      D("slots_long").bias(kBrain, 2, BiasValues::kSlots).lengths({2048}, 2048),
      D("hidden").bias(kBrain, 2, BiasValues::kHidden),
      D("keep_one").bias(kFloat, 2).keeping(1),
      D("keep").bias(kBrain, 2).keeping(20),
      D("keep_ties").bias(kHalf, 2, BiasValues::kTies).keeping(20),
      D("keep_constant").bias(kFloat, 2, BiasValues::kConstant).keeping(20),
      D("keep_specials").bias(kBrain, 2, BiasValues::kSpecials).keeping(20),
      D("keep_specials_fp16").bias(kHalf, 2, BiasValues::kSpecials).keeping(40),
      D("keep_hidden").bias(kFloat, 2, BiasValues::kHidden).keeping(20),
      D("keep_all").bias(kFloat, 2, BiasValues::kSpecials).keeping(80),
      D("keep_more").bias(kFloat, 2, BiasValues::kSpecials).keeping(1000).queries(2, true),
      D("keep_shared").bias(kFloat, 1).shared_bias().keeping(20),
      D("keep_of_heads").bias(kBrain, 4).keeping(20),
      D("keep_of_heads_causal").bias(kBrain, 4).keeping(20).queries(3, true),
      D("keep_causal").bias(kFloat, 2).keeping(20).queries(6, true).lengths({70, 22, 4, 0}, 80),
      D("keep_several").bias(kFloat, 2).keeping(20).queries(6, false),
      D("keep_softcap").bias(kFloat, 2).keeping(20).capped(1.5f),
      D("keep_misaligned").bias(kBrain, 2).keeping(20).layout(Layout::kMisaligned),
      D("keep_long").bias(kBrain, 2).keeping(300).lengths({1500, 700}, 1600),
      D("keep_block").bias(kHalf, 2, BiasValues::kTies).keeping(700).lengths({20000}, 20003).dim(8),
      D("keep_chunks").bias(kBrain, 2).keeping(900).lengths({40000, 33000}, 40001).dim(8),
      D("keep_chunks_fp16").bias(kHalf, 1, BiasValues::kTies).keeping(700).lengths({50000}, 50000).dim(8),
      D("keep_chunks_fp32").bias(kFloat, 2).keeping(500).lengths({35000, 9}, 36000).dim(8),
      D("keep_chunks_ties").bias(kFloat, 2, BiasValues::kConstant).keeping(17000).lengths({36000}, 36000).dim(8),
      D("keep_chunks_causal")
          .bias(kBrain, 2, BiasValues::kTies)
          .keeping(90)
          .queries(2, true)
          .lengths({33000}, 34000)
          .dim(8),
      D("keep_chunks_few").bias(kBrain, 2).keeping(900).lengths({0, 600}, 40000).dim(8),
  };
  for (int64_t size : {16, 17, 64, 256}) {
    const std::string suffix = "_of_" + std::to_string(size);
    const int64_t room = 4 * size;
    const std::vector<int64_t> used = {room, 3 * size + 1, 1, 0};
    cases.push_back(D("pages" + suffix).lengths(used, room).pages(size));
    cases.push_back(D("pages_keep" + suffix).lengths(used, room).pages(size).bias(kBrain, 2).keeping(size + 3));
    cases.push_back(D("pages_causal" + suffix).lengths(used, room).pages(size).queries(3, true).bias(kFloat, 4));
  }
  for (int64_t dim : {8, 40, 64, 72, 128, 200, 256}) {
    const std::string suffix = "_dim_" + std::to_string(dim);
    cases.push_back(D("plain" + suffix).dim(dim).lengths({300, 33}, 300).heads(3, 1));
    cases.push_back(D("keep" + suffix).dim(dim).lengths({300, 33}, 300).bias(kBrain, 2).keeping(130));
    cases.push_back(D("full" + suffix).dim(dim).queries(4, true).heads(8, 2).bias(kFloat, 8).pages(16));
  }
  return cases;
}

using Parameter = std::tuple<DecodeCase, fdma_dtype, fdma_device_type>;

class Decode : public testing::TestWithParam<Parameter> {};

TEST_P(Decode, MatchesReference) {
  const auto& [c, dtype, device_type] = GetParam();
  const std::string reason = unavailable_reason({device_type, 0});
  if (!reason.empty()) GTEST_SKIP() << reason;
  DecodeCall call(c, dtype, {device_type, 0});
  call.run();
  call.expect_matches();
}

std::string decode_name(const testing::TestParamInfo<Parameter>& info) {
  const fdma_dtype dtype = std::get<fdma_dtype>(info.param);
  return std::get<DecodeCase>(info.param).name + (dtype == FDMA_FLOAT32   ? "_float32"
                                                  : dtype == FDMA_FLOAT16 ? "_float16"
                                                                          : "_bfloat16");
}

INSTANTIATE_TEST_SUITE_P(Cpu, Decode,
                         testing::Combine(testing::ValuesIn(decode_cases()),
                                          testing::Values(FDMA_FLOAT32, FDMA_FLOAT16, FDMA_BFLOAT16),
                                          testing::Values(FDMA_DEVICE_CPU)),
                         decode_name);
INSTANTIATE_TEST_SUITE_P(Gpu, Decode,
                         testing::Combine(testing::ValuesIn(decode_cases()),
                                          testing::Values(FDMA_FLOAT16, FDMA_BFLOAT16),
                                          testing::Values(FDMA_DEVICE_CUDA)),
                         decode_name);

TEST(DecodeThreads, ChangeNothing) {
  DecodeCall call(D("threads").lengths({3000, 2500}, 3000).heads(8, 4).dim(64).bias(FDMA_BFLOAT16, 4).keeping(2000),
                  FDMA_FLOAT32, kCpu);
  call.run(1);
  const std::vector<double> one = call.outputs();
  call.run(5);
  EXPECT_EQ(one, call.outputs());
}

TEST(DecodeGpu, IsReproducible) {
  const std::string reason = unavailable_reason(kCuda);
  if (!reason.empty()) GTEST_SKIP() << reason;
  DecodeCall call(D("again").lengths({50000, 41000}, 50000).dim(128).bias(FDMA_BFLOAT16, 2).keeping(2000),
                  FDMA_BFLOAT16, kCuda);
  call.run();
  const std::vector<double> first = call.outputs();
  call.run();
  EXPECT_EQ(first, call.outputs());
}

}  // namespace
}  // namespace fdma::test
