// Selection of one row of a bias, for operations that select on their way.
#pragma once

#include <cstdint>

#include "host/select_problem.hpp"
#include "host/workspace.hpp"

namespace fdma::cpu {

inline constexpr double kSelectFlopsAKey = 200;  // what sorting a key is worth, roughly

// A key and how it is preferred: the smaller, the better.
using Preference = uint64_t;  // rank, then keys from the newest

// Scratch of one thread.
struct SelectScratch {
  float* bias = nullptr;              // [keys]
  uint32_t* visible = nullptr;        // bits of key_mask
  Preference* preferences = nullptr;  // [keys]
  uint64_t* taken = nullptr;          // [words of 64 keys], interval form
};

// For rows of up to `keys` keys.
SelectScratch take_select_scratch(int64_t keys, bool is_interval, Workspace& workspace);

// Columns form: the columns and the count of a row of `problem`.
void select_columns(const SelectProblem& problem, int64_t row, const SelectScratch& scratch);

}  // namespace fdma::cpu
