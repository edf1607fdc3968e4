"""The libfdma.so of a build folder, for tests that install it and run programs on it."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from tools.source_digest import ROOT

# tools/test.sh builds it here; FDMA_LIBRARY_DIR names the folder of another build's.
LIBRARY_DIR = Path(os.environ.get("FDMA_LIBRARY_DIR", ROOT / "build" / "test" / "cpp"))
LIBRARY = LIBRARY_DIR / "libfdma.so"


def declared_functions() -> list[str]:
    """The C API as the headers of this checkout declare it."""
    headers = sorted((ROOT / "cpp" / "include" / "fdma").glob("*.h"))
    return [name for header in headers for name in re.findall(r"FDMA_API [^(;]*\b(fdma_\w+)\(", header.read_text())]


def stale_reason(library: Path) -> str | None:
    """What tells that `library` is of other sources than those of this checkout: functions that it lacks, else None."""
    exported = ctypes.CDLL(str(library))
    missing = [name for name in declared_functions() if not hasattr(exported, name)]
    if not missing:
        return None
    return (
        f"{library} was built from other sources than those here: it has no {', '.join(missing)}; build it anew "
        f"(bash tools/test.sh) or set FDMA_LIBRARY_DIR to the folder of one that is"
    )
