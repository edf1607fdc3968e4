// Packing a dense mask on CUDA.
#include <cuda_runtime_api.h>

#include "host/backend.hpp"
#include "host/cuda_device.hpp"
#include "host/cuda_params.hpp"
#include "kernels/launchers.hpp"

namespace fdma::cuda {

void pack_mask(const PackMaskProblem& problem, Workspace& workspace, fdma_stream stream) {
  const DeviceGuard guard(problem.device.index);
  narrow(problem.mask.layout.keys, "len_k");  // keys are 32 bits in the kernel
  if (workspace.counting()) return;           // needs no scratch
  PackMaskParams params = pack_mask_params(problem.mask, problem.mask.packed_out);
  params.shared_by_sequences = true;  // the bits serve calls of any lengths: every key is packed
  check(launch_pack_mask(params, stream), "packing the mask");
}

}  // namespace fdma::cuda
