"""A libfdma.so of other sources is told from one of these, before a program fails on it."""

import os
import shutil
import subprocess

import pytest
from tools.built_library import declared_functions, stale_reason

COMPILER = shutil.which(os.environ.get("CC", "cc"))


@pytest.fixture
def library(tmp_path):
    """Builds a shared library of functions of the names that it is given."""
    if COMPILER is None:
        pytest.skip("no C compiler")

    def build(names):
        path = tmp_path / "libfdma.so"
        code = "".join(f"void {name}(void) {{}}\n" for name in names)
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", path, "-x", "c", "-"], input=code, text=True, check=True)
        return path

    return build


def test_functions_of_every_header_are_known():
    declared = declared_functions()
    assert {"fdma_version", "fdma_attention_forward", "fdma_decode_workspace_size", "fdma_cache_append"} < set(declared)
    assert len(declared) == len(set(declared))


def test_library_of_these_sources_is_taken(library):
    assert stale_reason(library(declared_functions())) is None


def test_missing_functions_are_named(library):
    gone = ["fdma_cache_append", "fdma_select"]
    path = library([name for name in declared_functions() if name not in gone])
    reason = stale_reason(path)
    assert f"{path} was built from other sources than those here: it has no {', '.join(gone)}; " in reason
