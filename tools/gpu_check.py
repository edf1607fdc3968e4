#!/usr/bin/env python3
"""Builds this project, tests it on an NVIDIA GPU and records the result in tests/gpu_record.json.

Four steps: build (and install of the Python package below the build folder), ctest, pytest, and compute-sanitizer's
memcheck, racecheck, synccheck and initcheck over a selection of the GPU tests. A step that fails is recorded as failed
and makes the exit code 1. `--verify` runs nothing: it tells whether the record is of the sources beside it.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import datetime
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Callable, Sequence

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that this runs as a script from anywhere

from tools.gpu_record import SANITIZERS, STEPS, TestCounts, read_junit, read_sanitizer_errors, verify  # noqa: E402
from tools.source_digest import source_digest  # noqa: E402

RECORD = ROOT / "tests" / "gpu_record.json"
DEFAULT_TIMEOUT_S = {"build": 1800, "ctest": 900, "pytest": 1200, "sanitizers": 1800}
RACECHECK_TESTS = "fdma_op_tests_racecheck"
GTEST_SHARDS = 16  # processes for the GPU tests of one binary
TAIL_LINES = 15  # of a failing command's output, kept in the record

# GoogleTest pattern of the tests that run under the sanitizers, which slow a kernel down a hundredfold.
SANITIZER_FILTER = (
    "*Gpu*_bfloat16:AttentionStreamsGpu.*:SelectionGpu.OneRow*:CacheGpu.*"
    ":Aligned/*full_dim_256_hopper*:Aligned/*interval_dim_256_hopper:Aligned/*softcap_interval_dim_128_hopper"
    ":Aligned/*softcap_mask_dim_128_hopper"
    "-*broadcast_*:*_dim_8_*:*_dim_72_*:*Semantics*mask_int*:*Semantics*_float*"
    ":*Pages*of_??_*:*Pages*of_1024_*:*Pages*misaligned*:*Pages*transposed*"
    ":*Sequences*all_empty*:*Sequences*no_*:*Sequences*_views*:*Sequences*padded_*:*Sequences*only_*"
    ":*Sequences*_bounds_*:*Sequences*_float*:*Sequences*_int64*:*Sequences*scale*"
    ":*KeyLists*only_*:*KeyLists*no_*:*KeyLists*scale*:*KeyLists*bias_of_*:*KeyLists*interval_m??*:*KeyLists*_one_*"
    ":*KeyLists*transposed*:*KeyLists*every_head*:*KeyLists*square*:*KeyLists*columns_shared*:*KeyLists*columns_bias_h*"
    ":*Decode*_chunks_*:*Decode*_of_??_*:*Decode*_of_256_*:*Decode*_dim_40_*:*Decode*_dim_200_*:*Decode*no_*"
    ":*Decode*keep_specials*:*Decode*bias_*:*Decode*int64*:*Decode*plain_dim_*:*Pages*dim_256*:LongGpu/*"
    ":*Compacted*bias_of_*:*Compacted*only_*:*Compacted*shared_*:*Compacted*no_*:*Compacted*one_*:*Compacted*mask_*"
    ":*Compacted*everything*:*Compacted*random*:*Compacted*dim_256*"
    ":Gpu/Selection.*:*EveryQuery*:Gpu/Cache.*"
    ":*Semantics*long_*_dim_64_*:*Semantics*long_*_dim_256_*:*Semantics*long_keys_causal*:*Semantics*softcap_dim_?*"
    ":*KeyLists*_padded*:*KeyLists*bias_p*:*KeyLists*many_*:*KeyLists*groups_of_8*:*KeyLists*groups_of_6*:KeyListMemory*"
    ":*KeyLists*without_*:*KeyLists*sequences_long*:*KeyLists*sequences_*causal*:*KeyLists*sequences_m*"
    ":*KeyLists*sequences_int*:*KeyLists*sequences_shared*:*KeyLists*sequences_softcap*:*KeyLists*_paged*"
    ":*KeyLists*columns_of_query_heads_*:*KeyLists*of_query_heads_s*:*KeyLists*of_query_heads_m*:*KeyLists*_none_*"
    ":*KeyLists*columns_groups*:*KeyLists*sequences_dim_256*:*KeyLists*columns_sequences_e*:*Gpu/KeyListMemory*"
    # What differs in values alone, or in what the host decides.
    ":*scale_*:*grad_lse*:*only_*:*mask_everything*:*mask_nothing*:*_square_*:*one_score*:*no_batches*:*dim_40_*:*dim_96_*"
    ":*dim_200_*:*mask_bool*:*mask_uint8*:*Sequences*decode*:*Sequences*mqa*:*Sequences*many_*:*Sequences*bias_of*"
    ":*Sequences*mask_bits_*:*Sequences*bias_shared*:*Sequences*bounds*:*Pages*of_*:*Pages*no_*:*Pages*bounds*"
    ":*WrongOffsets*fall_*:*WrongOffsets*negative_last*:*WrongOffsets*begin_behind*:*Decode*heads_first*"
    ":*Decode*keep_constant*:*Decode*keep_all*:*Decode*keep_more*:*Decode*lengths_of*:*Decode*many_heads*"
)


class StepError(Exception):
    """Why a step failed."""


class Check:
    """One run: where things are, and the steps."""

    def __init__(self, args: argparse.Namespace):
        self.build_dir = args.build_dir.resolve()
        self.reuse = args.reuse_build
        self.cmake_args = args.cmake_arg
        self.everything = args.all
        self.sanitizer_filter = args.sanitizer_filter
        self.sanitizers = args.sanitizers
        self.sanitizes = "sanitizers" in args.steps
        self.earlier_sanitizers: dict[str, dict] = {}
        self.timeouts = dict(DEFAULT_TIMEOUT_S)
        if args.timeout:
            self.timeouts = dict.fromkeys(STEPS, args.timeout)
        self.logs = self.build_dir / "gpu_check"
        self.deadline = 0.0

    def continue_record(self, record: dict) -> None:
        """Sanitizers that the record holds for the same selection need not run again: each takes minutes."""
        earlier = record["steps"].get("sanitizers", {})
        if earlier.get("filter") == self.sanitizer_filter:
            self.earlier_sanitizers = earlier.get("tools", {})

    def start(self, step: str) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        self.deadline = time.monotonic() + self.timeouts[step]

    def _command(self, name: str, command: Sequence[object], env: dict | None = None) -> tuple[int, str]:
        """(exit status, output) of a command, which gets what is left of the step's time."""
        words = [str(word) for word in command]
        print("+", " ".join(words), flush=True)
        log = self.logs / f"{name}.log"
        with log.open("w+") as out:
            process = subprocess.Popen(
                words, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
            )
            try:
                status = process.wait(timeout=max(1.0, self.deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise StepError(f"{words[0]} ran past the time limit of its step; log: {log}") from None
        output = log.read_text(errors="replace")
        if status != 0:
            print(_tail(output), flush=True)
        return status, output

    def _must(self, name: str, command: Sequence[object], env: dict | None = None) -> str:
        status, output = self._command(name, command, env)
        if status != 0:
            raise StepError(f"{command[0]} ended with status {status}: {_tail(output)}")
        return output

    def build(self) -> dict:
        if not self.reuse:
            configure = ["cmake", "-S", ROOT, "-B", self.build_dir, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
            options = ["-DFDMA_BUILD_TESTS=ON", "-DFDMA_BUILD_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}"]
            self._must("configure", [*configure, *options, *self.cmake_args])
        elif not (self.build_dir / "CMakeCache.txt").exists():
            raise StepError(f"--reuse-build: {self.build_dir} holds no build (no CMakeCache.txt)")
        # Also where a build is there: the record is to be of these sources, not of what was built from earlier ones.
        self._must("build", ["cmake", "--build", self.build_dir, "--target", "all", *self._racecheck_targets()])
        shutil.rmtree(self._package_dir(), ignore_errors=True)
        install = ["cmake", "--install", self.build_dir, "--component", "python", "--prefix", self._package_dir()]
        self._must("install", install)
        info = self._build_info()
        if not info["cuda_built"]:
            raise StepError(
                f"the library was built without CUDA, so nothing would run on the GPU: {info['build_info']}"
            )
        return info

    def _racecheck_targets(self) -> list[str]:
        """Racecheck sees hazards where one lane arrives at a barrier for its warp, so it gets kernels of its own."""
        return [RACECHECK_TESTS] if self.sanitizes and "racecheck" in self.sanitizers else []

    def _package_dir(self) -> Path:
        return self.build_dir / "gpu_check" / "site"

    def _find(self, name: str) -> Path:
        found = sorted(path for path in self.build_dir.rglob(name) if path.is_file() and "site" not in path.parts)
        if not found:
            raise StepError(f"no {name} below {self.build_dir}: run the build step first, with FDMA_BUILD_TESTS=ON")
        return found[0]

    def _build_info(self) -> dict:
        library = ctypes.CDLL(str(self._find("libfdma.so")))
        library.fdma_build_info.restype = ctypes.c_char_p
        return {"build_info": library.fdma_build_info().decode(), "cuda_built": bool(library.fdma_cuda_built())}

    def ctest(self) -> dict:
        if not self.everything:
            return self._gpu_tests_in_shards()
        junit = self.logs / "ctest.xml"
        junit.unlink(missing_ok=True)
        test = ["ctest", "--test-dir", self.build_dir, "--output-on-failure", "--parallel", str(_processes())]
        status, output = self._command("ctest", [*test, "--output-junit", junit])
        return self._counted("ctest", junit, status, output)

    def _gpu_tests_in_shards(self) -> dict:
        """The tests that ctest labels gpu, several processes side by side.

        ctest starts a process for each of them, and a process takes longer to open the GPU than most tests run.
        """
        binaries = sorted(path for path in self.build_dir.rglob("fdma_*_tests") if os.access(path, os.X_OK))
        if not binaries:
            raise StepError(f"no fdma_*_tests below {self.build_dir}: run the build step with FDMA_BUILD_TESTS=ON")
        shards = [(binary, index) for binary in binaries for index in range(GTEST_SHARDS)]
        with ThreadPoolExecutor(max_workers=_processes()) as pool:
            results = list(pool.map(lambda shard: self._shard(*shard), shards))
        counts = TestCounts()
        for result, _ in results:
            counts.add(result)
        return {**counts.as_json(), "problem": _test_problem("ctest", counts, max(status for _, status in results))}

    def _shard(self, binary: Path, index: int) -> tuple[TestCounts, int]:
        name = f"{binary.name}-{index}"
        junit = self.logs / f"{name}.xml"
        junit.unlink(missing_ok=True)
        env = {"GTEST_TOTAL_SHARDS": str(GTEST_SHARDS), "GTEST_SHARD_INDEX": str(index)}
        status, output = self._command(name, [binary, "--gtest_filter=*Gpu*", f"--gtest_output=xml:{junit}"], env)
        if not junit.exists():
            raise StepError(f"{name} wrote no {junit.name} and ended with status {status}: {_tail(output)}")
        return read_junit(junit), status

    def pytest(self) -> dict:
        junit = self.logs / "pytest.xml"
        junit.unlink(missing_ok=True)
        test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}", "python/tests"]
        env = {"PYTHONPATH": os.pathsep.join([str(self._package_dir()), os.environ.get("PYTHONPATH", "")]).strip(":")}
        env["FDMA_LIBRARY_DIR"] = str(self.build_dir / "cpp")  # the example engine is built against it
        if importlib.util.find_spec("xdist"):  # compilers of Triton and Inductor take one core each
            test += ["-n", str(_processes()), "--dist", "worksteal"]
            env["OMP_NUM_THREADS"] = "1"  # torch would take every core in every process
        status, output = self._command("pytest", test if self.everything else [*test, "-m", "gpu"], env)
        return self._counted("pytest", junit, status, output)

    @staticmethod
    def _counted(name: str, junit: Path, status: int, output: str) -> dict:
        if not junit.exists():
            raise StepError(f"{name} wrote no {junit.name} and ended with status {status}: {_tail(output)}")
        counts = read_junit(junit)
        return {**counts.as_json(), "problem": _test_problem(name, counts, status)}

    def sanitize(self) -> dict:
        tool = shutil.which("compute-sanitizer") or _toolkit_file("compute-sanitizer")
        if tool is None:
            raise StepError("compute-sanitizer is not on the PATH, nor beside nvcc, nor in /usr/local/cuda/bin")

        def tests_of(name: str) -> Path:
            return self._find(RACECHECK_TESTS if name == "racecheck" else "fdma_op_tests")

        results = {**self.earlier_sanitizers}
        # Side by side: the tools run mostly on the host, and a GPU may be lent by the minute.
        with ThreadPoolExecutor(max_workers=len(SANITIZERS)) as pool:
            runs = {name: pool.submit(self._sanitize, tool, name, tests_of(name)) for name in self.sanitizers}
            results.update((name, run.result()) for name, run in runs.items())
        bad = [f"{name}: {result['problem']}" for name, result in results.items() if result["problem"]]
        missing = [name for name in SANITIZERS if name not in results]
        if missing:
            bad.append(f"not run: {', '.join(missing)}")
        return {"filter": self.sanitizer_filter, "tools": results, "problem": "; ".join(bad) or None}

    def _sanitize(self, tool: str, name: str, binary: Path) -> dict:
        """What one tool found. One that is stopped leaves the others what they found."""
        try:
            return self._sanitize_once(tool, name, binary)
        except StepError as error:
            return {"errors": None, "passed": 0, "failed": 0, "skipped": 0, "seconds": None, "problem": str(error)}

    def _sanitize_once(self, tool: str, name: str, binary: Path) -> dict:
        junit = self.logs / f"{name}.xml"
        junit.unlink(missing_ok=True)
        start = time.monotonic()
        options = ["--tool", name, "--error-exitcode", "99", "--print-limit", "20"]
        tests = [binary, f"--gtest_filter={self.sanitizer_filter}", f"--gtest_output=xml:{junit}"]
        status, output = self._command(name, [tool, *options, *tests])
        errors = read_sanitizer_errors(output)
        counts = read_junit(junit) if junit.exists() else TestCounts()
        problem = _test_problem("the selection", counts, 0)
        if errors is None:
            problem = f"no summary, status {status}: {_tail(output)}"
        elif errors:
            problem = f"{errors} errors: {_findings(output)}"
        elif status != 0 and problem is None:
            problem = f"ended with status {status}: {_tail(output)}"
        kept = {"passed": counts.passed, "failed": counts.failed, "skipped": counts.skipped}
        return {"errors": errors, **kept, "seconds": round(time.monotonic() - start, 1), "problem": problem}


def _test_problem(name: str, counts: TestCounts, status: int) -> str | None:
    if counts.failed:
        return f"{counts.failed} failed: {', '.join(counts.failures[:10])}"
    if not counts.passed:
        return f"{name} ran no test ({counts.skipped} skipped: {', '.join(counts.skip_reasons) or 'none selected'})"
    return f"{name} ended with status {status}" if status else None


def _processes() -> int:
    return max(1, (os.cpu_count() or 1) * 3 // 4)


def _tail(output: str) -> str:
    return "\n".join(output.strip().splitlines()[-TAIL_LINES:])


def _findings(output: str) -> str:
    """What a sanitizer reports first. A record may be all that is left of a run, and its tail names only the tests."""
    lines = [line for line in output.splitlines() if line.startswith("=========") and "Host Frame" not in line]
    return "\n".join(lines[:TAIL_LINES])


def _toolkit_file(name: str) -> str | None:
    nvcc = shutil.which("nvcc")
    folders = [Path(nvcc).resolve().parent] if nvcc else []
    found = [folder / name for folder in [*folders, Path("/usr/local/cuda/bin")] if (folder / name).exists()]
    return str(found[0]) if found else None


def machine() -> dict:
    """GPU name, driver and CUDA toolkit of this machine."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        line = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise StepError(f"no NVIDIA GPU here: nvidia-smi says {error}") from None
    name, driver = (part.strip() for part in line.rsplit(",", 1))
    nvcc = shutil.which("nvcc") or _toolkit_file("nvcc") or "/usr/local/cuda/bin/nvcc"
    try:
        version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        version = ""
    release = re.search(r"release ([\d.]+)", version)
    return {"gpu": name, "driver": driver, "cuda": release.group(1) if release else "no nvcc"}


def run_step(check: Check, step: str) -> dict:
    """The step's entry in the record: ok, problem, seconds, and what the step found."""
    print(f"== {step}", flush=True)
    start = time.monotonic()
    check = copy.copy(check)  # with a deadline of its own: steps may run side by side
    check.start(step)
    action = {"build": check.build, "ctest": check.ctest, "pytest": check.pytest, "sanitizers": check.sanitize}[step]
    try:
        entry = action()
    except StepError as error:
        entry = {"problem": str(error)}
    problem = entry.pop("problem", None)
    print(f"== {step}: {problem or 'ok'}", flush=True)
    return {"ok": problem is None, "problem": problem, "seconds": round(time.monotonic() - start, 1), **entry}


def read_record(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


def new_record(here: dict, digest: str, previous: dict | None) -> dict:
    """An empty record, or with the steps of `previous` where that is of the same sources on the same machine."""
    record = {**here, "source_digest": digest}
    same = previous is not None and all(previous.get(name) == value for name, value in record.items())
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {**record, "date": now, "steps": dict(previous["steps"]) if same else {}}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    def subset(known: Sequence[str]) -> Callable[[str], list[str]]:
        def read(text: str) -> list[str]:
            unknown = [name for name in text.split(",") if name not in known]
            if unknown:
                raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}; accepted are {', '.join(known)}")
            return [name for name in known if name in text.split(",")]

        return read

    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--verify", action="store_true", help="only tell whether the record is of these sources")
    out.add_argument("--output", type=Path, default=RECORD, help="the record (default tests/gpu_record.json)")
    out.add_argument("--steps", type=subset(STEPS), default=list(STEPS), help=f"of {','.join(STEPS)}, default: all")
    out.add_argument("--together", action="store_true", help="after the build, all steps side by side")
    out.add_argument("--update", action="store_true", help="keep the record's other steps, if of these sources and GPU")
    out.add_argument("--build-dir", type=Path, default=ROOT / "build" / "gpu", help="default build/gpu")
    out.add_argument("--reuse-build", action="store_true", help="configure nothing: bring --build-dir up to date")
    out.add_argument("--cmake-arg", action="append", default=[], help="for the configuration; may be repeated")
    out.add_argument("--all", action="store_true", help="the tests without the label gpu too")
    out.add_argument("--sanitizers", type=subset(SANITIZERS), default=list(SANITIZERS), help="default: all four")
    out.add_argument("--sanitizer-filter", default=SANITIZER_FILTER, help="GoogleTest pattern for the sanitizers")
    out.add_argument("--timeout", type=float, help="seconds for each step, instead of the steps' own limits")
    return out.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    digest = source_digest()
    if args.verify:
        problem = verify(read_record(args.output), digest, args.output)
        print(problem or f"{args.output} is of these sources")
        return 1 if problem else 0
    try:
        here = machine()
    except StepError as error:
        print(error)
        return 1
    record = new_record(here, digest, read_record(args.output) if args.update else None)
    check = Check(args)
    check.continue_record(record)
    groups = [["build"], list(STEPS[1:])] if args.together else [[step] for step in STEPS]
    for group in groups:
        steps = [step for step in group if step in args.steps]
        with ThreadPoolExecutor(max_workers=len(group)) as pool:
            runs = {pool.submit(run_step, check, step): step for step in steps}
            for run in as_completed(runs):  # a run that is stopped leaves the steps that ended
                record["steps"][runs[run]] = run.result()
                args.output.parent.mkdir(parents=True, exist_ok=True)
                args.output.write_text(json.dumps(record, indent=1) + "\n")
        if "build" in steps and not record["steps"]["build"]["ok"]:
            break
    problem = verify(record, digest, args.output)
    print(problem or f"all steps passed on {here['gpu']}: {args.output}")
    return 0 if all(record["steps"].get(step, {}).get("ok") for step in args.steps) else 1


if __name__ == "__main__":
    sys.exit(main())
