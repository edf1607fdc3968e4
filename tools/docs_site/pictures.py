"""The pictures of docs/concepts.md, drawn from small examples that are computed here by the rules they show.

``python -m tools.docs_site.pictures`` writes them to docs/pictures.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Callable
from xml.sax.saxutils import escape

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
INK, FAINT, SEEN, CHOSEN, LIVE = "#1f2937", "#9ca3af", "#4f46e5", "#a5b4fc", "#fde68a"

BIASES = [5, 2, 7, 1, 4, 6, 3, 8]  # of eight keys
KEEP = 3


def kept_by(biases: list[int], keep: int, position: int) -> list[int]:
    """The keys that the query at `position` keeps: the largest biases among those up to it, newer ones first."""
    order = sorted(range(position + 1), key=lambda k: (-biases[k], -k))
    return sorted(order[:keep])


def ends(biases: list[int], keep: int) -> list[int]:
    """At which position each key is pushed out: never, the number of keys; its own where it never comes in."""
    found = []
    for key in range(len(biases)):
        end = key
        while end < len(biases) and key in kept_by(biases, keep, end):
            end += 1
        assert all(key not in kept_by(biases, keep, later) for later in range(end, len(biases))), "it came back"
        found.append(end)
    return found


class Picture:
    """A growing SVG; `y` runs downward."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
            f'  role="img" font-family="Helvetica, Arial, sans-serif" font-size="13"><title>{escape(title)}</title>',
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, fill: str = "none", line: str = FAINT) -> None:
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{line}"/>'
        )

    def text(self, x: float, y: float, words: object, anchor: str = "middle", ink: str = INK, size: int = 13) -> None:
        place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
        self._parts.append(f'<text {place} fill="{ink}" font-size="{size}">{escape(str(words))}</text>')

    def title(self, x: float, y: float, words: str) -> None:
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{INK}" font-size="15" font-weight="bold">{escape(words)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, ink: str = INK, arrow: bool = False) -> None:
        self._parts.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{ink}" stroke-width="1.5"/>')
        if arrow:
            sign = 1 if x2 >= x1 else -1
            points = f"{x2:g},{y2:g} {x2 - 7 * sign:g},{y2 - 4:g} {x2 - 7 * sign:g},{y2 + 4:g}"
            self._parts.append(f'<polygon points="{points}" fill="{ink}"/>')

    def grid(self, x: float, y: float, cell: float, seen: list[list[bool]], fill: str = SEEN) -> None:
        for row, line in enumerate(seen):
            for column, is_seen in enumerate(line):
                self.box(x + column * cell, y + row * cell, cell, cell, fill if is_seen else "#f3f4f6", "#ffffff")

    def svg(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])


def _row(picture: Picture, x: float, y: float, cell: float, values: list, fill: str = "none") -> None:
    for column, value in enumerate(values):
        picture.box(x + column * cell, y, cell, cell, fill)
        picture.text(x + (column + 0.5) * cell, y + cell * 0.68, value)


def mask_forms() -> str:
    """Bits, columns and intervals: what each stores for eight keys and eight queries."""
    count, cell = len(BIASES), 24
    picture = Picture(800, 330, "The three forms of a DynamicMask: bits, columns, interval")
    causal = [[k in kept_by(BIASES, KEEP, q) for k in range(count)] for q in range(count)]
    everywhere = kept_by(BIASES, KEEP, count - 1)
    # A bias of every query chooses anew in every row.
    rows = [[(3 * BIASES[k] + 5 * q + 2 * k * q) % 11 for k in range(count)] for q in range(count)]
    free = [
        [k in sorted(range(q + 1), key=lambda k, r=row: (-r[k], -k))[:KEEP] for k in range(count)]
        for q, row in enumerate(rows)
    ]
    panels = [
        ("interval", causal, "a bias of keys, causal", ends(BIASES, KEEP), "one position a key: 4 Lk bytes"),
        ("columns", [[k in everywhere for k in range(count)]] * count, "a bias of keys, all keys", everywhere,
         "one index a kept key: 4 w bytes"),
        ("bits", free, "a bias of every query", None, "one bit a score: Lq Lk / 8 bytes"),
    ]  # fmt: skip
    for index, (name, seen, maker, data, cost) in enumerate(panels):
        x = 40 + index * 258
        picture.title(x, 28, name)
        picture.text(x, 46, maker, "start", "#4b5563")
        picture.grid(x, 58, cell, seen)
        if data is not None:
            _row(picture, x, 268, cell, data, CHOSEN)
        else:
            words = ["".join("01"[is_seen] for is_seen in row) for row in seen[:2]]
            picture.text(x, 285, "  ".join(words) + "  ...", "start")
        picture.text(x, 314, cost, "start")
    picture.text(14, 160, "q", "start", FAINT)
    picture.text(228, 262, "k", "end", FAINT)
    return picture.svg()


