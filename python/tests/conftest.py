"""Where tests run. GPU tests carry the marker `gpu` and say why they are skipped."""

import os
from typing import Any, Dict, NamedTuple

import pytest
import torch

# Triton reads it when it is imported. Where there is a GPU its kernels are tested on that.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Inductor starts as many compilers as there are cores: in each of pytest's processes, if several test side by side.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

from flash_dmattn import flash_dmattn_func_auto
from flash_dmattn.backends import BACKENDS, libfdma
from flash_dmattn.backends.base import AttentionFunction

DTYPES = {"cpu": (torch.float32, torch.float16, torch.bfloat16), "cuda": (torch.float16, torch.bfloat16)}
# Flex on the CPU, since on CUDA it compiles for seconds: test_flex.py has a choice of cases for that.
DEVICES = {"cuda": "cuda", "flex": "cpu", "cpu": "cpu"}
TARGETS = [
    pytest.param(
        (backend, DEVICES[backend.name], dtype),
        id=f"{backend.name}-{str(dtype).replace('torch.', '')}",
        marks=[pytest.mark.gpu] if DEVICES[backend.name] == "cuda" else [],
    )
    for backend in BACKENDS
    if backend.name in DEVICES
    for dtype in DTYPES[DEVICES[backend.name]]
]


class Target(NamedTuple):
    """Where a test runs."""

    attention: AttentionFunction
    device: str
    dtype: torch.dtype
    backend: str

    def skip_what_is_ignored(self, options: Dict[str, object]) -> None:
        """Skip a call whose options the backend ignores, as the API reference says."""
        if self.backend == "flex" and options.get("softcap"):
            pytest.skip("flex ignores softcap")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        reason = libfdma.cuda.unavailable_reason()
        if reason is not None:
            pytest.skip(f"no CUDA device to test on: {reason}")


def _target(request: pytest.FixtureRequest) -> Target:
    backend, device, dtype = request.param
    reason = backend.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    return Target(flash_dmattn_func_auto(backend.name), device, dtype, backend.name)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    """Each available backend with each of its dtypes."""
    return _target(request)


def _is_libfdma(param: Any) -> bool:
    return param.values[0][0] in (libfdma.cuda, libfdma.cpu)


@pytest.fixture(params=[param for param in TARGETS if _is_libfdma(param) or param.values[0][2] is torch.float32])
def lse_target(request: pytest.FixtureRequest) -> Target:
    """Each available backend; the slow ones in one dtype."""
    return _target(request)


@pytest.fixture(params=[param for param in TARGETS if _is_libfdma(param)])
def libfdma_target(request: pytest.FixtureRequest) -> Target:
    """Those of libfdma, for what it alone promises."""
    return _target(request)
