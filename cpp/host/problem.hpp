// One attention call, checked and normalised: what every backend (CPU, sm80, later sm90) is given.
//
// make_forward_problem and make_backward_problem turn the C structs into a problem or throw fdma::Error; past them no
// backend checks an argument again.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "fdma/attention.h"
#include "kernels/policy/mask_bits.hpp"
#include "kernels/policy/slots.hpp"

namespace fdma {

// Base pointer and element strides of a 4-d tensor. Broadcast dimensions and dimensions of extent 1 have stride 0.
struct View4 {
  void* data = nullptr;
  std::array<int64_t, 4> stride{};  // query-like: (B, L, H, D); score-like: (B, H, Q, K)
  explicit operator bool() const { return data != nullptr; }
};

// A mask as lists of keys, one for each (batch, head) of the mask: kinds COLUMNS and INTERVAL.
struct KeyListProblem : KeyLists {
  int64_t width = 0;  // entries of a list
};

struct MaskProblem {
  fdma_mask_kind kind = FDMA_MASK_NONE;
  View4 dense;  // kind DENSE: (B, H, Q, K), strides of mask heads
  fdma_dtype dtype = FDMA_DTYPE_NONE;
  PackedMaskLayout layout{};  // any kind but NONE: extents of the mask (batch, heads, rows are 1 or full), keys = Lk;
                              // of lists: what they expand to
  KeyListProblem lists;       // kinds COLUMNS and INTERVAL
  const void* packed = nullptr;  // kind BITS: the caller's packed mask
  void* packed_out = nullptr;    // kind DENSE, forward: where the caller wants the packed mask, or null
};

struct BiasProblem {
  fdma_bias_kind kind = FDMA_BIAS_NONE;
  View4 view;  // (B, H, Q, K), strides of bias heads
  fdma_dtype dtype = FDMA_DTYPE_NONE;
  int64_t batch = 1, heads = 1, rows = 1, keys = 1;  // extents as given (1 = broadcast)
};

// Variable lengths. Sequence b has the rows [cu[b], cu[b + 1]) of packed tensors, or the first cu[b + 1] - cu[b] rows
// of batch b of padded ones.
struct SequenceProblem {
  const void* cu_q = nullptr;  // batch + 1 values, on the call's device; null: all sequences have len_q and len_k
  const void* cu_k = nullptr;
  bool is_64bit = false;  // int64 values, else int32
  int64_t joined = 0;     // packed sequences that are one; 0: none
  bool packed = false;    // query-like tensors, and key-like ones without pages, have stride 0 in the batch dimension
  int64_t rows_q = 0;     // rows of query-like tensors: total_q when packed, L when padded
  int64_t rows_k = 0;     // the same of key-like tensors; with pages, the keys that the pages of one sequence hold
  explicit operator bool() const { return cu_q != nullptr; }

  // Values that the host can read.
  int64_t begin_q(int64_t b) const { return value(cu_q, b); }
  int64_t begin_k(int64_t b) const { return value(cu_k, b); }
  int64_t end_q(int64_t b) const { return end(cu_q, b); }
  int64_t end_k(int64_t b) const { return end(cu_k, b); }
  int64_t length_q(int64_t b) const { return end_q(b) - begin_q(b); }
  int64_t length_k(int64_t b) const { return end_k(b) - begin_k(b); }

