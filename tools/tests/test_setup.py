"""tools/setup.sh takes build tools from pip where those of the machine are missing or too old."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = re.search(r'^cmake\.version = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def installed_where_cmake_is(version: str) -> list[str]:
    """What pip would be asked for on a machine with ninja and this cmake."""
    script = f"""
      . tools/setup.sh
      python() {{ echo "python $*"; }}
      ninja() {{ :; }}
      cmake() {{ echo "cmake version {version}"; }}
      setup_build_tools
    """
    ran = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    calls = [line.split() for line in ran.stdout.splitlines() if line.startswith("python ")]
    return [word for call in calls for word in call[call.index("install") + 1 :] if not word.startswith("-")]


@pytest.mark.parametrize(
    ("newer_by", "installed"), [(-1, ["cmake"]), (0, []), (1, [])], ids=["older", "as asked for", "newer"]
)
def test_cmake_is_what_the_wheel_needs(newer_by: int, installed: list[str]) -> None:
    major, minor = map(int, NEEDED.groups())
    assert installed_where_cmake_is(f"{major}.{minor + newer_by}.1") == installed
