"""One number for the sources that a test record or a benchmark result belongs to.

sha256 over the paths and contents of cpp/, python/ and CMakeLists.txt, in path order. It depends on nothing else: not
on where the checkout lies, not on git being there (a copy of the tree gives the same number), not on build outputs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("cpp", "python", "CMakeLists.txt")

# What a build or a test run leaves between the sources.
_GENERATED_DIRS = {"__pycache__", "build"}
_GENERATED_SUFFIXES = {".pyc", ".pyo", ".so", ".o", ".a"}


def _is_generated(relative: Path) -> bool:
    folders = relative.parts[:-1]
    return (
        relative.suffix in _GENERATED_SUFFIXES
        or any(part.startswith(".") for part in relative.parts)
        or any(part in _GENERATED_DIRS or part.endswith(".egg-info") for part in folders)
    )


def _walked(root: Path) -> list[Path]:
    files = []
    for source in SOURCES:
        top = root / source
        found = [top] if top.is_file() else top.rglob("*")
        files += [path.relative_to(root) for path in found if path.is_file()]
    return files


def source_files(root: Path = ROOT) -> list[Path]:
    """The files that the digest covers, relative to `root`, in the digest's order.

    Git is not asked: a copy of the tree may lie in a repository that tracks none of its files, or those of another
    commit, and a file that nobody has added yet is built and tested all the same.
    """
    return sorted((path for path in _walked(root) if not _is_generated(path)), key=lambda path: path.as_posix())


def source_digest(root: Path = ROOT) -> str:
    """Hexadecimal sha256 of the sources under `root`."""
    digest = hashlib.sha256()
    for path in source_files(root):
        content = hashlib.sha256((root / path).read_bytes()).hexdigest()
        digest.update(f"{path.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    print(source_digest())
