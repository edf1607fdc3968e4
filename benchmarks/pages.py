"""The generated parts of README.md and docs/benchmarks.md, from the recorded results."""

from __future__ import annotations

from pathlib import Path

from tools.source_digest import ROOT, source_digest

from benchmarks import plots, report
from benchmarks.impls import OURS
from benchmarks.series import position

README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
NO_GPU = "No GPU results are recorded yet: `python -m benchmarks` on a machine with a GPU records them."
MEASURED = ("fwd", "bwd", "select", "decode")


def best_of_ours(rows: list[dict]) -> dict[tuple[str, str], dict]:
    """Our fastest row for each (workload, pass)."""
    best: dict[tuple[str, str], dict] = {}
    for row in rows:
        at = (row["workload"], row["pass"])
        if row["impl"] in OURS and (at not in best or row["ms"] < best[at]["ms"]):
            best[at] = row
    return best


def _measured(document: dict) -> str:
    """When, with what, and on which sources: a reader has to know whether they are those that lie beside the page."""
    digest = document["source_digest"]
    sources = "these sources" if digest == source_digest() else f"sources {digest[:8]}, which have changed since"
    return f"{document['date'][:10]}, torch {document['versions']['torch']}, {sources}"


def _head(document: dict) -> list[str]:
    return ["", f"**{document['gpu']}**, {_measured(document)}:", ""]


def _heads_up(documents: list[dict]) -> list[str]:
    return [] if any(document["versions"].get("cuda") for document in documents) else [NO_GPU]


def losses(rows: list[dict]) -> list[tuple[str, float]]:
    """("workload pass", speed) where a peer is faster than all of ours, the worst first."""
    peers = report.best_peers(rows)
    speeds = [
        (f"{row['workload']} {row['pass']}", peers[at]["ms"] / row["ms"])
        for at, row in best_of_ours(rows).items()
        if at in peers
    ]
    return sorted(((what, speed) for what, speed in speeds if speed < 1), key=lambda loss: loss[1])


def losses_sentence(rows: list[dict]) -> str | None:
    lost = ", ".join(f"{what} ({speed:.2f})" for what, speed in losses(rows))
    return f"Slower than the best peer in: {lost}." if lost else None


def readme_section(documents: list[dict]) -> str:
    """The text between the README's markers: our best and the best peer of each workload; no series."""
    lines = _heads_up(documents)
    for document in documents:
        rows = [row for row in document["rows"] if position(row["workload"]) is None]
        peers = report.best_peers(rows)
        does_less = {(note["workload"], note["impl"]) for note in document["remarks"]}
        lines += [*_head(document), "| workload | pass | this project, ms | best peer, ms | speed / best peer |"]
        lines.append("|---|---|---|---|---|")
        for at, row in best_of_ours(rows).items():
            peer, speed = "none ran", ""
            if at in peers:
                star = "\\*" if (at[0], peers[at]["impl"]) in does_less else ""
                peer, speed = f"{peers[at]['ms']:.3f} ({peers[at]['impl']}{star})", f"{peers[at]['ms'] / row['ms']:.2f}"
            lines.append(f"| {at[0]} | {at[1]} | {row['ms']:.3f} ({row['impl']}) | {peer} | {speed} |")
        lost = losses_sentence(document["rows"])
        lines += ["", *(f"- {sentence}" for sentence in (*([lost] if lost else []), *report.sentences(document, OURS)))]
    return "\n".join(lines).strip() + "\n"


def _cells(rows: list[dict]) -> str:
    """The times of one implementation and workload, as the cells of a row."""
    by_pass = {row["pass"]: row for row in rows}
    cells = []
    for which in MEASURED[:2]:
        row = by_pass.get(which)
        cells += ["", ""] if row is None else [f"{row['ms']:.3f}", report.tflops_text(row["tflops"])]
    cells.append(", ".join(f"{by_pass[which]['ms']:.3f}" for which in MEASURED[2:] if which in by_pass))
    peaks = [by_pass[which]["peak_mib"] for which in MEASURED if which in by_pass]
    cells.append(" / ".join(f"{peak:.0f}" for peak in peaks if peak is not None))
    return " | ".join(cells)


def _full_table(document: dict) -> list[str]:
    lines = [
        "| workload | who | fwd ms | TFLOP/s | bwd ms | TFLOP/s | select or decode ms | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in document["rows"]:
        groups.setdefault((row["workload"], row["impl"]), []).append(row)
    for (workload, impl), rows in groups.items():
        who = f"**{impl}**" if impl in OURS else impl
        lines.append(f"| {workload} | {who} | {_cells(rows)} |")
    return lines


def _slower(document: dict) -> list[str]:
    lost = losses(document["rows"])
    if not lost:
        return ["No peer that ran is faster than this project on any row.", ""]
    lines = ["Where a peer is faster, as our speed over the peer's:", ""]
    lines += [f"- {what}: {speed:.2f}" for what, speed in lost]
    return [*lines, ""]


def page_section(documents: list[dict]) -> str:
    """The text between the markers of docs/benchmarks.md: everything that is recorded."""
    lines = _heads_up(documents)
    for document in documents:
        used = {row["workload"] for row in document["rows"]}
        lines += [
            "",
            f"### {document['gpu']}",
            "",
            f"{_measured(document)}.",
            "",
        ]
        lines += _slower(document)
        lines += [line for name in plots.pictures(document) for line in (f"![{name}](plots/{name})", "")]
        lines += [*_full_table(document), ""]
        lines += [f"- {sentence}" for sentence in report.sentences(document, OURS)] + [""]
        lines += ["Shapes:", "", *(f"- {name}: {shape}" for name, shape in document["shapes"].items() if name in used)]
        for title, key, word in (("Remarks:", "remarks", "remark"), ("Not run:", "left_out", "reason")):
            if document[key]:
                lines += ["", title, "", *(f"- {note}" for note in report.notes(document[key], word))]
    return "\n".join(lines).strip() + "\n"


def with_section(text: str, section: str) -> str:
    """A page with the text between its markers replaced."""
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{section}{END}{rest.split(END, 1)[1]}"


def current_pages() -> dict[Path, str]:
    """Each page with generated parts, as the recorded results say it has to be."""
    documents = report.recorded_documents()
    sections = {README: readme_section(documents), PAGE: page_section(documents)}
    return {path: with_section(path.read_text(), section) for path, section in sections.items()}


def update() -> None:
    for path, text in current_pages().items():
        path.write_text(text)
