"""Decode: a few queries on a cache, against the reference and against what it stands for."""

import re
from dataclasses import replace
from typing import Any, Dict

import pytest
import torch

from flash_dmattn import flash_dmattn_func, flash_dmattn_with_kvcache
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.decode_cases import CAUSAL, DECODE_CASES, KEEP, DecodeCase
from flash_dmattn.testing.memory import new_memory_is_nan
from flash_dmattn.testing.reference import reference_decode

WIDE = DecodeCase(
    "many keys",
    used=(40000, 33001),
    len_k=40003,
    head_dim=16,
    bias="BGK",
    options={"keep_window_size": 900},
)


def cpu(inputs: Dict[str, Any]) -> Dict[str, Any]:
    return {name: tensor.cpu() for name, tensor in inputs.items()}


def assert_as_the_reference(case: DecodeCase, inputs: Dict[str, Any], results: Any) -> None:
    on_cpu = cpu(inputs)
    reference = reference_decode(**on_cpu, **case.options)
    eager = reference_decode(**on_cpu, **case.options, dtype=inputs["query"].dtype)
    for name, actual, *expected in zip(("out", "lse"), results, reference, eager):
        assert_matches(actual.cpu(), *expected, name)


@pytest.mark.parametrize("case", DECODE_CASES, ids=lambda case: case.name)
def test_output_and_lse(case: DecodeCase, libfdma_target) -> None:
    inputs = case.inputs(libfdma_target.dtype, libfdma_target.device)
    with new_memory_is_nan():
        results = flash_dmattn_with_kvcache(**inputs, **case.options, return_lse=True)
    assert_as_the_reference(case, inputs, results)
    assert torch.equal(flash_dmattn_with_kvcache(**inputs, **case.options), results[0])


@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("values", ["normal", "ties", "constant", "specials"])
def test_selection_from_many_keys(values: str, bias_dtype: torch.dtype, libfdma_target) -> None:
    case = replace(WIDE, bias_values=values, bias_dtype=bias_dtype)
    inputs = case.inputs(libfdma_target.dtype, libfdma_target.device)
    results = flash_dmattn_with_kvcache(**inputs, **case.options, return_lse=True)
    assert_as_the_reference(case, inputs, results)


