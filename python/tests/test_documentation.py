"""What the documentation shows, runs."""

import doctest
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import flash_dmattn

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(*arguments: str, name: str = "dynamic_mask_attention") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    # In its interpreter Triton would serve CPU tensors.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


CLASSES = [name for name in flash_dmattn.__all__ if inspect.isclass(getattr(flash_dmattn, name))]
FUNCTIONS = [name for name in flash_dmattn.__all__ if inspect.isfunction(getattr(flash_dmattn, name))]


@pytest.mark.parametrize("module", sorted({getattr(flash_dmattn, name).__module__ for name in FUNCTIONS + CLASSES}))
def test_docstring_examples(module: str) -> None:
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_are_documented(name: str) -> None:
    text = getattr(flash_dmattn, name).__doc__
    assert ">>>" in text
    assert name == "get_available_backends" or all(part in text for part in ("Parameters", "Returns", "Raises"))


@pytest.mark.parametrize(
    "arguments",
    [
        "--device cpu --length 300 --keep 50 --heads 4 --kv-heads 2 --head-dim 40 --repeats 1",
        "--device cpu --length 130 --keep 200 --dtype bfloat16 --full --repeats 1 --backend cpu",
    ],
)
def test_example_on_the_cpu(arguments: str) -> None:
    done = run_example(*arguments.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "backend    cpu on CPU" in done.stdout
    assert "passed     output and all gradients" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    ["--length 700 --chunk 200 --keep 64 --steps 5 --dtype bfloat16", "--length 300 --chunk 300 --keep 400 --steps 2"],
)
def test_long_prefill_on_the_cpu(arguments: str) -> None:
    done = run_example("--device", "cpu", *arguments.split(), name="long_prefill")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed     rows 0, " in done.stdout


@pytest.mark.gpu
def test_long_prefill_of_a_million_tokens() -> None:
    done = run_example(name="long_prefill")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prefill    1048576 tokens in 16 chunks" in done.stdout
    assert "passed     rows 0, 2048, 65536, 524288, 1048575" in done.stdout


def test_example_says_why_a_backend_cannot_run() -> None:
    done = run_example("--device", "cpu", "--backend", "triton")
    assert done.returncode == 1
    assert "backend 'triton' is not available: " in done.stdout


@pytest.mark.gpu
def test_example_at_full_size_on_a_gpu() -> None:
    done = run_example()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "query (2, 4096, 12, 128)" in done.stdout
    assert "passed     output and all gradients" in done.stdout
