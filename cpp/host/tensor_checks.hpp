// Rules for one tensor argument. Each check adds its reason, with the argument's name and value, and returns whether
// the rule holds. Nothing is formatted while the rules hold.
#pragma once

#include <initializer_list>

#include "host/dtype.hpp"
#include "host/problem.hpp"
#include "host/reasons.hpp"

namespace fdma {

inline constexpr char kScoreDims[] = "({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})";  // a mask or a bias

enum class Access { kRead, kWrite };

// Given at all, of rank `rank`, with no negative extent. `dims` names the dimensions: "(B, Lq, H, D)".
bool check_rank(Reasons& reasons, const char* name, const fdma_tensor& tensor, int rank, const char* dims);

// The extents are exactly `expected`. The rank has been checked.
bool check_shape(Reasons& reasons, const char* name, const fdma_tensor& tensor, std::initializer_list<int64_t> expected,
                 const char* dims);

// `context` says when the set applies: " on CUDA" for instance.
bool check_dtype(Reasons& reasons, const char* name, const fdma_tensor& tensor, DtypeSet accepted, const char* context);

// Strides of 0 or more, 1 in the last dimension; offsets fit 64 bits; an output addresses no element twice.
bool check_strides(Reasons& reasons, const char* name, const fdma_tensor& tensor, Access access);

bool check_contiguous(Reasons& reasons, const char* name, const fdma_tensor& tensor);

// Not null unless there are no elements or data is not asked for yet; aligned to `alignment` bytes.
bool check_data(Reasons& reasons, const char* name, const fdma_tensor& tensor, bool with_data, int64_t alignment);

struct NamedTensor {
  const char* name;
  const fdma_tensor& tensor;
};

// No output begins where another tensor of the call does. Outputs may be slices of one buffer, so ranges that overlap
// are no proof of elements that do; equal addresses are.
void check_distinct(Reasons& reasons, std::initializer_list<NamedTensor> outputs,
                    std::initializer_list<NamedTensor> inputs);

bool is_empty(const fdma_tensor& tensor);

// The tensor's address. A given tensor without data (sizes are being asked for, or it is empty) gets the address of a
// placeholder that is never read, so that "given" and "not null" are the same to a backend.
void* address_of(const fdma_tensor& tensor);

// The view of a tensor of rank 4, or of rank 3 with the batch missing, that has passed the checks. Dimensions of extent
// 1 and a missing one get stride 0.
View4 view4(const fdma_tensor& tensor);

}  // namespace fdma
