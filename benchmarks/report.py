"""What a run leaves behind: the JSON file and the table. :mod:`benchmarks.pages` writes what people read from it."""

from __future__ import annotations

import datetime
import importlib
import json
import platform
import re
import sys
from pathlib import Path
from typing import Collection

import torch
from tools.source_digest import ROOT, source_digest

from benchmarks.impls import IMPLS, OURS
from benchmarks.runner import NO_TIME, Results
from benchmarks.series import growth, known_workloads
from benchmarks.workloads import Workload

RESULTS = ROOT / "benchmarks" / "results"
PASSES = ("select", "fwd", "bwd", "decode")


def machine_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} threads"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def slug(name: str) -> str:
    """The name of a machine's file: without the size and kind of the memory of a GPU."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r" \d+GB\b.*", "", name).lower()).strip("-")


def versions() -> dict:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
    for module in ("flash_dmattn", "flash_attn", "flash_attn.cute", "triton"):
        try:
            found[module] = str(importlib.import_module(module).__version__)
        except Exception:  # not installed, broken, or without a version: it then has none to report
            continue
    return found


def as_json(results: Results, device: str, workloads: list[Workload], host_overhead: dict | None) -> dict:
    document = {
        "gpu": machine_name(device),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "source_digest": source_digest(),
        "versions": versions(),
        "rows": [row.as_json() for row in results.rows],
        "shapes": {workload.name: workload.shape for workload in workloads},
        "remarks": results.remarks,
        "left_out": results.left_out,
    }
    if host_overhead is not None:
        document["host_overhead"] = host_overhead
    return document


def merged(before: dict, document: dict) -> dict:
    """`document` with what only `before` has, when both are of the same sources, machine and versions."""
    same = ("gpu", "source_digest", "versions")
    if any(before.get(key) != document[key] for key in same):
        return in_order(document)
    measured = {(row["workload"], row["impl"]) for row in document["rows"]}
    earlier = {(row["workload"], row["impl"]) for row in before["rows"]}
    # Nothing is lost where a pair had its rows before and no time now.
    new_notes = [
        note
        for note in document["left_out"]
        if note["reason"] != NO_TIME or (note["workload"], note["impl"]) not in earlier
    ]
    answered = measured | {(note["workload"], note["impl"]) for note in new_notes}
    rows = {(row["workload"], row["pass"], row["impl"]): row for row in before["rows"]}
    for note in new_notes:  # it cannot run now: what it did before is no longer so
        rows = {at: row for at, row in rows.items() if (at[0], at[2]) != (note["workload"], note["impl"])}
    rows.update({(row["workload"], row["pass"], row["impl"]): row for row in document["rows"]})

    def kept(key: str, new: list[dict]) -> list[dict]:
        return [note for note in before[key] if (note["workload"], note["impl"]) not in answered] + new

    return in_order(
        {
            **before,
            **document,
            "rows": list(rows.values()),
            "shapes": {**before["shapes"], **document["shapes"]},
            "remarks": kept("remarks", document["remarks"]),
            "left_out": kept("left_out", new_notes),
        }
    )


def in_order(document: dict) -> dict:
    """Rows and notes by workload, pass and implementation, in the order of the tables."""
    places = {name: place for place, name in enumerate(known_workloads())}
    impls = {impl.name: place for place, impl in enumerate(IMPLS)}

    def place(entry: dict) -> tuple[int, int, int]:
        which = PASSES.index(entry["pass"]) if "pass" in entry else 0
        return places.get(entry["workload"], len(places)), which, impls.get(entry["impl"], len(impls))

    parts = {key: sorted(document[key], key=place) for key in ("rows", "remarks", "left_out")}
    shapes = {name: document["shapes"][name] for name in sorted(document["shapes"], key=lambda n: places.get(n, -1))}
    return {**document, **parts, "shapes": shapes}


def write_json(document: dict, path: Path) -> None:
    """Replace the file at once: a run that is killed leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(document, indent=1) + "\n")
    beside.replace(path)


