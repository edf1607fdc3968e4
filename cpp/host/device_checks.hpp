// Rules for the device of a call.
#pragma once

#include "fdma/types.h"
#include "host/reasons.hpp"

namespace fdma {

// A known type with an index that it can have. Nothing is asked of the machine.
bool check_device(Reasons& reasons, fdma_device device);

// This build and this machine can run on `device`, which has passed check_device.
bool check_device_support(Reasons& reasons, fdma_device device);

// Threads of a CPU call.
void check_num_threads(Reasons& reasons, int32_t num_threads, fdma_device device);

}  // namespace fdma