def assert_as_good(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Weights and results of both are rounded to the dtype, in different orders; values are of the order of 1."""
    rounding = 4 * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("is_causal", [False, True])
def test_is_the_attention_of_the_last_queries(is_causal: bool, libfdma_target) -> None:
    case = DecodeCase("whole", used=(80, 80), whole=True, len_q=7, bias="BG1K")
    inputs = case.inputs(libfdma_target.dtype, libfdma_target.device)
    options = {"is_causal": is_causal, "keep_window_size": 30}
    names = {"key_cache": "key", "value_cache": "value"}
    expected = flash_dmattn_func(**{names.get(name, name): tensor for name, tensor in inputs.items()}, **options)
    assert_as_good(flash_dmattn_with_kvcache(**inputs, **options), expected)


def test_order_of_slots_does_not_matter(libfdma_target) -> None:
    case = DecodeCase("slots", used=(96,), len_k=96, whole=True, bias="BGK", bias_values="slots")
    inputs = case.inputs(libfdma_target.dtype, libfdma_target.device)
    expected = flash_dmattn_with_kvcache(**inputs)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1)).to(libfdma_target.device)
    for name in ("key_cache", "value_cache"):
        inputs[name] = inputs[name][:, order]
    inputs["attn_bias"] = inputs["attn_bias"][..., order]
    assert_as_good(flash_dmattn_with_kvcache(**inputs), expected)


def test_an_empty_slot_is_not_read(libfdma_target) -> None:
    case = DecodeCase("slots", used=(96,), len_k=96, whole=True, heads_kv=1, bias="BGK", bias_values="slots")
    inputs = case.inputs(libfdma_target.dtype, libfdma_target.device)
    expected = flash_dmattn_with_kvcache(**inputs)
    hidden = inputs["attn_bias"][0, 0].isneginf()
    assert hidden.any()
    for name in ("key_cache", "value_cache"):
        inputs[name][:, hidden] = torch.nan
    assert torch.equal(flash_dmattn_with_kvcache(**inputs), expected)


def test_a_cache_is_read_where_it_lies(libfdma_target) -> None:
    """Heads before rows, keys and values in one tensor."""
    case = DecodeCase("strided", bias="BGK", options=KEEP)
    inputs = case.inputs(libfdma_target.dtype, libfdma_target.device)
    expected = flash_dmattn_with_kvcache(**inputs, **KEEP)
    names = ("key_cache", "value_cache")
    cache = torch.stack([inputs[name].transpose(1, 2) for name in names], dim=1)
    views = {name: cache[:, index].transpose(1, 2) for index, name in enumerate(names)}
    assert not views["key_cache"].is_contiguous()
    assert torch.equal(flash_dmattn_with_kvcache(**{**inputs, **views}, **KEEP), expected)


CALL = DecodeCase("call", bias="BGK", len_q=3).inputs(torch.float32, "cpu")
PAGED = DecodeCase("call", used=(30, 33), len_k=64, page_size=16).inputs(torch.float32, "cpu")

REFUSALS = {
    "no tensor": ({"key_cache": None}, TypeError, "key_cache must be a torch.Tensor, got NoneType"),
    "no lengths": ({"cache_seqlens": [70, 33]}, TypeError, "cache_seqlens must be a torch.Tensor or None, got list"),
    "window": ({"keep_window_size": 0}, ValueError, "keep_window_size is 0; accepted: 1 or more, or None (every key)"),
    "window of a wrong type": ({"keep_window_size": 2.5}, TypeError, "keep_window_size must be an int, got 2.5"),
    "window without bias": (
        {"keep_window_size": 3, "attn_bias": None},
        ValueError,
        "keep_window_size is 3 without attn_bias; accepted: 0, or a bias that keys are chosen by",
    ),
    "return_lse": ({"return_lse": 1}, TypeError, "return_lse must be a bool, got 1"),
    "is_causal": ({"is_causal": 1}, TypeError, "is_causal must be a bool or None, got 1"),
    "scale": ({"scale": float("nan")}, ValueError, "scale is nan; accepted: finite values, or None"),
    "queries": (
        {"query": torch.zeros(2, 17, 4, 32)},
        ValueError,
        "query.shape is (2, 17, 4, 32), Lq = 17; accepted: 1 to 16",
    ),
    "packed query": ({"query": CALL["query"][0]}, ValueError, "query.dim() is 3; accepted: 4, (B, Lq, H, D)"),
    "dtype of the keys": (
        {"key_cache": CALL["key_cache"].half()},
        TypeError,
        "key_cache.dtype is float16; accepted: float32, the dtype of query",
    ),
    "shape of the values": (
        {"value_cache": CALL["value_cache"][:, :79]},
        ValueError,
        "value_cache.shape is (2, 79, 2, 32); accepted: (B, Lk, H_kv, D) = (2, 80, 2, 32)",
    ),
    "bias of queries": (
        {"attn_bias": torch.zeros(2, 2, 3, 80)},
        ValueError,
        "attn_bias.shape is (2, 2, 3, 80); accepted: ({B|1}, {H|H_kv|1}, Lk), or 4, ({B|1}, {H|H_kv|1}, 1, Lk) with "
        "B = 2, H = 4, H_kv = 2, Lk = 80",
    ),
    "length": (
        {"cache_seqlens": torch.tensor([70, 81])},
        ValueError,
        "cache_seqlens[1] is 81; accepted: 0 to Lk = 80",
    ),
    "dtype of lengths": (
        {"cache_seqlens": torch.tensor([70.0, 33.0])},
        TypeError,
        "cache_seqlens.dtype is float32; accepted: int32, int64",
    ),
    "page": (
        {**PAGED, "attn_bias": None, "block_table": torch.full_like(PAGED["block_table"], 11), "query": CALL["query"]},
        ValueError,
        "block_table[0][0] is 11; accepted: 0 to 10, the pages of key_cache",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name: str) -> None:
    changes, exception, message = REFUSALS[name]
    with pytest.raises(exception, match=re.escape(message)):
        flash_dmattn_with_kvcache(**{**CALL, **changes})
    assert flash_dmattn_with_kvcache(**CALL).isfinite().all()


@pytest.mark.parametrize("names", [("query",), ("key_cache", "value_cache"), ("attn_bias",)], ids=" and ".join)
def test_gradients_are_refused_at_the_call(names, libfdma_target) -> None:
    inputs = DecodeCase("call", bias="BGK").inputs(libfdma_target.dtype, libfdma_target.device)
    for name in names:
        inputs[name].requires_grad_()
    message = f"a gradient of {' and '.join(names)} is asked for; accepted by flash_dmattn_with_kvcache: forward only"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        flash_dmattn_with_kvcache(**inputs)
    with torch.no_grad():
        assert flash_dmattn_with_kvcache(**inputs).grad_fn is None


def test_autocast_casts_the_query_and_no_cache() -> None:
    inputs = DecodeCase("call").inputs(torch.bfloat16, "cpu")
    expected = flash_dmattn_with_kvcache(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flash_dmattn_with_kvcache(**{**inputs, "query": inputs["query"].float()}), expected)
        with pytest.raises(TypeError, match=re.escape("key_cache.dtype is float32; accepted: bfloat16")):
            flash_dmattn_with_kvcache(**CALL)


COMPILED = [
    DecodeCase("keep, causal", len_q=3, bias="BGK", options={**KEEP, **CAUSAL}),
    DecodeCase("pages", used=(64, 33), len_k=64, page_size=16),
]


@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_opcheck(case: DecodeCase) -> None:
    inputs = case.inputs(torch.float32, "cpu")
    names = ("query", "key_cache", "value_cache", "attn_bias", "cache_seqlens", "block_table")
    tensors = [inputs.get(name) for name in names]
    options = (case.options.get("keep_window_size", 0), None, case.options.get("is_causal", False), None)
    torch.library.opcheck(torch.ops.flash_dmattn.decode.default, (*tensors, *options))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_one_graph_under_compile(case: DecodeCase, dynamic: bool) -> None:
    inputs = case.inputs(torch.float32, "cpu")

    def step(**tensors):
        out, lse = flash_dmattn_with_kvcache(**tensors, **case.options, return_lse=True)
        return out + 1, lse

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for actual, expected in zip(compiled(**inputs), step(**inputs)):
        assert torch.equal(actual, expected)


def test_operator_has_no_gradient() -> None:
    inputs = DecodeCase("call").inputs(torch.float32, "cpu")
    tensors = (inputs["query"].requires_grad_(), inputs["key_cache"], inputs["value_cache"], None)
    out, _ = torch.ops.flash_dmattn.decode.default(*tensors, inputs["cache_seqlens"], None, 0, None, False, None)
    with pytest.raises(RuntimeError, match="decode has no gradient"):
        out.sum().backward()


GPU_CASES = [
    DecodeCase("one block a row", bias="BGK", options=KEEP),
    replace(WIDE, bias_dtype=torch.bfloat16),
    replace(WIDE, name="many keys, float32", bias_dtype=torch.float32, bias_values="ties"),
    DecodeCase("slots", used=(2048, 2048), len_k=2048, whole=True, bias="BGK", bias_values="slots"),
    DecodeCase("pages", used=(200, 129), len_k=256, page_size=64, bias="BGK", options={**KEEP, **CAUSAL}, len_q=3),
]


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=lambda case: case.name)
def test_graph_replay_on_new_values_and_lengths(case: DecodeCase) -> None:
    inputs = case.inputs(torch.bfloat16, "cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        flash_dmattn_with_kvcache(**inputs, **case.options)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = flash_dmattn_with_kvcache(**inputs, **case.options, return_lse=True)
    later = case if case.whole else replace(case, used=tuple(reversed([used // 2 for used in case.used])))
    fresh = later.inputs(torch.bfloat16, "cuda", seed=7)
    for name, tensor in inputs.items():
        tensor.copy_(fresh[name])
    for _ in range(2):
        for result in results:
            result.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert_as_the_reference(later, fresh, results)


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=lambda case: case.name)
def test_call_does_not_synchronise(case: DecodeCase) -> None:
    inputs = case.inputs(torch.bfloat16, "cuda")
    flash_dmattn_with_kvcache(**inputs, **case.options)
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    busy = torch.cuda.Event()
    busy.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        flash_dmattn_with_kvcache(**inputs, **case.options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not busy.query()
    torch.cuda.synchronize()


@pytest.mark.gpu
def test_values_past_the_cache_are_cut_on_the_device() -> None:
    case = DecodeCase("pages", used=(64, 64), len_k=64, page_size=16, bias="BGK", options=KEEP)
    inputs = case.inputs(torch.bfloat16, "cuda")
    expected = flash_dmattn_with_kvcache(**inputs, **KEEP)
    inputs["cache_seqlens"] = torch.tensor([1 << 40, 65], device="cuda")
    assert torch.equal(flash_dmattn_with_kvcache(**inputs, **KEEP), expected)
    inputs["cache_seqlens"] = torch.tensor([-(1 << 40), -1], device="cuda")
    assert (flash_dmattn_with_kvcache(**inputs, **KEEP) == 0).all()
    inputs["cache_seqlens"] = torch.tensor([64, 64], device="cuda")
    inputs["block_table"] = torch.tensor([[1 << 30], [-5]], dtype=torch.int32, device="cuda").expand(2, 4).contiguous()
    assert flash_dmattn_with_kvcache(**inputs, **KEEP).shape == expected.shape
    torch.cuda.synchronize()
