"""Importing the package does nothing to the process."""

import subprocess
import sys

import pytest

import flash_dmattn


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_is_silent_and_touches_no_device() -> None:
    program = """
import torch
def refuse(*args, **kwargs):
    raise AssertionError("a device was asked for")
torch.cuda.init = torch.cuda._lazy_init = torch.cuda.is_available = torch.cuda.device_count = refuse
import flash_dmattn
import flash_dmattn.testing.cases, flash_dmattn.testing.reference, flash_dmattn.testing.compare
flash_dmattn.flash_dmattn_func_auto()
query = torch.zeros(1, 4, 1, 8)
flash_dmattn.flash_dmattn_func_auto()(query, query, query)
assert not torch.cuda.is_initialized()
"""
    assert run_python(program) == ""


def test_import_loads_no_cuda_driver() -> None:
    program = """
import torch
def cuda_libraries():
    with open("/proc/self/maps") as maps:
        return {line.split()[-1] for line in maps if "libcuda.so" in line}
before = cuda_libraries()
import flash_dmattn
assert cuda_libraries() == before
"""
    assert run_python(program) == ""


def test_import_loads_no_library_that_is_integrated() -> None:
    program = """
import sys
import flash_dmattn, flash_dmattn.integrations
print([name for name in ("transformers",) if name in sys.modules])
"""
    assert run_python(program) == "[]\n"


def test_import_works_with_every_gpu_hidden() -> None:
    program = """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = ""
from flash_dmattn import CUDA_AVAILABLE, FLEX_AVAILABLE, TRITON_AVAILABLE, get_available_backends
print(CUDA_AVAILABLE, get_available_backends()[-1])
"""
    assert run_python(program) == "False cpu\n"


def test_public_names() -> None:
    for name in flash_dmattn.__all__:
        assert hasattr(flash_dmattn, name), name
        assert name in dir(flash_dmattn)
    with pytest.raises(AttributeError, match="no_such_name"):
        flash_dmattn.no_such_name  # noqa: B018


def test_version_is_that_of_the_library() -> None:
    assert flash_dmattn.__version__.split(".")[0] == "2"
    assert flash_dmattn.__version__ in flash_dmattn._C.build_info()
