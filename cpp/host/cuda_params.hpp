// From the words of the host to those of the kernels.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "host/dtype.hpp"
#include "host/error.hpp"
#include "host/problem.hpp"
#include "host/text.hpp"
#include "kernels/core/params.hpp"

namespace fdma::cuda {

inline constexpr DtypeSet kFloatDtypes(FDMA_FLOAT16, FDMA_BFLOAT16, FDMA_FLOAT32, FDMA_FLOAT64);

inline ElementType element_type(fdma_dtype dtype) {
  switch (dtype) {
    case FDMA_FLOAT16:
      return ElementType::kFloat16;
    case FDMA_BFLOAT16:
      return ElementType::kBFloat16;
    default:
      return ElementType::kFloat32;
  }
}

inline int32_t narrow(int64_t value, const char* name) {
  if (value >= kLengthLimit) {
    throw Error(FDMA_UNSUPPORTED, concat(name, " is ", value, "; accepted on CUDA: less than ", kLengthLimit));
  }
  return static_cast<int32_t>(value);
}

inline TensorView tensor_view(const View4& view) {
  TensorView result;
  result.data = view.data;
  result.stride_batch = view.stride[0];
  result.stride_row = view.stride[1];
  result.stride_head = view.stride[2];
  return result;
}

// Whether every row of the tensor starts at a multiple of `bytes`.
inline bool rows_aligned(const void* data, int64_t element_bytes, int64_t bytes,
                         std::initializer_list<int64_t> strides) {
  bool aligned = reinterpret_cast<uintptr_t>(data) % bytes == 0;
  for (int64_t stride : strides) aligned = aligned && stride * element_bytes % bytes == 0;
  return aligned;
}
inline bool vector_rows(const View4& view) {
  return !view || rows_aligned(view.data, 2, 16, {view.stride[0], view.stride[1], view.stride[2]});
}

inline BiasView bias_view(const BiasProblem& bias, int64_t heads_q) {
  BiasView view;
  if (bias.kind == FDMA_BIAS_NONE) return view;
  view.data = bias.view.data;
  view.stride_batch = bias.view.stride[0];
  view.stride_head = bias.view.stride[1];
  view.stride_row = bias.view.stride[2];
  view.stride_key = bias.keys == 1 ? 0 : 1;
  view.heads_per_bias_head = static_cast<int32_t>(heads_q / bias.heads);
  view.type = element_type(bias.dtype);
  view.vector_rows =
      rows_aligned(view.data, element_bytes(view.type), 16, {view.stride_batch, view.stride_head, view.stride_row});
  return view;
}

// A dense mask and the packed mask that is made of it at `target`: all but causality and lengths.
inline PackMaskParams pack_mask_params(const MaskProblem& mask, void* target) {
  PackMaskParams params;
  params.layout = mask.layout;
  params.dense = mask.dense.data;
  params.stride_batch = mask.dense.stride[0];
  params.stride_head = mask.dense.stride[1];
  params.stride_row = mask.dense.stride[2];
  params.stride_key = static_cast<int32_t>(mask.dense.stride[3]);
  params.element_bytes = static_cast<int32_t>(dtype_size(mask.dtype));
  params.is_float = kFloatDtypes.contains(mask.dtype);
  const auto aligned = [&](int bytes) {
    return params.stride_key == 1 && rows_aligned(params.dense, params.element_bytes, bytes,
                                                  {params.stride_batch, params.stride_head, params.stride_row});
  };
  if (params.element_bytes == 1) {
    params.chunk = aligned(16) ? 16 : aligned(8) ? 8 : 0;
  } else {
    params.chunk = aligned(16) ? 8 : 0;
  }
  params.rows = static_cast<uint32_t*>(target);
  params.tiles = params.rows + mask.layout.rows_bytes() / 4;
  return params;
}

inline SequenceView sequence_view(const AttentionProblem& problem) {
  const SequenceProblem& given = problem.sequences;
  SequenceView view;
  view.max_q = narrow(problem.len_q, "the number of queries");
  view.max_k = narrow(problem.len_k, "the number of keys");
  view.cu_q = given.cu_q;
  view.cu_k = given.cu_k;
  view.is_64bit = given.is_64bit;
  view.packed = given.packed;
  view.paged = static_cast<bool>(problem.pages);
  view.rows_q = given.rows_q;
  view.rows_k = given.rows_k;
  return view;
}

// The rows of the keys of a call.
inline KeyRows key_rows(const AttentionParams& params, const AttentionProblem& problem) {
  KeyRows rows;
  rows.sequences = params.sequences;
  rows.batch = params.batch;
  rows.rows = problem.pages ? problem.len_k : problem.rows_k();
  return rows;
}

}  // namespace fdma::cuda
