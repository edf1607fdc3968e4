"""Runs implementations over workloads: check first, then time."""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass, field
from typing import Callable, Iterable, Iterator

import torch

from benchmarks.calls import THIRD, Call, Impl, explain_failure
from benchmarks.check import Reference
from benchmarks.limits import time_limit
from benchmarks.timing import timer_for
from benchmarks.workloads import Inputs, Workload

SECONDS_PER_ROW = 0.4  # of timed calls, for one workload, pass and implementation
COMPILE_SECONDS = 75.0  # that an implementation which compiles may take for one workload, checks and all
NO_TIME = "no time left for it (--limit-s)"
TOO_SLOW = f"took longer than {COMPILE_SECONDS:.0f} s to compile and run"


@dataclass(frozen=True)
class Row:
    """One measurement.

    `peak_mib` is the memory above query, key, value and bias: the mask that the call is given is in it, and for "bwd"
    what forward keeps.
    """

    workload: str
    which: str
    impl: str
    ms: float
    tflops: float | None
    peak_mib: float | None

    def as_json(self) -> dict:
        row = asdict(self)
        return {"workload": row.pop("workload"), "pass": row.pop("which"), **row}


@dataclass
class Results:
    rows: list[Row] = field(default_factory=list)
    left_out: list[dict] = field(default_factory=list)  # {"workload", "impl", "reason"}
    remarks: list[dict] = field(default_factory=list)  # {"workload", "impl", "remark"}

    def leave_out(self, workload: Workload, impl: Impl, reason: str) -> None:
        self.left_out.append({"workload": workload.name, "impl": impl.name, "reason": reason})


def tflops(workload: Workload, which: str, ms: float) -> float | None:
    flops = workload.flops(which)
    return None if flops is None else flops / (ms * 1e-3) / 1e12


def _backward(call: Call, out: torch.Tensor, grad_out: torch.Tensor) -> dict[str, torch.Tensor]:
    grads = torch.autograd.grad(out, tuple(call.leaves.values()), grad_out, retain_graph=True)
    return dict(zip(call.leaves, grads))


def _check(call: Call, which: str, inputs: Inputs, reference: Reference) -> None:
    """Raises ArithmeticError when the call's answer is wrong."""
    if which == "bwd":
        out = call.forward()
        faults = [reference.fault("out", out.detach())]
        faults += [reference.fault(name, grad) for name, grad in _backward(call, out, inputs.grad_out).items()]
    else:
        with torch.no_grad():
            faults = [reference.fault("out", call.forward())]
    wrong = [fault for fault in faults if fault]
    if wrong:
        raise ArithmeticError("wrong, so not timed: " + "; ".join(wrong))


def _measure(call: Call, which: str, inputs: Inputs, timer, seconds: float) -> tuple[float, float | None]:
    """(median ms, peak MiB) of one pass."""
    if which == "bwd":
        peak = timer.peak_mib(lambda: _backward(call, call.forward(), inputs.grad_out))
        out = call.forward()
        return timer.median_ms(lambda: _backward(call, out, inputs.grad_out), seconds), peak
    with torch.no_grad():
        return timer.median_ms(call.forward, seconds), timer.peak_mib(call.forward)


def _measure_decoding(call: Call, reference: Reference, timer, seconds: float) -> tuple[float, float | None]:
    """(median ms, peak MiB) of a replayed graph, whose own answer is checked."""
    with torch.no_grad():
        replay = timer.captured(call.forward)
        fault = reference.fault("out", replay())
        if fault:
            raise ArithmeticError(f"wrong, so not timed: {fault}")
        return timer.median_ms(replay, seconds), timer.peak_mib(call.forward)


