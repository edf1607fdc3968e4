// In place of CuTe's header of this name.
#pragma once

#include "tests/emulation/machine/cute_atoms.hpp"
