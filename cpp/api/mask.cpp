#include "fdma/mask.h"

#include "api/operation.hpp"
#include "host/mask_layout.hpp"
#include "host/pack_mask_problem.hpp"
#include "host/parameters.hpp"

namespace {

constexpr fdma::Operation kPackMask{"fdma_pack_mask_params", fdma::make_pack_mask_problem};

}  // namespace

fdma_status fdma_mask_packed_size(const fdma_tensor* mask, int64_t len_k, size_t* bytes) {
  return fdma::guard([&] {
    const fdma_tensor& tensor = fdma::deref(mask, "mask is NULL; accepted: a tensor with rank and shape");
    size_t& result = fdma::deref(bytes, "bytes is NULL; accepted: where to write the size");
    result = static_cast<size_t>(fdma::packed_size_of_mask(tensor, len_k));
  });
}

void fdma_pack_mask_params_init_sized(fdma_pack_mask_params* params, size_t struct_size) {
  fdma::init_parameters(params, struct_size);
}

fdma_status fdma_pack_mask_supported(const fdma_pack_mask_params* params) { return kPackMask.supported(params); }

fdma_status fdma_pack_mask_workspace_size(const fdma_pack_mask_params* params, size_t* bytes) {
  return kPackMask.workspace_size(params, bytes);
}

fdma_status fdma_pack_mask(const fdma_pack_mask_params* params, void* workspace, size_t workspace_bytes,
                           fdma_stream stream) {
  return kPackMask.call(params, workspace, workspace_bytes, stream);
}
