"""Docstrings as mkdocstrings wants them: what they have of reStructuredText becomes Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr):`([^`]+)`")
MODULE_NAMES = ("flash_dmattn",)


def to_markdown(text: str, owner: str = "") -> str:
    """Roles become references, double backticks single ones, ``::`` before a block a colon.

    `owner`: path of the class that members named alone belong to.
    """

    def reference(match: re.Match[str]) -> str:
        name = match[1]
        is_full = name.split(".")[0] in MODULE_NAMES
        return f"[`{name.rsplit('.', 1)[-1]}`][{name if is_full else f'{owner}.{name}'}]"

    text = ROLE.sub(reference, text).replace("``", "`")
    return re.sub(r"::$", ":", text, flags=re.M)


class Markdown(griffe.Extension):
    """Rewrites every docstring of the package once it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring is None:
            return
        owner = obj if obj.is_class else obj.parent
        obj.docstring.value = to_markdown(obj.docstring.value, owner.path if owner is not None else "")
