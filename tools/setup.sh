# Set-up for the scripts of this folder, which source this file: a virtual environment with torch, and the build tools
# that this machine lacks. On a machine that has everything it takes seconds.
#
#   PYTHON     interpreter for the environment, default python3
#   FDMA_VENV  folder of the environment, default .venv in the repository

set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${FDMA_VENV:-$ROOT/.venv}

step() { printf '\n== %s\n' "$*"; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Installs Debian packages where that needs no password; otherwise leaves it to the caller to find out.
apt_install() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "$@" || { apt-get update -q && apt-get install -y -q --no-install-recommends "$@"; }
  else
    return 1
  fi
}

require_compiler() {
  command -v "${CXX:-c++}" >/dev/null || apt_install g++ || fail "no C++ compiler: install g++ (apt-get install g++) or set CXX"
}

# The environment exists and is first on the PATH.
setup_venv() {
  local python=${PYTHON:-python3}
  command -v "$python" >/dev/null || fail "no $python: install Python 3.10 or newer, or set PYTHON"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$("$python" --version) is too old for torch 2.13.0: set PYTHON to Python 3.10 or newer"
  if [ ! -x "$VENV/bin/python" ]; then
    step "virtual environment in $VENV"
    "$python" -m venv "$VENV" || {
      rm -rf "$VENV" # what a failed attempt leaves has no pip
      apt_install python3-venv && "$python" -m venv "$VENV"
    } || fail "cannot create a virtual environment: install python3-venv (apt-get install python3-venv)"
  fi
  PATH=$VENV/bin:$PATH
  export PATH
  hash -r
  # Debian 12 and Ubuntu 22.04 come with a pip that does not know -C.
  python -m pip install --quiet --disable-pip-version-check 'pip>=23.1'
}

# setup_packages NAME...: torch and the named packages are in the environment, at the versions of constraints.txt.
setup_packages() {
  step "Python packages: torch $*"
  python -m pip install --quiet --disable-pip-version-check -c "$ROOT/tools/constraints.txt" torch numpy "$@"
}

# Extension modules need Python.h, which Debian keeps in a package of its own.
require_python_headers() {
  python -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ||
    apt_install python3-dev || fail "no Python.h: install python3-dev (apt-get install python3-dev)"
}

# cmake, as new as pyproject.toml asks for, and ninja, from pip where the machine has none. CMakeLists.txt and the C library
# are content with less.
setup_build_tools() {
  local version=0.0 needed
  needed=$(sed -n 's/^cmake\.version = ">=\([0-9.]*\)".*/\1/p' "$ROOT/pyproject.toml")
  if command -v cmake >/dev/null; then
    version=$(cmake --version | sed -n 's/^cmake version \([0-9]*\.[0-9]*\).*/\1/p')
  fi
  local missing=()
  if [ "$(printf '%s\n' "$needed" "$version" | sort -V | head -n 1)" != "$needed" ]; then missing+=(cmake); fi
  if ! command -v ninja >/dev/null; then missing+=(ninja); fi
  if [ ${#missing[@]} -gt 0 ]; then
    step "build tools: ${missing[*]}"
    python -m pip install --quiet --disable-pip-version-check "${missing[@]}"
    hash -r
  fi
}

# GoogleTest from the system. Where it cannot be installed, CMake fetches it.
setup_googletest() {
  if [ ! -e /usr/include/gtest/gtest.h ] && [ -z "${GTest_ROOT:-}" ]; then
    step "GoogleTest"
    apt_install libgtest-dev || echo "libgtest-dev is not installed; CMake fetches GoogleTest"
  fi
}
