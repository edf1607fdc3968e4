#include "host/attention_checks.hpp"

#include <cmath>

#include "host/device_checks.hpp"
#include "host/mask_layout.hpp"
#include "host/text.hpp"

namespace fdma {
namespace {

constexpr char kQueryDims[] = "(B, Lq, H, D)";
constexpr char kKeyDims[] = "(B, Lk, H_kv, D)";
constexpr char kRowDims[] = "(B, H, Lq)";
constexpr char kPackedQueryDims[] = "(total_q, H, D)";
constexpr char kPackedKeyDims[] = "(total_k, H_kv, D)";
constexpr char kPackedRowDims[] = "(H, total_q)";
constexpr char kQueryDimsOfSequences[] = "(B, Lq, H, D), or 3, (total_q, H, D)";
constexpr char kPageDims[] = "(pages, page_size, H_kv, D)";

constexpr int64_t kHeadDimStep = 8;
constexpr int64_t kHeadDimMax = 256;

constexpr char kColumnDims[] = "({B|1}, {H|H_kv|1}, W)";
constexpr char kIntervalDims[] = "({B|1}, {H|H_kv|1}, Lk)";

bool is_one_or(int64_t extent, int64_t full) { return extent == 1 || extent == full; }

}  // namespace

void check_reserved(Reasons& reasons, const char* name, int64_t value) {
  if (value != 0) reasons.add(FDMA_INVALID_ARGUMENT, concat(name, " is ", value, "; accepted: 0"));
}

void check_flag(Reasons& reasons, const char* name, int64_t value) {
  if (value != 0 && value != 1) reasons.add(FDMA_INVALID_ARGUMENT, concat(name, " is ", value, "; accepted: 0 or 1"));
}

void check_dense_mask(Reasons& reasons, const char* name, const fdma_tensor& tensor, bool with_data,
                      MaskProblem& mask) {
  check_dtype(reasons, name, tensor, kMaskDtypes, "");
  check_strides(reasons, name, tensor, Access::kRead);
  check_data(reasons, name, tensor, with_data, dtype_size(tensor.dtype));
  mask.dense = view4(tensor);
  mask.dtype = tensor.dtype;
}

AttentionChecker::AttentionChecker(const AttentionArguments& args, bool with_data, Reasons& reasons,
                                   AttentionProblem& problem)
    : args_(args), with_data_(with_data), reasons_(reasons), problem_(problem) {}

void AttentionChecker::check_inputs() {
  check_cache_inputs();
  check_mask();
  check_bias();
}

void AttentionChecker::check_cache_inputs() {
  check_device();
  check_extents();
  check_lengths();
  problem_.query = check_query_like("query", args_.query, Access::kRead);
  problem_.key = check_key_like("key", args_.key, Access::kRead);
  problem_.value = check_key_like("value", args_.value, Access::kRead);
  check_scalars();
}

void AttentionChecker::check_device() {
  problem_.device = args_.device;
  device_known_ = fdma::check_device(reasons_, args_.device);
}

void AttentionChecker::check_device_support() {
  if (device_known_) fdma::check_device_support(reasons_, args_.device);
}

// Reads the extents off query and key; everything else is measured against them. With variable lengths B and the bounds
// Lq and Lk come from elsewhere.
void AttentionChecker::check_extents() {
  const fdma_tensor& query = args_.query;
  const fdma_tensor& key = args_.key;
  const bool with_sequences = args_.sequences.given();
  const bool sequences_known = check_sequences(reasons_, args_.sequences, with_data_, problem_);
  problem_.sequences.packed = with_sequences && query.rank == 3;
  query_known_ = check_query_extents() && sequences_known == with_sequences;
  problem_.dtype = query.dtype;
  const bool is_cuda = args_.device.type == FDMA_DEVICE_CUDA;
  if (query.rank != 0) {
    check_dtype(reasons_, "query", query, is_cuda ? kCudaDtypes : kCpuDtypes, is_cuda ? " on CUDA" : " on the CPU");
  }

  const bool paged = args_.sequences.paged();
  if (paged && !with_sequences && query_known_) {
    query_known_ = check_block_table(reasons_, *args_.sequences.block_table, with_data_, problem_);
  }
  const int key_rank = is_packed() && !paged ? 3 : 4;
  const char* key_dims = paged ? kPageDims : is_packed() ? kPackedKeyDims : kKeyDims;
  extents_known_ = check_rank(reasons_, "key", key, key_rank, key_dims) && query_known_;
  if (!extents_known_) return;
  (with_sequences ? problem_.sequences.rows_k : problem_.len_k) = key.shape[key_rank - 3];
  if (problem_.pages) extents_known_ = check_page_extents(reasons_, key, problem_);
  if (problem_.pages && !with_sequences) problem_.len_k = problem_.sequences.rows_k;
  problem_.heads_kv = key.shape[key_rank - 2];
  if (problem_.heads_kv == 0 || problem_.heads_q % problem_.heads_kv != 0) {
    reasons_.add(FDMA_INVALID_SHAPE, concat("key.shape is ", shape_text(key), ", H_kv = ", problem_.heads_kv,
                                            "; accepted: a divisor of the ", problem_.heads_q, " heads of query"));
    extents_known_ = false;
  }
}

bool AttentionChecker::check_query_extents() {
  const fdma_tensor& query = args_.query;
  const bool with_sequences = args_.sequences.given();
  const int rank = is_packed() ? 3 : 4;
  if (!check_rank(reasons_, "query", query, rank, with_sequences ? kQueryDimsOfSequences : kQueryDims)) return false;
  bool good = true;
  if (!with_sequences) {
    problem_.batch = query.shape[0];
  } else if (!is_packed() && problem_.sequences && query.shape[0] != problem_.batch) {
    reasons_.add(FDMA_INVALID_SHAPE, concat("query.shape is ", shape_text(query), "; accepted: ", kQueryDims,
                                            " with B = ", problem_.batch, ", the sequences of cu_seqlens_q"));
    good = false;
  }
  (with_sequences ? problem_.sequences.rows_q : problem_.len_q) = query.shape[rank - 3];
  problem_.heads_q = query.shape[rank - 2];
  problem_.head_dim = query.shape[rank - 1];
  if (problem_.heads_q == 0) {
    reasons_.add(FDMA_INVALID_SHAPE, concat("query.shape is ", shape_text(query), "; accepted: at least one head"));
    good = false;
  }
  if (problem_.head_dim % kHeadDimStep != 0 || problem_.head_dim < kHeadDimStep || problem_.head_dim > kHeadDimMax) {
    reasons_.add(FDMA_INVALID_SHAPE,
                 concat("query.shape is ", shape_text(query), ", head_dim ", problem_.head_dim,
                        "; accepted: multiples of ", kHeadDimStep, " from ", kHeadDimStep, " to ", kHeadDimMax));
    good = false;
  }
  return good;
}

// On CUDA the values lie on the device, and kernels cut them to what the tensors hold.
void AttentionChecker::check_lengths() {
  const bool readable = with_data_ && args_.device.type == FDMA_DEVICE_CPU;
  if (problem_.sequences && extents_known_ && readable) check_sequence_values(reasons_, problem_);
}

View4 AttentionChecker::view_of(const char* name, const fdma_tensor& tensor, Access access) {
  if (tensor.dtype != problem_.dtype) {
    reasons_.add(FDMA_INVALID_DTYPE, concat(name, ".dtype is ", dtype_name(tensor.dtype),
                                            "; accepted: ", dtype_name(problem_.dtype), ", the dtype of query"));
  }
  check_strides(reasons_, name, tensor, access);
  check_data(reasons_, name, tensor, with_data_, dtype_size(tensor.dtype));
  return view4(tensor);
}

View4 AttentionChecker::check_activation(const char* name, const fdma_tensor& tensor, int64_t rows, int64_t heads,
                                         const char* dims, Access access) {
  const int64_t head_dim = problem_.head_dim;
  const bool fits = is_packed() ? check_shape(reasons_, name, tensor, {rows, heads, head_dim}, dims)
                                : check_shape(reasons_, name, tensor, {problem_.batch, rows, heads, head_dim}, dims);
  return fits ? view_of(name, tensor, access) : View4{};
}

View4 AttentionChecker::check_query_like(const char* name, const fdma_tensor& tensor, Access access) {
  const char* dims = is_packed() ? kPackedQueryDims : kQueryDims;
  const bool is_query = &tensor == &args_.query;  // its rank has been checked
  if (!is_query && !check_rank(reasons_, name, tensor, is_packed() ? 3 : 4, dims)) return {};
  if (!query_known_) return {};
  return check_activation(name, tensor, problem_.rows_q(), problem_.heads_q, dims, access);
}

View4 AttentionChecker::check_key_like(const char* name, const fdma_tensor& tensor, Access access) {
  if (args_.sequences.paged()) return check_page(name, tensor);
  const char* dims = is_packed() ? kPackedKeyDims : kKeyDims;
  const bool is_key = &tensor == &args_.key;
  if (!is_key && !check_rank(reasons_, name, tensor, is_packed() ? 3 : 4, dims)) return {};
  if (!extents_known_) return {};
  return check_activation(name, tensor, problem_.rows_k(), problem_.heads_kv, dims, access);
}

// Key or value in pages, which are inputs.
View4 AttentionChecker::check_page(const char* name, const fdma_tensor& tensor) {
  const bool is_key = &tensor == &args_.key;
  if (!is_key && !check_rank(reasons_, name, tensor, 4, kPageDims)) return {};
  if (!extents_known_) return {};
  const PageProblem& pages = problem_.pages;
  if (!check_shape(reasons_, name, tensor, {pages.pages, pages.page_size, problem_.heads_kv, problem_.head_dim},
                   kPageDims)) {
    return {};
  }
  return view_of(name, tensor, Access::kRead);
}

float* AttentionChecker::check_row_statistic(const char* name, const fdma_tensor& tensor) {
  const char* dims = is_packed() ? kPackedRowDims : kRowDims;
  if (!check_rank(reasons_, name, tensor, is_packed() ? 2 : 3, dims)) return nullptr;
  if (query_known_ && is_packed()) {
    check_shape(reasons_, name, tensor, {problem_.heads_q, problem_.rows_q()}, dims);
  } else if (query_known_) {
    check_shape(reasons_, name, tensor, {problem_.batch, problem_.heads_q, problem_.rows_q()}, dims);
  }
  check_dtype(reasons_, name, tensor, DtypeSet(FDMA_FLOAT32), "");
  check_contiguous(reasons_, name, tensor);
  check_data(reasons_, name, tensor, with_data_, dtype_size(FDMA_FLOAT32));
  return static_cast<float*>(address_of(tensor));
}

void AttentionChecker::check_scalars() {
  if (!std::isfinite(args_.scale)) {
    reasons_.add(FDMA_INVALID_ARGUMENT,
                 concat("scale is ", args_.scale, "; accepted: finite values, or FDMA_SCALE_DEFAULT"));
  }
  if (!std::isfinite(args_.softcap) || args_.softcap < 0) {
    reasons_.add(FDMA_INVALID_ARGUMENT,
                 concat("softcap is ", args_.softcap, "; accepted: 0 (off) or a positive finite value"));
  }
  check_flag(reasons_, "is_causal", args_.is_causal);
  check_num_threads(reasons_, args_.num_threads, args_.device);
  const bool is_default = args_.scale == FDMA_SCALE_DEFAULT;
  problem_.scale = is_default && query_known_ ? 1.0f / std::sqrt(static_cast<float>(problem_.head_dim)) : args_.scale;
  problem_.softcap = args_.softcap;
  problem_.is_causal = args_.is_causal != 0;
  problem_.num_threads = args_.num_threads;
}

// The first two dimensions of a tensor over the scores.
bool AttentionChecker::is_batch_or_head_of_scores(const fdma_tensor& tensor) const {
  return is_one_or(tensor.shape[0], problem_.batch) &&
         (is_one_or(tensor.shape[1], problem_.heads_q) || tensor.shape[1] == problem_.heads_kv);
}

// A tensor over the scores that may broadcast each dimension.
bool AttentionChecker::check_score_like(const char* name, const fdma_tensor& tensor) {
  if (!check_rank(reasons_, name, tensor, 4, kScoreDims)) return false;
  if (!extents_known_) return false;
  if (is_batch_or_head_of_scores(tensor) && is_one_or(tensor.shape[2], problem_.len_q) &&
      is_one_or(tensor.shape[3], problem_.len_k)) {
    return true;
  }
  const bool bounds = static_cast<bool>(problem_.sequences);
  reasons_.add(FDMA_INVALID_SHAPE, concat(name, ".shape is ", shape_text(tensor), "; accepted: ", kScoreDims,
                                          " with B = ", problem_.batch, ", H = ", problem_.heads_q,
                                          ", H_kv = ", problem_.heads_kv, ", Lq = ", bounds ? "max_seqlen_q = " : "",
                                          problem_.len_q, ", Lk = ", bounds ? "max_seqlen_k = " : "", problem_.len_k));
  return false;
}

void AttentionChecker::check_mask() {
  const fdma_tensor& tensor = args_.mask.tensor;
  MaskProblem& mask = problem_.mask;
  mask.kind = args_.mask.kind;
  if (mask.kind == FDMA_MASK_NONE) {
    if (tensor.rank != 0) {
      reasons_.add(FDMA_INVALID_ARGUMENT, concat("mask.kind is FDMA_MASK_NONE, but mask.tensor has rank ", tensor.rank,
                                                 "; accepted: rank 0, or FDMA_MASK_DENSE, FDMA_MASK_BITS, "
                                                 "FDMA_MASK_COLUMNS, FDMA_MASK_INTERVAL"));
    }
    return;
  }
  if (mask.kind == FDMA_MASK_COLUMNS || mask.kind == FDMA_MASK_INTERVAL) return check_key_lists();
  if (mask.kind != FDMA_MASK_DENSE && mask.kind != FDMA_MASK_BITS) {
    reasons_.add(
        FDMA_INVALID_ARGUMENT,
        concat("mask.kind is ", static_cast<int>(mask.kind),
               "; accepted: FDMA_MASK_NONE (0), FDMA_MASK_DENSE (1), FDMA_MASK_BITS (2), FDMA_MASK_COLUMNS (3), "
               "FDMA_MASK_INTERVAL (4)"));
    return;
  }
  if (!check_score_like("mask.tensor", tensor)) return;
  mask.layout = {tensor.shape[0], tensor.shape[1], tensor.shape[2], problem_.len_k};
  check_packed_size(reasons_, "mask.tensor", tensor, mask.layout);
  if (mask.kind == FDMA_MASK_DENSE) return check_dense_mask(reasons_, "mask.tensor", tensor, with_data_, mask);
  check_dtype(reasons_, "mask.tensor", tensor, DtypeSet(FDMA_UINT8), " for FDMA_MASK_BITS");
  if (tensor.shape[3] != problem_.len_k) {
    reasons_.add(FDMA_INVALID_SHAPE,
                 concat("mask.tensor.shape is ", shape_text(tensor),
                        "; accepted for FDMA_MASK_BITS: ", "a last dimension of Lk = ", problem_.len_k));
  }
  check_data(reasons_, "mask.tensor", tensor, with_data_, kPackedMaskAlignment);
  mask.packed = address_of(tensor);
}

// What the lists hold is not checked: no value makes a call read or write where it should not.
void AttentionChecker::check_key_lists() {
  const fdma_tensor& tensor = args_.mask.tensor;
  const bool is_interval = args_.mask.kind == FDMA_MASK_INTERVAL;
  const char* dims = is_interval ? kIntervalDims : kColumnDims;
  if (!check_rank(reasons_, "mask.tensor", tensor, 3, dims) || !extents_known_) return;
  MaskProblem& mask = problem_.mask;
  if (!is_batch_or_head_of_scores(tensor) || (is_interval && tensor.shape[2] != problem_.len_k)) {
    const std::string keys = is_interval ? concat(", Lk = ", problem_.len_k) : std::string();
    reasons_.add(FDMA_INVALID_SHAPE,
                 concat("mask.tensor.shape is ", shape_text(tensor), "; accepted: ", dims, " with B = ", problem_.batch,
                        ", H = ", problem_.heads_q, ", H_kv = ", problem_.heads_kv, keys));
    return;
  }
  check_dtype(reasons_, "mask.tensor", tensor, DtypeSet(FDMA_INT32),
              is_interval ? " for FDMA_MASK_INTERVAL" : " for FDMA_MASK_COLUMNS");
  check_strides(reasons_, "mask.tensor", tensor, Access::kRead);
  check_data(reasons_, "mask.tensor", tensor, with_data_, dtype_size(FDMA_INT32));
  mask.lists = {{static_cast<const int32_t*>(address_of(tensor)), tensor.stride[0], tensor.stride[1], tensor.shape[0],
                 tensor.shape[1]},
                tensor.shape[2]};
  constexpr int64_t kKeys = int64_t{1} << 31;  // lists hold INT32, and so do the tables of their slots
  if (problem_.len_k >= kKeys || tensor.shape[2] > kKeys - kSlotPadding) {
    reasons_.add(FDMA_UNSUPPORTED,
                 concat("mask.tensor.shape is ", shape_text(tensor), " with Lk = ", problem_.len_k,
                        "; accepted for masks that list keys: Lk < 2^31 and lists of at most 2^31 - ", kSlotPadding));
  }
  // Where a list meets sequences of several lengths, each has rows of its own.
  mask.layout = {problem_.sequences ? problem_.batch : tensor.shape[0], tensor.shape[1], problem_.len_q,
                 problem_.len_k};
  if (!packed_mask_bytes(mask.layout)) {
    reasons_.add(FDMA_INVALID_SHAPE,
                 concat("mask.tensor.shape is ", shape_text(tensor), " with Lq = ", problem_.len_q,
                        " and Lk = ", problem_.len_k, "; accepted: below 2^63 bytes of packed mask"));
  }
}

void AttentionChecker::check_bias() {
  const fdma_tensor& tensor = args_.bias.tensor;
  BiasProblem& bias = problem_.bias;
  bias.kind = args_.bias.kind;
  if (bias.kind == FDMA_BIAS_NONE) {
    if (tensor.rank != 0) {
      reasons_.add(FDMA_INVALID_ARGUMENT, concat("bias.kind is FDMA_BIAS_NONE, but bias.tensor has rank ", tensor.rank,
                                                 "; accepted: rank 0, or FDMA_BIAS_DENSE"));
    }
    return;
  }
  if (bias.kind != FDMA_BIAS_DENSE) {
    reasons_.add(FDMA_INVALID_ARGUMENT, concat("bias.kind is ", static_cast<int>(bias.kind),
                                               "; accepted: FDMA_BIAS_NONE (0), FDMA_BIAS_DENSE (1)"));
    return;
  }
  if (!check_score_like("bias.tensor", tensor)) return;
  check_dtype(reasons_, "bias.tensor", tensor, kBiasDtypes, "");
  check_strides(reasons_, "bias.tensor", tensor, Access::kRead);
  check_data(reasons_, "bias.tensor", tensor, with_data_, dtype_size(tensor.dtype));
  bias.view = view4(tensor);
  bias.dtype = tensor.dtype;
  bias.batch = tensor.shape[0];
  bias.heads = tensor.shape[1];
  bias.rows = tensor.shape[2];
  bias.keys = tensor.shape[3];
}

}  // namespace fdma
