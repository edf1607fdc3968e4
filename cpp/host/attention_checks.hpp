// Checks of the fields that attention forward and backward share, and of tensors that follow from them.
#pragma once

#include "fdma/attention.h"
#include "host/problem.hpp"
#include "host/reasons.hpp"
#include "host/sequence_checks.hpp"
#include "host/tensor_checks.hpp"

namespace fdma {

// The shared fields of fdma_attention_forward_params and fdma_attention_backward_params.
struct AttentionArguments {
  const fdma_device& device;
  const fdma_tensor& query;
  const fdma_tensor& key;
  const fdma_tensor& value;
  const fdma_mask& mask;
  const fdma_bias& bias;
  float scale;
  float softcap;
  int32_t is_causal;
  int32_t num_threads;
  SequenceArguments sequences;
};

// `block_table` is null where the operation has none.
template <typename Params>
AttentionArguments attention_arguments(const Params& p, const fdma_tensor* block_table) {
  return {p.device,
          p.query,
          p.key,
          p.value,
          p.mask,
          p.bias,
          p.scale,
          p.softcap,
          p.is_causal,
          p.num_threads,
          {p.cu_seqlens_q, p.cu_seqlens_k, p.max_seqlen_q, p.max_seqlen_k, block_table}};
}

// Space for later versions, which give the zero of today a meaning.
void check_reserved(Reasons& reasons, const char* name, int64_t value);

// 0 or 1.
void check_flag(Reasons& reasons, const char* name, int64_t value);

// All of a dense mask but its shape, which has been checked; fills `dense` and `dtype`.
void check_dense_mask(Reasons& reasons, const char* name, const fdma_tensor& tensor, bool with_data, MaskProblem& mask);

// Checks one call argument by argument and fills the problem as it goes. The problem is whole once no reason was found.
class AttentionChecker {
 public:
  AttentionChecker(const AttentionArguments& args, bool with_data, Reasons& reasons, AttentionProblem& problem);

  void check_inputs();
  // As check_inputs, for keys that lie in a cache: without the mask and the bias.
  void check_cache_inputs();

  // Tensors shaped like query, key or value, in the dtype of query.
  View4 check_query_like(const char* name, const fdma_tensor& tensor, Access access);
  View4 check_key_like(const char* name, const fdma_tensor& tensor, Access access);

  // (B, H, Lq), packed (H, total_q); float32, contiguous.
  float* check_row_statistic(const char* name, const fdma_tensor& tensor);

  // Whether query and key have their extents, which everything else is measured against.
  bool extents_known() const { return extents_known_; }

  // Reasons of the device itself come last: they hold whatever the arguments are.
  void check_device_support();

 private:
  void check_device();
  void check_extents();
  bool check_query_extents();
  void check_lengths();
  void check_scalars();
  void check_mask();
  void check_key_lists();
  bool is_batch_or_head_of_scores(const fdma_tensor& tensor) const;
  void check_bias();
  bool check_score_like(const char* name, const fdma_tensor& tensor);
  View4 check_activation(const char* name, const fdma_tensor& tensor, int64_t rows, int64_t heads, const char* dims,
                         Access access);
  View4 check_page(const char* name, const fdma_tensor& tensor);
  View4 view_of(const char* name, const fdma_tensor& tensor, Access access);
  bool is_packed() const { return problem_.sequences.packed; }

  const AttentionArguments args_;
  const bool with_data_;
  Reasons& reasons_;
  AttentionProblem& problem_;
  bool device_known_ = false;
  bool query_known_ = false;    // query has its extents: batch, rows, heads_q, head_dim are set
  bool extents_known_ = false;  // so has key: heads_kv is set too, and heads_q is a multiple of it
};

}  // namespace fdma
