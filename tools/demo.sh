#!/usr/bin/env bash
# Builds and installs the package into a virtual environment of its own, with CUDA kernels when this machine has nvcc and
# a GPU, and runs the main example. Arguments go to the example.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

require_compiler
setup_venv
require_python_headers
setup_packages

step "pip install ."
python -m pip install --quiet --disable-pip-version-check -c tools/constraints.txt . \
  -C cmake.define.FDMA_CUDA="${FDMA_CUDA:-AUTO}"

step "examples/dynamic_mask_attention.py"
exec python examples/dynamic_mask_attention.py "$@"
