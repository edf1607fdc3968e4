// From the status of a C call to a Python exception.
#pragma once

#include <string>

#include "fdma/status.h"

namespace fdma::python {

// The library's last message, in which arguments carry their Python names.
std::string last_message();

// Returns on FDMA_SUCCESS. Otherwise raises with the library's message, in which the arguments carry their Python
// names: TypeError for a dtype, ValueError for any other bad argument, RuntimeError for what cannot run or failed to.
void check(fdma_status status);

}  // namespace fdma::python
