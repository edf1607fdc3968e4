// From the optional scalars of the Python signature to the fields of the C API. None stands for the default.
#pragma once

#include <nanobind/nanobind.h>

namespace fdma::python {

// Raises TypeError for what is no real number. A tensor is none: its gradient would be lost without a word.
float number_or(nanobind::handle object, const char* name, float otherwise);

// Raises TypeError for what is neither a bool nor None.
bool flag_or(nanobind::handle object, const char* name, bool otherwise);

}  // namespace fdma::python
