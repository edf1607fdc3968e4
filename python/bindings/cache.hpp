// The functions of the extension module for the bounded cache.
#pragma once

#include <nanobind/nanobind.h>

namespace fdma::python {

void bind_cache(nanobind::module_& module);

}  // namespace fdma::python
