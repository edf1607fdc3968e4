"""Host cost of one small eager forward call beside torch SDPA's, in the same run: without gradients, and recorded.

"Recorded" is the same call on tensors that require a gradient, as each layer makes it in training: autograd saves what
backward reads. Backward itself is not in it; dropping the graph is, for both.
"""

from __future__ import annotations

import statistics
import time
from typing import Callable

import torch
import torch.nn.functional as F

CALLS = 4000
BLOCK = 100  # calls of one implementation in a row; the GPU catches up between blocks, outside the timed part
WARM_UP = 2  # blocks
SHAPE = (1, 64, 2, 64)  # B, L, H, D: the GPU's work is shorter than the host's, so the queue never fills


def _time_block(call: Callable[[], object], samples: list[float]) -> None:
    clock = time.perf_counter
    for _ in range(BLOCK):
        start = clock()
        call()
        samples.append(clock() - start)


def _compare(device: str, recorded: bool) -> dict:
    """{"microseconds": {impl: median}, "ratio"}. Blocks of calls alternate, so that both see the same machine."""
    from flash_dmattn import flash_dmattn_func

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    query, key, value = (torch.randn(SHAPE, device=device, dtype=dtype).requires_grad_(recorded) for _ in range(3))
    # SDPA's layout is (B, H, L, D): it gets tensors of its own, so that it pays for no transposition.
    peers = [tensor.detach().transpose(1, 2).contiguous().requires_grad_(recorded) for tensor in (query, key, value)]
    calls = {
        device: lambda: flash_dmattn_func(query, key, value),
        "sdpa": lambda: F.scaled_dot_product_attention(*peers),
    }
    for name, call in calls.items():
        with torch.set_grad_enabled(recorded):
            if (call().grad_fn is not None) != recorded:
                raise AssertionError(f"{name} {'records no' if recorded else 'records a'} graph")
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    samples: dict[str, list[float]] = {name: [] for name in calls}
    with torch.set_grad_enabled(recorded):
        for block in range(CALLS // BLOCK + WARM_UP):
            for name, call in calls.items():
                timed: list[float] = []
                _time_block(call, timed)
                synchronize()
                if block >= WARM_UP:
                    samples[name] += timed
    medians = {name: statistics.median(times) * 1e6 for name, times in samples.items()}
    return {"microseconds": medians, "ratio": medians[device] / medians["sdpa"]}


def measure(device: str) -> dict:
    """{"shape", "dtype", "calls", "microseconds": {impl: median}, "ratio", "recorded": {"microseconds", "ratio"}}."""
    return {
        "shape": list(SHAPE),
        "dtype": "bfloat16" if device == "cuda" else "float32",
        "calls": CALLS,
        **_compare(device, recorded=False),
        "recorded": _compare(device, recorded=True),
    }
