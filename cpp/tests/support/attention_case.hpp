// One attention call described in a line of a table, run through the C API and held against the reference.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "fdma/fdma.h"
#include "host/problem.hpp"
#include "kernels/policy/mask_bits.hpp"
#include "tests/support/reference.hpp"
#include "tests/support/tensor.hpp"

namespace fdma::test {

// Extent of one dimension of a mask or bias.
enum class Extent { kOne, kFull, kKvHeads };

struct ScoreShape {
  Extent batch = Extent::kFull, heads = Extent::kFull, rows = Extent::kFull, keys = Extent::kFull;
};

enum class MaskPattern {
  kRandom,   // each score visible with probability one half; some rows see nothing
  kBlocks,   // one in five 64 x 64 tiles has visible scores
  kNothing,  // no score is visible
  kEverything,
  kSpans,    // each key visible to a few rows on end; one key in five to none
  kTopKeys,  // causal: an eighth of the keys, the best by a value of the key alone
  kBand      // keys around the diagonal
};

// Lengths of the sequences of a case, and how their rows lie in the tensors.
struct SequenceSpec {
  std::vector<int64_t> len_q, len_k;
  bool padded = false;               // a batch entry each; otherwise packed one behind the other
  int64_t slack_q = 0, slack_k = 0;  // rows behind the last sequence, padded: behind the longest
  fdma_dtype offsets = FDMA_INT32;
  int64_t page_size = 0;  // of key and value; 0: not paged
};

struct AttentionCase {
  std::string name;
  int64_t batch = 2, len_q = 113, len_k = 203, heads_q = 3, heads_kv = 3, head_dim = 64;
  bool has_sequences = false;  // then len_q and len_k are max_seqlen_q and max_seqlen_k
  SequenceSpec spec;
  bool is_causal = false;
  float scale = FDMA_SCALE_DEFAULT, softcap = 0.0f;
  Layout query_layout = Layout::kContiguous, kv_layout = Layout::kContiguous;
  fdma_dtype mask_dtype = FDMA_DTYPE_NONE;  // NONE: no mask
  ScoreShape mask_shape;
  MaskPattern mask_pattern = MaskPattern::kRandom;
  fdma_mask_kind list_kind = FDMA_MASK_NONE;  // COLUMNS or INTERVAL: the mask is given as lists of keys
  Extent list_batch = Extent::kFull;
  fdma_dtype bias_dtype = FDMA_DTYPE_NONE;  // NONE: no bias
  ScoreShape bias_shape;
  bool bias_hides = false;  // one bias element in eight is -inf
  Compaction compaction = Compaction::kBySize;
  bool keep_bits = false;  // backward takes the packed mask that forward wrote
  bool with_grad_lse = false;
  bool query_grad = true, key_grad = true, value_grad = true, bias_grad = true;

  explicit AttentionCase(std::string case_name) : name(std::move(case_name)) {}
  AttentionCase& lengths(int64_t q, int64_t k) { return len_q = q, len_k = k, *this; }
  AttentionCase& heads(int64_t q, int64_t kv) { return heads_q = q, heads_kv = kv, *this; }
  AttentionCase& batches(int64_t count) { return batch = count, *this; }
  AttentionCase& dim(int64_t d) { return head_dim = d, *this; }
  // Sequences of these lengths, packed, with the lengths of the longest as the bounds max_seqlen_q and max_seqlen_k.
  AttentionCase& sequences(std::vector<int64_t> q, std::vector<int64_t> k);
  AttentionCase& padded() { return spec.padded = true, *this; }
  AttentionCase& slack(int64_t q, int64_t k) { return spec.slack_q = q, spec.slack_k = k, *this; }
  AttentionCase& bounds(int64_t q, int64_t k) { return lengths(q, k); }
  AttentionCase& wide_offsets() { return spec.offsets = FDMA_INT64, *this; }
  // Keys in shuffled pages, some of them unused. Forward only.
  AttentionCase& pages(int64_t size) { return spec.page_size = size, gradients(false, false, false, false); }
  AttentionCase& causal() { return is_causal = true, *this; }
  AttentionCase& scaled(float factor) { return scale = factor, *this; }
  AttentionCase& capped(float cap) { return softcap = cap, *this; }
  AttentionCase& layouts(Layout query, Layout kv) { return query_layout = query, kv_layout = kv, *this; }
  AttentionCase& mask(fdma_dtype dtype, ScoreShape shape = {}, MaskPattern pattern = MaskPattern::kRandom) {
    return mask_dtype = dtype, mask_shape = shape, mask_pattern = pattern, *this;
  }
  // A mask that lists keys, with lists for these batches and heads.
  AttentionCase& lists(fdma_mask_kind kind, Extent of_batch = Extent::kFull, Extent of_heads = Extent::kKvHeads) {
    mask(FDMA_BOOL, {Extent::kFull, of_heads, Extent::kFull, Extent::kFull});
    return list_kind = kind, list_batch = of_batch, *this;
  }
  AttentionCase& bias(fdma_dtype dtype, ScoreShape shape = {}) { return bias_dtype = dtype, bias_shape = shape, *this; }
  AttentionCase& hiding_bias() { return bias_hides = true, *this; }
  AttentionCase& bits() { return keep_bits = true, *this; }
  // The call is made past the C API, which offers no choice.
  AttentionCase& compacted(Compaction when = Compaction::kAnySize) { return compaction = when, *this; }
  AttentionCase& grad_lse() { return with_grad_lse = true, *this; }
  AttentionCase& gradients(bool query, bool key, bool value, bool bias) {
    return query_grad = query, key_grad = key, value_grad = value, bias_grad = bias, *this;
  }

