// The selection functions of the extension module.
#pragma once

#include <nanobind/nanobind.h>

namespace fdma::python {

void bind_selection(nanobind::module_& module);

}  // namespace fdma::python
