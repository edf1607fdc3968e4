"""The digest depends on the sources and on nothing else."""

import shutil
import subprocess
from pathlib import Path

import pytest
from tools.source_digest import ROOT, source_digest, source_files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, text in (("cpp/a.cpp", "int a;"), ("python/pkg/b.py", "b = 1"), ("CMakeLists.txt", "project(x)")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_same_in_another_place(tree, tmp_path):
    copy = shutil.copytree(tree, tmp_path / "elsewhere" / "copy")
    assert source_digest(copy) == source_digest(tree)


def test_same_with_and_without_git(tree):
    without = source_digest(tree)
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    subprocess.run(["git", "-C", str(tree), "add", "-A"], check=True)
    assert source_digest(tree) == without


def test_same_in_a_repository_that_tracks_other_files(tree):
    expected = source_digest(tree)
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    assert source_digest(tree) == expected
    subprocess.run(["git", "-C", str(tree), "add", "cpp"], check=True)
    assert source_digest(tree) == expected


@pytest.mark.parametrize(
    "leftover",
    ["python/pkg/__pycache__/b.cpython-311.pyc", "python/x.egg-info/PKG-INFO", "cpp/build/a.o", "python/pkg/_C.so"],
)
def test_build_outputs_do_not_count(tree, leftover):
    before = source_digest(tree)
    (tree / leftover).parent.mkdir(parents=True, exist_ok=True)
    (tree / leftover).write_text("generated")
    assert source_digest(tree) == before


def test_files_outside_the_sources_do_not_count(tree):
    before = source_digest(tree)
    (tree / "README.md").write_text("text")
    assert source_digest(tree) == before


def test_every_change_counts(tree):
    seen = {source_digest(tree)}
    (tree / "cpp/a.cpp").write_text("int b;")
    seen.add(source_digest(tree))
    (tree / "cpp/a.cpp").rename(tree / "cpp/b.cpp")
    seen.add(source_digest(tree))
    (tree / "cpp/c.cpp").write_text("")
    seen.add(source_digest(tree))
    (tree / "CMakeLists.txt").unlink()
    seen.add(source_digest(tree))
    assert len(seen) == 5


def test_files_that_are_not_yet_added_count(tree):
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    subprocess.run(["git", "-C", str(tree), "add", "-A"], check=True)
    before = source_digest(tree)
    (tree / "cpp/new.cpp").write_text("int n;")
    assert source_digest(tree) != before


def test_this_tree_has_sources():
    names = {path.as_posix() for path in source_files(ROOT)}
    assert {"CMakeLists.txt", "cpp/include/fdma/fdma.h"} <= names
    assert not any("__pycache__" in name for name in names)
