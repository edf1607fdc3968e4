// What the functions of the extension module have in common: their tensors, scratch and stream.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <new>

#include "error.hpp"
#include "fdma/attention.h"
#include "tensor.hpp"

namespace fdma::python {

// Scratch of one call. On CUDA torch allocates it, so that its caching allocator orders reuse on the stream; on the CPU
// the call is over when the scratch goes, and asking torch would cost as much as the rest of a small call.
class Scratch {
 public:
  // `allocate(like, bytes)` returns a tensor of that many bytes on the device of `like`.
  Scratch(size_t bytes, fdma_device device, nb::handle like, nb::handle allocate);
  void* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{FDMA_WORKSPACE_ALIGNMENT};
  struct Release {
    void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
  };

  std::unique_ptr<void, Release> host_;
  nb::object tensor_;
  void* data_ = nullptr;
};

// A tensor on `device`, which is that of the tensor called `of`; otherwise raises.
fdma_tensor read_on(fdma_device device, nb::handle object, const char* name, DtypeSet dtypes = DtypeSet::kNumbers,
                    const char* of = "query");

// None leaves the tensor "not given".
fdma_tensor read_optional(fdma_device device, nb::handle object, const char* name, DtypeSet dtypes = DtypeSet::kNumbers,
                          const char* of = "query");

// Runs an operation of the C API, without the GIL: `workspace_size` and `call` are its functions, `names` is of
// check().
template <typename Params>
void run(const Params& params, fdma_status (*workspace_size)(const Params* params, size_t* bytes),
         fdma_status (*call)(const Params* params, void* workspace, size_t bytes, fdma_stream stream), nb::handle like,
         uintptr_t stream, nb::handle allocate, Names names = {}) {
  size_t bytes = 0;
  check(workspace_size(&params, &bytes), names);
  const Scratch scratch(bytes, params.device, like, allocate);
  const auto status = [&] {
    const nb::gil_scoped_release nogil;
    return call(&params, scratch.data(), bytes, reinterpret_cast<fdma_stream>(stream));
  }();
  check(status, names);
}

}  // namespace fdma::python
