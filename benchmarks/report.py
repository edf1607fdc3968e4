"""What a run leaves behind: the JSON file, the table, and the README's section, all from the same rows."""

from __future__ import annotations

import datetime
import json
import platform
import re
from pathlib import Path

import torch
from tools.source_digest import ROOT, source_digest

from benchmarks.impls import OURS
from benchmarks.runner import Results
from benchmarks.workloads import WORKLOADS, Workload

RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"


def machine_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} threads"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions() -> dict:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
    for module in ("flash_dmattn", "flash_attn", "triton"):
        try:
            found[module] = str(__import__(module).__version__)
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


def write_json(document: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def best_peers(rows: list[dict]) -> dict[tuple[str, str], dict]:
    """Fastest row of a peer for each (workload, pass)."""
    best: dict[tuple[str, str], dict] = {}
    for row in rows:
        at = (row["workload"], row["pass"])
        if row["impl"] not in OURS and (at not in best or row["ms"] < best[at]["ms"]):
            best[at] = row
    return best


def print_table(document: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
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
            "" if row["tflops"] is None else f"{row['tflops']:.1f}" if row["tflops"] >= 1 else f"{row['tflops']:.3f}",
            "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
            ratio,
        )
    console.print(table)
    for note in document["remarks"]:
        console.print(f"{note['workload']} {note['impl']}: {note['remark']}", highlight=False, markup=False)
    for note in document["left_out"]:
        console.print(f"{note['workload']} {note['impl']} not run: {note['reason']}", highlight=False, markup=False)
    for sentence in comparisons(document["rows"]):
        console.print(sentence, highlight=False, markup=False)
    overhead = document.get("host_overhead")
    if overhead:
        console.print(_overhead_sentence(overhead), highlight=False, markup=False)


def comparisons(rows: list[dict]) -> list[str]:
    """How the TFLOP/s of workloads compare with those of the workload that each is `beside`, in sentences."""
    known = known_workloads()
    rates = {(row["workload"], row["pass"], row["impl"]): row["tflops"] for row in rows}
    sentences = []
    for (name, which, impl), rate in rates.items():
        beside = known[name].beside if name in known else None
        if beside and (beside, which, impl) in rates:
            share = rate / rates[beside, which, impl]
            sentences.append(f"{name} {which} with {impl}: {share:.3f} of the TFLOP/s of {beside}.")
    return sentences


def _overhead_sentence(overhead: dict) -> str:
    batch, length, heads, head_dim = overhead["shape"]
    what = (
        "Time of one small forward call, computation included"
        if "cpu" in overhead["microseconds"]
        else ("Host time of one small forward call")
    )
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


def _readme_table(document: dict) -> list[str]:
    best = best_peers(document["rows"])
    remarks = {(note["workload"], note["impl"]): note["remark"] for note in document["remarks"]}
    lines = [
        "| workload | pass | this project, ms | TFLOP/s | best peer, ms | speed / best peer | other peers, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    losses, notes = [], []
    for row in document["rows"]:
        if row["impl"] not in OURS:
            continue
        at = (row["workload"], row["pass"])
        tflops = "" if row["tflops"] is None else f"{row['tflops']:.3g}"
        peer, ratio = "none ran", ""
        if at in best:
            factor = best[at]["ms"] / row["ms"]
            peer, ratio = f"{best[at]['impl']} {best[at]['ms']:.3f}", f"{factor:.2f}"
            if factor < 1:
                by = "" if row["impl"] in ("cuda", "cpu") else f" with {row['impl']}"
                losses.append(f"{at[0]} {at[1]}{by} ({factor:.2f})")
            remark = remarks.get((at[0], best[at]["impl"]))
            if remark and f"{at[0]}, {best[at]['impl']}: {remark}." not in notes:
                notes.append(f"{at[0]}, {best[at]['impl']}: {remark}.")
        others = ", ".join(
            f"{other['impl']} {other['ms']:.3f}"
            for other in document["rows"]
            if (other["workload"], other["pass"]) == at and other["impl"] not in OURS and other is not best.get(at)
        )
        own = f"{row['ms']:.3f} ({row['impl']})"
        lines.append(f"| {at[0]} | {at[1]} | {own} | {tflops} | {peer} | {ratio} | {others} |")
    selects = [row for row in document["rows"] if row["pass"] == "select" and row["impl"] not in OURS]
    lines.append("")
    for row in selects:
        lines.append(
            f"Building the mask of {row['workload']} takes {row['ms']:.2f} ms with {row['impl']}, beside this."
        )
    if losses:
        lines.append(f"Slower than the best peer in: {', '.join(losses)}.")
    lines += comparisons([row for row in document["rows"] if row["impl"] in OURS])
    missing = [note for note in document["left_out"] if note["impl"] in OURS]
    lines += [f"Not measured: {note['workload']} {note['impl']}: {note['reason']}." for note in missing]
    return lines + notes


def readme_section(documents: list[dict]) -> str:
    """The text between the README's markers."""
    if not any(document["versions"].get("cuda") for document in documents):
        head = ["No GPU results are recorded yet: `python -m benchmarks` on a machine with a GPU records them."]
    else:
        head = []
    for document in documents:
        used = {row["workload"] for row in document["rows"]}
        head += ["", f"**{document['gpu']}**, {document['date'][:10]}, torch {document['versions']['torch']}:", ""]
        head += _readme_table(document)
        head += ["", *(f"- {name}: {shape}" for name, shape in document["shapes"].items() if name in used)]
        if "host_overhead" in document:
            head += ["", _overhead_sentence(document["host_overhead"])]
    return "\n".join(head).strip() + "\n"


def recorded_documents() -> list[dict]:
    """The committed results, those of GPUs first."""
    documents = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return sorted(documents, key=lambda document: "cuda" not in document["versions"])


def with_section(readme: str, section: str) -> str:
    """The README with the text between its markers replaced."""
    before, rest = readme.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{section}{END}{rest.split(END, 1)[1]}"


def update_readme() -> None:
    README.write_text(with_section(README.read_text(), readme_section(recorded_documents())))


def known_workloads() -> dict[str, Workload]:
    return {workload.name: workload for workload in WORKLOADS}
