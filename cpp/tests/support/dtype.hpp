// Elements of every dtype as doubles. Written for clarity and apart from the library's own conversions, which it
// checks.
#pragma once

#include <cstdint>

#include "fdma/types.h"

namespace fdma::test {

int64_t element_size(fdma_dtype dtype);
double read_element(const void* p, fdma_dtype dtype);
// Floats are rounded to nearest, ties to even.
void write_element(void* p, fdma_dtype dtype, double value);
// `value` after a round trip through `dtype`.
double rounded(double value, fdma_dtype dtype);
// Half the distance from 1 to the next number of a float dtype.
double unit_roundoff(fdma_dtype dtype);

}  // namespace fdma::test
