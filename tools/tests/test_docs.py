"""The code in README.md and docs/ is compiled and run."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tools.source_digest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
COMPILER = shutil.which(os.environ.get("CC", "cc"))
# Where libfdma.so is: tools/test.sh builds it here; FDMA_LIBRARY_DIR names another build.
LIBRARY_DIR = Path(os.environ.get("FDMA_LIBRARY_DIR", ROOT / "build" / "test" / "cpp"))


def blocks(language: str) -> list:
    found = []
    for page in PAGES:
        for index, code in enumerate(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)):
            found.append(pytest.param(code, id=f"{page.name}-{index}"))
    return found


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("code", blocks("c"))
def test_c_compiles(code):
    flags = ["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", f"-I{ROOT / 'cpp/include'}"]
    subprocess.run([COMPILER, *flags, "-x", "c", "-"], input=code, text=True, check=True)


@pytest.mark.skipif(
    COMPILER is None or not (LIBRARY_DIR / "libfdma.so").exists(), reason=f"no libfdma.so in {LIBRARY_DIR}"
)
def test_c_program_runs(tmp_path):
    (program,) = [block.values[0] for block in blocks("c") if "int main" in block.values[0]]
    (tmp_path / "main.c").write_text(program)
    library = [f"-L{LIBRARY_DIR}", "-lfdma", f"-Wl,-rpath,{LIBRARY_DIR}"]
    command = [COMPILER, "-std=c11", f"-I{ROOT / 'cpp/include'}", "main.c", *library, "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    out = subprocess.run([str(tmp_path / "main")], check=True, capture_output=True, text=True).stdout
    assert [line.split()[-1] for line in out.splitlines()] == ["0.0", "0.5", "0.5", "0.5"]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code):
    pytest.importorskip("flash_dmattn")
    if "transformers" in code:
        pytest.importorskip("transformers", minversion="4.56")
    exec(compile(code, "<documentation>", "exec"), {})


def test_table_of_backends_is_current():
    pytest.importorskip("flash_dmattn")
    from tools import backend_table

    readme = backend_table.README.read_text()
    assert backend_table.with_table(readme) == readme, "run `python -m tools.backend_table`"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