def interval_fact() -> str:
    """Each key lives from its own position to the one at which `KEEP` better ones have come."""
    count, cell = len(BIASES), 48
    picture = Picture(760, 400, "A key that has been pushed out never returns")
    x, top = 150, 70
    picture.title(20, 30, f"Each query keeps the {KEEP} largest biases up to its position")
    picture.text(x - 10, 58, "position p", "end", "#4b5563")
    for p in range(count):
        picture.text(x + (p + 0.5) * cell, 58, p, ink="#4b5563")
    for key, (bias, end) in enumerate(zip(BIASES, ends(BIASES, KEEP))):
        y = top + key * 36
        picture.text(x - 10, y + 21, f"key {key}, bias {bias}", "end")
        for p in range(key, count):
            picture.box(x + p * cell, y + 3, cell, 28, SEEN if p < end else "#f3f4f6", "#ffffff")
        picture.text(x + count * cell + 14, y + 21, f"end = {end}" + (", never in" if end == key else ""), "start")
    words = "Every row is one run: a key comes in at once or never, and what has pushed it out stays ahead of it."
    picture.text(20, 378, words, "start")
    return picture.svg()


def slots() -> str:
    """Query tiles against tiles of keys in their own order, and of slots."""
    count, keep, tile, epoch = 64, 8, 4, 16
    numbers = random.Random(3)
    end_of = ends([numbers.random() for _ in range(count)], keep)
    seen = [k for k in range(count) if end_of[k] > k]
    epochs = [seen[first : first + epoch] for first in range(0, len(seen), epoch)]
    order = [k for keys in epochs for k in sorted(keys, key=lambda k: (end_of[k], k))]
    picture = Picture(760, 484, "Keys in their own order, and in the order of slots")
    cell, y = 5.6, 56
    for x, name, keys in ((44, "keys in their own order", list(range(count))), (440, "slots", order)):
        picture.title(x, 30, name)
        live = 0
        for first in range(0, len(keys), tile):
            for q in range(0, count, tile):
                if any(k < q + tile and q < end_of[k] for k in keys[first : first + tile] if end_of[k] > k):
                    live += 1
                    picture.box(x + first * cell, y + q * cell, tile * cell, tile * cell, LIVE, "#ffffff")
        for place, key in enumerate(keys):
            if end_of[key] > key:
                picture.box(x + place * cell + 1, y + key * cell, cell - 2, (end_of[key] - key) * cell, SEEN, SEEN)
        picture.box(x, y, -(-len(keys) // tile) * tile * cell, count * cell)
        picture.text(x, y + count * cell + 20, f"{live} tiles of {tile} x {tile} are visited", "start")
    picture.text(34, 240, "q", "end", FAINT)
    picture.box(44, 444, 10, 10, SEEN, SEEN)
    picture.text(62, 454, "scores that are seen: for each key or slot a run of queries", "start")
    picture.box(44, 464, 10, 10, LIVE)
    picture.text(62, 474, "tiles with such a score: these are computed. Keys that nobody sees have no slot.", "start")
    return picture.svg()


def bounded_cache() -> str:
    """What the slots of a cache hold after each token."""
    cell = 74
    picture = Picture(760, 330, "A cache of w places")
    picture.title(20, 30, f"A cache of w = {KEEP} places holds what the causal mask keeps")
    picture.text(120, 66, "new token", "end", "#4b5563")
    picture.text(120, 86, "its bias", "end", "#4b5563")
    held: list[int | None] = [None] * KEEP
    for token, bias in enumerate(BIASES):
        x = 140 + token * cell
        picture.text(x + 30, 66, token)
        picture.text(x + 30, 86, bias)
        free = [slot for slot, key in enumerate(held) if key is None]
        slot = free[0] if free else min(range(KEEP), key=lambda s: (BIASES[held[s]], held[s]))
        enters = bool(free) or bias >= BIASES[held[slot]]
        gone = held[slot] if enters else None
        if enters:
            held[slot] = token
        assert sorted(key for key in held if key is not None) == kept_by(BIASES, KEEP, token)
        for index, key in enumerate(held):
            fill = CHOSEN if enters and index == slot else ("none" if key is None else "#f3f4f6")
            picture.box(x, 100 + index * 40, 60, 34, fill)
            picture.text(x + 30, 100 + index * 40 + 22, "" if key is None else f"{key} : {BIASES[key]}")
        word = f"{gone} goes" if gone is not None else ("" if enters else f"{token} stays out")
        picture.text(x + 30, 238, word, ink="#b91c1c", size=12)
    for index in range(KEEP):
        picture.text(120, 100 + index * 40 + 22, f"slot {index}", "end", "#4b5563")
    picture.text(
        20,
        276,
        "token : bias. The new token takes the place of the weakest, the oldest among equals, or stays out.",
        "start",
    )
    picture.text(
        20, 298, "Its query attends to what the slots then hold. Memory does not grow with the sequence.", "start"
    )
    return picture.svg()


PICTURES: dict[str, Callable[[], str]] = {
    "mask-forms": mask_forms,
    "interval-fact": interval_fact,
    "slots": slots,
    "bounded-cache": bounded_cache,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw())
        print(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main()
