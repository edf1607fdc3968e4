#include "host/tensor_checks.hpp"

#include <algorithm>
#include <array>

#include "host/text.hpp"

namespace fdma {
namespace {

// Offsets from the first to the last element, in bytes, plus one element; false when that leaves 63 bits.
bool span_fits(const fdma_tensor& tensor) {
  int64_t last = 0;
  for (int i = 0; i < tensor.rank; ++i) {
    int64_t reach = 0;
    if (__builtin_mul_overflow(tensor.shape[i] - 1, tensor.stride[i], &reach) ||
        __builtin_add_overflow(last, reach, &last)) {
      return false;
    }
  }
  int64_t bytes = 0;
  return !__builtin_add_overflow(last, int64_t{1}, &last) &&
         !__builtin_mul_overflow(last, std::max<int64_t>(dtype_size(tensor.dtype), 1), &bytes);
}

// True when the dimensions nest: taken by rising stride, each steps over all that the ones before it reach. That is
// sufficient for distinct addresses and holds for every permutation, slice and padding of a contiguous tensor.
bool dimensions_nest(const fdma_tensor& tensor) {
  std::array<std::pair<int64_t, int64_t>, FDMA_MAX_RANK> dims{};  // (stride, extent), (0, 0) where there is no step
  for (int i = 0; i < tensor.rank; ++i) {
    if (tensor.shape[i] > 1) dims[i] = {tensor.stride[i], tensor.shape[i]};
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;
  for (const auto& [stride, extent] : dims) {
    if (extent == 0) continue;
    if (stride <= reach) return false;
    reach += (extent - 1) * stride;
  }
  return true;
}

}  // namespace

bool is_empty(const fdma_tensor& tensor) {
  const int rank = std::clamp(tensor.rank, 0, FDMA_MAX_RANK);  // tensors of a wrong rank have their reason already
  return std::any_of(tensor.shape, tensor.shape + rank, [](int64_t extent) { return extent == 0; });
}

bool check_rank(Reasons& reasons, const char* name, const fdma_tensor& tensor, int rank, const char* dims) {
  if (tensor.rank == 0) {
    reasons.add(FDMA_INVALID_ARGUMENT, concat(name, " is not given (rank 0); accepted: a tensor ", dims));
    return false;
  }
  if (tensor.rank != rank) {
    reasons.add(FDMA_INVALID_SHAPE, concat(name, ".rank is ", tensor.rank, "; accepted: ", rank, ", ", dims));
    return false;
  }
  if (std::any_of(tensor.shape, tensor.shape + rank, [](int64_t extent) { return extent < 0; })) {
    reasons.add(FDMA_INVALID_SHAPE, concat(name, ".shape is ", shape_text(tensor), "; accepted: extents of 0 or more"));
    return false;
  }
  return true;
}

bool check_shape(Reasons& reasons, const char* name, const fdma_tensor& tensor, std::initializer_list<int64_t> expected,
                 const char* dims) {
  if (std::equal(expected.begin(), expected.end(), tensor.shape)) return true;
  reasons.add(FDMA_INVALID_SHAPE, concat(name, ".shape is ", shape_text(tensor), "; accepted: ", dims, " = ",
                                         tuple_text(expected.begin(), static_cast<int>(expected.size()))));
  return false;
}

bool check_dtype(Reasons& reasons, const char* name, const fdma_tensor& tensor, DtypeSet accepted,
                 const char* context) {
  if (accepted.contains(tensor.dtype)) return true;
  reasons.add(FDMA_INVALID_DTYPE,
              concat(name, ".dtype is ", dtype_name(tensor.dtype), "; accepted", context, ": ", accepted.names()));
  return false;
}

bool check_strides(Reasons& reasons, const char* name, const fdma_tensor& tensor, Access access) {
  if (is_empty(tensor)) return true;  // nothing is addressed
  const auto refuse = [&](const char* accepted) {
    reasons.add(FDMA_INVALID_LAYOUT, concat(name, ".stride is ", stride_text(tensor), " for shape ", shape_text(tensor),
                                            "; accepted: ", accepted));
    return false;
  };
  for (int i = 0; i < tensor.rank; ++i) {
    if (tensor.shape[i] > 1 && tensor.stride[i] < 0) return refuse("strides of 0 or more");
  }
  const int last = tensor.rank - 1;
  if (tensor.shape[last] > 1 && tensor.stride[last] != 1) return refuse("a stride of 1 in the last dimension");
  if (!span_fits(tensor)) return refuse("offsets below 2^63 bytes");
  if (access == Access::kWrite && !dimensions_nest(tensor)) {
    return refuse("an output in which no element is addressed twice and dimensions do not interleave");
  }
  return true;
}

bool check_contiguous(Reasons& reasons, const char* name, const fdma_tensor& tensor) {
  if (is_empty(tensor)) return true;
  int64_t expected = 1;
  for (int i = tensor.rank - 1; i >= 0; --i) {
    if (tensor.shape[i] > 1 && tensor.stride[i] != expected) {
      reasons.add(FDMA_INVALID_LAYOUT, concat(name, ".stride is ", stride_text(tensor), " for shape ",
                                              shape_text(tensor), "; accepted: a contiguous tensor"));
      return false;
    }
    if (__builtin_mul_overflow(expected, tensor.shape[i], &expected)) {
      reasons.add(FDMA_INVALID_SHAPE,
                  concat(name, ".shape is ", shape_text(tensor), "; accepted: fewer than 2^63 elements"));
      return false;
    }
  }
  return true;
}

bool check_data(Reasons& reasons, const char* name, const fdma_tensor& tensor, bool with_data, int64_t alignment) {
  if (tensor.data == nullptr) {
    if (!with_data || is_empty(tensor)) return true;
    reasons.add(FDMA_INVALID_ARGUMENT, concat(name, ".data is NULL; accepted: a pointer to its elements"));
    return false;
  }
  if (alignment > 1 && reinterpret_cast<uintptr_t>(tensor.data) % static_cast<uintptr_t>(alignment) != 0) {
    reasons.add(FDMA_INVALID_LAYOUT,
                concat(name, ".data is ", tensor.data, "; accepted: a multiple of ", alignment, " bytes"));
    return false;
  }
  return true;
}

void check_distinct(Reasons& reasons, std::initializer_list<NamedTensor> outputs,
                    std::initializer_list<NamedTensor> inputs) {
  const auto same = [](const fdma_tensor& a, const fdma_tensor& b) {
    return a.rank != 0 && b.rank != 0 && a.data != nullptr && a.data == b.data && !is_empty(a) && !is_empty(b);
  };
  const auto refuse = [&](const NamedTensor& output, const NamedTensor& other) {
    reasons.add(FDMA_INVALID_LAYOUT, concat(output.name, ".data is ", output.tensor.data, ", which is ", other.name,
                                            ".data too; accepted: memory of its own"));
  };
  for (const NamedTensor* output = outputs.begin(); output != outputs.end(); ++output) {
    for (const NamedTensor& input : inputs) {
      if (same(output->tensor, input.tensor)) refuse(*output, input);
    }
    for (const NamedTensor* other = outputs.begin(); other != output; ++other) {
      if (same(output->tensor, other->tensor)) refuse(*output, *other);
    }
  }
}

void* address_of(const fdma_tensor& tensor) {
  alignas(FDMA_WORKSPACE_ALIGNMENT) static char placeholder[FDMA_WORKSPACE_ALIGNMENT];
  return tensor.rank != 0 && tensor.data == nullptr ? placeholder : tensor.data;
}

View4 view4(const fdma_tensor& tensor) {
  View4 view;
  view.data = address_of(tensor);
  const int missing = 4 - tensor.rank;
  for (int i = 0; i < tensor.rank; ++i) view.stride[missing + i] = tensor.shape[i] > 1 ? tensor.stride[i] : 0;
  return view;
}

}  // namespace fdma
