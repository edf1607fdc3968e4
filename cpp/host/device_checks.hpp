// Rules for the device of a call.
#pragma once

#include "fdma/types.h"
#include "host/reasons.hpp"

namespace fdma {

// A known type with an index that it can have. Nothing is asked of the machine.
bool check_device(Reasons& reasons, fdma_device device);

// This build and this machine can run on `device`, which has passed check_device.
bool check_device_support(Reasons& reasons, fdma_device device);

}  // namespace fdma
