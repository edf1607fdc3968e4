"""Median time of one call, and the memory it takes."""

from __future__ import annotations

import math
import statistics
import time
from functools import lru_cache
from typing import Callable

import torch

MIN_REPEATS = 3
MAX_REPEATS = 50

# Written between two timed calls. Larger than any L2, so that each call starts cold, and long enough (0.3 ms) for the
# host to enqueue the next call behind it, so that launch work does not count as GPU time.
FLUSH_BYTES = 1 << 30


def _repeats(once_s: float, seconds: float) -> int:
    return max(MIN_REPEATS, min(MAX_REPEATS, int(seconds / max(once_s, 1e-6))))


class CudaTimer:
    """CUDA events around each call, with a cold L2."""

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")

    def median_ms(self, call: Callable[[], object], seconds: float) -> float:
        call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        self._events(call, 1)
        samples = self._events(call, _repeats(time.perf_counter() - start, seconds))
        return statistics.median(samples)

    def _events(self, call: Callable[[], object], repeats: int) -> list[float]:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for begin, end in pairs:
            self._flush.zero_()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in pairs]

    def captured(self, call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """`call` as the replay of a CUDA graph. What it answers is NaN until the first replay."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # lazy work of a first call cannot be captured
            call()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call()
        out.fill_(math.nan)

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay

    def peak_mib(self, call: Callable[[], object]) -> float | None:
        """Most memory in use while `call` runs, above what was in use before it."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


class CpuTimer:
    """Wall-clock time around each call."""

    def median_ms(self, call: Callable[[], object], seconds: float) -> float:
        call()
        once = self._once_s(call)
        return statistics.median(self._once_s(call) for _ in range(_repeats(once, seconds))) * 1e3

    def captured(self, call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """`call` itself: there are no graphs on a CPU."""
        return call

    @staticmethod
    def _once_s(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def peak_mib(self, call: Callable[[], object]) -> float | None:
        """None: torch keeps no account of memory on a CPU."""
        return None


@lru_cache(maxsize=None)
def timer_for(device: str) -> CudaTimer | CpuTimer:
    return CudaTimer() if device == "cuda" else CpuTimer()
