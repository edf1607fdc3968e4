"""How the outputs of the test tools are read, and what a record is worth."""

import json
from pathlib import Path

import pytest
from tools import gpu_check
from tools.gpu_record import SANITIZERS, STEPS, read_junit, read_sanitizer_errors, verify
from tools.source_digest import source_digest

CTEST = """<testsuite name="x" tests="3" failures="1">
 <testcase name="A.Runs" classname="A.Runs" status="run"/>
 <testcase name="A.Fails" classname="A.Fails" status="fail"><failure message="Failed"/></testcase>
 <testcase name="G.Skips" classname="G.Skips" status="notrun"><skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/>
  <system-out>[ RUN      ] G.Skips
/src/g.cpp:45: Skipped
no GPU here
[  SKIPPED ] G.Skips</system-out></testcase></testsuite>"""

GTEST = """<testsuites tests="2"><testsuite name="S">
 <testcase name="Runs" classname="S" status="run" result="completed"/>
 <testcase name="Skips" classname="S" status="run" result="skipped">
  <skipped message="/src/g.cpp:45&#x0A;no GPU here"/></testcase></testsuite></testsuites>"""

PYTEST = """<testsuites><testsuite name="pytest">
 <testcase classname="python.tests.test_a" name="test_runs"/>
 <testcase classname="python.tests.test_a" name="test_skips"><skipped message="no GPU here"/></testcase>
 <testcase classname="" name="python.tests.test_b"><error message="collection failure"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("text", "passed", "failures"),
    [(CTEST, 1, ["A.Fails"]), (GTEST, 1, []), (PYTEST, 1, ["python.tests.test_b"])],
    ids=["ctest", "gtest", "pytest"],
)
def test_junit(tmp_path: Path, text, passed, failures):
    path = tmp_path / "junit.xml"
    path.write_text(text)
    counts = read_junit(path)
    assert (counts.passed, counts.failed, counts.skipped) == (passed, len(failures), 1)
    assert counts.failures == failures
    assert counts.skip_reasons == {"no GPU here": 1}


@pytest.mark.parametrize(
    ("output", "errors"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", 0),
        ("========= ERROR SUMMARY: 1 error\n========= ERROR SUMMARY: 2 errors\n", 3),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0),
        ("========= RACECHECK SUMMARY: 4 hazards displayed (4 errors, 0 warnings)\n", 4),
        ("[==========] 3 tests ran.\n", None),
    ],
)
def test_sanitizer_summary(output, errors):
    assert read_sanitizer_errors(output) == errors


def full_record(digest: str) -> dict:
    return {"gpu": "G", "source_digest": digest, "steps": {step: {"ok": True, "problem": None} for step in STEPS}}


def test_verify_accepts_a_full_record():
    assert verify(full_record("abc"), "abc", Path("r.json")) is None


def test_verify_says_what_is_wrong():
    path = Path("r.json")
    assert "does not exist" in verify(None, "abc", path)
    assert "other sources" in verify(full_record("abd"), "abc", path)
    partial = full_record("abc")
    del partial["steps"]["sanitizers"]
    assert "sanitizers was not run" in verify(partial, "abc", path)
    failed = full_record("abc")
    failed["steps"]["ctest"] = {"ok": False, "problem": "2 failed"}
    assert "ctest failed: 2 failed" in verify(failed, "abc", path)


@pytest.mark.parametrize(("digest", "status"), [(None, 0), ("0" * 64, 1)])
def test_verify_exit_code(tmp_path, capsys, digest, status):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(full_record(digest or source_digest())))
    assert gpu_check.main(["--verify", "--output", str(path)]) == status
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert ("other sources" in last) == bool(status)


def test_verify_without_a_record(tmp_path):
    assert gpu_check.main(["--verify", "--output", str(tmp_path / "none.json")]) == 1


def test_unknown_step_is_refused(capsys):
    with pytest.raises(SystemExit):
        gpu_check.parse(["--steps", "build,ctests"])
    assert "got ctests; accepted are build, ctest, pytest, sanitizers" in capsys.readouterr().err


def test_update_keeps_steps_of_the_same_sources_only():
    here = {"gpu": "G", "driver": "1", "cuda": "13.0"}
    previous = {**here, "source_digest": "abc", "steps": {"build": {"ok": True}}}
    assert gpu_check.new_record(here, "abc", previous)["steps"] == {"build": {"ok": True}}
    assert gpu_check.new_record(here, "abd", previous)["steps"] == {}
    assert gpu_check.new_record({**here, "gpu": "H"}, "abc", previous)["steps"] == {}


def test_sanitizers_may_run_in_several_goes(check, monkeypatch, tmp_path):
    good = {"errors": 0, "problem": None}
    monkeypatch.setattr(check, "_find", lambda name: tmp_path / name)
    monkeypatch.setattr(check, "_sanitize_once", lambda tool, name, binary: good)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: name)
    check.sanitizers = ["memcheck"]
    assert check.sanitize()["problem"] == "not run: racecheck, synccheck, initcheck"
    earlier = {"filter": check.sanitizer_filter, "tools": dict.fromkeys(SANITIZERS[1:], good)}
    check.continue_record({"steps": {"sanitizers": {**earlier, "filter": "other"}}})
    assert check.sanitize()["problem"]
    check.continue_record({"steps": {"sanitizers": earlier}})
    assert check.sanitize()["problem"] is None


@pytest.fixture
def check(tmp_path) -> gpu_check.Check:
    return gpu_check.Check(gpu_check.parse(["--build-dir", str(tmp_path)]))


def fake_tool(folder: Path, text: str) -> Path:
    tool = folder / "tool"
    tool.write_text(f"#!/bin/sh\n{text}\n")
    tool.chmod(0o755)
    return tool


def test_a_sanitizer_that_is_stopped_leaves_the_others_their_results(check, monkeypatch, tmp_path):
    good = {"errors": 0, "passed": 1, "failed": 0, "skipped": 0, "seconds": 1.0, "problem": None}

    def once(tool, name, binary):
        if name == "racecheck":
            raise gpu_check.StepError("ran past the time limit")
        return good

    monkeypatch.setattr(check, "_find", lambda name: tmp_path / name)
    monkeypatch.setattr(check, "_sanitize_once", once)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: name)
    found = check.sanitize()
    assert found["problem"] == "racecheck: ran past the time limit"
    assert [found["tools"][name]["passed"] for name in SANITIZERS] == [1, 0, 1, 1]


# Stands for compute-sanitizer: writes the GoogleTest report that it is asked for, then what `after` says.
REPORT = 'for word; do case $word in --gtest_output=xml:*) printf "%s" "{xml}" >"${{word#*xml:}}";; esac; done; {after}'


@pytest.mark.parametrize(
    ("xml", "after", "problem"),
    [
        ("<testsuite><testcase name='a'/></testsuite>", "echo ERROR SUMMARY: 0 errors", None),
        ("<testsuite><testcase name='a'/></testsuite>", "echo ERROR SUMMARY: 2 errors; exit 99", "2 errors"),
        ("<testsuite><testcase name='a'/></testsuite>", "exit 1", "no summary"),
        ("<testsuite/>", "echo ERROR SUMMARY: 0 errors", "ran no test"),
        ("<testsuite><testcase name='a'><failure/></testcase></testsuite>", "echo ERROR SUMMARY: 0 errors", "1 failed"),
    ],
)
def test_sanitizer_run(check, tmp_path, xml, after, problem):
    check.start("sanitizers")
    tool = fake_tool(tmp_path, REPORT.format(xml=xml, after=after))
    result = check._sanitize_once(str(tool), SANITIZERS[0], tmp_path / "tests")
    assert result["problem"] is None if problem is None else problem in result["problem"]


def test_a_sanitizer_s_problem_says_what_it_found(check, tmp_path):
    check.start("sanitizers")
    after = "echo '========= Error: a race'; for i in $(seq 40); do echo passed $i; done; echo ERROR SUMMARY: 1 error"
    xml = "<testsuite><testcase name='a'/></testsuite>"
    tool = fake_tool(tmp_path, REPORT.format(xml=xml, after=after))
    assert "Error: a race" in check._sanitize_once(str(tool), SANITIZERS[0], tmp_path / "tests")["problem"]


def test_a_step_has_a_time_limit(check, tmp_path, monkeypatch):
    check.timeouts["build"] = 0.1
    monkeypatch.setattr(gpu_check.Check, "build", lambda self: self._must("sleep", ["sleep", "30"]))
    entry = gpu_check.run_step(check, "build")
    assert not entry["ok"]
    assert "time limit" in entry["problem"]


def test_reuse_without_a_build_is_refused(check, tmp_path):
    check.reuse = True
    entry = gpu_check.run_step(check, "build")
    assert "holds no build" in entry["problem"]


def test_gpu_tests_of_binaries_in_shards(tmp_path: Path):
    binary = tmp_path / "cpp" / "fdma_op_tests"
    binary.parent.mkdir()
    # Each shard has a test of its own; one fails.
    binary.write_text(
        "#!/bin/sh\n"
        'for word in "$@"; do case $word in --gtest_output=xml:*) out=${word#--gtest_output=xml:};; esac; done\n'
        "[ $GTEST_SHARD_INDEX = 1 ] && bad='<failure/>'\n"
        'case="<testcase classname=\\"S\\" name=\\"T$GTEST_SHARD_INDEX\\">$bad</testcase>"\n'
        'echo "<testsuites>$case</testsuites>" >$out\n'
        '[ -z "$bad" ]\n'
    )
    binary.chmod(0o755)
    check = gpu_check.Check(gpu_check.parse(["--build-dir", str(tmp_path)]))
    entry = gpu_check.run_step(check, "ctest")
    assert (entry["passed"], entry["failures"]) == (gpu_check.GTEST_SHARDS - 1, ["S::T1"])
    assert entry["problem"] == "1 failed: S::T1"
