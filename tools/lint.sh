#!/usr/bin/env bash
# What can be said of the sources without running them. Prints what is wrong and fails; changes nothing.
#
#   bash tools/lint.sh [ruff] [format] [mypy] [tidy]    default: all four
#
# Sets up what it needs (tools/setup.sh). clang-tidy needs a compile_commands.json: a build folder for it is configured in
# build/lint, for the CPU, and nothing in it is compiled.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

checks=("$@")
[ ${#checks[@]} -gt 0 ] || checks=(ruff format mypy tidy)
setup_venv

lint_ruff() {
  python -m pip install --quiet --disable-pip-version-check -c tools/constraints.txt ruff
  step "ruff"
  python -m ruff check .
}

lint_format() {
  python -m pip install --quiet --disable-pip-version-check -c tools/constraints.txt clang-format
  step "clang-format"
  git ls-files '*.c' '*.h' '*.cpp' '*.hpp' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror
}

lint_mypy() {
  setup_packages mypy triton transformers
  step "mypy --strict"
  python -m mypy
}

lint_tidy() {
  require_compiler
  require_python_headers
  setup_build_tools
  command -v clang-tidy-14 >/dev/null || apt_install clang-tidy-14 || fail "no clang-tidy-14: apt-get install clang-tidy-14"
  mkdir -p build
  cmake -S . -B build/lint -G Ninja -DFDMA_CUDA=OFF -DFDMA_BUILD_TESTS=OFF -DCMAKE_EXPORT_COMPILE_COMMANDS=ON >build/lint.log ||
    fail "see build/lint.log"
  step "clang-tidy"
  # cuda_*.cpp include headers of CUDA.
  git ls-files 'cpp/api/*.cpp' 'cpp/cpu/*.cpp' 'cpp/host/*.cpp' | grep -v /cuda_ |
    xargs -P "$(nproc)" -n 1 clang-tidy-14 -p build/lint --quiet 2>build/lint.log
}

for check in "${checks[@]}"; do
  case $check in
    ruff | format | mypy | tidy) "lint_$check" ;;
    *) fail "no check '$check'; there are: ruff format mypy tidy" ;;
  esac
done
step "nothing to say"
