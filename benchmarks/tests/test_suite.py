"""The suite on a CPU: series, decoding, the order of work and its limit, results that add up, pages and pictures."""

import json
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from benchmarks import cli, pages, plots, report, runner
from benchmarks.calls import FIRST, LAST, SECOND, THIRD, Call, Impl
from benchmarks.check import Reference
from benchmarks.impls import IMPLS
from benchmarks.limits import OutOfTimeError, time_limit
from benchmarks.ours import Fdma
from benchmarks.peers import Eager, Flex, GatherSdpa, Sdpa, TopkGatherSdpa, TorchTopk, too_large
from benchmarks.runner import NO_TIME, run
from benchmarks.series import LENGTHS, SERIES, WIDTHS, growth, known_workloads, position
from benchmarks.workloads import DECODE, DYNAMIC, Inputs, Workload, topk_mask, without_ties

CPU = {"dtype": "float32", "device": "cpu"}
INTERVAL = Workload("interval", 2, 96, 4, 2, 16, **CPU, **{**DYNAMIC, "keep": 24})
COLUMNS = replace(INTERVAL, name="columns", is_causal=False)
SMALL_DECODE = Workload("cache", 2, 96, 4, 2, 16, is_causal=False, **CPU, **{**DECODE, "keep": 24})
SDPA = Sdpa("sdpa", None, ("cpu",), masks=True, bias_grad=True, gqa=False)

GATHER = GatherSdpa("gather-sdpa", None, ("cpu",), bias_grad=True)


def measured(workloads, impls, passes=report.PASSES, **options):
    return run(workloads, impls, passes, seconds_per_row=0.01, **options)


def on_cpu(impl: Impl) -> Impl:
    impl.devices = ("cpu",)
    return impl


# Inputs and references.