def read_json(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


def recorded_documents() -> list[dict]:
    """The committed results, those of GPUs first."""
    documents = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return sorted(documents, key=lambda document: "cuda" not in document["versions"])


def best_peers(rows: list[dict]) -> dict[tuple[str, str], dict]:
    """Fastest row of a peer for each (workload, pass)."""
    best: dict[tuple[str, str], dict] = {}
    for row in rows:
        at = (row["workload"], row["pass"])
        if row["impl"] not in OURS and (at not in best or row["ms"] < best[at]["ms"]):
            best[at] = row
    return best


def tflops_text(tflops: float | None) -> str:
    return "" if tflops is None else f"{tflops:.0f}" if tflops >= 100 else f"{tflops:.3g}"


def print_table(document: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    best = best_peers(document["rows"])
    table = Table(title=document["gpu"])
    for name, justify in (("workload", "left"), ("pass", "left"), ("impl", "left"), ("ms", "right")):
        table.add_column(name, justify=justify)
    for name in ("TFLOP/s", "peak MiB", "speed / best peer"):
        table.add_column(name, justify="right")
    previous = None
    for row in document["rows"]:
        at = (row["workload"], row["pass"])
        if previous is not None and previous != row["workload"]:
            table.add_section()
        previous = row["workload"]
        ratio = f"{best[at]['ms'] / row['ms']:.2f}" if at in best else ""
        table.add_row(
            *at,
            f"[bold]{row['impl']}[/bold]" if row["impl"] in OURS else row["impl"],
            f"{row['ms']:.3f}",
            tflops_text(row["tflops"]),
            "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
            ratio,
        )
    console.print(table)
    for line in (*notes(document["remarks"], "remark"), *notes(document["left_out"], "reason", "not run, ")):
        console.print(line, highlight=False, markup=False)
    for sentence in sentences(document):
        console.print(sentence, highlight=False, markup=False)


def notes(entries: list[dict], key: str, before: str = "") -> list[str]:
    """One line for each thing that is said, with all of whom it is said."""
    said: dict[str, list[str]] = {}
    for entry in entries:
        said.setdefault(entry[key], []).append(f"{entry['workload']} {entry['impl']}")
    return [f"{before}{text}: {', '.join(of)}" for text, of in said.items()]


def sentences(document: dict, impls: Collection[str] | None = None) -> list[str]:
    """What the rows say together, about `impls` or about all."""
    rows = [row for row in document["rows"] if impls is None or row["impl"] in impls]
    said = comparisons(rows)
    for entry in growth(rows):
        half, longest = entry["lengths"]
        said.append(
            f"{entry['series']} {entry['pass']} with {entry['impl']}: "
            f"T({longest // 1024}K) / T({half // 1024}K) = {entry['ratio']:.2f}."
        )
    if "host_overhead" in document:
        said.append(overhead_sentence(document["host_overhead"]))
    return said


def comparisons(rows: list[dict]) -> list[str]:
    """How the TFLOP/s of workloads compare with those of the workload that each is `beside`, in sentences."""
    known = known_workloads()
    rates = {(row["workload"], row["pass"], row["impl"]): row["tflops"] for row in rows}
    said = []
    for (name, which, impl), rate in rates.items():
        beside = known[name].beside if name in known else None
        if beside and (beside, which, impl) in rates:
            share = rate / rates[beside, which, impl]
            said.append(f"{name} {which} with {impl}: {share:.3f} of the TFLOP/s of {beside}.")
    return said


def overhead_sentence(overhead: dict) -> str:
    batch, length, heads, head_dim = overhead["shape"]
    on_cpu = "cpu" in overhead["microseconds"]
    what = "Time of one small forward call, computation included" if on_cpu else "Host time of one small forward call"
    sentence = (
        f"{what} (B{batch} L{length} H{heads} D{head_dim}, no gradients, median of {overhead['calls']}), "
        f"in microseconds: {_overhead_times(overhead)}"
    )
    if "recorded" in overhead:
        sentence += f"; with gradients recorded: {_overhead_times(overhead['recorded'])}"
    return sentence + "."


def _overhead_times(measured: dict) -> str:
    times = ", ".join(f"{name} {value:.1f}" for name, value in measured["microseconds"].items())
    return f"{times} ({measured['ratio']:.2f} times SDPA's)"
