"""Hooks of mkdocs: pages that lie outside of docs/, their links, and tables as GitHub reads them.

The pages are written to be read where they lie. Here they become one site: README, CONTRIBUTING and the like come in,
links to them and back are turned, and links to files that are no page (sources) become their names.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
# Where they lie in the repository, and in the site.
OUTSIDE = {
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "examples/engine/README.md": "project/engine-example.md",
}
SOURCE_OF = {there: here for here, there in OUTSIDE.items()}
LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s]+)\)")
CODE = re.compile(r"`[^`\n]+`")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside."""
    for here, there in OUTSIDE.items():
        files.append(File.generated(config, there, content=(ROOT / here).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links, and free the bars in the code of tables, which GitHub wants escaped and Python-Markdown does not."""
    lines, in_code = [], False
    for line in markdown.splitlines():
        if line.lstrip().startswith("```"):
            in_code = not in_code
        if not in_code:
            if line.startswith("|"):
                line = CODE.sub(lambda code: code[0].replace(r"\|", "|"), line)
            line = turned(line, page.file.src_uri)
        lines.append(line)
    return "\n".join(lines) + "\n"


def turned(line: str, page: str) -> str:
    """`line` of the page at `page` in the site, with links that hold there."""
    source = SOURCE_OF.get(page, f"{DOCS}/{page}")

    def turn(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or ":" in path:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if path == DOCS:
            path = f"{DOCS}/index.md"
        if path.startswith(f"{DOCS}/"):
            there = path[len(DOCS) + 1 :]
        elif path in OUTSIDE:
            there = OUTSIDE[path]
        else:
            return words  # a source file, which is no page
        return f"{mark}[{words}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{hash_}{anchor})"

    return LINK.sub(turn, line)
