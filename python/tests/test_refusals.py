"""Every refusal names the argument, what it got and what is accepted."""

import math
import re
from typing import Any, Dict, Optional

import pytest
import torch

import flash_dmattn
from flash_dmattn import (
    _C,
    explain,
    flash_dmattn_func,
    flash_dmattn_func_auto,
    flex_dmattn_func,
    get_available_backends,
)
from flash_dmattn.backends import BACKENDS

B, LQ, LK, H, HKV, D = 2, 10, 12, 4, 2, 16


def call(**changes: Any) -> Dict[str, Any]:
    arguments = {
        "query": torch.zeros(B, LQ, H, D),
        "key": torch.zeros(B, LK, HKV, D),
        "value": torch.zeros(B, LK, HKV, D),
    }
    arguments.update(changes)
    return arguments


def scores(*shape: int, dtype: Optional[torch.dtype] = None) -> torch.Tensor:
    return torch.zeros(shape or (B, H, LQ, LK), dtype=dtype)


class NotATensor:
    def __repr__(self) -> str:
        return "NotATensor()"


REFUSALS = {
    # Types
    "query: no tensor": (call(query=[1.0]), TypeError, "query must be a torch.Tensor, got list"),
    "key: missing": (call(key=None), TypeError, "key must be a torch.Tensor, got NoneType"),
    "value: no tensor": (call(value=NotATensor()), TypeError, "value must be a torch.Tensor, got NotATensor"),
    "attn_mask: no tensor": (
        call(attn_mask=True),
        TypeError,
        "attn_mask must be a torch.Tensor, a DynamicMask or None, got bool",
    ),
    "attn_bias: no tensor": (call(attn_bias=0.5), TypeError, "attn_bias must be a torch.Tensor or None, got float"),
    "scale: text": (call(scale="big"), TypeError, "scale must be a real number or None, got 'big'"),
    "scale: bool": (call(scale=True), TypeError, "scale must be a real number or None, got True"),
    "scale: tensor": (call(scale=torch.tensor(0.5)), TypeError, r"scale must be a real number or None, got tensor\("),
    "softcap: text": (call(softcap="big"), TypeError, "softcap must be a real number or None, got 'big'"),
    "is_causal: number": (call(is_causal=0.125), TypeError, "is_causal must be a bool or None, got 0.125"),
    "deterministic: text": (call(deterministic="no"), TypeError, "deterministic must be a bool or None, got 'no'"),
    # Dtypes
    "query: float64": (
        call(query=torch.zeros(B, LQ, H, D, dtype=torch.float64)),
        TypeError,
        "query.dtype is float64; accepted on the CPU: float16, bfloat16, float32",
    ),
    "query: complex": (
        call(query=torch.zeros(B, LQ, H, D, dtype=torch.complex64)),
        TypeError,
        "query.dtype is torch.complex64; accepted: float16",
    ),
    "key: another dtype": (
        call(key=torch.zeros(B, LK, HKV, D, dtype=torch.float16)),
        TypeError,
        "key.dtype is float16; accepted: float32, the dtype of query",
    ),
    "value: another dtype": (
        call(value=torch.zeros(B, LK, HKV, D, dtype=torch.bfloat16)),
        TypeError,
        "value.dtype is bfloat16; accepted: float32, the dtype of query",
    ),
    "attn_mask: complex": (
        call(attn_mask=scores(dtype=torch.complex64)),
        TypeError,
        "attn_mask.dtype is torch.complex64; accepted: bool",
    ),
    "attn_bias: bool": (
        call(attn_bias=scores(dtype=torch.bool)),
        TypeError,
        "attn_bias.dtype is bool; accepted: float16, bfloat16, float32",
    ),
    "attn_bias: float64": (
        call(attn_bias=scores(dtype=torch.float64)),
        TypeError,
        "attn_bias.dtype is float64; accepted: float16, bfloat16, float32",
    ),
    # Shapes
    "query: rank": (call(query=torch.zeros(LQ, H, D)), ValueError, r"query.dim\(\) is 3; accepted: 4, \(B, Lq, H, D\)"),
    "query: rank 0": (call(query=torch.tensor(1.0)), ValueError, "query has 0 dimensions"),
    "query: rank 6": (call(query=torch.zeros(1, 1, 1, 1, 1, 8)), ValueError, "query has 6 dimensions"),
    "key: rank": (call(key=torch.zeros(LK, HKV, D)), ValueError, r"key.dim\(\) is 3; accepted: 4, \(B, Lk, H_kv, D\)"),
    "key: batch": (
        call(key=torch.zeros(3, LK, HKV, D)),
        ValueError,
        r"key.shape is \(3, 12, 2, 16\); accepted: \(B, Lk, H_kv, D\) = \(2, 12, 2, 16\)",
    ),
    "key: heads": (call(key=torch.zeros(B, LK, 3, D)), ValueError, "H_kv = 3; accepted: a divisor of the 4 heads"),
    "key: head_dim": (call(key=torch.zeros(B, LK, HKV, 8)), ValueError, r"key.shape is \(2, 12, 2, 8\)"),
    "value: length": (
        call(value=torch.zeros(B, 11, HKV, D)),
        ValueError,
        r"value.shape is \(2, 11, 2, 16\); accepted: \(B, Lk, H_kv, D\) = \(2, 12, 2, 16\)",
    ),
    "head_dim: no multiple of 8": (
        call(**{name: torch.zeros(1, 4, 1, 20) for name in ("query", "key", "value")}),
        ValueError,
        "head_dim 20; accepted: multiples of 8 from 8 to 256",
    ),
    "head_dim: too large": (
        call(**{name: torch.zeros(1, 4, 1, 264) for name in ("query", "key", "value")}),
        ValueError,
        "head_dim 264; accepted: multiples of 8 from 8 to 256",
    ),
    "attn_mask: rank": (call(attn_mask=scores(LQ, LK)), ValueError, r"attn_mask.dim\(\) is 2; accepted: 4"),
    "attn_mask: batch": (call(attn_mask=scores(3, H, LQ, LK)), ValueError, r"attn_mask.shape is \(3, 4, 10, 12\)"),
    "attn_mask: heads": (call(attn_mask=scores(B, 3, LQ, LK)), ValueError, r"attn_mask.shape .*H = 4, H_kv = 2"),
    "attn_mask: rows": (call(attn_mask=scores(B, H, 9, LK)), ValueError, "attn_mask.shape .*Lq = 10"),
    "attn_mask: keys": (call(attn_mask=scores(B, H, LQ, 128)), ValueError, "attn_mask.shape .*Lk = 12"),
    "attn_bias: rank": (call(attn_bias=scores(LK)), ValueError, r"attn_bias.dim\(\) is 1; accepted: 4"),
    "attn_bias: keys": (call(attn_bias=scores(B, H, LQ, 128)), ValueError, r"attn_bias.shape is \(2, 4, 10, 128\)"),
    # Layouts
    "query: last stride": (
        call(query=torch.zeros(B, LQ, D, H).transpose(2, 3)),
        ValueError,
        r"query.stride\(\) is .*accepted: a stride of 1 in the last dimension",
    ),
    "value: last stride": (
        call(value=torch.zeros(B, LK, HKV, 1).expand(B, LK, HKV, D)),
        ValueError,
        r"value.stride\(\) is .*accepted: a stride of 1 in the last dimension",
    ),
    "attn_mask: last stride": (
        call(attn_mask=scores(B, H, LK, LQ).transpose(2, 3)),
        ValueError,
        r"attn_mask.stride\(\) is .*accepted: a stride of 1 in the last dimension",
    ),
    "attn_bias: last stride": (
        call(attn_bias=scores(B, H, LK, LQ).transpose(2, 3)),
        ValueError,
        r"attn_bias.stride\(\) is .*accepted: a stride of 1 in the last dimension",
    ),
    "key: lazily negated": (
        call(key=torch.zeros(B, LK, HKV, D, dtype=torch.complex64).conj().imag),
        ValueError,
        r"key is a lazily negated view .*resolve_neg\(\)",
    ),
    "attn_mask: sparse": (call(attn_mask=scores(1, 1, 4, 4).to_sparse()), ValueError, "attn_mask .*cannot be read"),
    # Devices
    "query: meta": (call(query=torch.zeros(B, LQ, H, D, device="meta")), ValueError, "query .*meta"),
    "key: another device": (call(key=torch.zeros(B, LK, HKV, D, device="meta")), ValueError, "key .*meta"),
    # Numbers
    "scale: infinite": (call(scale=math.inf), ValueError, "scale is inf; accepted: finite values, or None"),
    "scale: NaN": (call(scale=math.nan), ValueError, "scale is -?nan; accepted: finite values, or None"),
    "softcap: negative": (call(softcap=-1.0), ValueError, "softcap is -1; accepted: 0 .* positive finite value"),
    "softcap: infinite": (call(softcap=math.inf), ValueError, "softcap is inf; accepted"),
}


