#include "tests/support/attention_case.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "host/backend.hpp"
#include "kernels/core/math.hpp"

namespace fdma::test {
namespace {

// Makes key k of a (batch, head) visible to the positions [begin, end) that span(head, k) gives.
template <typename SpanOf>
void fill_spans(Tensor& mask, const SpanOf& span_of) {
  const Shape& s = mask.shape();
  for (int64_t head = 0; head < s[0] * s[1]; ++head) {
    const std::vector<std::pair<int64_t, int64_t>> spans = span_of();
    for (int64_t q = 0; q < s[2]; ++q) {
      for (int64_t k = 0; k < s[3]; ++k) {
        const auto& [begin, end] = spans[static_cast<size_t>(k)];
        const int64_t position = q + s[3] - s[2];
        mask.set((head * s[2] + q) * s[3] + k, begin <= position && position < end ? 1.0 : 0.0);
      }
    }
  }
}

// Positions that see each key when every one keeps the best keys up to its own.
std::vector<std::pair<int64_t, int64_t>> top_key_spans(int64_t keys, int64_t keep, std::mt19937_64& random) {
  std::vector<std::pair<int64_t, int64_t>> spans;
  std::set<std::pair<uint64_t, int64_t>> kept;
  for (int64_t k = 0; k < keys; ++k) {
    spans.emplace_back(k, keys);
    kept.emplace(random(), k);
    if (static_cast<int64_t>(kept.size()) <= keep) continue;
    spans[static_cast<size_t>(kept.begin()->second)].second = k;
    kept.erase(kept.begin());
  }
  return spans;
}

void fill_mask(Tensor& mask, MaskPattern pattern, std::mt19937_64& random) {
  const Shape& s = mask.shape();
  if (pattern == MaskPattern::kTopKeys) {
    return fill_spans(mask, [&] { return top_key_spans(s[3], s[3] / 8, random); });
  }
  if (pattern == MaskPattern::kSpans) {
    return fill_spans(mask, [&] {
      std::vector<std::pair<int64_t, int64_t>> spans;
      for (int64_t k = 0; k < s[3]; ++k) {
        const int64_t begin = s[3] - s[2] + static_cast<int64_t>(random() % static_cast<uint64_t>(s[2]));
        const auto length = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(s[2] / 16 + 1));
        spans.emplace_back(begin, random() % 5 == 0 ? begin : begin + length);
      }
      return spans;
    });
  }
  const int64_t row_tiles = (s[2] + 63) / 64, key_tiles = (s[3] + 63) / 64;
  std::vector<bool> tile_visible(static_cast<size_t>(s[0] * s[1] * row_tiles * key_tiles));
  for (size_t i = 0; i < tile_visible.size(); ++i) tile_visible[i] = random() % 5 == 0;
  for (int64_t i = 0; i < mask.size(); ++i) {
    const int64_t k = i % s[3], q = i / s[3] % s[2], head = i / s[3] / s[2];
    bool visible = pattern == MaskPattern::kEverything;
    if (pattern == MaskPattern::kBand) visible = std::abs(q * s[3] / s[2] - k) < 40;
    if (pattern == MaskPattern::kRandom) visible = random() % 2 == 0 && q % 16 != 3;
    if (pattern == MaskPattern::kBlocks) {
      visible =
          tile_visible[static_cast<size_t>((head * row_tiles + q / 64) * key_tiles + k / 64)] && random() % 4 != 0;
    }
    mask.set(i, visible ? 1.0 : 0.0);
  }
}

void expect_success(fdma_status status, const char* what) {
  ASSERT_EQ(status, FDMA_SUCCESS) << what << ": " << fdma_status_name(status) << ": " << fdma_last_error_message();
}

// `reserve(bytes)`: the address of so much scratch.
template <typename Problem, typename Reserve>
void run_past_api(const Problem& problem, fdma_stream stream, const Reserve& reserve) {
  Workspace size;
  run(problem, size, stream);
  Workspace workspace(reserve(size.used()));
  run(problem, workspace, stream);
}

int64_t longest(const std::vector<int64_t>& lengths) {
  return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
}

int64_t rows_of(const std::vector<int64_t>& lengths, bool padded, int64_t slack) {
  return slack + (padded ? longest(lengths) : std::accumulate(lengths.begin(), lengths.end(), int64_t{0}));
}

// cu_seqlens of these lengths.
std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets{0};
  for (int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

void fill_values(Tensor& tensor, const std::vector<int64_t>& values) {
  for (size_t i = 0; i < values.size(); ++i) tensor.set(static_cast<int64_t>(i), static_cast<double>(values[i]));
}

// Leaves only the elements that are `read`; those are marked in groups of `width`.
void erase_all_but(Tensor& tensor, const std::vector<bool>& read, int64_t width) {
  for (int64_t i = 0; i < tensor.size(); ++i) {
    if (!read[static_cast<size_t>(i / width)]) tensor.erase(i);
  }
}

}  // namespace

AttentionCase& AttentionCase::sequences(std::vector<int64_t> q, std::vector<int64_t> k) {
  has_sequences = true;
  batch = static_cast<int64_t>(q.size());
  len_q = longest(q);
  len_k = longest(k);
  spec.len_q = std::move(q);
  spec.len_k = std::move(k);
  return *this;
}

int64_t AttentionCase::rows_q() const { return has_sequences ? rows_of(spec.len_q, spec.padded, spec.slack_q) : len_q; }

int64_t AttentionCase::rows_k() const { return has_sequences ? rows_of(spec.len_k, spec.padded, spec.slack_k) : len_k; }

std::vector<ReferenceSequence> AttentionCase::places() const {
  std::vector<ReferenceSequence> places;
  int64_t q_begin = 0, k_begin = 0;
  for (size_t b = 0; b < static_cast<size_t>(batch); ++b) {
    const int64_t q = has_sequences ? spec.len_q[b] : len_q, k = has_sequences ? spec.len_k[b] : len_k;
    places.push_back({q, k, q_begin, k_begin});
    q_begin += packed() ? q : rows_q();
    k_begin += packed() || paged() ? k : rows_k();
  }
  return places;
}

AttentionCall::AttentionCall(const AttentionCase& c, fdma_dtype dtype, fdma_device device)
    : c_(c), dtype_(dtype), device_(device), places_(c.places()) {
  std::mt19937_64 random(static_cast<uint64_t>(c.len_q * 1000003 + c.len_k * 1009 + c.heads_q * 31 + c.head_dim));
  if (c.paged()) make_pages(random);
  make_inputs(random);
  if (c.has_sequences) erase_unread();
  make_outputs();
  for (Tensor* tensor : all_inputs()) tensor->upload(device);
  for (Tensor* tensor : all_outputs()) tensor->upload(device);
}

// Pages in any order, some of no sequence; the table's entries behind a sequence's last page lead nowhere.
void AttentionCall::make_pages(std::mt19937_64& random) {
  constexpr int64_t kUnusedPages = 3;
  const int64_t size = c_.spec.page_size, columns = ceil_div(longest(c_.spec.len_k), size) + 1;
  for (const ReferenceSequence& s : places_) page_count_ += ceil_div(s.len_k, size);
  page_count_ += kUnusedPages;
  std::vector<int64_t> order(static_cast<size_t>(page_count_));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::shuffle(order.begin(), order.end(), random);

  block_table_ = Tensor(FDMA_INT32, {c_.batch, columns});
  const int64_t nowhere[] = {-1, page_count_, std::numeric_limits<int32_t>::max()};
  for (int64_t i = 0; i < block_table_.size(); ++i) block_table_.set(i, static_cast<double>(nowhere[i % 3]));
  auto next = order.begin();
  for (int64_t b = 0; b < c_.batch; ++b) {
    const int64_t used = ceil_div(places_[static_cast<size_t>(b)].len_k, size);
    pages_of_.emplace_back(next, next + used);
    next += used;
    for (int64_t i = 0; i < used; ++i) {
      block_table_.set(b * columns + i, static_cast<double>(pages_of_.back()[static_cast<size_t>(i)]));
    }
  }
}

Shape AttentionCall::query_shape() const {
  if (c_.packed()) return {c_.rows_q(), c_.heads_q, c_.head_dim};
  return {c_.batch, c_.rows_q(), c_.heads_q, c_.head_dim};
}

Shape AttentionCall::key_shape() const {
  if (c_.paged()) return {page_count_, c_.spec.page_size, c_.heads_kv, c_.head_dim};
  if (c_.packed()) return {c_.rows_k(), c_.heads_kv, c_.head_dim};
  return {c_.batch, c_.rows_k(), c_.heads_kv, c_.head_dim};
}

Shape AttentionCall::lse_shape() const {
  if (c_.packed()) return {c_.heads_q, c_.rows_q()};
  return {c_.batch, c_.heads_q, c_.rows_q()};
}

void AttentionCall::make_inputs(std::mt19937_64& random) {
  query_ = Tensor(dtype_, query_shape(), c_.query_layout);
  key_ = Tensor(dtype_, key_shape(), c_.kv_layout);
  value_ = Tensor(dtype_, key_shape(), c_.kv_layout);
  grad_out_ = Tensor(dtype_, query_shape(), c_.query_layout);
  for (Tensor* tensor : {&query_, &key_, &value_, &grad_out_}) fill_normal(*tensor, random);
  if (c_.mask_dtype != FDMA_DTYPE_NONE) {
    mask_ = score_tensor(c_.mask_dtype, c_.mask_shape);
    fill_mask(mask_, c_.mask_pattern, random);
    if (c_.has_lists()) make_lists(random);
  }
  if (c_.bias_dtype != FDMA_DTYPE_NONE) {
    bias_ = score_tensor(c_.bias_dtype, c_.bias_shape);
    fill_normal(bias_, random);
    for (int64_t i = 0; c_.bias_hides && i < bias_.size(); ++i) {
      if (random() % 8 == 0) bias_.set(i, -std::numeric_limits<double>::infinity());
    }
  }
  if (c_.with_grad_lse) {
    grad_lse_ = Tensor(FDMA_FLOAT32, lse_shape());
    fill_normal(grad_lse_, random);
  }
  if (c_.has_sequences) {
    cu_seqlens_q_ = Tensor(c_.spec.offsets, {c_.batch + 1});
    cu_seqlens_k_ = Tensor(c_.spec.offsets, {c_.batch + 1});
    fill_values(cu_seqlens_q_, offsets_of(c_.spec.len_q));
    fill_values(cu_seqlens_k_, offsets_of(c_.spec.len_k));
  }
}

// Lists of keys, and what they mean in the dense mask, which the reference takes.
void AttentionCall::make_lists(std::mt19937_64& random) {
  const bool is_interval = c_.list_kind == FDMA_MASK_INTERVAL;
  const int64_t batch = c_.list_batch == Extent::kOne ? 1 : c_.batch, heads = mask_.shape()[1];
  const int64_t width = is_interval ? c_.len_k : c_.len_k / 3 + 5;
  lists_ = Tensor(FDMA_INT32, {batch, heads, width}, Layout::kMisaligned);
  for (int64_t i = 0; i < lists_.size(); ++i) {
    const auto k = i % width;
    // Keys that nobody sees, that are pushed out soon, later and never; columns that repeat and that name no key.
    const int64_t ends[] = {k, k - 3, k + 1 + static_cast<int64_t>(random() % 9), c_.len_k, c_.len_k + 7};
    const int64_t column = static_cast<int64_t>(random() % static_cast<uint64_t>(c_.len_k + 9)) - 4;
    const int64_t later = k + static_cast<int64_t>(random() % 300);
    lists_.set(i, static_cast<double>(!is_interval ? column : random() % 3 == 0 ? ends[random() % 5] : later));
  }
  for (int64_t i = 0; i < mask_.size(); ++i) mask_.set(i, 0.0);
  for (int64_t b = 0; b < c_.batch; ++b) {
    const ReferenceSequence& s = places_[static_cast<size_t>(b)];
    for (int64_t i = 0; i < heads * s.len_q * width; ++i) {
      const int64_t h = i / width / s.len_q, q = i / width % s.len_q, entry = i % width;
      const auto value = static_cast<int64_t>(lists_.get(((batch == 1 ? 0 : b) * heads + h) * width + entry));
      const int64_t position = q + s.len_k - s.len_q;
      const int64_t k = is_interval ? entry : value;
      const bool seen = is_interval ? k <= position && position < value : true;
      if (seen && k >= 0 && k < s.len_k) mask_.set(((b * heads + h) * c_.len_q + q) * c_.len_k + k, 1.0);
    }
  }
}

// Makes NaN, and visible in a mask, of all that no sequence reads.
void AttentionCall::erase_unread() {
  const ReferenceProblem layout = reference_layout();
  const int64_t query_width = c_.heads_q * c_.head_dim, key_width = c_.heads_kv * c_.head_dim;
  std::vector<bool> query_rows(static_cast<size_t>(query_.size() / query_width));
  std::vector<bool> key_rows(static_cast<size_t>(key_.size() / key_width));
  std::vector<bool> lse_rows(static_cast<size_t>(query_.size() / c_.head_dim));
  for (int64_t b = 0; b < c_.batch; ++b) {
    const ReferenceSequence& s = places_[static_cast<size_t>(b)];
    for (int64_t k = 0; k < s.len_k; ++k) key_rows[static_cast<size_t>(key_row(b, k))] = true;
    for (int64_t q = 0; q < s.len_q; ++q) {
      query_rows[static_cast<size_t>(s.q_begin + q)] = true;
      for (int64_t h = 0; h < c_.heads_q; ++h) lse_rows[static_cast<size_t>(layout.lse_row(b, h, q))] = true;
    }
  }
  erase_all_but(query_, query_rows, query_width);
  erase_all_but(grad_out_, query_rows, query_width);
  erase_all_but(key_, key_rows, key_width);
  erase_all_but(value_, key_rows, key_width);
  if (grad_lse_.given()) erase_all_but(grad_lse_, lse_rows, 1);
  for (Tensor* tensor : {&mask_, &bias_}) {
    if (!tensor->given()) continue;
    std::vector<bool> read(static_cast<size_t>(tensor->size()));
    for_each_score([&](int64_t b, int64_t h, int64_t q, int64_t k) {
      read[static_cast<size_t>(score_index(*tensor, b, h, q, k))] = true;
    });
    erase_all_but(*tensor, read, 1);
  }
}

void AttentionCall::make_outputs() {
  const auto writable = [](Layout layout) { return layout == Layout::kExpanded ? Layout::kContiguous : layout; };
  out_ = Tensor(dtype_, query_shape(), writable(c_.query_layout));
  lse_ = Tensor(FDMA_FLOAT32, lse_shape());
  if (mask_.given() && !c_.has_lists()) {
    size_t bytes = 0;
    fdma_tensor dense{};
    dense.rank = 4;
    std::copy(mask_.shape().begin(), mask_.shape().end(), dense.shape);
    expect_success(fdma_mask_packed_size(&dense, c_.len_k, &bytes), "fdma_mask_packed_size");
    packed_mask_ = Tensor(FDMA_UINT8, {static_cast<int64_t>(bytes)});
  }
  if (c_.query_grad) grad_query_ = Tensor(dtype_, query_shape(), writable(c_.query_layout));
  if (c_.key_grad) grad_key_ = Tensor(dtype_, key_shape(), writable(c_.kv_layout));
  if (c_.value_grad) grad_value_ = Tensor(dtype_, key_shape(), writable(c_.kv_layout));
  if (c_.bias_grad && bias_.given()) grad_bias_ = Tensor(c_.bias_dtype, bias_.shape());
}

void AttentionCall::set_offsets(const std::vector<int64_t>& q, const std::vector<int64_t>& k) {
  fill_values(cu_seqlens_q_, q);
  fill_values(cu_seqlens_k_, k);
  cu_seqlens_q_.upload(device_);
  cu_seqlens_k_.upload(device_);
}

std::vector<Tensor*> AttentionCall::all_inputs() {
  return {&query_,    &key_,          &value_,        &mask_,        &bias_, &grad_out_,
          &grad_lse_, &cu_seqlens_q_, &cu_seqlens_k_, &block_table_, &lists_};
}

std::vector<Tensor*> AttentionCall::all_outputs() {
  return {&out_, &lse_, &packed_mask_, &grad_query_, &grad_key_, &grad_value_, &grad_bias_};
}

Tensor AttentionCall::score_tensor(fdma_dtype dtype, const ScoreShape& shape) const {
  const auto extent = [&](Extent e, int64_t full) {
    return e == Extent::kOne ? 1 : e == Extent::kKvHeads ? c_.heads_kv : full;
  };
  return Tensor(dtype, {extent(shape.batch, c_.batch), extent(shape.heads, c_.heads_q), extent(shape.rows, c_.len_q),
                        extent(shape.keys, c_.len_k)});
}

int64_t AttentionCall::score_index(const Tensor& tensor, int64_t b, int64_t h, int64_t q, int64_t k) const {
  const Shape& s = tensor.shape();
  const int64_t head = h / (c_.heads_q / s[1]);
  return (((s[0] == 1 ? 0 : b) * s[1] + head) * s[2] + (s[2] == 1 ? 0 : q)) * s[3] + (s[3] == 1 ? 0 : k);
}

// Row of key k of sequence b in key and value.
int64_t AttentionCall::key_row(int64_t b, int64_t k) const {
  if (!c_.paged()) return places_[static_cast<size_t>(b)].k_begin + k;
  const int64_t size = c_.spec.page_size;
  return pages_of_[static_cast<size_t>(b)][static_cast<size_t>(k / size)] * size + k % size;
}

template <typename Body>
void AttentionCall::for_each_score(const Body& body) const {
  for (int64_t b = 0; b < c_.batch; ++b) {
    const ReferenceSequence& s = places_[static_cast<size_t>(b)];
    for (int64_t h = 0; h < c_.heads_q; ++h) {
      for (int64_t q = 0; q < s.len_q; ++q) {
        for (int64_t k = 0; k < s.len_k; ++k) body(b, h, q, k);
      }
    }
  }
}

template <typename Params>
void AttentionCall::fill_inputs(Params& params) const {
  params.device = device_;
  params.query = query_.describe();
  params.key = key_.describe();
  params.value = value_.describe();
  if (mask_.given()) params.mask = {FDMA_MASK_DENSE, mask_.describe()};
  if (c_.has_lists()) params.mask = {c_.list_kind, lists_.describe()};
  if (bias_.given()) params.bias = {FDMA_BIAS_DENSE, bias_.describe()};
  params.scale = c_.scale;
  params.softcap = c_.softcap;
  params.is_causal = c_.is_causal ? 1 : 0;
  params.out = out_.describe();
  params.lse = lse_.describe();
  params.cu_seqlens_q = cu_seqlens_q_.describe();
  params.cu_seqlens_k = cu_seqlens_k_.describe();
  if (c_.has_sequences) {
    params.max_seqlen_q = c_.len_q;
    params.max_seqlen_k = c_.len_k;
  }
}

void AttentionCall::forward(int num_threads, fdma_stream stream) {
  fdma_attention_forward_params params;
  fdma_attention_forward_params_init(&params);
  fill_inputs(params);
  params.num_threads = num_threads;
  params.packed_mask = packed_mask_.describe();
  params.block_table = block_table_.describe();
  if (c_.compaction != Compaction::kBySize) {
    ForwardProblem problem = make_forward_problem(params, true);
    problem.compaction = c_.compaction;
    run_past_api(problem, stream, [&](size_t bytes) {
      reserve_forward_workspace(bytes);
      return forward_workspace_.data();
    });
    return;
  }
  expect_success(fdma_attention_forward_supported(&params), "supported");
  size_t bytes = 0;
  expect_success(fdma_attention_forward_workspace_size(&params, &bytes), "workspace_size");
  reserve_forward_workspace(bytes);
  expect_success(fdma_attention_forward(&params, forward_workspace_.data(), bytes, stream), "forward");
}

void AttentionCall::reserve_forward_workspace(size_t bytes) {
  if (bytes > forward_bytes_ || forward_workspace_.data() == nullptr) {
    forward_workspace_ = DeviceMemory(device_, bytes);
    forward_bytes_ = bytes;
  }
}

fdma_attention_backward_params AttentionCall::backward_params(bool deterministic, int num_threads) {
  fdma_attention_backward_params params;
  fdma_attention_backward_params_init(&params);
  fill_inputs(params);
  if (c_.keep_bits) {
    const fdma_tensor packed = packed_mask_.describe();
    fdma_tensor& bits = params.mask.tensor;
    params.mask.kind = FDMA_MASK_BITS;
    bits.data = packed.data;
    bits.dtype = FDMA_UINT8;
    bits.shape[3] = c_.len_k;
  }
  params.num_threads = num_threads;
  params.deterministic = deterministic ? 1 : 0;
  params.grad_out = grad_out_.describe();
  params.grad_lse = grad_lse_.describe();
  params.grad_query = grad_query_.describe();
  params.grad_key = grad_key_.describe();
  params.grad_value = grad_value_.describe();
  params.grad_bias = grad_bias_.describe();
  return params;
}

void AttentionCall::reserve_backward_workspace(size_t bytes) {
  if (bytes > backward_bytes_ || backward_workspace_.data() == nullptr) {
    backward_workspace_ = DeviceMemory(device_, bytes);
    backward_bytes_ = bytes;
  }
}

void AttentionCall::backward(bool deterministic, int num_threads, fdma_stream stream) {
  const fdma_attention_backward_params params = backward_params(deterministic, num_threads);
  if (c_.compaction != Compaction::kBySize) {
    BackwardProblem problem = make_backward_problem(params, true);
    problem.compaction = c_.compaction;
    run_past_api(problem, stream, [&](size_t bytes) {
      reserve_backward_workspace(bytes);
      return backward_workspace_.data();
    });
    return;
  }
  expect_success(fdma_attention_backward_supported(&params), "supported");
  size_t bytes = 0;
  expect_success(fdma_attention_backward_workspace_size(&params, &bytes), "workspace_size");
  reserve_backward_workspace(bytes);
  expect_success(fdma_attention_backward(&params, backward_workspace_.data(), bytes, stream), "backward");
}

void AttentionCall::download() {
  synchronize(device_);
  for (Tensor* tensor : all_outputs()) tensor->download();
}

void AttentionCall::refill() {
  for (Tensor* tensor : all_outputs()) {
    if (tensor->given()) tensor->refill(device_);
  }
}

std::vector<unsigned char> AttentionCall::output_bytes() {
  download();
  std::vector<unsigned char> all;
  for (const Tensor* tensor : all_outputs()) {
    all.insert(all.end(), tensor->storage().begin(), tensor->storage().end());
  }
  return all;
}

}  // namespace fdma::test
