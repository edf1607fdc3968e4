// The attention functions of the extension module.
#pragma once

#include <nanobind/nanobind.h>

namespace fdma::python {

void bind_attention(nanobind::module_& module);

}  // namespace fdma::python
