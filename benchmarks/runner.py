"""Runs implementations over workloads: check first, then time."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Callable, Iterable

import torch

from benchmarks.check import Reference
from benchmarks.impls import Call, Impl, explain_failure
from benchmarks.timing import timer_for
from benchmarks.workloads import Inputs, Workload

SECONDS_PER_ROW = 0.4  # of timed calls, for one workload, pass and implementation
SECONDS_PER_ROW_QUICK = 0.02


@dataclass(frozen=True)
class Row:
    """One measurement. `peak_mib` is the memory above the inputs; for "bwd" with what forward keeps for it."""

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


def _check(call: Call, inputs: Inputs, reference: Reference, passes: Iterable[str]) -> None:
    """Raises ArithmeticError when the call's answer is wrong."""
    with torch.no_grad():
        faults = [reference.fault("out", call.forward())]
    if "bwd" in passes:
        out = call.forward()
        faults.append(reference.fault("out", out.detach()))
        faults += [reference.fault(name, grad) for name, grad in _backward(call, out, inputs.grad_out).items()]
    wrong = [fault for fault in faults if fault]
    if wrong:
        raise ArithmeticError("wrong, so not timed: " + "; ".join(wrong))


def _measure(call: Call, which: str, inputs: Inputs, timer, seconds: float) -> tuple[float, float | None]:
    """(median ms, peak MiB) of one pass."""
    if which != "bwd":
        with torch.no_grad():
            return timer.median_ms(call.forward, seconds), timer.peak_mib(call.forward)
    peak = timer.peak_mib(lambda: _backward(call, call.forward(), inputs.grad_out))
    out = call.forward()
    return timer.median_ms(lambda: _backward(call, out, inputs.grad_out), seconds), peak


def _run_impl(
    workload: Workload, impl: Impl, passes: list[str], inputs: Inputs, reference: Reference, timer, seconds: float
) -> list[Row]:
    call = impl.build(inputs)
    if passes != ["select"]:
        _check(call, inputs, reference, passes)
    rows = []
    for which in passes:
        ms, peak = _measure(call, which, inputs, timer, seconds)
        rows.append(Row(workload.name, which, impl.name, ms, tflops(workload, which, ms), peak))
    return rows


def run(
    workloads: Iterable[Workload],
    impls: Iterable[Impl],
    passes: Iterable[str],
    *,
    budget_s: float,
    quick: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    finished: Callable[[Results], None] = lambda _: None,
) -> Results:
    """Measure every pair that can run; first those that start at once, then those that compile.

    Each workload gets an equal share of the time that is left; what does not fit in it is left out, and says so.
    `progress` hears "workload impl" before each pair, `finished` what there is after each workload.
    """
    workloads, impls, passes = list(workloads), list(impls), list(passes)
    results = Results()
    end = time.monotonic() + budget_s
    rounds = [(workload, compiles) for compiles in (False, True) for workload in workloads]
    for index, (workload, compiles) in enumerate(rounds):
        share_ends = time.monotonic() + (end - time.monotonic()) / (len(rounds) - index)
        candidates = []
        for impl in impls:
            wanted = [which for which in workload.passes if which in passes and which in impl.passes]
            if not impl.is_for(workload) or not wanted or impl.compiles != compiles:
                continue
            reason = impl.reason(workload)
            if reason:
                results.leave_out(workload, impl, reason)
            else:
                candidates.append((impl, wanted))
        if candidates:
            _run_workload(workload, candidates, results, share_ends, quick, progress)
            finished(results)
    return results


def _run_workload(workload, candidates, results: Results, share_ends: float, quick: bool, progress) -> None:
    inputs = Inputs(workload)
    reference = Reference(inputs, any("bwd" in wanted for _, wanted in candidates))
    timer = timer_for(workload.device)
    for impl, wanted in candidates:
        progress(f"{workload.name} {impl.name}")
        if time.monotonic() > share_ends:
            results.leave_out(workload, impl, "no time left for it (--budget-seconds)")
            continue
        seconds = SECONDS_PER_ROW_QUICK if quick else SECONDS_PER_ROW
        rows: list[Row] = []
        failure = explain_failure(
            lambda: rows.extend(_run_impl(workload, impl, wanted, inputs, reference, timer, seconds))  # noqa: B023
        )
        if failure:
            results.leave_out(workload, impl, failure)
            continue
        results.rows += rows
        remark = impl.remark(workload)
        if remark:
            results.remarks.append({"workload": workload.name, "impl": impl.name, "remark": remark})
