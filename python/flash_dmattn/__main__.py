"""``python -m flash_dmattn``: what a bug report should say about the machine."""

import platform
import sys
from importlib import import_module
from typing import Iterator, Tuple

import torch

from flash_dmattn import _C
from flash_dmattn.backends import BACKENDS


def report() -> Iterator[Tuple[str, str]]:
    """Pairs of a fact's name and the fact. Nothing that is missing or broken stops it."""
    yield "flash_dmattn", _C.__version__
    yield "libfdma", _C.build_info()
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"
    yield "platform", platform.platform()
    yield "torch", f"{torch.__version__}, {_torch_build()}"
    yield "triton", _version_of("triton")
    yield "NVIDIA driver", _driver()
    yield from _gpus()
    for backend in BACKENDS:
        reason = backend.unavailable_reason()
        yield f"backend {backend.name}", "available" if reason is None else f"not available: {reason}"


def _torch_build() -> str:
    if torch.version.cuda is not None:
        return f"built for CUDA {torch.version.cuda}"
    return f"built for ROCm {torch.version.hip}" if torch.version.hip is not None else "built without CUDA"


def _version_of(module: str) -> str:
    try:
        return str(import_module(module).__version__)
    except ImportError as error:
        return f"not importable: {error}"
    except Exception as error:  # a broken installation raises anything; whatever it is, the report is to say it
        return f"not importable: {type(error).__name__}: {error}"


def _driver() -> str:
    """Version of the driver as its kernel module gives it: needs no CUDA call, so a broken installation has it too."""
    try:
        with open("/proc/driver/nvidia/version") as file:
            return file.readline().strip()
    except OSError as error:
        return f"not found ({error})"


def _gpus() -> Iterator[Tuple[str, str]]:
    if not torch.cuda.is_available():
        yield "GPUs", "torch finds none"
        return
    for index in range(torch.cuda.device_count()):
        try:
            gpu = torch.cuda.get_device_properties(index)
        except Exception as error:  # a GPU that is in use, lost or misconfigured is what a report may be about
            yield f"GPU {index}", f"{type(error).__name__}: {error}"
            continue
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        unsupported = _C.cuda_unsupported_reason(index)
        kernels = "libfdma has kernels for it" if unsupported is None else unsupported
        yield f"GPU {index}", f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {memory}; {kernels}"


def main() -> None:
    """Print the report."""
    facts = list(report())
    width = max(len(name) for name, _ in facts) + 2
    for name, fact in facts:
        print(f"{name:<{width}}{fact}")


if __name__ == "__main__":
    main()