def _run_impl(
    workload: Workload,
    impl: Impl,
    passes: list[str],
    inputs: Inputs,
    reference: Reference | None,
    timer,
    seconds: float,
) -> Iterator[Row]:
    """Each pass as soon as it is measured: where a later one fails, the earlier ones stand."""
    call = impl.build(inputs)
    for which in passes:
        if which == "decode":
            ms, peak = _measure_decoding(call, reference, timer, seconds)
        else:
            if which != "select":
                _check(call, which, inputs, reference)
            ms, peak = _measure(call, which, inputs, timer, seconds)
        peak = None if peak is None else peak + call.held / 2**20
        yield Row(workload.name, which, impl.name, ms, tflops(workload, which, ms), peak)


def wanted_passes(workload: Workload, impl: Impl, passes: Iterable[str]) -> list[str]:
    """Those of `passes` that `impl` has of the workload, if it is one for it at all."""
    if not impl.is_for(workload):
        return []
    return [which for which in workload.passes if which in passes and which in impl.passes]


def run(
    workloads: Iterable[Workload],
    impls: Iterable[Impl],
    passes: Iterable[str],
    *,
    limit_s: float | None = None,
    seconds_per_row: float = SECONDS_PER_ROW,
    progress: Callable[[str], None] = lambda _: None,
    finished: Callable[[Results], None] = lambda _: None,
) -> Results:
    """Measure every pair that can run: of all workloads first those whose turn is first, last those that compile.

    After `limit_s` seconds the pair that runs is stopped, and what is left says that there was no time for it.
    `progress` hears "workload impl" before each pair, `finished` what there is after each that was measured.
    """
    workloads, impls, passes = list(workloads), list(impls), list(passes)
    results = Results()
    end = None if limit_s is None else time.monotonic() + limit_s
    for turn in sorted({impl.turn for impl in impls}):
        # Where the time may end in the middle, what masks cost is the question.
        for workload in sorted(workloads, key=lambda workload: turn >= THIRD and not workload.mask):
            candidates = []
            for impl in impls:
                wanted = wanted_passes(workload, impl, passes)
                if impl.turn != turn or not wanted:
                    continue
                reason = impl.reason(workload)
                if reason:
                    progress(f"{workload.name} {impl.name}")
                    results.leave_out(workload, impl, reason)
                else:
                    candidates.append((impl, wanted))
            if candidates:
                _run_workload(workload, candidates, results, end, seconds_per_row, progress, finished)
    return results


def _left(end: float | None) -> float | None:
    return None if end is None else end - time.monotonic()


def _run_workload(workload, candidates, results: Results, end, seconds: float, progress, finished) -> None:
    timer = timer_for(workload.device)
    made: list = []  # inputs and reference

    def make() -> None:
        with time_limit(_left(end), NO_TIME):
            inputs = Inputs(workload)
            wanted = {which for _, passes in candidates for which in passes}
            made[:] = inputs, Reference(inputs, "bwd" in wanted) if wanted != {"select"} else None

    def measure(impl: Impl, wanted: list[str]) -> None:
        left = _left(end)
        bounded = impl.turn >= THIRD and (left is None or left > COMPILE_SECONDS)
        with time_limit(COMPILE_SECONDS if bounded else left, TOO_SLOW if bounded else NO_TIME):
            for row in _run_impl(workload, impl, wanted, *made, timer, seconds):
                results.rows.append(row)

    unmade = explain_failure(make) if end is None or _left(end) > 0 else NO_TIME
    for impl, wanted in candidates:
        progress(f"{workload.name} {impl.name}")
        before = len(results.rows)
        failure = unmade or (NO_TIME if end is not None and _left(end) <= 0 else None)
        failure = failure or explain_failure(lambda: measure(impl, wanted))  # noqa: B023
        if failure:
            results.leave_out(workload, impl, failure)
            _free_cached(workload.device)
        if len(results.rows) == before:
            continue
        remark = impl.remark(workload)
        if remark:
            results.remarks.append({"workload": workload.name, "impl": impl.name, "remark": remark})
        finished(results)
    made.clear()
    _free_cached(workload.device)


def _free_cached(device: str) -> None:
    """What one workload or a failure leaves cached, tensors of other sizes cannot use."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
