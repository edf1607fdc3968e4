// From the status of a C call to a Python exception.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>

#include "fdma/status.h"

namespace fdma::python {

// The library's last message, in which arguments carry their Python names.
std::string last_message();

// Names of the C API and the names of the Python signature for them, which differ from operation to operation.
using Names = std::initializer_list<std::pair<const char*, const char*>>;

// Returns on FDMA_SUCCESS. Otherwise raises with the library's message, in which the arguments carry their Python
// names: TypeError for a dtype, ValueError for any other bad argument, RuntimeError for what cannot run or failed to.
void check(fdma_status status, Names names = {});

}  // namespace fdma::python
