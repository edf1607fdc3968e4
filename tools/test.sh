#!/usr/bin/env bash
# Builds everything and runs all tests: the C and C++ tests by ctest, the Python tests by pytest against the package that
# was just built, and `pip install .` as a user does it. Sets up what it needs (tools/setup.sh).
#
#   FDMA_CUDA  AUTO (default): CUDA kernels where nvcc and a GPU are found; ON: all of them, no GPU needed; OFF: none
#   FDMA_CUTLASS_DIR  where the headers of CUTLASS are, see third_party/cutlass; found by itself when not set
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

require_compiler
setup_venv
require_python_headers
setup_packages nanobind scikit-build-core pytest pytest-xdist hypothesis rich triton transformers
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

step "pytest, with the package of this build"
rm -rf $build/python
cmake --install $build --component python --prefix $build/python
PYTHONPATH=$ROOT/$build/python python -m pytest -q -n 2 --dist worksteal

step "pip install ., for the CPU"
rm -rf $build/pip
python -m pip install --quiet --disable-pip-version-check --no-deps --target $build/pip . -C cmake.define.FDMA_CUDA=OFF
PYTHONPATH=$ROOT/$build/pip python - <<'PYTHON'
import torch
from flash_dmattn import flash_dmattn_func_auto, get_available_backends

query, key, value = (torch.randn(1, 8, 2, 16, requires_grad=True) for _ in range(3))
out = flash_dmattn_func_auto()(query, key, value, is_causal=True)
out.sum().backward()
assert torch.equal(out[:, 0], value[:, 0]), "the first query of a causal row sees the first key alone"
print("installed package works, backends:", ", ".join(get_available_backends()))
PYTHON

step "all tests passed"
