// The functions of the extension module that make masks: selection and packing.
#pragma once

#include <nanobind/nanobind.h>

namespace fdma::python {

void bind_selection(nanobind::module_& module);

}  // namespace fdma::python
