// What the functions of the extension module have in common: their tensors, scratch and stream.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <new>

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

inline fdma_stream stream_from(uintptr_t stream) { return reinterpret_cast<fdma_stream>(stream); }

}  // namespace fdma::python
