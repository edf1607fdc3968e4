"""Docstrings as mkdocstrings wants them: what they have of reStructuredText becomes Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr):`([^`]+)`")
PACKAGE = "flash_dmattn"
# Public names that docstrings of their own module use as they are, and where the reference has them.
TRANSFORMERS = f"{PACKAGE}.integrations.transformers"
HOME = {"BoundedCache": TRANSFORMERS, "patch": TRANSFORMERS, "register": TRANSFORMERS}
# Names without docstrings: their values are asked for when they are read.
AVAILABLE = {"CUDA_AVAILABLE": "cuda", "TRITON_AVAILABLE": "triton", "FLEX_AVAILABLE": "flex"}


def to_markdown(text: str, owner: str = "") -> str:
    """Roles become references, double backticks single ones, ``::`` before a block a colon.

    `owner`: path of the class that members named alone belong to.
    """

    def reference(match: re.Match[str]) -> str:
        name = match[1]
        if name.split(".")[0] != PACKAGE:
            name = f"{HOME.get(name, owner)}.{name}"
        return f"[`{match[1].rsplit('.', 1)[-1]}`][{name}]"

    text = ROLE.sub(reference, text).replace("``", "`")
    return re.sub(r"::$", ":", text, flags=re.M)


class Markdown(griffe.Extension):
    """Rewrites every docstring of the package once it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.name in AVAILABLE and obj.docstring is None:
            backends = f"[`get_available_backends`][{PACKAGE}.get_available_backends]"
            words = f"Whether `{AVAILABLE[obj.name]!r}` is among those of {backends}; asked when it is read."
            obj.docstring = griffe.Docstring(words, parent=obj)
        elif obj.docstring is not None:
            owner = obj if obj.is_class else obj.parent
            obj.docstring.value = to_markdown(obj.docstring.value, owner.path if owner is not None else "")
