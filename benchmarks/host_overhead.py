"""Host cost of one small forward call without gradients, beside torch SDPA's, in the same run."""

from __future__ import annotations

import statistics
import time
from typing import Callable

import torch
import torch.nn.functional as F

CALLS = 4000
BLOCK = 100  # calls of one implementation in a row; the GPU catches up between blocks, outside the timed part
SHAPE = (1, 64, 2, 64)  # B, L, H, D: the GPU's work is shorter than the host's, so the queue never fills


def _time_block(call: Callable[[], object], samples: list[float]) -> None:
    clock = time.perf_counter
    for _ in range(BLOCK):
        start = clock()
        call()
        samples.append(clock() - start)


def measure(device: str) -> dict:
    """{"shape", "dtype", "calls", "microseconds": {impl: median}, "ratio"}.

    Blocks of calls alternate, so that both see the same machine.
    """
    from flash_dmattn import flash_dmattn_func

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    query, key, value = (torch.randn(SHAPE, device=device, dtype=dtype) for _ in range(3))
    # SDPA's layout is (B, H, L, D): it gets tensors of its own, so that it pays for no transposition.
    peers = [tensor.transpose(1, 2).contiguous() for tensor in (query, key, value)]
    calls = {
        device: lambda: flash_dmattn_func(query, key, value),
        "sdpa": lambda: F.scaled_dot_product_attention(*peers),
    }
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    samples: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for block in range(CALLS // BLOCK + 2):
            for name, call in calls.items():
                timed: list[float] = []
                _time_block(call, timed)
                synchronize()
                if block >= 2:  # the first two warm up
                    samples[name] += timed
    medians = {name: statistics.median(times) * 1e6 for name, times in samples.items()}
    return {
        "shape": list(SHAPE),
        "dtype": str(dtype).replace("torch.", ""),
        "calls": CALLS,
        "microseconds": medians,
        "ratio": medians[device] / medians["sdpa"],
    }
