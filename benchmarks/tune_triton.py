"""Measures tile sizes of the Triton kernels; the winners go into flash_dmattn/triton_kernels/configs.py by hand.

python -m benchmarks.tune_triton [WORKLOAD ...]
"""

from __future__ import annotations

import itertools
import sys

import torch

from benchmarks.impls import FdmaTriton, explain_failure
from benchmarks.runner import tflops
from benchmarks.timing import CudaTimer
from benchmarks.workloads import WORKLOADS, Inputs

SECONDS = 0.2
WARPS_AND_STAGES = ((4, 1), (4, 2), (4, 3), (8, 1), (8, 2), (8, 3))
TILES = {  # (rows, keys)
    "forward": ((64, 64), (128, 32), (128, 64), (128, 128)),
    "key_gradient": ((32, 64), (32, 128), (64, 64), (64, 128)),
    "query_gradient": ((64, 32), (64, 64), (128, 32), (128, 64)),
}
NEEDS = {"key_gradient": ("key", "value"), "query_gradient": ("query", "bias")}


def measure(name: str, kernel: str, inputs: Inputs, timer: CudaTimer) -> None:
    """Print the time of each candidate for one kernel, best first."""
    from flash_dmattn.triton_kernels import configs

    workload = inputs.workload
    call = FdmaTriton().build(inputs)
    leaves = [leaf for leaf_name, leaf in call.leaves.items() if leaf_name in NEEDS.get(kernel, ())]
    table = configs.find_table(inputs.query.dtype, inputs.query.device)
    has_scores = inputs.mask is not None or inputs.bias is not None
    block_d = 1 << (workload.head_dim - 1).bit_length()
    before = table[block_d]

    def step() -> object:
        if kernel == "forward":
            with torch.no_grad():
                return call.forward()
        return torch.autograd.grad(out, leaves, inputs.grad_out, retain_graph=True)

    out = call.forward()
    results = []
    try:
        for (block_m, block_n), (warps, stages) in itertools.product(TILES[kernel], WARPS_AND_STAGES):
            config = configs.Config(block_m, block_n, warps, stages)
            pair = list(before)
            pair[has_scores] = before[has_scores]._replace(**{kernel: config})
            table[block_d] = tuple(pair)
            failure = explain_failure(step)
            results.append((float("inf") if failure else timer.median_ms(step, SECONDS), config, failure))
    finally:
        table[block_d] = before
    for milliseconds, config, failure in sorted(results, key=lambda result: result[0]):
        mark = "  <- table" if config == getattr(before[has_scores], kernel) else ""
        print(f"{name:14} {kernel:15} {tuple(config)!s:18} {failure or f'{milliseconds:8.3f} ms'}{mark}", flush=True)


def measure_passes(inputs: Inputs, timer: CudaTimer) -> None:
    """Print the time of both passes with the table as it is."""
    workload = inputs.workload
    call = FdmaTriton().build(inputs)
    out = call.forward()
    leaves = list(call.leaves.values())
    steps = {
        "fwd": call.forward,
        "bwd": lambda: torch.autograd.grad(out, leaves, inputs.grad_out, retain_graph=True),
    }
    for which, step in steps.items():
        milliseconds = timer.median_ms(step, SECONDS)
        print(f"{workload.name:14} {which} {milliseconds:8.3f} ms {tflops(workload, which, milliseconds):.0f} TFLOP/s")


def main(names: list[str]) -> None:
    timer = CudaTimer()
    for workload in WORKLOADS:
        if workload.device == "cuda" and workload.name in (names or [workload.name]):
            inputs = Inputs(workload)
            for kernel in TILES:
                measure(workload.name, kernel, inputs, timer)
            measure_passes(inputs, timer)


if __name__ == "__main__":
    main(sys.argv[1:])
