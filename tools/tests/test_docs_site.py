"""The documentation builds as a site, without a warning, and its reference has every public name."""

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from tools.docs_site import pictures
from tools.source_digest import ROOT

MISSING = [name for name in ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers") if find_spec(name) is None]


def public_names(module: str) -> list:
    """``__all__`` as it is written, without an import."""
    tree = ast.parse((ROOT / "python" / module).read_text())
    (names,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    return ast.literal_eval(names)


@pytest.mark.skipif(
    bool(MISSING), reason=f'not installed: {", ".join(MISSING)} (pip install mkdocs-material "mkdocstrings[python]")'
)
def test_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "site" / "api.html").read_text()
    for name in set(public_names("flash_dmattn/__init__.py")) - {"__version__"}:
        assert f'id="flash_dmattn.{name}"' in reference, name
    for page in (tmp_path / "site").rglob("*.html"):
        text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", page.read_text(), flags=re.S)
        assert not re.search(r":(class|func|meth|attr):`", text), f"a docstring's role is shown as it is: {page.name}"


def test_reference_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    wanted = [f"flash_dmattn.{name}" for name in public_names("flash_dmattn/__init__.py")]
    integration = "flash_dmattn.integrations.transformers"
    wanted += [f"{integration}.{name}" for name in public_names("flash_dmattn/integrations/transformers.py")]
    for name in wanted:
        assert re.search(rf"^::: {re.escape(name)}$|`{re.escape(name)}`", page, re.M), f"docs/api.md lacks {name}"


def test_every_page_is_in_the_navigation():
    config = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in config, f"mkdocs.yml does not list docs/{page.name}"


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_pictures_are_current(name):
    path = pictures.FOLDER / f"{name}.svg"
    assert path.read_text() == pictures.PICTURES[name](), "run `python -m tools.docs_site.pictures`"
    assert f"pictures/{name}.svg" in (ROOT / "docs" / "concepts.md").read_text()


@pytest.mark.parametrize(
    ("page", "line", "expected"),
    [
        ("masks.md", "[a](dynamic-mask.md#three-forms)", "[a](dynamic-mask.md#three-forms)"),
        ("masks.md", "[a](../README.md#install)", "[a](project/readme.md#install)"),
        ("project/readme.md", "![a](docs/plots/a.svg) [b](docs/)", "![a](../plots/a.svg) [b](../index.md)"),
        ("project/engine-example.md", "[a](../../docs/engine.md)", "[a](../engine.md)"),
        ("masks.md", "[the table](../cpp/host/dtype.cpp)", "the table"),
    ],
)
def test_links_are_turned(page, line, expected):
    pytest.importorskip("mkdocs")
    from tools.docs_site.hooks import turned

    assert turned(line, page) == expected
