"""Bars of the measured times, one picture for each pass."""

from __future__ import annotations

from pathlib import Path

from benchmarks.impls import OURS


def plot(document: dict, folder: Path, stem: str) -> list[Path]:
    """Writes `folder`/`stem`-<pass>.png and gives their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for which in sorted({row["pass"] for row in document["rows"]}):
        rows = [row for row in document["rows"] if row["pass"] == which]
        labels = [f"{row['workload']}  {row['impl']}" for row in rows]
        colors = ["tab:red" if row["impl"] in OURS else "tab:gray" for row in rows]
        figure, axes = pyplot.subplots(figsize=(8, 1 + 0.28 * len(rows)))
        axes.barh(range(len(rows)), [row["ms"] for row in rows], color=colors)
        axes.set_yticks(range(len(rows)), labels)
        axes.invert_yaxis()
        axes.set_xlabel("ms (median, less is better)")
        axes.set_title(f"{document['gpu']}: {which}")
        figure.tight_layout()
        path = folder / f"{stem}-{which}.png"
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        written.append(path)
    return written
