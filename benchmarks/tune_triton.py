"""Measures tiles of the Triton kernels; the winners go into flash_dmattn/triton_kernels/configs.py by hand.

python -m benchmarks.tune_triton [WORKLOAD ...]

All candidates are compiled first, by several processes that share Triton's cache on disk (TRITON_CACHE_DIR), and then
timed one after the other. Two workloads take about a minute and a half on 16 cores.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import Callable, Iterator

import torch

from benchmarks.calls import Call, explain_failure
from benchmarks.ours import Fdma
from benchmarks.runner import tflops
from benchmarks.timing import CudaTimer
from benchmarks.workloads import WORKLOADS, Inputs, Workload
from flash_dmattn.triton_kernels import configs
from flash_dmattn.triton_kernels.configs import Config, Configs

DEFAULT_WORKLOADS = ("dense-causal", "seed-dma")
SECONDS = 0.12  # of timed calls, for each candidate
PROCESSES = 14
NEEDS = {"key_gradient": ("key", "value"), "query_gradient": ("query", "bias")}
# (rows, keys, warps, stages) by the width of the head dimension and by whether there is a mask or a bias.
CANDIDATES = {
    (64, False): {
        "forward": ((128, 64, 4, 3), (128, 128, 8, 3), (128, 128, 4, 2), (128, 64, 4, 4), (64, 64, 4, 3)),
        "key_gradient": ((64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 4, 2), (128, 64, 8, 2), (128, 128, 8, 2)),
        "query_gradient": ((128, 64, 4, 2), (128, 64, 8, 2), (64, 64, 4, 3), (128, 128, 8, 2), (128, 64, 8, 3)),
    },
    (64, True): {
        "forward": ((128, 64, 4, 2), (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3)),
        "key_gradient": ((64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 128, 8, 2), (64, 32, 4, 3)),
        "query_gradient": ((64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2)),
    },
    (128, False): {
        "forward": (
            (128, 128, 8, 2),
            (128, 128, 8, 3),
            (128, 64, 8, 2),
            (128, 64, 8, 3),
            (128, 64, 8, 4),
            (128, 64, 4, 2),
            (64, 128, 4, 2),
            (64, 64, 4, 3),
        ),
        "key_gradient": (
            (64, 64, 4, 2),
            (64, 64, 4, 3),
            (64, 64, 8, 2),
            (128, 64, 8, 2),
            (128, 32, 4, 2),
            (64, 32, 4, 3),
            (32, 64, 4, 2),
        ),
        "query_gradient": (
            (128, 64, 8, 2),
            (128, 64, 8, 3),
            (128, 128, 8, 2),
            (64, 64, 4, 2),
            (64, 64, 4, 3),
            (128, 32, 8, 3),
            (64, 128, 4, 2),
        ),
    },
    (128, True): {
        "forward": (
            (128, 64, 8, 2),
            (128, 64, 8, 3),
            (128, 128, 8, 2),
            (128, 32, 8, 3),
            (64, 64, 4, 2),
            (64, 64, 4, 3),
            (64, 32, 4, 3),
        ),
        "key_gradient": (
            (64, 64, 4, 2),
            (64, 64, 4, 3),
            (64, 64, 8, 2),
            (128, 64, 8, 2),
            (128, 32, 4, 2),
            (64, 32, 4, 2),
            (32, 64, 4, 2),
        ),
        "query_gradient": (
            (128, 64, 8, 2),
            (128, 64, 8, 3),
            (128, 32, 8, 2),
            (128, 32, 8, 3),
            (64, 64, 4, 2),
            (64, 64, 4, 3),
            (64, 32, 4, 3),
        ),
    },
}


def place_of(workload: Workload) -> tuple[int, bool]:
    """Where the table has the tiles of a workload: the width of the head dimension, and whether scores are given."""
    return max(16, 1 << (workload.head_dim - 1).bit_length()), bool(workload.mask or workload.bias)


def candidates_of(workload: Workload) -> dict[str, tuple[Config, ...]]:
    place = place_of(workload)
    if place not in CANDIDATES:
        raise SystemExit(f"{workload.name}: tiles {place[0]} wide have no candidates here; those of {list(CANDIDATES)}")
    return {kernel: tuple(Config(*tile) for tile in tiles) for kernel, tiles in CANDIDATES[place].items()}


@contextmanager
def table_with(inputs: Inputs, **tiles: Config) -> Iterator[None]:
    """The table in use has these tiles for the workload."""
    table = configs.find_table(inputs.query.dtype, inputs.query.device)
    block_d, has_scores = place_of(inputs.workload)
    before = table[block_d]
    pair = list(before)
    pair[has_scores] = before[has_scores]._replace(**tiles)
    table[block_d] = tuple(pair)
    try:
        yield
    finally:
        table[block_d] = before


def step_of(kernel: str, call: Call, out: torch.Tensor, inputs: Inputs) -> Callable[[], object]:
    """A call that runs the kernel, with as little else as there can be."""
    if kernel == "forward":

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return call.forward()

        return forward
    leaves = [leaf for name, leaf in call.leaves.items() if name in NEEDS[kernel]]
    return lambda: torch.autograd.grad(out, leaves, inputs.grad_out, retain_graph=True)


def compile_tiles(workload: Workload, tiles: dict[str, Config]) -> dict[tuple[str, Config], str | None]:
    """Run the kernels once, on short sequences, for which the same is compiled; why each fails, or None."""
    inputs = Inputs(replace(workload, batch=1, length=256, heads=2, heads_kv=2, keep=64))
    call = Fdma("triton", "cuda").build(inputs)
    out = call.forward()
    failures = {}
    for kernel, config in tiles.items():
        with table_with(inputs, **{kernel: config}):
            failures[kernel, config] = explain_failure(step_of(kernel, call, out, inputs))
    return failures


def compile_all(workloads: list[Workload]) -> dict[str, dict[tuple[str, Config], str | None]]:
    """Compile every candidate; the failures of each workload."""
    jobs = []
    for workload in workloads:
        candidates = candidates_of(workload)
        for tiles in zip_longest(*candidates.values()):
            jobs.append((workload, {kernel: config for kernel, config in zip(candidates, tiles) if config}))
    failures: dict[str, dict[tuple[str, Config], str | None]] = {workload.name: {} for workload in workloads}
    processes = min(PROCESSES, os.cpu_count() or 1, len(jobs))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for (workload, _), result in zip(jobs, pool.map(compile_tiles, *zip(*jobs))):
            failures[workload.name].update(result)
    return failures


def measure(kernel: str, inputs: Inputs, failures: dict[tuple[str, Config], str | None], timer: CudaTimer) -> Config:
    """Print the time of each candidate for one kernel, best first, and return the best."""
    workload = inputs.workload
    block_d, has_scores = place_of(workload)
    in_table = getattr(configs.find_table(inputs.query.dtype, inputs.query.device)[block_d][has_scores], kernel)
    call = Fdma("triton", "cuda").build(inputs)
    step = step_of(kernel, call, call.forward(), inputs)
    results = []
    for config in candidates_of(workload)[kernel]:
        failure = failures[kernel, config]
        with table_with(inputs, **{kernel: config}):
            results.append((float("inf") if failure else timer.median_ms(step, SECONDS), config, failure))
    results.sort(key=lambda result: result[0])
    for milliseconds, config, failure in results:
        mark = "  <- table" if config == in_table else ""
        print(f"{workload.name:14} {kernel:15} {tuple(config)!s:18} {failure or f'{milliseconds:8.3f} ms'}{mark}")
    return results[0][1]


def measure_passes(inputs: Inputs, timer: CudaTimer) -> None:
    """Print the time of both passes with the table as it is."""
    workload = inputs.workload
    call = Fdma("triton", "cuda").build(inputs)
    out = call.forward()
    leaves = list(call.leaves.values())
    steps = {
        "fwd": call.forward,
        "bwd": lambda: torch.autograd.grad(out, leaves, inputs.grad_out, retain_graph=True),
    }
    for which, step in steps.items():
        milliseconds = timer.median_ms(step, SECONDS)
        print(f"{workload.name:14} {which} {milliseconds:8.3f} ms {tflops(workload, which, milliseconds):.0f} TFLOP/s")


def line_of(workload: Workload, best: Configs) -> str:
    """The entry of the table: without scores it is the first of two, with them the second."""
    block_d, has_scores = place_of(workload)
    tiles = ", ".join(f"Config({', '.join(map(str, config))})" for config in best)
    return f"{block_d}: {'with' if has_scores else 'without'} mask or bias: Configs({tiles}),"


def main(names: list[str]) -> None:
    wanted = names or DEFAULT_WORKLOADS
    workloads = [workload for workload in WORKLOADS if workload.name in wanted and workload.device == "cuda"]
    unknown = set(wanted) - {workload.name for workload in workloads}
    if unknown:
        raise SystemExit(f"no such workload on CUDA: {', '.join(sorted(unknown))}")
    failures = compile_all(workloads)
    timer = CudaTimer()
    lines = []
    for workload in workloads:
        inputs = Inputs(workload)
        best = Configs(*(measure(kernel, inputs, failures[workload.name], timer) for kernel in Configs._fields))
        with table_with(inputs, **best._asdict()):
            measure_passes(inputs, timer)
        lines.append(line_of(workload, best))
    print(*lines, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
