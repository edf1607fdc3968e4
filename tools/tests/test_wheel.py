"""The wheel of tools/wheel.sh is self-contained, and works where it is installed; so does an editable install."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from tools.source_digest import ROOT

# tools/test.sh builds it here; WHEEL_DIR names another place.
WHEEL_DIR = Path(os.environ.get("WHEEL_DIR", ROOT / "build" / "test" / "wheel"))
# What every Linux has: see PEP 600.
SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libstdc++.so.6"}
SYSTEM_LIBRARIES |= {"libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


@pytest.fixture(scope="module")
def wheel():
    found = sorted(WHEEL_DIR.glob("flash_dmattn-*.whl"))
    if not found:
        pytest.skip(f"no wheel in {WHEEL_DIR}: WHEEL_DIR={WHEEL_DIR} bash tools/wheel.sh builds one")
    (path,) = found
    return path


def run(*command, **options):
    # Nothing of this environment's packages: the build under test is on its PYTHONPATH.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def python(tmp_path):
    """The interpreter of a fresh environment, in which this one's packages (torch) come behind what is installed."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return tmp_path / "venv" / "bin" / "python"


def install(python, *arguments):
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", *arguments)


def run_quickstart(python):
    """Run the first Python program of the README; return where the package and its extension module were found."""
    code = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[1]
    code += "\nimport flash_dmattn, flash_dmattn._C\nprint(flash_dmattn.__file__)\nprint(flash_dmattn._C.__file__)\n"
    return [Path(line) for line in run(python, "-c", code, cwd=python.parent).split()]


def test_wheel_holds_one_module_with_its_types(wheel):
    assert "manylinux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"flash_dmattn/py.typed", "flash_dmattn/_C.pyi", "flash_dmattn/__init__.py"} <= names
    assert len([name for name in names if ".so" in name]) == 1
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"flash_dmattn"}


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_wheel_links_the_system_alone(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        (module,) = (name for name in archive.namelist() if name.endswith(".so"))
        path = archive.extract(module, tmp_path)
    dynamic = run("readelf", "--dynamic", path)
    assert set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)) <= SYSTEM_LIBRARIES
    assert "(RUNPATH)" not in dynamic
    assert "(RPATH)" not in dynamic


def test_wheel_runs_the_quickstart_in_a_fresh_environment(wheel, python):
    install(python, wheel)
    for path in run_quickstart(python):
        assert python.parents[1] in path.parents
    (site,) = (python.parents[1] / "lib").glob("python*/site-packages")
    assert (site / "flash_dmattn" / "py.typed").exists()


def test_editable_install_runs_the_quickstart(wheel, python):
    # In the folder that built the wheel, so that next to nothing is built again.
    pytest.importorskip("scikit_build_core")
    pytest.importorskip("nanobind")
    install(python, "--no-build-isolation", "-C", "cmake.define.FDMA_CUDA=OFF", "--editable", ROOT)
    package, module = run_quickstart(python)
    assert package == ROOT / "python" / "flash_dmattn" / "__init__.py"
    assert python.parents[1] in module.parents
