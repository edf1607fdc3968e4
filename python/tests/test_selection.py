"""Which backend serves a call, what says so, and the report of the environment."""

import io
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import flash_dmattn
from flash_dmattn import _C, auto, backends, explain, flash_dmattn_func_auto, get_available_backends
from flash_dmattn.backends import BACKENDS, choose_backend, flex, libfdma
from flash_dmattn.backends.base import Backend, CallKind, ignored_options


def call(device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict:
    return {name: torch.zeros(1, 4, 2, 16, device=device, dtype=dtype) for name in ("query", "key", "value")}


def kind(device: str, dtype: torch.dtype, has_softcap: bool = False, deterministic: bool = False) -> CallKind:
    return CallKind(torch.device(device), dtype, has_softcap, deterministic)


def test_order_of_preference() -> None:
    assert [backend.name for backend in BACKENDS] == ["cuda", "triton", "flex", "cpu"]
    available = get_available_backends()
    assert available == [backend.name for backend in BACKENDS if backend.name in available]
    assert ("flex" in available) == flash_dmattn.FLEX_AVAILABLE == (torch.__version__ >= (2, 6))


@pytest.fixture
def served(monkeypatch) -> list:
    """A machine on which every backend is available; the names of those that got calls."""
    names = []

    def available(backend: Backend, reasons) -> Backend:
        def attention(*arguments, return_lse):
            names.append(backend.name)
            return arguments[0]

        return replace(backend, unavailable_reason=lambda: None, attention=attention, unsupported_reasons=reasons)

    def cuda_reasons(kind: CallKind) -> list:
        return [] if kind.dtype in libfdma.CUDA_DTYPES else [f"query.dtype is {kind.dtype}"]

    reasons = {
        "cuda": cuda_reasons,
        "triton": ignored_options,
        "flex": flex.backend.unsupported_reasons,
        "cpu": lambda kind: [],
    }
    monkeypatch.setattr(backends, "BACKENDS", tuple(available(b, reasons[b.name]) for b in BACKENDS))
    return names


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (kind("cuda", torch.bfloat16), "cuda"),
        (kind("cuda", torch.float16, True, True), "cuda"),
        (kind("cuda", torch.float32), "triton"),
        (kind("cpu", torch.float32), "cpu"),
        (kind("cpu", torch.bfloat16, True, True), "cpu"),
    ],
    ids=str,
)
def test_choice_looks_at_the_call(wanted, expected, served) -> None:
    assert choose_backend(wanted).name == expected


def test_flex_is_chosen_when_the_others_cannot(served, monkeypatch) -> None:
    others = [replace(b, unavailable_reason=lambda: "absent") if b.name == "triton" else b for b in backends.BACKENDS]
    monkeypatch.setattr(backends, "BACKENDS", tuple(others))
    monkeypatch.setattr(flex, "find_spec", lambda name: name)
    assert choose_backend(kind("cuda", torch.float32)).name == "flex"


def test_no_backend_that_ignores_an_option_is_chosen(served) -> None:
    with pytest.raises(RuntimeError, match="no backend can serve this call on cuda") as refusal:
        choose_backend(kind("cuda", torch.float32, has_softcap=True))
    lines = str(refusal.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines[:3]] == ["cuda", "triton", "flex"]
    assert "softcap is ignored by this backend; accepted: None or 0" in lines[1]


def test_deterministic_is_not_ignored_by_choice(served) -> None:
    with pytest.raises(RuntimeError, match="deterministic is ignored by this backend; accepted: None or False"):
        choose_backend(kind("cuda", torch.float32, deterministic=True))


def test_device_of_no_backend() -> None:
    meta = call("meta")
    with pytest.raises(ValueError, match="query is on a meta device; accepted: cpu or cuda"):
        flash_dmattn_func_auto()(**meta)
    with pytest.raises(RuntimeError, match="backend 'flex' takes cuda or cpu tensors, query is on meta"):
        flash_dmattn_func_auto("flex")(**meta)


@pytest.mark.parametrize("name", ["cuda", "triton", "flex", "cpu"])
def test_forced_backend_never_falls_back(name, served) -> None:
    attention = flash_dmattn_func_auto(name)
    device = "cpu" if name in ("flex", "cpu") else "meta"
    if device == "meta":
        with pytest.raises(RuntimeError, match=f"backend '{name}' takes cuda( or cpu)? tensors, query is on meta"):
            attention(**call("meta"))
        assert served == []
    else:
        attention(**call(device), softcap=1.0)
        assert served == [name]


def test_one_attention_function_serves_calls_of_any_kind(served, monkeypatch) -> None:
    monkeypatch.setattr(auto, "_choose_backend", choose_backend)
    attention = flash_dmattn_func_auto()
    attention(**call())
    attention(**call(dtype=torch.bfloat16), softcap=2.0)
    assert served == ["cpu", "cpu"]


@pytest.mark.parametrize("softcap", ["big", None, 0, 0.0, False])
def test_softcap_of_no_effect_or_of_a_wrong_type_decides_nothing(softcap) -> None:
    assert not auto.call_kind(call()["query"], softcap, None).has_softcap


