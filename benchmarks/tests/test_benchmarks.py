"""The benchmarks on a CPU: formulas, checks, the schema of the results and the README's text."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from benchmarks import host_overhead, pages, report
from benchmarks.calls import Call, Impl
from benchmarks.check import Reference
from benchmarks.cli import main
from benchmarks.impls import IMPLS, OURS
from benchmarks.ours import Fdma, FdmaFlex
from benchmarks.peers import Flex, Sdpa, TorchTopk
from benchmarks.runner import run, tflops
from benchmarks.series import known_workloads
from benchmarks.workloads import WORKLOADS, Inputs, Workload

SMALL = Workload("small", 2, 96, 4, 2, 16, True, "float32", "cpu")
MASKED = Workload(
    "masked", 2, 96, 2, 2, 16, True, "float32", "cpu", "random", "topk", 24, passes=("select", "fwd", "bwd")
)
PACKED = Workload("packed", 2, 96, 4, 4, 16, True, "float32", "cpu", layout="qkvpacked")
VARLEN = Workload("lengths", 3, 96, 4, 2, 16, True, "float32", "cpu", layout="varlen", lengths=(33, 96, 70))
SDPA = Sdpa("sdpa", None, ("cpu",), masks=True, bias_grad=True)


def test_flops():
    dense = known_workloads()["dense-full"]
    assert dense.flops("fwd") == 4 * 16 * 16384**2 * 128
    assert dense.flops("bwd") == 2.5 * dense.flops("fwd")
    assert known_workloads()["dense-causal"].flops("fwd") == dense.flops("fwd") / 2
    assert dense.flops("select") is None
    # DESIGN.md section 6: cuDNN's 3.67 ms forward of dense-full on an H100 are about 600 TFLOP/s.
    assert tflops(dense, "fwd", 3.67) == pytest.approx(599, abs=1)


def test_flops_of_sequences_are_summed():
    varlen = known_workloads()["varlen"]
    assert varlen.lengths == (8192, 16384, 4096)
    assert varlen.flops("fwd") == sum(4 * 16 * length**2 * 128 / 2 for length in varlen.lengths)
    alike = Workload("alike", 3, 50, 4, 4, 16, layout="varlen", lengths=(50, 50, 50))
    assert alike.flops("bwd") == Workload("same", 3, 50, 4, 4, 16).flops("bwd")


def test_packed_has_the_shape_that_it_is_compared_with():
    packed = known_workloads()["qkvpacked"]
    plain = known_workloads()[packed.beside]
    assert packed.flops("fwd") == plain.flops("fwd")
    assert replace(plain, name="", layout="qkvpacked") == replace(packed, name="", beside=None)


@pytest.mark.parametrize(
    "wrong", [{"lengths": (96, 70)}, {"lengths": (10, 10, 10)}, {"lengths": ()}, {"layout": "kv"}, {"mask": "topk"}]
)
def test_workloads_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"lengths up to|layout is 'kv'; accepted: apart, qkvpacked, varlen"):
        replace(VARLEN, **wrong)


def test_workloads_have_distinct_names():
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)
    assert {workload.name for workload in WORKLOADS} < set(known_workloads())


def test_topk_mask_keeps_the_largest():
    inputs = Inputs(MASKED)
    assert (inputs.mask.sum(-1) == MASKED.keep).all()
    kept = inputs.bias.detach().masked_fill(inputs.mask == 0, math.inf).amin(-1)
    dropped = inputs.bias.detach().masked_fill(inputs.mask != 0, -math.inf).amax(-1)
    assert (kept >= dropped).all()


def test_tile_mask_hides_its_share():
    inputs = Inputs(known_workloads()["cpu-tiles"])
    hidden = 1.0 - inputs.mask.float().mean().item()
    assert hidden == pytest.approx(0.9, abs=0.02)
    assert inputs.mask.any(-1).all()


@pytest.mark.parametrize("workload", [SMALL, MASKED, PACKED], ids=lambda workload: workload.name)
def test_peers_agree_with_the_reference(workload):
    results = run([workload], [SDPA, TorchTopk()], ["select", "fwd", "bwd"], seconds_per_row=0.02)
    assert not results.left_out
    expected = {("fwd", "sdpa"), ("bwd", "sdpa")} | ({("select", "torch-topk")} if workload is MASKED else set())
    assert {(row.which, row.impl) for row in results.rows} == expected


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("workload", [SMALL, MASKED], ids=lambda workload: workload.name)
def test_flex_agrees_with_the_reference(workload):
    inputs = Inputs(workload)
    # On a CPU FlexAttention refuses tensors that need a gradient.
    for name in ("query", "key", "value"):
        setattr(inputs, name, getattr(inputs, name).detach())
    call = Flex(compiled=False).build(inputs)
    assert Reference(inputs, with_gradients=False).fault("out", call.forward()) is None


@pytest.mark.parametrize("workload", [SMALL, MASKED], ids=lambda workload: workload.name)
def test_this_project_agrees_with_the_reference(workload):
    pytest.importorskip("flash_dmattn")
    results = run(
        [workload], [Fdma("cpu"), FdmaFlex("flex", "cpu", "flex-dmattn")], ["fwd", "bwd"], seconds_per_row=0.02
    )
    assert not results.left_out
    assert [(row.impl, row.which) for row in results.rows] == [
        (impl, which) for impl in ("cpu", "flex-dmattn") for which in ("fwd", "bwd")
    ]


@pytest.mark.parametrize("workload", [PACKED, VARLEN], ids=lambda workload: workload.name)
def test_other_layouts_agree_with_the_reference(workload):
    pytest.importorskip("flash_dmattn")
    results = run(
        [workload], [Fdma("cpu"), FdmaFlex("flex", "cpu", "flex-dmattn")], ["fwd", "bwd"], seconds_per_row=0.02
    )
    assert not results.left_out
    assert [(row.impl, row.which) for row in results.rows] == [("cpu", "fwd"), ("cpu", "bwd")]


class PerSequence(Impl):
    """SDPA on each sequence by itself; `spoil` is applied to the output of the last."""

    name = "per-sequence"
    devices = ("cpu",)
    layouts = ("varlen",)

    def __init__(self, spoil=lambda out: out):
        self._spoil = spoil

    def build(self, inputs: Inputs) -> Call:
        def forward():
            ends = inputs.cu_seqlens.tolist()
            parts = []
            for begin, end in zip(ends, ends[1:]):
                query, key, value = (t[begin:end].transpose(0, 1) for t in (inputs.query, inputs.key, inputs.value))
                out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
                parts.append(out.transpose(0, 1))
            return torch.cat([*parts[:-1], self._spoil(parts[-1])])

        return Call(forward, dict(inputs.leaves))


def test_reference_of_sequences_is_of_the_last_one():
    assert not run([VARLEN], [PerSequence()], ["fwd", "bwd"], seconds_per_row=0.02).left_out
    wrong = run([VARLEN], [PerSequence(lambda out: out.roll(1, dims=0))], ["fwd", "bwd"], seconds_per_row=0.02)
    assert "relative error of out" in wrong.left_out[0]["reason"]


def test_a_wrong_gradient_of_a_packed_tensor_is_found():
    inputs = Inputs(PACKED)
    reference = Reference(inputs, with_gradients=True)
    (grad,) = torch.autograd.grad(SDPA.build(inputs).forward(), inputs.leaves["qkv"], inputs.grad_out)
    assert reference.fault("qkv", grad) is None
    assert "relative error of value" in reference.fault("qkv", grad * torch.tensor([1, 1, 1.1])[:, None, None])


def test_implementations_have_distinct_names():
    names = [impl.name for impl in IMPLS]
    assert len(set(names)) == len(names)
    assert set(OURS) <= set(names)


class Wrong(Impl):
    """Attention with an error that `spoil` puts into its output."""

    name = "wrong"
    devices = ("cpu",)

    def __init__(self, spoil):
        self._spoil = spoil

    def build(self, inputs: Inputs) -> Call:
        right = SDPA.build(inputs)
        return Call(lambda: self._spoil(right.forward()), right.leaves)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda out: out * 1.01, "relative error of out"),
        (lambda out: out.roll(1, dims=2), "relative error of out"),
        (lambda out: out + torch.where(torch.arange(out.shape[1])[:, None, None] == 3, math.nan, 0.0), "not finite"),
    ],
    ids=["scaled", "wrong head", "nan"],
)
def test_a_wrong_answer_is_reported_and_not_timed(spoil, reason):
    results = run([SMALL], [Wrong(spoil)], ["fwd", "bwd"], seconds_per_row=0.02)
    assert not results.rows
    assert "wrong, so not timed" in results.left_out[0]["reason"]
    assert reason in results.left_out[0]["reason"]


def test_a_wrong_gradient_leaves_the_forward_pass_standing():
    results = run([SMALL], [Wrong(lambda out: out + (out - out.detach()))], ["fwd", "bwd"], seconds_per_row=0.02)
    assert [row.which for row in results.rows] == ["fwd"]
    assert "wrong, so not timed: relative error of query" in results.left_out[0]["reason"]


def test_a_failure_is_a_reason():
    def fail(_):
        raise RuntimeError("no kernel for this")

    results = run([SMALL], [Wrong(fail)], ["fwd"], seconds_per_row=0.02)
    assert results.left_out == [{"workload": "small", "impl": "wrong", "reason": "RuntimeError: no kernel for this"}]


def test_reference_covers_the_last_kv_head():
    reference = Reference(Inputs(SMALL), with_gradients=True)
    assert reference.expected["out"].shape == (2, 96, 16)
    assert reference.expected["key"].shape == (96, 16)


def test_json_schema(tmp_path):
    output = tmp_path / "results.json"
    assert main(["--device", "cpu", "--small", "--workloads", "cpu-dense,seed-dma", "--output", str(output)]) == 0
    document = json.loads(output.read_text())
    assert {"gpu", "date", "source_digest", "versions", "rows"} <= set(document)
    assert len(document["source_digest"]) == 64
    assert {row["workload"] for row in document["rows"]} == {"cpu-dense", "seed-dma"}
    for row in document["rows"]:
        assert set(row) == {"workload", "pass", "impl", "ms", "tflops", "peak_mib"}
        assert row["pass"] in ("fwd", "bwd", "select")
        assert row["ms"] > 0


def document_of(ours: float, peer: float) -> dict:
    def row(impl, ms):
        return {"workload": "dense-full", "pass": "fwd", "impl": impl, "ms": ms, "tflops": 1.0, "peak_mib": 1.0}

    return {
        "gpu": "Some GPU",
        "date": "2026-01-01T00:00:00+00:00",
        "source_digest": "a",
        "versions": {"torch": "2.13.0", "cuda": "13.0"},
        "rows": [row("cuda", ours), row("fa2", peer), row("sdpa-efficient", 9.0)],
        "shapes": {"dense-full": "B1"},
        "remarks": [],
        "left_out": [],
    }


def test_readme_says_where_we_lose():
    lost = pages.readme_section([document_of(2.0, 1.0)])
    assert "1.000 (fa2) | 0.50 |" in lost
    assert "Slower than the best peer in: dense-full fwd (0.50)." in lost
    won = pages.readme_section([document_of(1.0, 2.0)])
    assert "Slower" not in won
    assert "2.000 (fa2) | 2.00 |" in won
    assert "No GPU results" not in won


def test_workloads_are_compared_with_those_that_they_are_beside():
    def row(workload, impl, tflops):
        return {"workload": workload, "pass": "fwd", "impl": impl, "ms": 1.0, "tflops": tflops, "peak_mib": 1.0}

    rows = [row("dense-causal", "cuda", 400.0), row("varlen", "cuda", 380.0), row("varlen", "torch-varlen", 300.0)]
    assert report.comparisons(rows) == ["varlen fwd with cuda: 0.950 of the TFLOP/s of dense-causal."]
    document = {**document_of(1.0, 2.0), "rows": rows}
    assert "varlen fwd with cuda: 0.950 of the TFLOP/s of dense-causal." in pages.readme_section([document])


def test_host_overhead_is_measured_without_and_with_a_graph(monkeypatch):
    flash_dmattn = pytest.importorskip("flash_dmattn")
    monkeypatch.setattr(host_overhead, "CALLS", 200)
    recorded = []
    run_call = flash_dmattn.flash_dmattn_func

    def spy(query, key, value):
        out = run_call(query, key, value)
        recorded.append(out.grad_fn is not None)
        return out

    monkeypatch.setattr(flash_dmattn, "flash_dmattn_func", spy)
    measured = host_overhead.measure("cpu")
    assert recorded.count(True) == recorded.count(False) > measured["calls"]
    for part in (measured, measured["recorded"]):
        assert part["ratio"] == part["microseconds"]["cpu"] / part["microseconds"]["sdpa"]
    document = {**document_of(1.0, 2.0), "host_overhead": measured}
    assert "; with gradients recorded: cpu " in pages.readme_section([document])


def test_readme_without_results_says_so():
    assert "No GPU results are recorded yet" in pages.readme_section([])


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--workloads", "dense"])
    assert "got dense; accepted are dense-causal" in capsys.readouterr().err


TUNING = """
from benchmarks import tune_triton as tune
from benchmarks.timing import CpuTimer
from benchmarks.workloads import WORKLOADS, Inputs, Workload

