#include "host/decode_problem.hpp"

#include "host/attention_checks.hpp"
#include "host/parameters.hpp"
#include "host/text.hpp"
#include "kernels/core/math.hpp"

namespace fdma {
namespace {

constexpr char kBiasDims[] = "({B|1}, {H|H_kv|1}, Lk), or 4, ({B|1}, {H|H_kv|1}, 1, Lk)";
constexpr char kLengthDims[] = "(B,)";
constexpr DtypeSet kLengthDtypes(FDMA_INT32, FDMA_INT64);

AttentionArguments cache_arguments(const fdma_decode_params& p) {
  static const fdma_tensor kNoTensor{};
  static const fdma_mask kNoMask{};
  return {p.device,
          p.query,
          p.key,
          p.value,
          kNoMask,
          p.bias,
          p.scale,
          p.softcap,
          p.is_causal,
          p.num_threads,
          {kNoTensor, kNoTensor, 0, 0, &p.block_table, /*of_cache=*/true}};
}

class DecodeChecker {
 public:
  DecodeChecker(const fdma_decode_params& params, bool with_data, Reasons& reasons, DecodeProblem& problem)
      : params_(params),
        with_data_(with_data),
        reasons_(reasons),
        problem_(problem),
        inputs_(cache_arguments(params), with_data, reasons, problem) {}

  void check() {
    check_reserved(reasons_, "reserved", params_.reserved);
    inputs_.check_cache_inputs();
    if (inputs_.extents_known() && (problem_.len_q < 1 || problem_.len_q > FDMA_DECODE_MAX_QUERIES)) {
      reasons_.add(FDMA_INVALID_SHAPE, concat("query.shape is ", shape_text(params_.query), ", Lq = ", problem_.len_q,
                                              "; accepted: 1 to ", FDMA_DECODE_MAX_QUERIES));
    }
    // Indices are int32.
    constexpr int64_t kLimit = (int64_t{1} << 31) - 4096;
    if (inputs_.extents_known() && problem_.len_k >= kLimit) {
      reasons_.add(FDMA_UNSUPPORTED, concat("the cache has ", problem_.len_k, " keys; accepted: less than ", kLimit));
    }
    check_bias();
    check_window();
    check_lengths();
    problem_.out = inputs_.check_query_like("out", params_.out, Access::kWrite);
    if (params_.lse.rank != 0) problem_.lse = inputs_.check_row_statistic("lse", params_.lse);
    check_distinct(reasons_, {{"out", params_.out}, {"lse", params_.lse}},
                   {{"query", params_.query},
                    {"key", params_.key},
                    {"value", params_.value},
                    {"bias.tensor", params_.bias.tensor},
                    {"seqlens_k", params_.seqlens_k},
                    {"block_table", params_.block_table}});
    inputs_.check_device_support();
  }

 private:
  bool check_bias_kind() {
    const fdma_tensor& tensor = params_.bias.tensor;
    if (params_.bias.kind == FDMA_BIAS_DENSE) return true;
    if (params_.bias.kind != FDMA_BIAS_NONE) {
      reasons_.add(FDMA_INVALID_ARGUMENT, concat("bias.kind is ", static_cast<int>(params_.bias.kind),
                                                 "; accepted: FDMA_BIAS_NONE (0), FDMA_BIAS_DENSE (1)"));
    } else if (tensor.rank != 0) {
      reasons_.add(FDMA_INVALID_ARGUMENT, concat("bias.kind is FDMA_BIAS_NONE, but bias.tensor has rank ", tensor.rank,
                                                 "; accepted: rank 0, or FDMA_BIAS_DENSE"));
    }
    return false;
  }

