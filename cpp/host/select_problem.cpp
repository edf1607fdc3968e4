#include "host/select_problem.hpp"

#include "host/attention_checks.hpp"
#include "host/device_checks.hpp"
#include "host/mask_layout.hpp"
#include "host/parameters.hpp"
#include "host/text.hpp"
#include "kernels/core/math.hpp"

namespace fdma {
namespace {

constexpr char kBiasDims[] = "(B, H, Lk)";
constexpr char kKeyBiasDims[] = "(B, H, Lk) with end or columns";
constexpr char kFullBiasDims[] = "(B, H, Lq, Lk) with packed_mask";
constexpr char kColumnDims[] = "(B, H, min(keep_window_size, Lk))";
constexpr char kKeyMaskDims[] = "(B, Lk)";
constexpr DtypeSet kIndexDtypes(FDMA_INT32);

class SelectChecker {
 public:
  SelectChecker(const fdma_select_params& params, bool with_data, Reasons& reasons, SelectProblem& problem)
      : params_(params), with_data_(with_data), reasons_(reasons), problem_(problem) {}

  void check() {
    check_reserved(reasons_, "reserved", params_.reserved);
    check_reserved(reasons_, "reserved1", params_.reserved1);
    check_reserved(reasons_, "reserved2", params_.reserved2);
    problem_.device = params_.device;
    const bool device_known = check_device(reasons_, params_.device);
    check_num_threads(reasons_, params_.num_threads, params_.device);
    problem_.num_threads = params_.num_threads;
    if (!check_form()) return;
    const bool extents_known = check_bias();
    if (params_.keep_window_size < 1) {
      reasons_.add(FDMA_INVALID_ARGUMENT,
                   concat("keep_window_size is ", params_.keep_window_size, "; accepted: 1 or more"));
    }
    problem_.keep = min_of(params_.keep_window_size, problem_.keys);
    check_causality();
    check_key_mask(extents_known);
    check_outputs(extents_known);
    if (device_known) check_device_support(reasons_, params_.device);
  }

 private:
  // The outputs say what is asked for, so everything else is measured against their form.
  bool check_form() {
    const bool interval = params_.end.rank != 0, bits = params_.packed_mask.rank != 0;
    const bool columns = params_.columns.rank != 0 || params_.counts.rank != 0;
    if ((interval ? 1 : 0) + (bits ? 1 : 0) + (columns ? 1 : 0) == 1) return true;
    std::string given;
    const auto add = [&](const fdma_tensor& tensor, const char* name) {
      if (tensor.rank != 0) given += concat(" ", name);
    };
    add(params_.end, "end");
    add(params_.columns, "columns");
    add(params_.counts, "counts");
    add(params_.packed_mask, "packed_mask");
    reasons_.add(FDMA_INVALID_ARGUMENT, concat("outputs given:", given.empty() ? " none" : given,
                                               "; accepted: end, or columns and counts, or packed_mask"));
    return false;
  }

  bool check_bias() {
    const fdma_tensor& bias = params_.bias;
    const bool full = params_.packed_mask.rank != 0;
    if (!check_rank(reasons_, "bias", bias, full ? 4 : 3, full ? kFullBiasDims : kKeyBiasDims)) return false;
    check_dtype(reasons_, "bias", bias, kBiasDtypes, "");
    check_strides(reasons_, "bias", bias, Access::kRead);
    check_data(reasons_, "bias", bias, with_data_, dtype_size(bias.dtype));
    problem_.dtype = bias.dtype;
    problem_.batch = bias.shape[0];
    problem_.heads = bias.shape[1];
    problem_.queries = full ? bias.shape[2] : 1;
    problem_.keys = bias.shape[full ? 3 : 2];
    const View4 view = view4(bias);
    problem_.bias = view.data;
    problem_.bias_stride = {view.stride[full ? 0 : 1], view.stride[full ? 1 : 2], full ? view.stride[2] : 0};
    return true;
  }

  void check_causality() {
    problem_.is_causal = params_.is_causal == 1;
    if (params_.packed_mask.rank != 0) return check_flag(reasons_, "is_causal", params_.is_causal);
    if (params_.is_causal != 0) {
      reasons_.add(FDMA_INVALID_ARGUMENT,
                   concat("is_causal is ", params_.is_causal,
                          "; accepted: 0 with end, which is causal, and with columns, which are not"));
    }
  }

  void check_key_mask(bool extents_known) {
    const fdma_tensor& mask = params_.key_mask;
    if (mask.rank == 0) return;
    if (!check_rank(reasons_, "key_mask", mask, 2, kKeyMaskDims)) return;
    check_dtype(reasons_, "key_mask", mask, kMaskDtypes, "");
    if (extents_known) check_shape(reasons_, "key_mask", mask, {problem_.batch, problem_.keys}, kKeyMaskDims);
    check_strides(reasons_, "key_mask", mask, Access::kRead);
    check_data(reasons_, "key_mask", mask, with_data_, dtype_size(mask.dtype));
    problem_.key_mask = address_of(mask);
    problem_.key_mask_dtype = mask.dtype;
    problem_.key_mask_stride = mask.stride[0];
  }

  void check_outputs(bool extents_known) {
    if (params_.packed_mask.rank != 0) {
      const std::optional<int64_t> bytes =
          extents_known ? check_packed_size(reasons_, "bias", params_.bias, problem_.layout()) : std::nullopt;
      problem_.packed_mask =
          static_cast<uint32_t*>(check_packed_output(reasons_, params_.packed_mask, bytes, with_data_));
      return;
    }
    if (params_.end.rank != 0) {
      problem_.end =
          check_output("end", params_.end, kBiasDims, extents_known, {problem_.batch, problem_.heads, problem_.keys});
      return;
    }
    problem_.columns = check_output("columns", params_.columns, kColumnDims, extents_known,
                                    {problem_.batch, problem_.heads, problem_.keep});
    problem_.counts = check_output("counts", params_.counts, "(B, H)", extents_known, {problem_.batch, problem_.heads});
  }

  int32_t* check_output(const char* name, const fdma_tensor& tensor, const char* dims, bool extents_known,
                        std::initializer_list<int64_t> shape) {
    if (!check_rank(reasons_, name, tensor, static_cast<int>(shape.size()), dims)) return nullptr;
    if (extents_known) check_shape(reasons_, name, tensor, shape, dims);
    check_dtype(reasons_, name, tensor, kIndexDtypes, "");
    check_contiguous(reasons_, name, tensor);
    check_data(reasons_, name, tensor, with_data_, dtype_size(FDMA_INT32));
    return static_cast<int32_t*>(address_of(tensor));
  }

  const fdma_select_params& params_;
  const bool with_data_;
  Reasons& reasons_;
  SelectProblem& problem_;
};

}  // namespace

SelectProblem make_select_problem(const fdma_select_params& caller_params, bool with_data) {
  const fdma_select_params params = read_parameters(caller_params);
  SelectProblem problem;
  Reasons reasons;
  SelectChecker(params, with_data, reasons, problem).check();
  check_distinct(reasons,
                 {{"end", params.end},
                  {"columns", params.columns},
                  {"counts", params.counts},
                  {"packed_mask", params.packed_mask}},
                 {{"bias", params.bias}, {"key_mask", params.key_mask}});
  // Indices are int32.
  constexpr int64_t kLimit = (int64_t{1} << 31) - 4096;
  if (problem.keys >= kLimit) {
    reasons.add(FDMA_UNSUPPORTED, concat("bias has ", problem.keys, " keys; accepted: less than ", kLimit));
  }
  reasons.throw_if_any();
  return problem;
}

}  // namespace fdma
