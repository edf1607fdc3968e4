"""Backends to test on. GPU tests carry the marker `gpu` and say why they are skipped."""

from typing import NamedTuple

import pytest
import torch

from flash_dmattn import flash_dmattn_func_auto
from flash_dmattn.backends import BACKENDS, libfdma
from flash_dmattn.backends.base import AttentionFunction

DTYPES = {"cpu": (torch.float32, torch.float16, torch.bfloat16), "cuda": (torch.float16, torch.bfloat16)}
TARGETS = [
    pytest.param(
        (backend, dtype),
        id=f"{backend.name}-{str(dtype).replace('torch.', '')}",
        marks=[pytest.mark.gpu] if backend.device_type == "cuda" else [],
    )
    for backend in BACKENDS
    if backend.attention is not None
    for dtype in DTYPES[backend.device_type]
]


class Target(NamedTuple):
    """Where a test runs."""

    attention: AttentionFunction
    device: str
    dtype: torch.dtype


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        reason = libfdma.cuda.unavailable_reason()
        if reason is not None:
            pytest.skip(f"no CUDA device to test on: {reason}")


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    """Each available backend with each of its dtypes."""
    backend, dtype = request.param
    return Target(flash_dmattn_func_auto(backend.name), backend.device_type, dtype)
