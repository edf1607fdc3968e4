#!/usr/bin/env bash
# Builds everything and runs all tests: the C and C++ tests by ctest, the Python tests by pytest against the package that
# was just built, wheel and editable install included. Sets up what it needs (tools/setup.sh).
#
#   FDMA_CUDA  AUTO (default): CUDA kernels where nvcc and a GPU are found; ON: all of them, no GPU needed; OFF: none
#   FDMA_CUTLASS_DIR  where the headers of CUTLASS are, see third_party/cutlass; found by itself when not set
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

require_compiler
setup_venv
require_python_headers
setup_packages nanobind scikit-build-core pytest pytest-xdist hypothesis rich triton transformers mkdocs-material \
  mkdocstrings-python
setup_build_tools
setup_googletest

build=build/test
step "configure and build in $build"
cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DFDMA_CUDA="${FDMA_CUDA:-AUTO}" \
  -DFDMA_CUTLASS_DIR="${FDMA_CUTLASS_DIR:-}" -DFDMA_BUILD_TESTS=ON -DFDMA_BUILD_PYTHON=ON \
  -DPython_EXECUTABLE="$VENV/bin/python"
cmake --build $build

step "ctest"
ctest --test-dir $build --output-on-failure --parallel 2

step "the wheel, for the CPU"
FDMA_CUDA=OFF FDMA_CUTLASS_DIR='' WHEEL_DIR=$build/wheel bash tools/wheel.sh

step "pytest, with the package of this build"
rm -rf $build/python
cmake --install $build --component python --prefix $build/python
PYTHONPATH=$ROOT/$build/python python -m pytest -q -n 2 --dist worksteal

step "all tests passed"
