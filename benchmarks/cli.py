"""Command line of `python -m benchmarks`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import torch
from tools.source_digest import ROOT

from benchmarks import report
from benchmarks.calls import FIRST, Impl
from benchmarks.impls import IMPLS
from benchmarks.runner import SECONDS_PER_ROW, run, wanted_passes
from benchmarks.series import SERIES, known_workloads
from benchmarks.workloads import WORKLOADS, Workload

PLOTS = ROOT / "docs" / "plots"
SECONDS_PER_SMALL_ROW = 0.02


@dataclass(frozen=True)
class Suite:
    """How much of the tables is measured."""

    turns: int  # those up to this one
    series: tuple[str, ...]
    seconds_per_row: float


SUITES = {
    "quick": Suite(FIRST, (), SECONDS_PER_ROW / 4),
    "full": Suite(max(impl.turn for impl in IMPLS), tuple(SERIES), SECONDS_PER_ROW),
}


def _names(known: Sequence[str]):
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}; accepted are {', '.join(known)}")
        return chosen

    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}; accepted is a number of seconds above 0")
    return seconds


def parser() -> argparse.ArgumentParser:
    impls = [impl.name for impl in IMPLS]
    out = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    out.add_argument(
        "--suite",
        choices=tuple(SUITES),
        help="quick: the main workloads and peers, a minute or two; full (default): every one, and the series",
    )
    out.add_argument("--series", type=_names(tuple(SERIES)), help="comma-separated; alone: nothing but these")
    out.add_argument("--workloads", type=_names(list(known_workloads())), help="comma-separated: nothing but these")
    out.add_argument("--impls", type=_names(impls), help="comma-separated, default: those of the suite")
    out.add_argument("--passes", type=_names(report.PASSES), default=list(report.PASSES), help="default: all")
    out.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    out.add_argument("--limit-s", type=_seconds, help="stop after so many seconds with what is measured by then")
    out.add_argument("--small", action="store_true", help="small shapes: shows that it runs, measures nothing of use")
    out.add_argument("--host-overhead", action="store_true", help="also measure the host cost of one small call")
    out.add_argument("--output", type=Path, help="default benchmarks/results/<gpu>.json; none with --small")
    out.add_argument("--plots", action="store_true", help="only draw docs/plots from the recorded results")
    out.add_argument("--pages", action="store_true", help="only rewrite README.md and docs/benchmarks.md from them")
    return out


def chosen_workloads(args: argparse.Namespace, device: str) -> list[Workload]:
    """What the arguments name, once each: the main workloads first."""
    named = args.workloads
    series = args.series
    if named is None and (series is None or args.suite):
        named = [workload.name for workload in WORKLOADS if workload.device == device]
    if series is None:
        series = SUITES[args.suite or "full"].series if args.workloads is None else ()
    of_series = [workload.name for name in series for workload in SERIES[name] if workload.device == device]
    known = known_workloads()
    chosen = [known[name].on(device) for name in dict.fromkeys([*(named or ()), *of_series])]
    return [workload.small() for workload in chosen] if args.small else chosen


def chosen_impls(args: argparse.Namespace) -> list[Impl]:
    if args.impls:
        return [impl for impl in IMPLS if impl.name in args.impls]
    return [impl for impl in IMPLS if impl.turn <= SUITES[args.suite or "full"].turns]


def _from_records(args: argparse.Namespace) -> None:
    if args.plots:
        from benchmarks.plots import plot

        for document in report.recorded_documents():
            for path in plot(document, PLOTS):
                print(f"written: {path} ({path.stat().st_size / 1024:.0f} KiB)")
    if args.pages:
        from benchmarks import pages

        pages.update()


def _measure(args: argparse.Namespace, device: str, output: Path | None) -> dict:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    workloads, impls = chosen_workloads(args, device), chosen_impls(args)
    pairs = sum(bool(wanted_passes(workload, impl, args.passes)) for workload in workloads for impl in impls)
    overhead = None
    if args.host_overhead:
        from benchmarks import host_overhead

        overhead = host_overhead.measure(device)
    before = (report.read_json(output) if output else None) or {}

    def save(results) -> dict:
        """Also on the way: what is measured survives a run that is stopped."""
        document = report.merged(before, report.as_json(results, device, workloads, overhead))
        if output is not None:
            report.write_json(document, output)
        return document

    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=pairs)
        results = run(
            workloads,
            impls,
            args.passes,
            limit_s=args.limit_s,
            seconds_per_row=SECONDS_PER_SMALL_ROW if args.small else SUITES[args.suite or "full"].seconds_per_row,
            progress=lambda text: bar.update(task, description=text, advance=1),
            finished=save,
        )
    return save(results)


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.plots or args.pages:
        _from_records(args)
        return 0
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch finds no CUDA device here; accepted is cpu", file=sys.stderr)
        return 2
    output = args.output
    if output is None and not args.small:
        output = report.RESULTS / f"{report.slug(report.machine_name(device))}.json"
    document = _measure(args, device, output)
    report.print_table(document)
    if output is not None:
        print(f"written: {output}")
    return 0 if document["rows"] else 1