 private:
  int64_t end(const void* cu, int64_t b) const { return value(cu, joined > 0 ? joined : b + 1); }
  int64_t value(const void* cu, int64_t b) const {
    return is_64bit ? static_cast<const int64_t*>(cu)[b] : static_cast<const int32_t*>(cu)[b];
  }
};

// Paged keys: row j of sequence b is row j % page_size of page table[b * pages_per_sequence + j / page_size]. The
// strides of key and value are then (page, row, head).
struct PageProblem {
  const int32_t* table = nullptr;
  int64_t pages_per_sequence = 0, page_size = 0, pages = 0;
  explicit operator bool() const { return table != nullptr; }
};

// One sequence of a call: its lengths, and its first rows in query-like and key-like tensors, behind the batch stride.
struct SequenceExtents {
  int64_t batch, len_q, len_k, q_begin, k_begin;
};

// When keys under a dense or packed mask are put into an order of their own (policy/compact.hpp), among the calls that
// can be: tests ask for it at any size, and for the same call without it.
enum class Compaction { kBySize, kNever, kAnySize };

struct AttentionProblem {
  fdma_device device{};
  fdma_dtype dtype = FDMA_DTYPE_NONE;
  int64_t batch = 0, heads_q = 0, heads_kv = 0, head_dim = 0;
  int64_t len_q = 0, len_k = 0;  // with sequences: upper bounds, max_seqlen_q and max_seqlen_k
  SequenceProblem sequences;
  PageProblem pages;
  View4 query, key, value;
  MaskProblem mask;
  BiasProblem bias;
  SlotView slots;     // set by backends that put keys into the order of slots: key, value, bias, len_k are then those
  float scale = 0;    // resolved: never FDMA_SCALE_DEFAULT
  float softcap = 0;  // 0 = off
  bool is_causal = false;
  int num_threads = 0;
  Compaction compaction = Compaction::kBySize;

  int64_t group() const { return heads_q / heads_kv; }                     // query heads that share a kv head
  int64_t rows_q() const { return sequences ? sequences.rows_q : len_q; }  // of a query-like tensor, in one batch
  int64_t rows_k() const { return sequences ? sequences.rows_k : len_k; }
  int64_t batches() const { return sequences.packed ? 1 : batch; }  // batch entries of those tensors
  // Element of (b, h, q) in lse and the like: (B, H, rows_q()), packed sequences (H, rows_q()).
  int64_t row_statistic(const SequenceExtents& sequence, int64_t h, int64_t q) const {
    return ((sequences.packed ? 0 : sequence.batch * heads_q) + h) * rows_q() + sequence.q_begin + q;
  }
  bool has_scores() const { return batch > 0 && len_q > 0 && len_k > 0; }
  // Whether the mask lists keys and the call can run on those keys alone, in the order of their slots
  // (policy/slots.hpp): keys have no pages, and the bias is the same for all query rows.
  bool runs_on_slots() const;
  // Whether the mask is dense or packed, the call can run on keys in an order that follows from the mask
  // (policy/compact.hpp), and is of a size for it.
  bool compacts() const;
  // Orders of keys: one for each (batch, head) of the mask. Sequences are told apart, packed ones share an order.
  int64_t order_batch() const;
  int64_t order_heads() const { return runs_on_slots() ? mask.lists.heads : mask.layout.heads; }
  // Places in an order of slots: listed keys, at most those that there are, and padding.
  int64_t slot_count() const;
  // Heads of keys and values in that order: query heads with lists of their own have copies of their own.
  int64_t slot_heads() const { return order_heads() == heads_q ? heads_q : heads_kv; }
  // Extents of the bias in that order: one row for every (batch, head) of the bias and every order that it meets.
  int64_t slot_bias_batch() const { return bias.batch == 1 && order_batch() == 1 ? 1 : batches(); }
  int64_t slot_bias_heads() const { return bias.heads == heads_q ? heads_q : slot_heads(); }
  // Sequence b; where sequences have lengths of their own, of values that the host can read.
  SequenceExtents extents(int64_t b) const;
  std::string describe() const;  // one line for logs and bug reports
};

struct ForwardProblem : AttentionProblem {
  View4 out;
  float* lse = nullptr;  // (B, H, rows of query) contiguous, packed sequences (H, total_q), or null
};

struct BackwardProblem : AttentionProblem {
  View4 out, grad_out;
  const float* lse = nullptr;       // as in forward
  const float* grad_lse = nullptr;  // same, or null
  bool deterministic = false;
  View4 grad_query, grad_key, grad_value;  // data is null where not asked for
  void* grad_bias = nullptr;               // contiguous in the bias's own extents and dtype, or null
};

// `with_data`: false while only sizes are asked for and data pointers may be null. Tensors that are given without data
// then have the address of a placeholder, which is not to be read: null always means "not given".
ForwardProblem make_forward_problem(const fdma_attention_forward_params& params, bool with_data);
BackwardProblem make_backward_problem(const fdma_attention_backward_params& params, bool with_data);

}  // namespace fdma
