// flash_dmattn._C: libfdma for Python. Tensors come in through DLPack, so that nothing of torch is needed to build it;
// what the functions take is checked here under the names of the public Python signature.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <string>

#include "attention.hpp"
#include "cache.hpp"
#include "error.hpp"
#include "fdma/device.h"
#include "fdma/version.h"
#include "selection.hpp"

namespace fdma::python {
namespace {

std::optional<std::string> cuda_unsupported_reason(int32_t device) {
  if (fdma_device_supported({FDMA_DEVICE_CUDA, device}) == FDMA_SUCCESS) return std::nullopt;
  return last_message();
}

std::string version_text() {
  const int version = fdma_version();
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

}  // namespace

NB_MODULE(_C, module) {
  module.attr("__version__") = version_text();
  module.def("build_info", &fdma_build_info);
  module.def("cuda_built", [] { return fdma_cuda_built() != 0; });
  module.def("cuda_unsupported_reason", &cuda_unsupported_reason);
  bind_attention(module);
  bind_selection(module);
  bind_cache(module);
}

}  // namespace fdma::python
