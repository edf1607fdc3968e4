"""The code in README.md and docs/ is compiled and run."""

import os
import re
import shutil
import subprocess

import pytest
from tools.built_library import LIBRARY, LIBRARY_DIR, stale_reason
from tools.source_digest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
COMPILER = shutil.which(os.environ.get("CC", "cc"))


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


def programs() -> list:
    """Whole C programs and what stands under them as their output."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```c\n(.*?)^```\n", text, re.M | re.S):
            if "int main" in match[1]:
                output = re.match(r"[^`]*^```text\n(.*?)^```\n", text[match.end() :], re.M | re.S)
                found.append(pytest.param(match[1], output and output[1], id=f"{page.name}-{len(found)}"))
    return found


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Where libfdma is installed."""
    if COMPILER is None or shutil.which("cmake") is None:
        pytest.skip("no C compiler or no cmake")
    if not LIBRARY.exists():
        pytest.skip(f"no {LIBRARY}")
    reason = stale_reason(LIBRARY)
    if reason is not None:
        pytest.fail(reason)
    folder = tmp_path_factory.mktemp("installed")
    for component in ("runtime", "dev"):
        install = ["cmake", "--install", LIBRARY_DIR.parent, "--component", component, "--prefix", folder]
        subprocess.run(install, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(("code", "output"), programs())
def test_c_program_runs(code, output, prefix, tmp_path):
    """Whole programs print what the page says, built by the page's own CMakeLists.txt against an installed tree."""
    (project,) = [block.values[0] for block in blocks("cmake") if "project(" in block.values[0]]
    (tmp_path / "CMakeLists.txt").write_text(project)
    (tmp_path / "main.c").write_text(code)
    configure = ["cmake", "-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_C_COMPILER={COMPILER}"]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    subprocess.run([*configure, *generator], cwd=tmp_path, check=True)
    subprocess.run(["cmake", "--build", "build"], cwd=tmp_path, check=True)
    out = subprocess.run(["build/attend"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert output is not None, "a program on a page is followed by a block of text, what it prints"
    assert out == output


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
