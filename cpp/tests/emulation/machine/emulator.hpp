// Runs Hopper's kernels on the CPU, for tests. What a test sets and asks is here.
//
// A block runs at a time, its threads as fibers. What a kernel does at the same time as its own instructions (products,
// copies) has a time at which it may happen, and a kernel has to be right at each: see Timing. What is read too early,
// or written again too early, gives other results at one of them. Semantics are those of the PTX ISA, by the sections
// that each file names.
//
// What cannot be: an arrival too many, an address outside of shared memory, threads that all wait, throws
// EmulationError with kernel, block and thread. A launch through the host code of the library becomes an error of the
// call.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include <vector_types.h>

namespace fdma::emulation {

class EmulationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Timing {
  kEarly,         // all is done when it is asked for
  kLateCopies,    // copies to shared memory come when no thread can go on without; products and stores when waited for
  kLateProducts,  // products are done when no thread can go on without; stores when waited for; copies come at once
  kRandom         // all of it at any time, copies in any order; warps take turns in any order, and lanes fall behind
};

// Of the launches to come. A seed leads to the same order again.
void set_timing(Timing timing, unsigned seed = 1);
Timing timing();

// Names of the kernels that were started since the last call of this function, in order.
std::vector<std::string> take_launches();

// Runs `body` for every thread of the grid, block by block. Blocks have one dimension. Shared memory starts as NaN.
void run(const std::string& kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

}  // namespace fdma::emulation