def test_flex_on_cuda_needs_triton(monkeypatch) -> None:
    monkeypatch.setattr(flex, "find_spec", lambda name: None)
    assert flex.unsupported_reasons(kind("cuda", torch.float16)) == [
        "FlexAttention on CUDA is compiled by triton, which is not installed; pip install triton"
    ]
    assert flex.unsupported_reasons(kind("cpu", torch.float16)) == []


def test_explain_prints_and_returns_the_reasons(capsys) -> None:
    explanation = explain(**call())
    printed = capsys.readouterr().out
    assert printed == f"{explanation}\n"
    assert explanation.chosen == "cpu"
    assert list(explanation.reasons) == [backend.name for backend in BACKENDS]
    assert explanation.reasons["cpu"] == []
    assert explanation.faults == []
    assert "cpu     serves this call: the choice of flash_dmattn_func_auto()" in printed.splitlines()
    if not _C.cuda_built():
        assert "built without CUDA" in explanation.reasons["cuda"][0]
    if flash_dmattn.FLEX_AVAILABLE:
        assert "flex    can serve this call" in printed.splitlines()


def test_explain_writes_where_it_is_told(capsys) -> None:
    file = io.StringIO()
    explanation = explain(**call(), softcap=3.0, deterministic=True, file=file)
    assert file.getvalue() == f"{explanation}\n"
    assert capsys.readouterr().out == ""
    if flash_dmattn.FLEX_AVAILABLE:
        assert explanation.reasons["flex"] == [
            "softcap is ignored by this backend; accepted: None or 0",
            "deterministic is ignored by this backend; accepted: None or False",
        ]


def test_explain_of_a_call_that_no_backend_takes(capsys) -> None:
    explanation = explain(**{**call(), "key": torch.zeros(1, 4, 2, 8)})
    assert explanation.chosen is None
    assert explanation.faults == ["key.shape is (1, 4, 2, 8); accepted: (B, Lk, H_kv, D) = (1, 4, 2, 16)"]
    assert capsys.readouterr().out.startswith(f"every backend refuses this call: {explanation.faults[0]}\n")


def test_explain_of_a_device_of_no_backend(capsys) -> None:
    explanation = explain(**call("meta"))
    assert explanation.chosen is None
    assert "takes cpu tensors, query is on meta" in explanation.reasons["cpu"]


def test_explain_of_no_tensor() -> None:
    with pytest.raises(TypeError, match=r"query must be a torch\.Tensor, got list"):
        explain([1.0], None, None)


@pytest.mark.gpu
def test_explain_on_a_gpu(capsys) -> None:
    assert explain(**call("cuda", torch.bfloat16)).chosen == "cuda"
    explanation = explain(**call("cuda"))
    assert explanation.reasons["cuda"] == ["query.dtype is float32; accepted on CUDA: float16, bfloat16"]
    assert explanation.chosen in ("triton", "flex")
    assert explanation.reasons["cpu"] == ["takes cpu tensors, query is on cuda:0"]


def report(**environment: str) -> str:
    import os

    command = [sys.executable, "-m", "flash_dmattn"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("environment", [{}, {"CUDA_VISIBLE_DEVICES": ""}], ids=["as it is", "without GPUs"])
def test_report_of_the_environment(environment) -> None:
    lines = report(**environment).splitlines()
    facts = {line[: len("backend triton")].strip(): line for line in lines}
    assert flash_dmattn.__version__ in facts["flash_dmattn"]
    assert _C.build_info() in facts["libfdma"]
    assert torch.__version__ in facts["torch"]
    assert sys.version.split()[0] in facts["Python"]
    assert "NVIDIA driver" in facts and "triton" in facts
    assert any(name.startswith("GPU") for name in facts)
    for backend in BACKENDS:
        assert "available" in facts[f"backend {backend.name}"]
    if environment:
        assert "torch finds none" in facts["GPUs"]
        assert "not available: " in facts["backend cuda"]


def test_report_survives_a_broken_installation(monkeypatch) -> None:
    from flash_dmattn import __main__ as main

    def broken(name: str):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(main, "import_module", broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    facts = dict(main.report())
    assert facts["triton"] == "not importable: OSError: triton: cannot open shared object file"
    assert facts["GPU 0"].startswith("OSError: ")


@pytest.mark.parametrize("backend", [b for b in BACKENDS if "cpu" in b.device_types], ids=lambda b: b.name)
def test_every_backend_returns_lse(backend) -> None:
    if backend.unavailable_reason() is not None:
        pytest.skip(backend.unavailable_reason())
    out, lse = flash_dmattn_func_auto(backend.name)(**call(), return_lse=True)
    assert lse.shape == (out.shape[0], out.shape[2], out.shape[1])


def test_lse_by_the_automatic_choice() -> None:
    out, lse = flash_dmattn_func_auto()(**call(), return_lse=True)
    assert lse.shape == (out.shape[0], out.shape[2], out.shape[1])
