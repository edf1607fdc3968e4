"""The record of a GPU test run: how the outputs of the tools are read, and when a record is good."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

STEPS = ("build", "ctest", "pytest", "sanitizers")
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")

# memcheck, synccheck and initcheck end with the first line, racecheck with the second.
_SUMMARIES = (
    re.compile(r"ERROR SUMMARY: (\d+) errors?"),
    re.compile(r"RACECHECK SUMMARY: (\d+) hazards? displayed"),
)


@dataclass
class TestCounts:
    """What a test run did. Skip reasons are counted, since a thousand tests share a few."""

    __test__ = False  # not a test class, whatever its name begins with

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    skip_reasons: dict[str, int] = field(default_factory=dict)

    def add(self, other: TestCounts) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.failures += other.failures
        for reason, count in other.skip_reasons.items():
            self.skip_reasons[reason] = self.skip_reasons.get(reason, 0) + count

    def as_json(self) -> dict:
        return dict(vars(self))


def read_junit(path: Path) -> TestCounts:
    """Counts of a JUnit XML file, as ctest, pytest and GoogleTest write it.

    A test is skipped when it says so in an element (ctest, pytest) or an attribute (GoogleTest).
    """
    counts = TestCounts()
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        names = dict.fromkeys(part for part in (case.get("classname"), case.get("name")) if part)
        name = "::".join(names)  # ctest gives the same name twice
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
            counts.failed += 1
            counts.failures.append(name)
        elif skipped is not None or case.get("status") in ("notrun", "disabled") or case.get("result") == "skipped":
            counts.skipped += 1
            reason = _skip_reason(case, skipped)
            counts.skip_reasons[reason] = counts.skip_reasons.get(reason, 0) + 1
        else:
            counts.passed += 1
    return counts


def _skip_reason(case: ElementTree.Element, skipped: ElementTree.Element | None) -> str:
    message = "" if skipped is None else skipped.get("message") or skipped.text or ""
    output = case.findtext("system-out") or ""
    # ctest reports only that a pattern matched; the reason is the line after GoogleTest's "file:line: Skipped".
    said = re.search(r": Skipped\n(.+)", message) or re.search(r": Skipped\n(.+)", output)
    if said:
        return said.group(1).strip()
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def read_sanitizer_errors(output: str) -> int | None:
    """Errors that compute-sanitizer counted over all processes, None when it printed no summary."""
    counts = [int(count) for pattern in _SUMMARIES for count in pattern.findall(output)]
    return sum(counts) if counts else None


def step_problem(record: dict, step: str) -> str | None:
    """Why a step of the record proves nothing, or None when it passed."""
    entry = record.get("steps", {}).get(step)
    if entry is None:
        return f"{step} was not run"
    return f"{step} failed: {entry.get('problem')}" if not entry.get("ok") else None


def verify(record: dict | None, digest: str, path: Path) -> str | None:
    """Why the record does not prove that these sources pass on a GPU, or None when it does."""
    if record is None:
        return f"{path} does not exist: run tools/gpu_check.py on a machine with an NVIDIA GPU"
    recorded = record.get("source_digest", "none")
    if recorded != digest:
        return f"{path} is of other sources: it has digest {recorded[:16]}, the sources have {digest[:16]}"
    problems = [problem for problem in (step_problem(record, step) for step in STEPS) if problem]
    return f"{path} records no full pass: {'; '.join(problems)}" if problems else None
