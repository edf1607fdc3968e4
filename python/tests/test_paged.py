"""Keys and values in pages: the same results as where they lie in one piece, whatever the order of the pages."""

import re
from typing import Any, Dict

import pytest
import torch

from flash_dmattn import flash_dmattn_varlen_func
from flash_dmattn.testing.cases import VarlenCase
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.memory import new_memory_is_nan
from flash_dmattn.testing.reference import reference_varlen_attention

KEYS = ("key", "value")
PAGE_SIZES = [16, 17, 64, 128, 256]
DECODE = {"lengths_q": (1, 1, 1, 1), "lengths_k": (300, 16, 64, 129)}
LONG = {"lengths_q": (5, 70, 0, 33), "lengths_k": (300, 40, 64, 65)}

CASES = [
    VarlenCase("one query each, causal", **DECODE, heads=4, options={"is_causal": True}),
    VarlenCase("many heads on one kv head", **DECODE, heads=8, heads_kv=1, head_dim=128),
    VarlenCase("one query each, padded", **DECODE, heads=4, padded=True),
    VarlenCase("several queries", **LONG),
    VarlenCase("several queries, causal", **LONG, heads=4, options={"is_causal": True}),
    VarlenCase("no key in some", lengths_q=(5, 9, 2), lengths_k=(0, 50, 0)),
    VarlenCase("mask and bias", **LONG, heads=4, mask="BHQK", bias="BGQK", options={"is_causal": True}),
    VarlenCase("bias of keys, softcap", **LONG, heads=4, bias="BG1K", options={"softcap": 2.0, "scale": 0.5}),
    VarlenCase("bounds above the lengths", **LONG, slack_q=9, slack_k=400, mask="B11K"),
    VarlenCase("rows past the end, int64", **LONG, spare_q=6, offsets_dtype=torch.int64, options={"is_causal": True}),
    VarlenCase("padded queries", **LONG, padded=True, spare_q=4, bias="BHQK"),
]


