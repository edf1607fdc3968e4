#include "kernels/sm90/tensor_map.hpp"

#include <cudaTypedefs.h>

#include <utility>

namespace fdma::sm90 {
namespace {

using EncodeFunction = PFN_cuTensorMapEncodeTiled_v12000;

// The driver's function, without linking the driver: the library loads where there is none.
EncodeFunction encode_function() {
  static const EncodeFunction function = [] {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeFunction>(address)
                                                                         : nullptr;
  }();
  return function;
}

}  // namespace

bool make_tensor_map(TensorMap& target, const TensorView& view, ElementType type, const TensorExtents& extents,
                     int box_rows, int box_heads) {
  const EncodeFunction encode = encode_function();
  if (encode == nullptr || view.stride_row == 0 || (box_heads > 1 && view.stride_head == 0)) return false;
  // Strides of 0 repeat one entry.
  target.head_step = view.stride_head != 0 ? 1 : 0;
  target.batch_step = view.stride_batch != 0 ? 1 : 0;
  constexpr cuuint64_t kBytes = 2, kAnyStride = 16;
  const auto stride = [&](int64_t elements) {
    return elements != 0 ? static_cast<cuuint64_t>(elements) * kBytes : kAnyStride;
  };
  cuuint64_t shape[4] = {static_cast<cuuint64_t>(extents.cols), static_cast<cuuint64_t>(extents.rows),
                         static_cast<cuuint64_t>(target.head_step != 0 ? extents.heads : 1),
                         static_cast<cuuint64_t>(target.batch_step != 0 ? extents.batch : 1)};
  cuuint64_t strides[3] = {stride(view.stride_row), stride(view.stride_head), stride(view.stride_batch)};
  cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(box_heads), 1};
  if (box_heads > 1) std::swap(shape[1], shape[2]), std::swap(strides[0], strides[1]), std::swap(box[1], box[2]);
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUtensorMapDataType data_type =
      type == ElementType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return encode(&target.map, data_type, 4, view.data, shape, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace fdma::sm90
