// The decode function of the extension module.
#pragma once

#include <nanobind/nanobind.h>

namespace fdma::python {

void bind_decode(nanobind::module_& module);

}  // namespace fdma::python