  // A bias of keys, with or without a dimension of 1 for the queries.
  void check_bias() {
    if (!check_bias_kind()) return;
    const fdma_tensor& tensor = params_.bias.tensor;
    const int rank = tensor.rank == 4 ? 4 : 3;
    if (!check_rank(reasons_, "bias.tensor", tensor, rank, kBiasDims) || !inputs_.extents_known()) return;
    const int64_t batch = tensor.shape[0], heads = tensor.shape[1];
    const bool fits = (batch == 1 || batch == problem_.batch) &&
                      (heads == 1 || heads == problem_.heads_q || heads == problem_.heads_kv) &&
                      (rank == 3 || tensor.shape[2] == 1) && tensor.shape[rank - 1] == problem_.len_k;
    if (!fits) {
      reasons_.add(FDMA_INVALID_SHAPE, concat("bias.tensor.shape is ", shape_text(tensor), "; accepted: ", kBiasDims,
                                              " with B = ", problem_.batch, ", H = ", problem_.heads_q,
                                              ", H_kv = ", problem_.heads_kv, ", Lk = ", problem_.len_k));
      return;
    }
    check_dtype(reasons_, "bias.tensor", tensor, kBiasDtypes, "");
    check_strides(reasons_, "bias.tensor", tensor, Access::kRead);
    check_data(reasons_, "bias.tensor", tensor, with_data_, dtype_size(tensor.dtype));
    BiasProblem& bias = problem_.bias;
    bias.kind = FDMA_BIAS_DENSE;
    const View4 view = view4(tensor);
    bias.view = view;
    if (rank == 3) bias.view.stride = {view.stride[1], view.stride[2], 0, view.stride[3]};
    bias.dtype = tensor.dtype;
    bias.batch = batch;
    bias.heads = heads;
    bias.keys = problem_.len_k;
  }

  void check_window() {
    const int64_t window = params_.keep_window_size;
    if (window < 0) {
      reasons_.add(FDMA_INVALID_ARGUMENT,
                   concat("keep_window_size is ", window, "; accepted: 1 or more, or 0 (every key)"));
    } else if (window > 0 && params_.bias.kind == FDMA_BIAS_NONE) {
      reasons_.add(FDMA_INVALID_ARGUMENT,
                   concat("keep_window_size is ", window,
                          " without bias.tensor; accepted: 0, or a bias that keys are chosen by"));
    }
    problem_.hides_nan = window >= problem_.len_k && window > 0;
    problem_.keep = window < problem_.len_k ? window : 0;
  }

  // On CUDA the values lie on the device, and kernels cut them to what the cache holds.
  void check_lengths() {
    const fdma_tensor& lengths = params_.seqlens_k;
    const bool readable = with_data_ && params_.device.type == FDMA_DEVICE_CPU;
    bool good = inputs_.extents_known();
    if (lengths.rank != 0) {
      if (!check_rank(reasons_, "seqlens_k", lengths, 1, kLengthDims)) return;
      good = good && check_shape(reasons_, "seqlens_k", lengths, {problem_.batch}, kLengthDims);
      good = check_dtype(reasons_, "seqlens_k", lengths, kLengthDtypes, "") && good;
      good = check_contiguous(reasons_, "seqlens_k", lengths) && good;
      good = check_data(reasons_, "seqlens_k", lengths, with_data_, dtype_size(lengths.dtype)) && good;
      problem_.seqlens_k = address_of(lengths);
      problem_.seqlens_64bit = lengths.dtype == FDMA_INT64;
    }
    if (!good || !readable || !reasons_.empty()) return;
    for (int64_t b = 0; b < problem_.batch; ++b) {
      const int64_t length = problem_.length_k(b);
      if (length >= 0 && length <= problem_.len_k) continue;
      reasons_.add(FDMA_INVALID_ARGUMENT,
                   concat("seqlens_k[", b, "] is ", length, "; accepted: 0 to Lk = ", problem_.len_k));
      return;
    }
    if (problem_.pages) check_table_values(reasons_, problem_, [&](int64_t b) { return problem_.length_k(b); });
  }

  const fdma_decode_params& params_;
  const bool with_data_;
  Reasons& reasons_;
  DecodeProblem& problem_;
  AttentionChecker inputs_;
};

}  // namespace

DecodeProblem make_decode_problem(const fdma_decode_params& caller_params, bool with_data) {
  const fdma_decode_params params = read_parameters(caller_params);
  DecodeProblem problem;
  Reasons reasons;
  DecodeChecker(params, with_data, reasons, problem).check();
  reasons.throw_if_any();
  return problem;
}

}  // namespace fdma
