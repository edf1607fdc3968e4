#!/usr/bin/env python3
"""Writes the README's table of which backend serves what, from what the backends themselves say.

`python -m tools.backend_table`, with flash_dmattn importable. A test fails while the README says otherwise.
"""

from __future__ import annotations

import inspect

import torch

from tools.source_digest import ROOT

README = ROOT / "README.md"
BEGIN, END = "<!-- backends:begin -->", "<!-- backends:end -->"
# Of which device a call is asked about: one that tells nothing of this machine's GPUs.
NOWHERE = torch.device("cpu", 0)


def table() -> str:
    """The text between the README's markers."""
    from flash_dmattn.backends import BACKENDS

    heads = (
        "backend",
        "function",
        "tensors on",
        "dtypes",
        "mask of any dtype, bias and its gradient, GQA",
        "`return_lse`",
        "`softcap`",
        "`deterministic`",
        "packed, varlen, paged",
    )
    rows = [heads, ("---",) * len(heads), *(_row(backend) for backend in BACKENDS)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(backend) -> tuple[str, ...]:
    from flash_dmattn import flash_dmattn_func
    from flash_dmattn.backends.base import CallKind
    from flash_dmattn.backends.checks import DTYPES

    def serves(**asked) -> bool:
        kind = {"device": NOWHERE, "dtype": torch.float16, "has_softcap": False, "deterministic": False}
        without = backend.unsupported_reasons(CallKind(**kind))
        return backend.unsupported_reasons(CallKind(**{**kind, **asked})) == without

    takes_lse = "return_lse" in inspect.signature(backend.attention).parameters
    by_name = "".join(f"; by name {device}" for device in backend.also_takes)
    return (
        f"`{backend.name}`",
        f"`{backend.attention.__name__}`",
        backend.device_type + by_name,
        ", ".join(str(dtype)[6:] for dtype in DTYPES if serves(dtype=dtype)),
        "yes",  # the table of cases holds every backend to it
        _yes(takes_lse),
        _yes(serves(has_softcap=True), "ignored"),
        _yes(serves(deterministic=True), "ignored"),
        _yes(backend.attention is flash_dmattn_func),  # those entry points are libfdma's
    )


def _yes(served: bool, otherwise: str = "no") -> str:
    return "yes" if served else otherwise


def with_table(readme: str) -> str:
    """The README with the text between its markers replaced."""
    before, rest = readme.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{table()}{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