def in_pages(inputs: Dict[str, Any], case: VarlenCase, page_size: int) -> Dict[str, Any]:
    """The call with its keys in shuffled pages. What no key fills is NaN, table entries past the last are garbage."""
    generator = torch.Generator().manual_seed(page_size)
    device = inputs["key"].device
    counts = [-(-length // page_size) for length in case.lengths_k]
    width = max(counts) + 2
    total = sum(counts) + 3
    order = torch.randperm(total, generator=generator).to(torch.int32)
    garbage = torch.tensor([-1, 1 << 30, total, -(1 << 31)], dtype=torch.int32)
    table = garbage[torch.randint(4, (case.batch, width), generator=generator)]
    pools = {name: inputs[name].new_full((total, page_size, *case.key_shape()[-2:]), torch.nan) for name in KEYS}
    taken = 0
    for b, (count, length) in enumerate(zip(counts, case.lengths_k)):
        pages = order[taken : taken + count]
        table[b, :count] = pages
        begin = 0 if case.padded else sum(case.lengths_k[:b])
        for name, pool in pools.items():
            of_sequence = inputs[name][b] if case.padded else inputs[name]
            rows = pool.new_full((count * page_size, *pool.shape[2:]), torch.nan)
            rows[:length] = of_sequence[begin : begin + length]
            pool[pages.long()] = rows.unflatten(0, (count, page_size))
        taken += count
    return {**inputs, **pools, "block_table": table.to(device)}


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_output_and_lse(case: VarlenCase, page_size: int, libfdma_target) -> None:
    target = libfdma_target
    inputs = case.inputs(target.dtype, target.device)
    paged = in_pages(inputs, case, page_size)
    reference = reference_varlen_attention(**inputs, **case.options)
    eager = reference_varlen_attention(**inputs, **case.options, dtype=target.dtype)
    with new_memory_is_nan():
        results = flash_dmattn_varlen_func(**paged, **case.options, return_lse=True)
    for name, triple in zip(("out", "lse"), zip(results, reference, eager)):
        assert_matches(*triple, name)


def test_pages_are_read_where_they_lie(libfdma_target) -> None:
    """Strides of a cache that keeps keys and values together, heads before rows."""
    target = libfdma_target
    case = CASES[4]
    paged = in_pages(case.inputs(target.dtype, target.device), case, 64)
    expected = flash_dmattn_varlen_func(**paged, **case.options)
    cache = torch.stack([paged[name].transpose(1, 2) for name in KEYS], dim=1)  # (pages, 2, H_kv, page_size, D)
    views = {name: cache[:, index].transpose(1, 2) for index, name in enumerate(KEYS)}
    assert not views["key"].is_contiguous()
    assert torch.equal(flash_dmattn_varlen_func(**{**paged, **views}, **case.options), expected)


def test_sequences_may_share_pages(libfdma_target) -> None:
    target = libfdma_target
    case = VarlenCase("shared prefix", lengths_q=(1, 1), lengths_k=(40, 64), heads=4)
    inputs = case.inputs(target.dtype, target.device)
    inputs["key"][40:72], inputs["value"][40:72] = inputs["key"][:32], inputs["value"][:32]
    expected = flash_dmattn_varlen_func(**inputs)
    paged = in_pages(inputs, case, 16)
    paged["block_table"][1, :2] = paged["block_table"][0, :2]
    torch.testing.assert_close(flash_dmattn_varlen_func(**paged), expected)


def test_bound_of_the_keys_defaults_to_what_the_pages_hold() -> None:
    case = CASES[2]
    inputs = case.inputs(torch.float32, "cpu")
    expected = flash_dmattn_varlen_func(**inputs)
    paged = in_pages(inputs, case, 16)
    del paged["max_seqlen_q"], paged["max_seqlen_k"]
    paged["attn_bias"] = torch.zeros(1, 1, 1, 16 * paged["block_table"].shape[1])
    torch.testing.assert_close(flash_dmattn_varlen_func(**paged), expected)


@pytest.mark.parametrize("names", [("query",), ("key", "value"), ("attn_bias",)], ids=" and ".join)
def test_gradients_are_refused_at_the_call(names, libfdma_target) -> None:
    target = libfdma_target
    case = CASES[6]
    paged = in_pages(case.inputs(target.dtype, target.device), case, 16)
    for name in names:
        paged[name].requires_grad_()
    message = f"block_table is given and a gradient of {' and '.join(names)} is asked for; accepted with block_table: "
    with pytest.raises(RuntimeError, match=re.escape(message)):
        flash_dmattn_varlen_func(**paged, **case.options)
    with torch.no_grad():
        assert flash_dmattn_varlen_func(**paged, **case.options).grad_fn is None


def refusal_call(**changes: Any) -> Dict[str, Any]:
    case = VarlenCase("refused", lengths_q=(1, 1), lengths_k=(20, 33))
    return {**in_pages(case.inputs(torch.float32, "cpu"), case, 16), **changes}


CALL = refusal_call()
TABLE = CALL["block_table"]
REFUSALS = {
    "type": ({"block_table": [[0]]}, TypeError, "block_table must be a torch.Tensor or None, got list"),
    "dtype": ({"block_table": TABLE.long()}, TypeError, "block_table.dtype is int64; accepted: int32"),
    "complex": (
        {"block_table": TABLE.to(torch.complex64)},
        TypeError,
        "block_table.dtype is torch.complex64; accepted: int32",
    ),
    "rank": ({"block_table": TABLE[0]}, ValueError, "block_table.dim() is 1; accepted: 2, (B, pages of a sequence)"),
    "batch": (
        {"block_table": TABLE[:1]},
        ValueError,
        "block_table.shape is (1, 5); accepted: (B, pages of a sequence) = (2, 5)",
    ),
    "strides": (
        {"block_table": TABLE.repeat(1, 2)[:, ::2]},
        ValueError,
        "block_table.stride() is (10, 2) for shape (2, 5); accepted: a contiguous tensor",
    ),
    "device": ({"block_table": TABLE.to("meta")}, ValueError, "block_table (Tensor) cannot be read"),
    "entry": (
        {"block_table": torch.where(TABLE[1, 1] == TABLE, 8, TABLE)},
        ValueError,
        "block_table[1][1] is 8; accepted: 0 to 7, the pages of key",
    ),
    "entry below zero": (
        {"block_table": torch.full_like(TABLE, -1)},
        ValueError,
        "block_table[0][0] is -1; accepted: 0 to 7, the pages of key",
    ),
    "too few pages": (
        {"block_table": TABLE[:, :2].contiguous()},
        ValueError,
        "cu_seqlens_k[2] - cu_seqlens_k[1] is 33; accepted: at most the keys in the pages of a sequence = 32",
    ),
    "small pages": (
        {name: CALL[name][:, :15] for name in KEYS},
        ValueError,
        "key.shape is (8, 15, 2, 32), page_size 15; accepted: 16 or more",
    ),
    "keys not in pages": (
        {name: CALL[name][0] for name in KEYS},
        ValueError,
        "key.dim() is 3; accepted: 4, (pages, page_size, H_kv, D)",
    ),
    "values in other pages": (
        {"value": CALL["value"][1:]},
        ValueError,
        "value.shape is (7, 16, 2, 32); accepted: (pages, page_size, H_kv, D) = (8, 16, 2, 32)",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name: str) -> None:
    changes, exception, message = REFUSALS[name]
    with pytest.raises(exception, match=re.escape(message)):
        flash_dmattn_varlen_func(**refusal_call(**changes))
    assert flash_dmattn_varlen_func(**refusal_call()).isfinite().all()
