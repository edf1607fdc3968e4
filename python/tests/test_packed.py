"""The packed entry points: the unpacked call on views, with one gradient for what is one tensor."""

import inspect
import re
from typing import Any, Dict

import pytest
import torch

from flash_dmattn import flash_dmattn_func, flash_dmattn_kvpacked_func, flash_dmattn_qkvpacked_func, ops
from flash_dmattn.backends import libfdma
from flash_dmattn.testing.cases import CASES, Case
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.reference import reference_results

DEVICES = [
    pytest.param((backend.device_type, dtype), id=f"{backend.name}-{str(dtype)[6:]}", marks=marks)
    for backend, dtypes, marks in (
        (libfdma.cpu, (torch.float32, torch.bfloat16), []),
        (libfdma.cuda, (torch.float16, torch.bfloat16), [pytest.mark.gpu]),
    )
    for dtype in dtypes
]
# Layouts of the table's tensors say nothing of a packed tensor's.
KV_CASES = [case for case in CASES if case.name not in ("expanded over the batch",)]
QKV_CASES = [case for case in KV_CASES if case.len_q == case.len_k and case.heads == case.heads_kv]


def pack(inputs: Dict[str, Any], count: int) -> Dict[str, Any]:
    """Arguments of the packed function for those of the unpacked one."""
    rest = {name: inputs[name] for name in ("attn_mask", "attn_bias")}
    if count == 3:
        return {"qkv": torch.stack([inputs[name] for name in ("query", "key", "value")], dim=2), **rest}
    return {"q": inputs["query"], "kv": torch.stack([inputs["key"], inputs["value"]], dim=2), **rest}


def check_case(case: Case, device: str, dtype: torch.dtype, count: int) -> None:
    function = flash_dmattn_qkvpacked_func if count == 3 else flash_dmattn_kvpacked_func
    inputs = case.inputs(dtype, device)
    grad_out, grad_lse = case.grad_out(dtype, device), case.grad_lse(device)
    options = {**case.options, "return_lse": True}
    reference = reference_results(inputs, options, (grad_out, grad_lse))
    eager = reference_results(inputs, options, (grad_out, grad_lse), dtype)
    arguments = pack(inputs, count)
    leaves = {
        name: tensor.detach().requires_grad_()
        for name, tensor in arguments.items()
        if tensor is not None and name != "attn_mask"
    }
    out, lse = function(**{**arguments, **leaves}, **options)
    grads = dict(zip(leaves, torch.autograd.grad((out, lse), list(leaves.values()), (grad_out, grad_lse))))
    plain = function(**arguments, **case.options)

    assert torch.equal(plain, out)
    for name, results in zip(("out", "lse"), zip((out, lse), reference.out, eager.out)):
        assert_matches(*results, name)
    names = {"qkv": ("query", "key", "value"), "q": ("query",), "kv": ("key", "value"), "attn_bias": ("attn_bias",)}
    for leaf, grad in grads.items():
        assert grad.is_contiguous()
        parts = grad.unbind(2) if leaf in ("qkv", "kv") else (grad,)
        for name, part in zip(names[leaf], parts):
            assert_matches(part, reference.grads[name], eager.grads[name], f"gradient of {name} in {leaf}")


@pytest.mark.parametrize("place", DEVICES)
@pytest.mark.parametrize("case", QKV_CASES, ids=lambda case: case.name)
def test_qkvpacked(case: Case, place) -> None:
    check_case(case, *place, count=3)


@pytest.mark.parametrize("place", DEVICES)
@pytest.mark.parametrize("case", KV_CASES, ids=lambda case: case.name)
def test_kvpacked(case: Case, place) -> None:
    check_case(case, *place, count=2)


@pytest.mark.parametrize("function", [flash_dmattn_qkvpacked_func, flash_dmattn_kvpacked_func])
def test_parameters_are_those_of_the_reference(function) -> None:
    parameters = list(inspect.signature(function).parameters)
    first = ["qkv"] if function is flash_dmattn_qkvpacked_func else ["q", "kv"]
    assert parameters == first + list(inspect.signature(flash_dmattn_func).parameters)[3:]


def kept_by(call) -> list:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        call()
    return kept