workload = Workload("tiny", 1, 64, 2, 2, 64, dtype="float32", device="cpu", bias="random", mask="topk", keep=16)
inputs = Inputs(workload)
failures = tune.compile_tiles(workload, {kernel: tiles[0] for kernel, tiles in tune.candidates_of(workload).items()})
assert set(failures.values()) == {None}, failures
tune.CANDIDATES[64, True] = {kernel: tiles[:1] for kernel, tiles in tune.CANDIDATES[64, True].items()}
tune.SECONDS = 0.0
best = tune.Configs(*(tune.measure(kernel, inputs, failures, CpuTimer()) for kernel in tune.Configs._fields))
print(tune.line_of(workload, best))
"""


def test_tuning_of_triton_in_its_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-c", TUNING]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr
    *times, line = done.stdout.splitlines()
    assert len(times) == 3 and all(" ms" in text for text in times)
    assert line.startswith("64: with mask or bias: Configs(Config(128, 64, 4, 2), ")


def test_tuning_tries_at_most_ten_tiles_of_each_kernel():
    configs = pytest.importorskip("flash_dmattn.triton_kernels.configs")
    from benchmarks.tune_triton import CANDIDATES

    for (block_d, has_scores), kernels in CANDIDATES.items():
        for kernel, tiles in kernels.items():
            assert len(set(tiles)) == len(tiles) <= 10
            assert tuple(getattr(configs._LARGE[block_d][has_scores], kernel)) in tiles