@pytest.mark.parametrize("needs_grad", [False, True], ids=["plain", "autograd"])
@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name: str, needs_grad: bool) -> None:
    arguments, exception, message = REFUSALS[name]
    if needs_grad:
        arguments = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        leaf = next(
            (k for k in ("value", "query") if isinstance(arguments[k], torch.Tensor)),
            None,
        )
        arguments[leaf].requires_grad_()
    for attention in (flash_dmattn_func, flash_dmattn_func_auto()):
        with pytest.raises(exception, match=f"(?s){message}"):
            attention(**arguments)


# Flex takes one set of dtypes on every device, and is given every tensor that torch can hold.
FLEX_MESSAGES = {
    "query: float64": "query.dtype is float64; accepted: float16, bfloat16, float32",
    "query: complex": "query.dtype is complex64; accepted: float16, bfloat16, float32",
    "query: rank 0": r"query.dim\(\) is 0; accepted: 4, \(B, Lq, H, D\)",
    "query: rank 6": r"query.dim\(\) is 6; accepted: 4, \(B, Lq, H, D\)",
    "attn_mask: complex": "attn_mask.dtype is complex64; accepted: bool",
    "query: meta": "key is on cpu and query on meta; all tensors of a call share a device",
    "key: another device": "key is on meta and query on cpu; all tensors of a call share a device",
    "softcap: negative": "softcap is -1; accepted: 0 .* positive finite value",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_by_flex_and_by_explain(name: str, capsys) -> None:
    arguments, exception, message = REFUSALS[name]
    message = FLEX_MESSAGES.get(name, message)
    with pytest.raises(exception, match=f"(?s){message}"):
        flex_dmattn_func(**arguments)
    if isinstance(arguments["query"], torch.Tensor):
        explanation = explain(**arguments)
        assert explanation.chosen is None
        assert re.search(message, "\n".join(explanation.faults))
        assert "every backend refuses this call: " in capsys.readouterr().out


def test_flex_takes_tensors_of_the_cpu_and_of_cuda_devices() -> None:
    meta = {name: tensor.to("meta") for name, tensor in call().items()}
    with pytest.raises(ValueError, match="query is on meta; accepted: cuda or cpu"):
        flex_dmattn_func(**meta)


def test_flex_without_flexattention_says_what_is_needed(monkeypatch) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1"))
    with pytest.raises(
        RuntimeError, match=r"backend 'flex' is not available: torch 2\.5\.1 has no .* torch 2\.6 or newer"
    ):
        flex_dmattn_func(**call())
    assert "flex" not in get_available_backends()
    assert not flash_dmattn.FLEX_AVAILABLE


def test_all_reasons_are_listed_by_flex_too() -> None:
    arguments = call(scale=math.inf, softcap=-1.0, value=torch.zeros(B, 11, HKV, D))
    with pytest.raises(ValueError, match="value") as refusal:
        flex_dmattn_func(**arguments)
    lines = str(refusal.value).splitlines()
    assert [re.match(r"\w+", line).group() for line in lines] == ["value", "scale", "softcap"]


def test_all_reasons_are_listed() -> None:
    arguments = call(scale=math.inf, attn_mask=scores(B, 3, LQ, LK), value=torch.zeros(B, 11, HKV, D))
    with pytest.raises(ValueError, match="value") as refusal:
        flash_dmattn_func(**arguments)
    lines = str(refusal.value).splitlines()
    assert [re.match(r"\w+", line).group() for line in lines] == ["value", "scale", "attn_mask"]


def test_first_refusal_leaves_the_library_usable() -> None:
    with pytest.raises(ValueError, match="softcap"):
        flash_dmattn_func(**call(softcap=-1.0))
    assert flash_dmattn_func(**call()).shape == (B, LQ, H, D)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_signed_zero_dtypes_of_masks_that_dlpack_cannot_tell_apart(needs_grad: bool) -> None:
    mask = scores().to(torch.float8_e4m3fn)
    with pytest.raises(TypeError, match=r"attn_mask\.dtype is torch\.float8_e4m3fn; accepted: bool"):
        flash_dmattn_func(**call(attn_mask=mask, query=torch.zeros(B, LQ, H, D, requires_grad=needs_grad)))


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend is 'cudnn'; accepted: None, 'cuda', 'triton', 'flex', 'cpu'"):
        flash_dmattn_func_auto(backend="cudnn")


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_forced_backend_that_cannot_run_says_why(backend) -> None:
    reason = backend.unavailable_reason()
    if backend.name in get_available_backends():
        assert reason is None
        flash_dmattn_func_auto(backend.name)
    else:
        with pytest.raises(RuntimeError, match=re.escape(f"backend {backend.name!r} is not available: {reason}")):
            flash_dmattn_func_auto(backend.name)


@pytest.mark.skipif(_C.cuda_built(), reason="the library has CUDA kernels")
def test_build_without_cuda_says_how_to_get_one_with_it() -> None:
    with pytest.raises(RuntimeError, match=r"built without CUDA.*pip install \. -C cmake\.define\.FDMA_CUDA=ON"):
        flash_dmattn_func_auto("cuda")


def test_forced_backend_refuses_tensors_of_another_device() -> None:
    attention = flash_dmattn_func_auto("cpu")
    meta = torch.zeros(1, 4, 1, 8, device="meta")
    with pytest.raises(RuntimeError, match="backend 'cpu' takes cpu tensors, query is on meta"):
        attention(meta, meta, meta)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["key", "value", "attn_mask", "attn_bias"])
def test_tensors_on_two_devices(name: str) -> None:
    tensors = {**call(), "attn_mask": scores(), "attn_bias": scores()}
    mixed = {k: v.half().cuda() if k != name else v.half() for k, v in tensors.items()}
    with pytest.raises(ValueError, match=f"{name} is on cpu and query on cuda:0; all tensors of a call"):
        flash_dmattn_func(**mixed)


@pytest.mark.gpu
def test_float32_on_cuda() -> None:
    with pytest.raises(TypeError, match=r"query\.dtype is float32; accepted on CUDA: float16, bfloat16"):
        flash_dmattn_func(**{name: tensor.cuda() for name, tensor in call().items()})
