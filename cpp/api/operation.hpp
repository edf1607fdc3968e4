// The three entry points that every operation has.
#pragma once

#include "api/guard.hpp"
#include "host/backend.hpp"
#include "host/text.hpp"
#include "host/workspace_check.hpp"

namespace fdma {

template <typename Params, typename Problem>
class Operation {
 public:
  constexpr Operation(const char* params_name, Problem (*make_problem)(const Params& params, bool with_data))
      : params_name_(params_name), make_problem_(make_problem) {}

  // Support is what remains of a call when nothing is run.
  fdma_status supported(const Params* params) const {
    return guard([&] { scratch_bytes(problem(params, /*with_data=*/false)); });
  }

  fdma_status workspace_size(const Params* params, size_t* bytes) const {
    return guard([&] {
      size_t& result = deref(bytes, "bytes is NULL; accepted: where to write the size");
      result = scratch_bytes(problem(params, /*with_data=*/false));
    });
  }

  fdma_status call(const Params* params, void* workspace, size_t workspace_bytes, fdma_stream stream) const {
    return guard([&] {
      const Problem checked = problem(params, /*with_data=*/true);
      check_workspace(workspace, workspace_bytes, scratch_bytes(checked));
      Workspace scratch(workspace);
      run(checked, scratch, stream);
    });
  }

 private:
  Problem problem(const Params* params, bool with_data) const {
    if (params == nullptr) throw Error(FDMA_INVALID_ARGUMENT, concat("params is NULL; accepted: ", params_name_));
    return make_problem_(*params, with_data);
  }

  static size_t scratch_bytes(const Problem& problem) {
    Workspace counter;
    run(problem, counter, nullptr);
    return counter.used();
  }

  const char* params_name_;
  Problem (*make_problem_)(const Params& params, bool with_data);
};

}  // namespace fdma