def test_packed_tensor_is_kept_as_it_is() -> None:
    qkv = torch.randn(1, 20, 3, 2, 16, requires_grad=True)
    kept = kept_by(lambda: flash_dmattn_qkvpacked_func(qkv))
    assert [tensor.data_ptr() for tensor in kept].count(qkv.data_ptr()) == 1
    assert sorted(tensor.numel() for tensor in kept) == sorted([qkv.numel(), qkv.numel() // 3, 2 * 20])


def test_backward_makes_one_gradient(monkeypatch) -> None:
    qkv = torch.randn(1, 20, 3, 2, 16, requires_grad=True)
    out = flash_dmattn_qkvpacked_func(qkv)

    def refuse(*args, **kwargs):
        raise AssertionError("gradients are copied together")

    monkeypatch.setattr(torch, "stack", refuse)
    monkeypatch.setattr(torch, "cat", refuse)
    written = []
    backward = ops.attention_backward

    def spy(*args):
        written.extend(args[-1][:3])
        return backward(*args)

    monkeypatch.setattr(ops, "attention_backward", spy)
    (grad,) = torch.autograd.grad(out.sum(), qkv)
    size = qkv.element_size() * 2 * 16
    assert [part.data_ptr() for part in written] == [grad.data_ptr() + size * part for part in range(3)]


def test_gradients_of_exactly_what_needs_one() -> None:
    case = Case("packed", heads=4, heads_kv=2, bias="BG1K", options={"deterministic": True})
    arguments = pack(case.inputs(torch.float32, "cpu"), 2)
    grad_out = case.grad_out(torch.float32, "cpu")

    def grads_of(*names: str) -> Dict[str, torch.Tensor]:
        leaves = {name: arguments[name].detach().requires_grad_(name in names) for name in ("q", "kv", "attn_bias")}
        flash_dmattn_kvpacked_func(**{**arguments, **leaves}, **case.options).backward(grad_out)
        return {name: leaf.grad for name, leaf in leaves.items()}

    everything = grads_of("q", "kv", "attn_bias")
    for name in everything:
        some = grads_of(name)
        assert torch.equal(some.pop(name), everything[name])
        assert set(some.values()) == {None}


def test_changing_the_packed_tensor_before_backward_is_refused() -> None:
    qkv = torch.randn(1, 20, 3, 2, 16, requires_grad=True)
    packed = qkv * 1
    out = flash_dmattn_qkvpacked_func(packed)
    packed.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


QKV, Q, KV = torch.zeros(2, 10, 3, 4, 16), torch.zeros(2, 10, 4, 16), torch.zeros(2, 12, 2, 2, 16)
REFUSALS = [
    ({"qkv": None}, TypeError, "qkv must be a torch.Tensor, got NoneType"),
    ({"qkv": QKV[0]}, ValueError, "qkv.dim() is 4; accepted: 5, (B, L, 3, H, D)"),
    (
        {"qkv": QKV[:, :, :2]},
        ValueError,
        "qkv.shape is (2, 10, 2, 4, 16); accepted: (B, L, 3, H, D), 3 in the third dimension",
    ),
    ({"qkv": QKV.double()}, TypeError, "qkv[:, :, 0].dtype is float64; accepted on the CPU"),
    ({"qkv": QKV[..., :12]}, ValueError, "qkv[:, :, 0].shape is (2, 10, 4, 12), head_dim 12; accepted: multiples of 8"),
    ({"qkv": QKV.mT.contiguous().mT}, ValueError, "qkv[:, :, 0].stride() is"),
    ({"qkv": QKV.to("meta")}, ValueError, "qkv[:, :, 0] (Tensor) cannot be read: "),
    ({"qkv": QKV, "attn_mask": 1}, TypeError, "attn_mask must be a torch.Tensor, a DynamicMask or None, got int"),
    ({"qkv": QKV, "attn_bias": Q}, ValueError, "attn_bias.shape is (2, 10, 4, 16); accepted"),
    ({"qkv": QKV, "softcap": -1.0}, ValueError, "softcap is -1; accepted: 0 (off) or a positive finite value"),
    ({"qkv": QKV, "scale": float("inf")}, ValueError, "scale is inf; accepted: finite values, or None"),
    ({"qkv": QKV, "deterministic": 1}, TypeError, "deterministic must be a bool or None, got 1"),
    ({"qkv": QKV, "return_lse": 1}, TypeError, "return_lse must be a bool, got 1"),
    ({"q": [], "kv": KV}, TypeError, "q must be a torch.Tensor, got list"),
    ({"q": Q, "kv": []}, TypeError, "kv must be a torch.Tensor, got list"),
    ({"q": Q[0], "kv": KV}, ValueError, "q.dim() is 3; accepted: 4, (B, Lq, H, D)"),
    ({"q": Q, "kv": KV[0]}, ValueError, "kv.dim() is 4; accepted: 5, (B, Lk, 2, H_kv, D)"),
    ({"q": Q, "kv": QKV}, ValueError, "kv.shape is (2, 10, 3, 4, 16); accepted: (B, Lk, 2, H_kv, D), 2 in the third"),
    ({"q": Q, "kv": KV.half()}, TypeError, "kv[:, :, 0].dtype is float16; accepted: float32, the dtype of q"),
    ({"q": Q, "kv": KV[..., :8]}, ValueError, "kv[:, :, 0].shape is (2, 12, 2, 8)"),
    ({"q": Q[:, :, :3], "kv": KV}, ValueError, "H_kv = 2; accepted: a divisor of the 3 heads of q"),
]


@pytest.mark.parametrize("needs_grad", [False, True], ids=["plain", "autograd"])
@pytest.mark.parametrize(("arguments", "exception", "message"), REFUSALS, ids=[row[2][:40] for row in REFUSALS])
def test_refusal(arguments: Dict[str, Any], exception: type, message: str, needs_grad: bool) -> None:
    function = flash_dmattn_qkvpacked_func if "qkv" in arguments else flash_dmattn_kvpacked_func
    packed = arguments.get("qkv", arguments.get("kv"))
    if needs_grad and isinstance(packed, torch.Tensor):
        arguments = {**arguments, "kv" if "kv" in arguments else "qkv": packed.detach().requires_grad_()}
    with pytest.raises(exception, match=re.escape(message)):
        function(**arguments)
