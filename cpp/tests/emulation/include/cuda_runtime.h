// In place of CUDA's header of this name: the language that kernels are written in, for a compiler of the CPU. The host
// half of the header, declarations of the runtime, is CUDA's own; the emulation defines what is called of it.
#pragma once

#include "tests/emulation/machine/device_language.hpp"