@pytest.mark.parametrize("is_causal", [True, False])
def test_rows_of_a_dynamic_mask_are_those_of_its_dense_form(is_causal):
    pytest.importorskip("flash_dmattn")
    inputs = Inputs(replace(INTERVAL, is_causal=is_causal))
    dense = inputs.dynamic_mask.to_dense(96) != 0
    dense = dense.tril() if is_causal else dense
    for batch in range(2):
        for head in range(4):
            for rows in (slice(0, 40), slice(40, 96)):
                assert torch.equal(inputs.sees_rows(batch, head, rows), dense[batch, head // 2, rows])


@pytest.mark.parametrize("workload", [INTERVAL, COLUMNS], ids=lambda workload: workload.name)
def test_the_folded_term_is_bias_or_hidden(workload):
    pytest.importorskip("flash_dmattn")
    inputs = Inputs(workload)
    folded = inputs.additive.detach()
    assert folded.shape == (2, 4, 1 if workload is COLUMNS else 96, 96)
    hidden = torch.stack([inputs.sees_rows(1, 3, slice(0, folded.shape[2]))]).logical_not()[0]
    assert (folded[1, 3][hidden] == torch.finfo(torch.float32).min).all()
    assert torch.equal(folded[1, 3][~hidden], inputs.bias.detach()[1, 1].expand_as(hidden)[~hidden])


def test_the_cut_of_a_bias_without_ties_leaves_no_choice():
    bias = -torch.randint(1, 9, (4, 3, 1, 64)).to(torch.bfloat16)
    changed = without_ties(bias, 20)
    values = changed.sort(dim=-1, descending=True).values
    assert (values[..., 19] > values[..., 20]).all()
    untouched = topk_mask(changed, 20) != 0  # of equals the newer ones are kept
    newest = torch.stack([bias.float() + torch.arange(64) * 1e-4]).squeeze(0).topk(20, dim=-1).indices
    assert torch.equal(untouched, torch.zeros_like(untouched).scatter_(-1, newest, True))
    assert torch.equal(changed[untouched], bias[untouched])


@pytest.mark.parametrize(
    "wrong", [{"queries": 0}, {"layout": "apart"}, {"is_causal": True}], ids=["no queries", "no cache", "causal"]
)
def test_caches_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="cache: a cache has `queries`, the last of its positions"):
        replace(SMALL_DECODE, **wrong)


# Decoding.


def test_decoding_of_the_peer_agrees_with_the_reference():
    results = measured([SMALL_DECODE], [TopkGatherSdpa()])
    assert [(row.which, row.tflops) for row in results.rows] == [("decode", None)]
    assert SMALL_DECODE.shape == "B2 Q1 K96 H4/2 D16, float32, not causal, keys bias, top-24"


def test_decoding_of_several_queries():
    assert measured([replace(SMALL_DECODE, queries=3)], [TopkGatherSdpa()]).rows


def select_and_attend(query, key_cache, value_cache, attn_bias=None, *, keep_window_size=None):
    """What `flash_dmattn_with_kvcache` does, for tests that the library's own is not needed for."""
    mask = topk_mask(attn_bias, keep_window_size).repeat_interleave(query.shape[2] // key_cache.shape[2], 1)
    bias = attn_bias.repeat_interleave(query.shape[2] // key_cache.shape[2], 1).masked_fill(mask == 0, -torch.inf)
    tensors = (tensor.transpose(1, 2) for tensor in (query, key_cache, value_cache))
    return F.scaled_dot_product_attention(*tensors, attn_mask=bias, enable_gqa=True).transpose(1, 2)


def test_decoding_calls_this_project_where_it_can(monkeypatch):
    flash_dmattn = pytest.importorskip("flash_dmattn")
    monkeypatch.setattr(flash_dmattn, "flash_dmattn_with_kvcache", select_and_attend, raising=False)
    assert [row.impl for row in measured([SMALL_DECODE], [Fdma("cpu")]).rows] == ["cpu"]
    monkeypatch.setattr(
        flash_dmattn, "flash_dmattn_with_kvcache", lambda *a, **k: select_and_attend(*a, keep_window_size=23)
    )
    assert "wrong, so not timed: relative error of out" in measured([SMALL_DECODE], [Fdma("cpu")]).left_out[0]["reason"]


def test_decoding_without_the_function_says_so(monkeypatch):
    flash_dmattn = pytest.importorskip("flash_dmattn")
    monkeypatch.delattr(flash_dmattn, "flash_dmattn_with_kvcache", raising=False)
    reason = measured([SMALL_DECODE], [Fdma("cpu")]).left_out[0]["reason"]
    assert reason.startswith("flash_dmattn.flash_dmattn_with_kvcache cannot be imported")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_captured_call_answers_nan_until_it_is_replayed():
    from benchmarks.timing import CudaTimer

    source = torch.ones(8, device="cuda")
    made: list[torch.Tensor] = []
    replay = CudaTimer().captured(lambda: made.append(source * 2) or made[-1])
    assert made[-1].isnan().all()
    source.fill_(3)
    assert torch.equal(replay(), torch.full_like(source, 6))


# Peers of dynamic masks.


@pytest.mark.parametrize("workload", [INTERVAL, COLUMNS], ids=lambda workload: workload.name)
def test_peers_of_dynamic_masks_agree_with_the_reference(workload):
    pytest.importorskip("flash_dmattn")
    results = measured([workload], [SDPA, on_cpu(Eager()), GATHER, TorchTopk(), Fdma("cpu")])
    assert not results.left_out
    both = {"fwd", "bwd"}
    passes = {"sdpa": both, "torch-eager": both, "torch-topk": {"select"}, "cpu": both}
    passes.update({"gather-sdpa": both} if workload is COLUMNS else {})
    found: dict = {}
    for row in results.rows:
        found.setdefault(row.impl, set()).add(row.which)
    assert found == passes


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("workload", [INTERVAL, COLUMNS], ids=lambda workload: workload.name)
def test_flex_of_dynamic_masks_agrees_with_the_reference(workload):
    pytest.importorskip("flash_dmattn")
    inputs = Inputs(workload)
    for name in ("query", "key", "value"):  # on a CPU FlexAttention refuses tensors that need a gradient
        setattr(inputs, name, getattr(inputs, name).detach())
    call = Flex(compiled=False).build(inputs)
    assert Reference(inputs, with_gradients=False).fault("out", call.forward()) is None


def test_what_a_call_is_given_counts_as_its_memory():
    pytest.importorskip("flash_dmattn")
    inputs = Inputs(INTERVAL)
    assert Fdma("cpu").build(inputs).held == 2 * 2 * 96 * 4
    assert SDPA.build(inputs).held == 2 * 4 * 96 * 96 * 4


def test_dense_masks_that_do_not_fit_are_left_out():
    known = known_workloads()
    assert too_large(known["length-65536"]) == "its dense mask would take 128 GiB; at most 32 GiB are tried"
    assert too_large(known["length-32768"]) is None
    assert too_large(known["dma-32k-col"]) is None  # one row for all queries
    assert Eager().reason(known["dma-16k"]) is None
    assert Eager().reason(known["dma-32k-col"]) == "its scores would take 32 GiB; at most 8 GiB are tried"
    reason = Flex().reason(replace(known["length-32768"], impls=()))
    assert reason == "its block mask is made from one of 16 GiB; at most 8 GiB are tried"


# The order of work, and its limit.


class Sleeper(Impl):
    """Attention that takes its time, or fails."""

    devices = ("cpu",)
    passes = ("fwd",)

    def __init__(self, name, turn, log, seconds=0.0):
        self.name, self.turn, self._log, self._seconds = name, turn, log, seconds

    def build(self, inputs: Inputs) -> Call:
        self._log.append((inputs.workload.name, self.name))
        time.sleep(self._seconds)
        return SDPA.build(inputs)


PLAIN = Workload("plain", 1, 32, 2, 2, 16, **CPU)
MASKED = replace(PLAIN, name="masked", bias="random", mask="topk", keep=8)


def test_main_peers_of_all_workloads_come_first_and_compilers_last():
    log: list = []
    impls = [Sleeper(f"turn {turn}", turn, log) for turn in (LAST, SECOND, THIRD, FIRST)]
    saved: list = []
    results = measured([PLAIN, MASKED], impls, finished=lambda results: saved.append(len(results.rows)))
    names = [("plain", "masked"), ("plain", "masked"), ("masked", "plain"), ("masked", "plain")]
    assert log == [(name, f"turn {turn}") for turn, pair in enumerate(names) for name in pair]
    assert saved == list(range(1, 9))
    assert len(results.rows) == 8


def test_the_main_peers_are_in_the_first_turn():
    first = {impl.name for impl in IMPLS if impl.turn == FIRST}
    assert {
        "cuda",
        "cpu",
        "cuda-topk",
        "cpu-topk",
        "sdpa-cudnn",
        "sdpa-flash",
        "torch-topk",
        "topk-gather-sdpa",
    } <= first
    assert {impl.name for impl in IMPLS if impl.turn >= THIRD} == {"flex", "flex-dmattn"}


def test_a_limit_stops_what_runs_and_keeps_what_was_measured(monkeypatch):
    log: list = []
    # Seconds left: plenty, then next to nothing, then nothing, as implementations were started.
    monkeypatch.setattr(runner, "_left", lambda end: (100.0, 0.3, -1.0)[len(log)])
    impls = [Sleeper("fast", FIRST, log), Sleeper("slow", FIRST, log, 600.0), Sleeper("never", SECOND, log)]
    results = measured([PLAIN], impls, limit_s=100)
    assert [row.impl for row in results.rows] == ["fast"]
    assert [(note["impl"], note["reason"]) for note in results.left_out] == [("slow", NO_TIME), ("never", NO_TIME)]
    assert log == [("plain", "fast"), ("plain", "slow")]


def test_no_time_at_all_is_a_reason():
    results = measured([PLAIN], [SDPA], limit_s=-1)
    assert results.left_out == [{"workload": "plain", "impl": "sdpa", "reason": NO_TIME}]


def test_an_implementation_that_compiles_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr(runner, "COMPILE_SECONDS", 0.3)
    log: list = []
    results = measured([PLAIN, MASKED], [Sleeper("flex", THIRD, log, 600.0)], limit_s=100)
    assert {note["reason"] for note in results.left_out} == {runner.TOO_SLOW}
    assert len(log) == 2


def test_a_limit_that_is_caught_comes_again(monkeypatch):
    monkeypatch.setattr("benchmarks.limits.AGAIN_SECONDS", 0.5)
    caught = []
    with pytest.raises(OutOfTimeError, match="over"), time_limit(0.05, "over"):
        try:
            time.sleep(600)
        except OutOfTimeError as error:
            caught.append(error)
        time.sleep(600)
    assert len(caught) == 1
    with time_limit(None, "never"):
        pass


# Series.


def test_series_are_what_they_say():
    known = known_workloads()
    assert [known[f"length-{length}"].length for length in LENGTHS] == list(LENGTHS)
    assert [known[f"width-{width}"].keep for width in WIDTHS] == list(WIDTHS)
    assert {known[f"width-{width}"].length for width in WIDTHS} == {32768}
    assert {known[f"length-{length}"].keep for length in LENGTHS} == {2048}
    impls = {impl.name for impl in IMPLS}
    for workload in known.values():
        assert set(workload.impls) <= impls
    assert "sdpa" in known["cpu-length-8192"].impls and "sdpa" not in known["cpu-length-16384"].impls
    assert [position(name) for name in ("cpu-length-8192", "dma-16k", "decode-512k", "width-256")] == [
        ("cpu-length", 8192),
        None,
        None,
        ("width", 256),
    ]


def test_only_the_named_run_a_workload():
    workload = known_workloads()["cpu-length-16384"]
    assert [impl.name for impl in IMPLS if impl.is_for(workload)] == ["cpu", "cpu-topk"]


def chosen(*arguments, device="cuda"):
    args = cli.parser().parse_args(arguments)
    return [workload.name for workload in cli.chosen_workloads(args, device)], cli.chosen_impls(args)


def test_suites_and_series_choose_workloads():
    full, all_impls = chosen()
    assert chosen("--suite", "full")[0] == full and len(all_impls) == len(IMPLS)
    assert {"dense-causal", "decode-512k", "length-131072", "dense-length-8192", "width-256"} <= set(full)
    assert len(set(full)) == len(full) and not any(name.startswith("cpu") for name in full)
    quick, few = chosen("--suite", "quick")
    assert "decode-batch" in quick and not any(position(name) for name in quick)
    assert {impl.turn for impl in few} == {FIRST}
    assert chosen("--series", "width")[0] == [f"width-{width}" for width in WIDTHS]
    assert chosen("--series", "memory")[0] == chosen("--series", "length")[0]
    assert chosen("--suite", "quick", "--series", "width")[0] == quick + [f"width-{width}" for width in WIDTHS]
    assert chosen("--workloads", "gqa")[0] == ["gqa"]
    assert chosen("--workloads", "gqa", "--series", "width")[0][:2] == ["gqa", "width-256"]
    assert "cpu-length-16384" in chosen(device="cpu")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--series", "depth"], "got depth; accepted are length, width, memory"),
        (["--limit-s", "0"], "got 0; accepted is a number of seconds above 0"),
        (["--limit-s", "soon"], "got soon; accepted is a number of seconds above 0"),
        (["--passes", "fwd,down"], "got down; accepted are select, fwd, bwd, decode"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert message in capsys.readouterr().err


def row(workload, which, impl, ms, tflops=1.0, peak=8.0):
    return {"workload": workload, "pass": which, "impl": impl, "ms": ms, "tflops": tflops, "peak_mib": peak}


def test_growth_is_of_the_longest_and_half_of_it():
    rows = [row(f"length-{length}", "fwd", "cuda", length / 8192) for length in (8192, 16384)]
    rows += [row("length-32768", "fwd", "cuda", 5.0), row("width-256", "fwd", "cuda", 1.0)]
    rows += [row("length-16384", "bwd", "cuda", 1.0), row("dense-length-32768", "fwd", "sdpa-flash", 1.0)]
    (entry,) = growth(rows)
    assert entry == {"series": "length", "pass": "fwd", "impl": "cuda", "lengths": (16384, 32768), "ratio": 2.5}
    document = {"rows": rows}
    assert report.sentences(document) == ["length fwd with cuda: T(32K) / T(16K) = 2.50."]


# Results.


def document_of(rows, **more):
    base = {"gpu": "Some GPU 80GB HBM3", "date": "2026-01-01T00:00:00+00:00", "source_digest": "a"}
    base.update({"versions": {"torch": "2.13.0", "cuda": "13.0"}, "remarks": [], "left_out": []})
    return {**base, "rows": rows, "shapes": {entry["workload"]: "B1" for entry in rows}, **more}


def note(workload, impl, **said):
    return {"workload": workload, "impl": impl, **said}


def test_a_second_run_of_the_same_sources_adds_to_the_first():
    before = document_of(
        [row("gqa", "fwd", "cuda", 2.0), row("gqa", "fwd", "sdpa-flash", 3.0), row("gqa", "fwd", "triton", 3.0)],
        remarks=[note("gqa", "triton", remark="is old")],
        left_out=[note("dense-causal", "cuda", reason=NO_TIME), note("gqa", "fa2", reason="no module")],
    )
    after = document_of(
        [row("gqa", "fwd", "cuda", 1.0), row("dense-causal", "fwd", "cuda", 4.0)],
        left_out=[note("gqa", "sdpa-flash", reason=NO_TIME), note("gqa", "triton", reason="fails now")],
    )
    both = report.merged(before, after)
    assert [(entry["workload"], entry["impl"], entry["ms"]) for entry in both["rows"]] == [
        ("dense-causal", "cuda", 4.0),
        ("gqa", "cuda", 1.0),
        ("gqa", "sdpa-flash", 3.0),
    ]
    assert [(entry["impl"], entry["reason"]) for entry in both["left_out"]] == [
        ("triton", "fails now"),
        ("fa2", "no module"),
    ]
    assert both["remarks"] == []
    assert list(both["shapes"]) == ["dense-causal", "gqa"]
    other = report.merged(document_of(before["rows"], source_digest="b"), after)
    assert [entry["ms"] for entry in other["rows"]] == [4.0, 1.0]


def test_the_file_has_the_name_of_the_gpu():
    assert report.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100"
    assert report.slug("AMD EPYC, 2 threads") == "amd-epyc-2-threads"


def test_a_series_is_measured_and_added_to_the_file(tmp_path):
    pytest.importorskip("flash_dmattn")
    output = tmp_path / "results.json"
    common = ["--device", "cpu", "--small", "--output", str(output)]
    assert cli.main([*common, "--workloads", "cpu-dense"]) == 0
    assert cli.main([*common, "--series", "length", "--limit-s", "300"]) == 0
    rows = json.loads(output.read_text())["rows"]
    names = {"cpu-dense", "cpu-length-8192", "cpu-length-16384"}
    assert {entry["workload"] for entry in rows} == names
    assert {(e["pass"], e["impl"]) for e in rows if e["workload"] == "cpu-length-8192"} == {
        ("select", "cpu-topk"),
        *((which, impl) for which in ("fwd", "bwd") for impl in ("cpu", "sdpa")),
    }
    assert not list(tmp_path.glob("*.part"))


# Pages and pictures.


def full_document():
    rows = [row("dma-16k", "fwd", "cuda", 1.0), row("dma-16k", "fwd", "sdpa-cudnn", 2.0)]
    rows += [row("dma-16k", "select", "cuda-topk", 0.1, None), row("decode-512k", "decode", "cuda", 0.2, None)]
    rows += [row("decode-512k", "decode", "topk-gather-sdpa", 0.1, None)]
    for place, length in enumerate(LENGTHS):
        rows += [row(f"length-{length}", which, "cuda", 2.0**place, peak=2.0**place) for which in ("fwd", "bwd")]
        rows += [row(f"dense-length-{length}", which, "sdpa-flash", 4.0**place) for which in ("fwd", "bwd")]
        rows += [row(f"length-{length}", "fwd", "sdpa-cudnn", 3 * 4.0**place)] if length <= 32768 else []
        rows += [row(f"length-{length}", "select", "cuda-topk", 0.1 * 2**place, None)]
    rows += [row(f"width-{width}", which, "cuda", width / 256) for width in WIDTHS for which in ("fwd", "bwd")]
    remarks = [note("dma-16k", "sdpa-cudnn", remark="no bias gradient")]
    return document_of(rows, remarks=remarks, left_out=[note("gqa", "fa2", reason="no module")])


def test_readme_is_one_row_a_workload_and_pass():
    section = pages.readme_section([full_document()])
    assert "| dma-16k | fwd | 1.000 (cuda) | 2.000 (sdpa-cudnn\\*) | 2.00 |" in section
    assert "| decode-512k | decode | 0.200 (cuda) | 0.100 (topk-gather-sdpa) | 0.50 |" in section
    assert "| length-" not in section and "| width-" not in section
    assert "- Slower than the best peer in: decode-512k decode (0.50)." in section
    assert "- length bwd with cuda: T(128K) / T(64K) = 2.00." in section


def test_the_page_has_every_row_and_says_where_peers_are_faster():
    section = pages.page_section([full_document()])
    assert "- decode-512k decode: 0.50" in section
    assert "| dma-16k | **cuda** | 1.000 | 1 |  |  |  | 8 |" in section
    assert "| length-131072 | **cuda** | 16.000 | 1 | 16.000 | 1 |  | 16 / 16 |" in section
    assert "| decode-512k | topk-gather-sdpa |  |  |  |  | 0.100 | 8 |" in section
    assert "- no bias gradient: dma-16k sdpa-cudnn" in section
    assert "- no module: gqa fa2" in section
    assert "](plots/some-gpu-time-width.svg)" in section
    winning = document_of([row("gqa", "fwd", "cuda", 1.0), row("gqa", "fwd", "fa2", 2.0)])
    assert "No peer that ran is faster" in pages.page_section([winning])


def test_pages_say_which_sources_were_measured():
    document = full_document()
    for section in (pages.readme_section, pages.page_section):
        document["source_digest"] = pages.source_digest()
        assert ", these sources" in section([document])
        document["source_digest"] = "0123456789abcdef"
        assert ", sources 01234567, which have changed since" in section([document])


def test_pictures_are_drawn_from_rows_and_are_small(tmp_path):
    pytest.importorskip("matplotlib")
    document = full_document()
    paths = plots.plot(document, tmp_path)
    kinds = ("time-length", "time-width", "memory-length", "speed")
    assert [path.name for path in paths] == [f"some-gpu-{kind}.svg" for kind in kinds] == plots.pictures(document)
    first = [path.read_bytes() for path in paths]
    assert all(text.startswith(b"<?xml") and len(text) < 150_000 for text in first)
    assert b"sdpa-flash, all keys" in first[1]  # as a flat line
    assert [path.read_bytes() for path in plots.plot(document, tmp_path)] == first
    assert plots.plot(document_of([row("gqa", "fwd", "cuda", 1.0)]), tmp_path) == []


def test_a_peer_with_a_mask_and_with_all_keys_is_two_lines():
    rows = [row(f"{kind}-8192", "fwd", "sdpa-cudnn", ms) for kind, ms in (("length", 7.0), ("dense-length", 2.0))]
    lines = plots._points(document_of(rows), "length", "fwd", "ms")
    assert lines == {("sdpa-cudnn", False): [(8192, 7.0)], ("sdpa-cudnn", True): [(8192, 2.0)]}
    assert [plots._style(line, "fwd")["label"] for line in lines] == ["sdpa-cudnn, dense mask", "sdpa-cudnn, all keys"]


@pytest.mark.parametrize("path", [pages.README, pages.PAGE], ids=lambda path: path.name)
def test_pages_are_current(path):
    assert pages.current_pages()[path] == path.read_text(), "run `python -m benchmarks --plots --pages`"


def test_the_pictures_of_the_page_are_there():
    names = {name for document in report.recorded_documents() for name in plots.pictures(document)}
    assert {path.name for path in cli.PLOTS.glob("*.svg")} == names, "run `python -m benchmarks --plots`"
    assert all((cli.PLOTS / name).stat().st_size < 150_000 for name in names)


def test_series_names_are_known():
    assert set(SERIES) == {"length", "width", "memory"}
