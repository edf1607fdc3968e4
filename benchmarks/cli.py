"""Command line of `python -m benchmarks`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Sequence

import torch
from tools.source_digest import ROOT

from benchmarks import report
from benchmarks.impls import IMPLS
from benchmarks.runner import run

PASSES = ("select", "fwd", "bwd")


def _names(known: Sequence[str]):
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}; accepted are {', '.join(known)}")
        return chosen

    return parse


def parser() -> argparse.ArgumentParser:
    workloads = list(report.known_workloads())
    impls = [impl.name for impl in IMPLS]
    out = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    out.add_argument("--workloads", type=_names(workloads), help="comma-separated, default: those of the device")
    out.add_argument("--impls", type=_names(impls), help="comma-separated, default: all")
    out.add_argument("--passes", type=_names(PASSES), default=list(PASSES), help="comma-separated, default: all")
    out.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    out.add_argument("--quick", action="store_true", help="small shapes: shows that it runs, measures nothing of use")
    out.add_argument("--budget-seconds", type=float, default=120.0, help="what does not fit is left out and listed")
    out.add_argument("--host-overhead", action="store_true", help="also measure the host cost of one small call")
    out.add_argument("--output", type=Path, help="default benchmarks/results/<gpu>.json; none with --quick")
    out.add_argument(
        "--plots", type=Path, nargs="?", const=ROOT / "docs", help="also draw PNGs into this folder (docs)"
    )
    out.add_argument(
        "--readme", action="store_true", help="only rewrite the README's section from the recorded results"
    )
    return out


def _chosen_workloads(args: argparse.Namespace, device: str) -> list:
    known = report.known_workloads()
    names = args.workloads or [name for name, workload in known.items() if workload.device == device]
    chosen = [known[name].on(device) for name in names]
    return [workload.quick() for workload in chosen] if args.quick else chosen


def main(argv: Sequence[str] | None = None) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    args = parser().parse_args(argv)
    if args.readme:
        report.update_readme()
        return 0
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch finds no CUDA device here; accepted is cpu", file=sys.stderr)
        return 2
    workloads = _chosen_workloads(args, device)
    impls = [impl for impl in IMPLS if not args.impls or impl.name in args.impls]
    pairs = sum(impl.is_for(workload) for workload in workloads for impl in impls)
    overhead = None
    if args.host_overhead:
        from benchmarks import host_overhead

        overhead = host_overhead.measure(device)
    output = args.output
    if output is None and not args.quick:
        output = report.RESULTS / f"{report.slug(report.machine_name(device))}.json"

    def save(results) -> dict:
        """Also on the way: what is measured survives a run that is stopped."""
        document = report.as_json(results, device, workloads, overhead)
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
            budget_s=args.budget_seconds,
            quick=args.quick,
            progress=lambda text: bar.update(task, description=text, advance=1),
            finished=save,
        )
        bar.update(task, completed=pairs)
    document = save(results)
    report.print_table(document)
    if output is not None:
        print(f"written: {output}")
    if args.plots:
        from benchmarks.plots import plot

        for path in plot(document, args.plots, report.slug(document["gpu"])):
            print(f"written: {path}")
    return 0 if results.rows else 1