  bool packed() const { return has_sequences && !spec.padded; }
  bool paged() const { return spec.page_size > 0; }
  bool has_lists() const { return list_kind != FDMA_MASK_NONE; }
  bool has_gradients() const { return query_grad || key_grad || value_grad || bias_grad; }
  // Rows of query-like and key-like tensors: of all sequences when packed, else of a batch entry.
  int64_t rows_q() const;
  int64_t rows_k() const;
  // Where each sequence lies, dense batch entries included. The keys of paged sequences count one behind the other.
  std::vector<ReferenceSequence> places() const;
};

inline std::ostream& operator<<(std::ostream& stream, const AttentionCase& c) { return stream << c.name; }

// The tensors of one case on one device. Inputs are seeded by the case's shape; what belongs to no sequence is NaN in
// them, so that reading it shows.
class AttentionCall {
 public:
  AttentionCall(const AttentionCase& c, fdma_dtype dtype, fdma_device device);

  // Through supported, workspace_size and the call; a status that is not FDMA_SUCCESS fails the test.
  void forward(int num_threads = 0, fdma_stream stream = nullptr);
  void backward(bool deterministic = true, int num_threads = 0, fdma_stream stream = nullptr);
  // Gives the next calls these values of cu_seqlens instead of the case's own, which the reference keeps to.
  void set_offsets(const std::vector<int64_t>& q, const std::vector<int64_t>& k);
  void download();  // outputs to the host
  void refill();    // outputs to NaN

  // Comparisons with the reference; failures are reported to the test that runs.
  void expect_forward_matches() const;
  void expect_packed_mask_matches();
  void expect_backward_matches() const;
  // Nothing was written but the elements of the outputs.
  void expect_surroundings_untouched() const;

  // All outputs as they lie, for bitwise comparisons; the call is downloaded first.
  std::vector<unsigned char> output_bytes();

 private:
  enum class Bit : char { kAny, kSet, kClear };

  void make_pages(std::mt19937_64& random);
  void make_inputs(std::mt19937_64& random);
  void make_lists(std::mt19937_64& random);
  void make_outputs();
  void erase_unread();
  int64_t key_row(int64_t b, int64_t k) const;
  Shape query_shape() const;
  Shape key_shape() const;
  Shape lse_shape() const;
  std::vector<double> key_values(const Tensor& tensor) const;
  template <typename Body>
  void for_each_score(const Body& body) const;
  void reserve_forward_workspace(size_t bytes);
  fdma_attention_backward_params backward_params(bool deterministic, int num_threads);
  void reserve_backward_workspace(size_t bytes);
  ReferenceProblem reference_layout() const;  // without values
  ReferenceProblem reference_problem() const;
  std::vector<double> bias_gradient(const std::vector<double>& score_gradient) const;
  Tensor score_tensor(fdma_dtype dtype, const ScoreShape& shape) const;
  int64_t score_index(const Tensor& tensor, int64_t b, int64_t h, int64_t q, int64_t k) const;
  std::vector<Bit> expected_bits(const PackedMaskLayout& layout) const;
  template <typename Params>
  void fill_inputs(Params& params) const;
  std::vector<Tensor*> all_outputs();
  std::vector<Tensor*> all_inputs();

  AttentionCase c_;
  fdma_dtype dtype_;
  fdma_device device_;
  std::vector<ReferenceSequence> places_;
  std::vector<std::vector<int64_t>> pages_of_;  // of each sequence, in the order of its keys
  int64_t page_count_ = 0;
  Tensor query_, key_, value_, mask_, bias_, grad_out_, grad_lse_, cu_seqlens_q_, cu_seqlens_k_, block_table_, lists_;
  Tensor out_, lse_, packed_mask_, grad_query_, grad_key_, grad_value_, grad_bias_;
  DeviceMemory forward_workspace_, backward_workspace_;
  size_t forward_bytes_ = 0, backward_bytes_ = 0;
};

}  // namespace fdma::test
