"""Pictures of recorded results: against length, against the keys that a query keeps, and beside the best peer."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

from benchmarks import report
from benchmarks.impls import OURS
from benchmarks.series import known_workloads, position

RED, GREEN, OTHER = "#b00020", "#2e8b57", "#17a2a2"
COLORS = {
    "cuda": RED,
    "cpu": RED,
    "cuda-topk": RED,
    "cpu-topk": RED,
    "sdpa-cudnn": GREEN,
    "sdpa": GREEN,
    "torch-topk": "#6b6b6b",
}
ALL_KEYS = {"sdpa-cudnn": "#1f5fa8", "sdpa-flash": "#8fb8de"}  # in the series without a mask
PASSES = {"fwd": "forward", "bwd": "backward", "select": "selection"}
# (implementation, whether it takes all keys: the series whose names begin with "dense")
Line = Tuple[str, bool]


def _points(document: dict, kind: str, which: str, value: str) -> dict[Line, list[tuple[int, float]]]:
    """{line: [(number, value)]} of the series whose names end in `kind`, in rising order."""
    lines: dict[Line, list[tuple[int, float]]] = {}
    for row in document["rows"]:
        at = position(row["workload"])
        if at is None or not at[0].endswith(kind) or row["pass"] != which or row[value] is None:
            continue
        lines.setdefault((row["impl"], at[0].startswith("dense")), []).append((at[1], row[value]))
    return {line: sorted(points) for line, points in lines.items()}


def _style(line: Line, which: str) -> dict:
    """Label, which says what a peer was given, and color."""
    impl, all_keys = line
    label = impl if impl in OURS or which == "select" else f"{impl}, {'all keys' if all_keys else 'dense mask'}"
    return {"label": label, "color": (ALL_KEYS if all_keys else COLORS).get(impl, OTHER)}


def _flat(document: dict, length: int, which: str) -> dict[Line, float]:
    """{line of a peer: ms} at the length of the width series: their time does not depend on what a query keeps."""
    found: dict[Line, float] = {}
    for line, points in _points(document, "length", which, "ms").items():
        if line[0] not in OURS and which != "select":
            found.update((line, ms) for number, ms in points if number == length)
    return found


def _passes(document: dict, kind: str, value: str) -> list[str]:
    return [which for which in PASSES if _points(document, kind, which, value)]


def pictures(document: dict) -> list[str]:
    """The file names of the pictures that `document` has the rows for."""
    stem = report.slug(document["gpu"])
    kinds = [
        ("time-length", _passes(document, "length", "ms")),
        ("time-width", _passes(document, "width", "ms")),
        ("memory-length", _passes(document, "length", "peak_mib")),
        ("speed", report.best_peers(document["rows"])),
    ]
    return [f"{stem}-{kind}.svg" for kind, rows in kinds if rows]


def _line_axes(axes, lines: dict, which: str, xlabel: str, ylabel: str) -> None:
    for line, points in lines.items():
        width = 2 if line[0] in OURS else 1.2
        axes.plot(*zip(*points), marker="o", markersize=4, linewidth=width, **_style(line, which))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    numbers = sorted({number for points in lines.values() for number, _ in points})
    axes.set_xticks(numbers, [f"{n // 1024}K" if n >= 1024 else str(n) for n in numbers])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_title(PASSES[which])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


def _line_figure(document: dict, kind: str, value: str, xlabel: str, ylabel: str):
    from matplotlib import pyplot

    passes = _passes(document, kind, value)
    figure, grid = pyplot.subplots(1, len(passes), figsize=(4.2 * len(passes), 3.6), squeeze=False)
    for axes, which in zip(grid[0], passes):
        lines = _points(document, kind, which, value)
        _line_axes(axes, lines, which, xlabel, ylabel)
        if kind == "width":
            flat = _flat(document, _length_of("width"), which)
            for line, ms in flat.items():
                axes.axhline(ms, linewidth=1.2, linestyle="--", **_style(line, which))
        axes.legend(fontsize=8, frameon=False)
    return figure


def _length_of(kind: str) -> int:
    return next(workload.length for name, workload in known_workloads().items() if (position(name) or ("",))[0] == kind)


def _speed_figure(document: dict):
    from matplotlib import pyplot

    from benchmarks.pages import best_of_ours

    peers = report.best_peers(document["rows"])
    own = best_of_ours(document["rows"])
    chosen = [at for at in own if at in peers and position(at[0]) is None] or [at for at in own if at in peers]
    speeds = [peers[at]["ms"] / own[at]["ms"] for at in chosen]
    figure, axes = pyplot.subplots(figsize=(7.5, 1.2 + 0.26 * len(chosen)))
    colors = [GREEN if speed >= 1 else RED for speed in speeds]
    axes.barh(range(len(chosen)), [speed - 1 for speed in speeds], left=1, color=colors)
    for place, (at, speed) in enumerate(zip(chosen, speeds)):
        axes.text(max(speed, 1), place, f" {speed:.2f}  {peers[at]['impl']}", va="center", fontsize=8)
    axes.set_yticks(range(len(chosen)), [f"{name} {which}" for name, which in chosen])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(min([*speeds, 1]) / 1.3, max([*speeds, 1]) * 3)
    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("speed over the best peer, which is named (more is better)")
    return figure


def plot(document: dict, folder: Path) -> list[Path]:
    """Write the pictures that `document` has rows for into `folder`; their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = "keys that a query keeps"
    makers = {
        "time-length": lambda: _line_figure(document, "length", "ms", "length", "ms"),
        "time-width": lambda: _line_figure(document, "width", "ms", keys, "ms"),
        "memory-length": lambda: _line_figure(document, "length", "peak_mib", "length", "MiB above the tensors"),
        "speed": lambda: _speed_figure(document),
    }
    folder.mkdir(parents=True, exist_ok=True)
    stem = report.slug(document["gpu"])
    written = []
    # The same rows give the same bytes, and text stays text.
    with matplotlib.rc_context({"svg.hashsalt": "fdma", "svg.fonttype": "none", "font.size": 9}):
        for name in pictures(document):
            figure = makers[name[len(stem) + 1 : -len(".svg")]]()
            figure.suptitle(document["gpu"], fontsize=10)
            figure.tight_layout()
            figure.savefig(folder / name, metadata={"Date": None})
            pyplot.close(figure)
            written.append(folder / name)
    return written
