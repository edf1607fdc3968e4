"""Every refusal of variable lengths names the argument, what it got and what is accepted."""

import re
from typing import Any, Dict

import pytest
import torch

from flash_dmattn import flash_dmattn_varlen_func

H, HKV, D = 4, 2, 16


def cu(*offsets: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(offsets, dtype=dtype)


def call(**changes: Any) -> Dict[str, Any]:
    """Three sequences of 4, 0 and 5 queries over 7, 2 and 3 keys; None as a change leaves the argument out."""
    arguments = {
        "query": torch.zeros(9, H, D),
        "key": torch.zeros(12, HKV, D),
        "value": torch.zeros(12, HKV, D),
        "cu_seqlens_q": cu(0, 4, 4, 9),
        "cu_seqlens_k": cu(0, 7, 9, 12),
        "max_seqlen_q": 5,
        "max_seqlen_k": 7,
    }
    arguments.update(changes)
    return arguments


def padded(**changes: Any) -> Dict[str, Any]:
    """The same lengths in (3, 6, H, D) and (3, 8, H_kv, D)."""
    shapes = {"query": (3, 6, H, D), "key": (3, 8, HKV, D), "value": (3, 8, HKV, D)}
    return call(**{**{name: torch.zeros(shape) for name, shape in shapes.items()}, **changes})


PACKED_BOUND = "must be an int where the tensors are packed, got None; any bound of the lengths serves"
REFUSALS = {
    # Names
    "query: missing": (call(query=None), TypeError, "query is not given, nor by its other name q; accepted: one of"),
    "key: missing": (call(key=None), TypeError, "key is not given, nor by its other name k; accepted: one of them"),
    "value: missing": (call(value=None), TypeError, "value is not given, nor by its other name v; accepted: one of"),
    "query: twice": (call(q=torch.zeros(9, H, D)), TypeError, "query is given twice, also by its other name q"),
    "key: twice": (call(k=torch.zeros(12, HKV, D)), TypeError, "key is given twice, also by its other name k"),
    "value: twice": (call(v=1), TypeError, "value is given twice, also by its other name v; accepted: one of them"),
    # Types
    "query: no tensor": (call(query=[1.0]), TypeError, "query must be a torch.Tensor, got list"),
    "attn_mask: no tensor": (
        call(attn_mask=1),
        TypeError,
        "attn_mask must be a torch.Tensor, a DynamicMask or None, got int",
    ),
    "deterministic: number": (call(deterministic=1), TypeError, "deterministic must be a bool or None, got 1"),
    "return_lse: number": (call(return_lse=1), TypeError, "return_lse must be a bool, got 1"),
    "cu_seqlens_q: missing": (call(cu_seqlens_q=None), TypeError, "cu_seqlens_q must be a torch.Tensor, got NoneType"),
    "cu_seqlens_q: list": (call(cu_seqlens_q=[0, 9]), TypeError, "cu_seqlens_q must be a torch.Tensor, got list"),
    "cu_seqlens_k: missing": (
        call(cu_seqlens_k=None),
        TypeError,
        "cu_seqlens_k must be a torch.Tensor, got NoneType; for self-attention pass cu_seqlens_q here too",
    ),
    "cu_seqlens_k: list": (call(cu_seqlens_k=[0, 9]), TypeError, "cu_seqlens_k must be a torch.Tensor, got list"),
    "max_seqlen_q: missing": (call(max_seqlen_q=None), TypeError, f"max_seqlen_q {PACKED_BOUND}"),
    "max_seqlen_k: missing": (call(max_seqlen_k=None), TypeError, f"max_seqlen_k {PACKED_BOUND}"),
    "max_seqlen_q: float": (call(max_seqlen_q=5.0), TypeError, "max_seqlen_q must be an int, got 5.0"),
    "max_seqlen_k: bool": (call(max_seqlen_k=True), TypeError, "max_seqlen_k must be an int, got True"),
    "max_seqlen_k: tensor": (call(max_seqlen_k=torch.tensor(7)), TypeError, "max_seqlen_k must be an int, got tensor("),
    "max_seqlen_q: huge": (call(max_seqlen_q=1 << 63), ValueError, f"max_seqlen_q is {1 << 63}; accepted: below 2^63"),
    # Arguments of sequences
    "max_seqlen_q: negative": (call(max_seqlen_q=-1), ValueError, "max_seqlen_q is -1; accepted: 0 or more"),
    "cu_seqlens_q: rank": (
        call(cu_seqlens_q=cu(0, 4, 4, 9)[None]),
        ValueError,
        "cu_seqlens_q.dim() is 2; accepted: 1, (B + 1,)",
    ),
    "cu_seqlens_q: float": (
        call(cu_seqlens_q=cu(0, 4, 4, 9).float()),
        TypeError,
        "cu_seqlens_q.dtype is float32; accepted: int32, int64",
    ),
    "cu_seqlens_k: unsigned": (
        call(cu_seqlens_k=cu(0, 7, 9, 12).to(torch.uint32)),
        TypeError,
        "cu_seqlens_k.dtype is torch.uint32; accepted: int32, int64",
    ),
    "cu_seqlens: two dtypes": (
        call(cu_seqlens_k=cu(0, 7, 9, 12, dtype=torch.int64)),
        TypeError,
        "cu_seqlens_k.dtype is int64; accepted: int32, the dtype of cu_seqlens_q",
    ),
    "cu_seqlens: two lengths": (
        call(cu_seqlens_k=cu(0, 7, 12)),
        ValueError,
        "cu_seqlens_k.shape is (3,); accepted: (B + 1,) = (4,)",
    ),
    "cu_seqlens: empty": (
        call(cu_seqlens_q=cu(), cu_seqlens_k=cu()),
        ValueError,
        "cu_seqlens_q.shape is (0,); accepted: (B + 1,), at least one value",
    ),
    "cu_seqlens_q: strided": (
        call(cu_seqlens_q=cu(0, 0, 4, 4, 4, 4, 9, 9)[::2]),
        ValueError,
        "cu_seqlens_q.stride() is (2,) for shape (4,); accepted: a contiguous tensor",
    ),
    "cu_seqlens_q: meta": (
        call(cu_seqlens_q=cu(0, 4, 4, 9).to("meta")),
        ValueError,
        "cu_seqlens_q (Tensor) cannot be read: ",
    ),
    # Values, which the CPU reads
    "cu_seqlens_q: first": (call(cu_seqlens_q=cu(1, 4, 4, 9)), ValueError, "cu_seqlens_q[0] is 1; accepted: 0"),
    "cu_seqlens_k: falls": (
        call(cu_seqlens_k=cu(0, 7, 6, 12)),
        ValueError,
        "cu_seqlens_k[2] is 6 after cu_seqlens_k[1] = 7; accepted: values that do not fall",
    ),
    "cu_seqlens_k: past the total": (
        call(cu_seqlens_k=cu(0, 7, 9, 13)),
        ValueError,
        "cu_seqlens_k[3] is 13; accepted: at most total_k = 12",
    ),
    "cu_seqlens_q: longer than the bound": (
        call(max_seqlen_q=4),
        ValueError,
        "cu_seqlens_q[3] - cu_seqlens_q[2] is 5; accepted: at most max_seqlen_q = 4",
    ),
    "cu_seqlens_k: longer than the padding": (
        padded(cu_seqlens_k=cu(0, 7, 9, 18), max_seqlen_k=20),
        ValueError,
        "cu_seqlens_k[3] - cu_seqlens_k[2] is 9; accepted: at most Lk = 8",
    ),
    # Shapes
    "query: rank": (
        call(query=torch.zeros(9, D)),
        ValueError,
        "query.dim() is 2; accepted: 4, (B, Lq, H, D), or 3, (total_q, H, D)",
    ),
    "key: padded beside a packed query": (
        call(key=torch.zeros(3, 8, HKV, D)),
        ValueError,
        "key.dim() is 4; accepted: 3, (total_k, H_kv, D)",
    ),
    "key: packed beside a padded query": (
        padded(key=torch.zeros(12, HKV, D)),
        ValueError,
        "key.dim() is 3; accepted: 4, (B, Lk, H_kv, D)",
    ),
    "value: total": (
        call(value=torch.zeros(13, HKV, D)),
        ValueError,
        "value.shape is (13, 2, 16); accepted: (total_k, H_kv, D) = (12, 2, 16)",
    ),
    "query: batch of the padded": (
        padded(query=torch.zeros(2, 6, H, D)),
        ValueError,
        "query.shape is (2, 6, 4, 16); accepted: (B, Lq, H, D) with B = 3, the sequences of cu_seqlens_q",
    ),
    "attn_mask: over the totals": (
        call(attn_mask=torch.ones(1, 1, 9, 12)),
        ValueError,
        "attn_mask.shape is (1, 1, 9, 12); accepted: ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1}) with B = 3, H = 4, H_kv = 2, "
        "Lq = max_seqlen_q = 5, Lk = max_seqlen_k = 7",
    ),
    "attn_bias: of the padding instead of the bound": (
        padded(attn_bias=torch.zeros(3, 1, 6, 8)),
        ValueError,
        "attn_bias.shape is (3, 1, 6, 8); accepted: ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1}) with B = 3",
    ),
    # What all entry points refuse
    "key: heads": (
        call(key=torch.zeros(12, 3, D)),
        ValueError,
        "H_kv = 3; accepted: a divisor of the 4 heads of query",
    ),
    "query: dtype": (call(query=torch.zeros(9, H, D).double()), TypeError, "query.dtype is float64; accepted on the"),
    "scale: infinite": (call(scale=float("inf")), ValueError, "scale is inf; accepted: finite values, or None"),
    "softcap: negative": (call(softcap=-1.0), ValueError, "softcap is -1; accepted: 0 (off) or a positive finite"),
    "is_causal: number": (call(is_causal=1), TypeError, "is_causal must be a bool or None, got 1"),
}


@pytest.mark.parametrize("needs_grad", [False, True], ids=["plain", "autograd"])
@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name: str, needs_grad: bool) -> None:
    arguments, exception, message = REFUSALS[name]
    if needs_grad and isinstance(arguments["value"], torch.Tensor):
        arguments = {**arguments, "value": arguments["value"].detach().requires_grad_()}
    with pytest.raises(exception, match=re.escape(message)):
        flash_dmattn_varlen_func(**arguments)


@pytest.mark.parametrize("arguments", [call(), padded()], ids=["packed", "padded"])
def test_the_calls_that_are_broken_above_run_unbroken(arguments: Dict[str, Any]) -> None:
    assert flash_dmattn_varlen_func(**arguments).shape == arguments["query"].shape


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cu_seqlens_q", "cu_seqlens_k", "block_table"])
def test_tensors_on_two_devices(name: str) -> None:
    pages = {part: torch.zeros(4, 16, HKV, D) for part in ("key", "value")} if name == "block_table" else {}
    table = {"block_table": torch.zeros(3, 1, dtype=torch.int32)} if name == "block_table" else {}
    given = call(**pages, **table)
    moved = {
        part: tensor.cuda() if isinstance(tensor, torch.Tensor) and part != name else tensor
        for part, tensor in given.items()
    }
    moved.update({part: moved[part].half() for part in ("query", "key", "value")})
    with pytest.raises(ValueError, match=f"{name} is on cpu and query on cuda:0; all tensors of a call"):
        flash_dmattn_varlen_func(**moved)
