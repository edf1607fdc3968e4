"""Series of workloads: time and memory against length, and time against the keys that a query keeps."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.workloads import DYNAMIC, WORKLOADS, Workload

LENGTHS = (8192, 16384, 32768, 65536, 131072)
WIDTHS = (256, 512, 1024, 2048, 4096, 8192)
OURS = ("cuda", "cuda-topk")
MASKED = (*OURS, "sdpa-cudnn", "torch-topk")  # peers as far as their dense mask fits
CPU = {**DYNAMIC, "keep": 256, "dtype": "float32", "device": "cpu"}


def _length(length: int) -> Workload:
    return Workload(f"length-{length}", 1, length, 16, 8, 128, impls=MASKED, **DYNAMIC)


def _dense(length: int) -> Workload:
    """All keys: what there is without a selection, as a line to compare with."""
    return Workload(f"dense-length-{length}", 1, length, 16, 8, 128, impls=("sdpa-cudnn", "sdpa-flash"))


def _cpu_length(length: int, *peers: str) -> Workload:
    return Workload(f"cpu-length-{length}", 1, length, 8, 4, 64, impls=("cpu", "cpu-topk", *peers), **CPU)


_OF_LENGTH = (
    *map(_length, LENGTHS),
    *map(_dense, LENGTHS),
    _cpu_length(8192, "sdpa"),
    _cpu_length(16384),
)
_OF_WIDTH = tuple(replace(_length(32768), name=f"width-{width}", keep=width, impls=OURS) for width in WIDTHS)
# Each row has its time and its memory, so that memory needs no workloads of its own.
SERIES: dict[str, tuple[Workload, ...]] = {"length": _OF_LENGTH, "width": _OF_WIDTH, "memory": _OF_LENGTH}


def known_workloads() -> dict[str, Workload]:
    """All workloads by name, those of the series last."""
    rows = (workload for series in SERIES.values() for workload in series)
    return {workload.name: workload for workload in (*WORKLOADS, *rows)}


def position(name: str) -> tuple[str, int] | None:
    """(prefix, number) of the name of a workload of a series, None for one that stands alone."""
    prefix, _, number = name.rpartition("-")
    return (prefix, int(number)) if number.isdigit() and prefix.endswith(("length", "width")) else None


def growth(rows: list[dict]) -> list[dict]:
    """How the time of the longest of a series compares with that at half its length.

    {"series", "pass", "impl", "lengths": (half, longest), "ratio"}, for each implementation that has both.
    """
    times = {(row["workload"], row["pass"], row["impl"]): row["ms"] for row in rows}
    longest: dict[tuple[str, str, str], int] = {}
    for name, which, impl in times:
        prefix, number = position(name) or ("", 0)
        if prefix.endswith("length") and (f"{prefix}-{number // 2}", which, impl) in times:
            at = (prefix, which, impl)
            longest[at] = max(longest.get(at, 0), number)
    return [
        {
            "series": prefix,
            "pass": which,
            "impl": impl,
            "lengths": (number // 2, number),
            "ratio": times[f"{prefix}-{number}", which, impl] / times[f"{prefix}-{number // 2}", which, impl],
        }
        for (prefix, which, impl), number in longest.items()
    ]
