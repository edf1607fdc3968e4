"""The machine code of Hopper's kernels, read from the objects of a build: no GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCAL_MEMORY = re.compile(r"\b(STL|LDL)\b")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);")


def _disassembler() -> str | None:
    """The CUDA toolkit's, or the one that Triton ships."""
    spec = find_spec("triton")
    beside_triton = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec and spec.origin else Path()
    return shutil.which("cuobjdump") or (str(beside_triton) if beside_triton.is_file() else None)


def _objects() -> list[Path]:
    """Of the build that was made last."""
    folders = list(ROOT.glob("build/*/cpp/kernels/CMakeFiles/fdma_kernels_sm90.dir/instances"))
    newest = max(folders, key=lambda folder: folder.stat().st_mtime, default=None)
    return sorted(newest.glob("*_sm90_*.cu.o")) if newest else []


def _kernels(path: Path) -> dict[str, list[str]]:
    """The instructions of each kernel with matrix products."""
    output = subprocess.run([_disassembler(), "-sass", str(path)], capture_output=True, text=True, check=True).stdout
    kernels: dict[str, list[str]] = {}
    for line in output.splitlines():
        if "Function :" in line:
            body = kernels.setdefault(line.split("Function :")[1].strip(), [])
        elif match := INSTRUCTION.match(line):
            body.append(match[1])
    return {name: body for name, body in kernels.items() if re.search("sm90(14forward|15backward)_kernel", name)}


@pytest.fixture(scope="module")
def objects() -> dict[Path, dict[str, list[str]]]:
    if not _objects():
        pytest.skip("no build with kernels for sm_90a below build/")
    if _disassembler() is None:
        pytest.skip("no cuobjdump: neither on the PATH nor beside Triton")
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(_objects(), pool.map(_kernels, _objects())))


@pytest.fixture
def kernels(objects: dict[Path, dict[str, list[str]]]) -> dict[str, list[str]]:
    return {name: body for part in objects.values() for name, body in part.items()}


def test_every_kernel_is_found(objects: dict[Path, dict[str, list[str]]]) -> None:
    """By dtype and head dim, with and without softcap: five forward (mask, bias, both, none, slots), three backward.

    Of these the one with a bias takes no softcap.
    """
    assert objects
    for path, own in objects.items():
        direction = re.match(r"(\w+?)_sm90_\w+_\d+\.cu", path.name)[1]
        assert len(own) == (10 if direction == "forward" else 5), (path.name, list(own))


def test_products_are_those_of_warpgroups(kernels: dict[str, list[str]]) -> None:
    for name, body in kernels.items():
        assert any("HGMMA" in line for line in body), name
        assert not any("HMMA." in line for line in body), name


def test_main_loops_keep_out_of_local_memory(kernels: dict[str, list[str]]) -> None:
    """From the first product to the last. Producers, behind them, may keep an address there."""
    for name, body in kernels.items():
        products = [i for i, line in enumerate(body) if "HGMMA" in line]
        spills = [line for line in body[products[0] : products[-1] + 1] if LOCAL_MEMORY.search(line)]
        assert not spills, (name, spills[:5])
