// From a Python tensor to the views of the C API.
#pragma once

#include <nanobind/nanobind.h>

#include "fdma/types.h"

namespace fdma::python {

namespace nb = nanobind;

// A borrowed view of a Python tensor: valid while the object is alive and is not resized.
struct TensorView {
  fdma_tensor tensor{};
  fdma_device device{};
};

// Which dtypes a view may have.
enum class DtypeSet {
  kNumbers,  // every dtype of fdma_dtype; the library says which of them the argument takes
  kMask,     // also unsigned integers, read as signed ones of their width: non-zero is the same bits
  kOffsets,  // as kNumbers, of cu_seqlens
  kPages,    // as kNumbers, of block_table
};

// Reads `object` without copying, owning or detaching it. `name` is the argument as the Python caller knows it. Raises
// TypeError for what is no tensor or has a dtype that the C API cannot name, ValueError for a device, layout or rank
// that it cannot describe.
TensorView read_tensor(nb::handle object, const char* name, DtypeSet dtypes = DtypeSet::kNumbers);

// Raises ValueError unless `view` lies on `device`, the device of the tensor called `of`.
void check_same_device(const TensorView& view, const char* name, fdma_device device, const char* of);

}  // namespace fdma::python
