"""Attention on a ``DynamicMask``: beyond the table of cases, what follows from its being an object."""

from typing import Any, Callable, Dict, Tuple

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from flash_dmattn import (
    DynamicMask,
    explain,
    flash_dmattn_func,
    flash_dmattn_func_auto,
    flash_dmattn_kvpacked_func,
    flash_dmattn_qkvpacked_func,
    flash_dmattn_varlen_func,
    flex_dmattn_func,
)
from flash_dmattn.testing.cases import Case, VarlenCase
from flash_dmattn.testing.reference import call_with_gradients

LENGTH, KEEP = 40, 9
FORMS = pytest.mark.parametrize("is_causal", [True, False], ids=["interval", "columns"])
PLACES = pytest.mark.parametrize(
    "place",
    [
        pytest.param(("cpu", torch.float32), id="cpu"),
        pytest.param(("cuda", torch.bfloat16), id="cuda", marks=pytest.mark.gpu),
    ],
)


def tensors(place: Tuple[str, torch.dtype] = ("cpu", torch.float32), length: int = LENGTH) -> Dict[str, torch.Tensor]:
    """Leaves of a call of four heads and two kv heads."""
    device, dtype = place
    generator = torch.Generator().manual_seed(length)
    shapes = {"query": (2, length, 4, 16), "key": (2, length, 2, 16), "value": (2, length, 2, 16)}
    shapes["attn_bias"] = (2, 2, 1, length)
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: tensor.to(device=device, dtype=dtype).requires_grad_() for name, tensor in made.items()}


def results(function: Callable[..., Any], leaves: Dict[str, torch.Tensor], **options: Any) -> Tuple[torch.Tensor, ...]:
    """The output and all gradients."""
    out = function(**leaves, **options)
    grad_out = torch.linspace(0, 1, out.numel()).to(out).view_as(out)
    return (out, *torch.autograd.grad(out, list(leaves.values()), grad_out))


def assert_all_equal(actual: Tuple[torch.Tensor, ...], expected: Tuple[torch.Tensor, ...]) -> None:
    assert len(actual) == len(expected)
    for index, (a, e) in enumerate(zip(actual, expected)):
        assert torch.equal(a, e), f"result {index}"


@FORMS
@PLACES
def test_keep_window_size_selects_and_attends(place, is_causal: bool) -> None:
    leaves = tensors(place)
    mask = DynamicMask.topk(leaves["attn_bias"], KEEP, is_causal)
    options = {"is_causal": is_causal, "deterministic": True}
    expected = results(flash_dmattn_func, leaves, attn_mask=mask, **options)
    for function in (flash_dmattn_func, flash_dmattn_func_auto()):
        assert_all_equal(results(function, leaves, keep_window_size=KEEP, **options), expected)


@FORMS
def test_keep_window_size_of_flex_through_auto(is_causal: bool) -> None:
    leaves = tensors()
    mask = DynamicMask.topk(leaves["attn_bias"], KEEP, is_causal)
    expected = results(flex_dmattn_func, leaves, attn_mask=mask, is_causal=is_causal)
    actual = results(flash_dmattn_func_auto("flex"), leaves, keep_window_size=KEEP, is_causal=is_causal)
    assert_all_equal(actual, expected)


@FORMS
def test_packed(is_causal: bool) -> None:
    leaves = tensors()
    bias, query = leaves["attn_bias"], leaves["query"]
    kv = torch.stack((leaves["key"], leaves["value"]), dim=2)
    expected = flash_dmattn_func(**leaves, is_causal=is_causal, keep_window_size=KEEP)
    mask = DynamicMask.topk(bias, KEEP, is_causal)
    for given in ({"attn_mask": mask}, {"keep_window_size": KEEP}):
        actual = flash_dmattn_kvpacked_func(query, kv, attn_bias=bias, is_causal=is_causal, **given)
        assert torch.equal(actual, expected)
    qkv = torch.randn(2, LENGTH, 3, 2, 16)
    expected = flash_dmattn_func(*qkv.unbind(2), mask, bias, is_causal=is_causal)
    for given in ({"attn_mask": mask}, {"keep_window_size": KEEP}):
        assert torch.equal(flash_dmattn_qkvpacked_func(qkv, attn_bias=bias, is_causal=is_causal, **given), expected)


@FORMS
def test_keep_window_size_of_sequences(is_causal: bool) -> None:
    lengths = (13, 40)
    cu_seqlens = torch.tensor([0, 13, 53])
    query, key, value = torch.randn(53, 4, 16), *torch.randn(2, 53, 2, 16).unbind()
    bias = torch.randn(2, 2, 1, 40)
    given = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens, "max_seqlen_q": 40, "max_seqlen_k": 40}
    options = {"is_causal": is_causal, "keep_window_size": KEEP}
    out = flash_dmattn_varlen_func(query, key, value, attn_bias=bias, **given, **options)
    for b, (start, length) in enumerate(zip((0, 13), lengths)):
        rows = slice(start, start + length)
        alone = flash_dmattn_func(
            query[None, rows], key[None, rows], value[None, rows], attn_bias=bias[b : b + 1, ..., :length], **options
        )
        torch.testing.assert_close(out[None, rows], alone)


@FORMS
def test_keys_in_pages(is_causal: bool) -> None:
    cu_seqlens_q, cu_seqlens_k = torch.tensor([0, 3, 5]), torch.tensor([0, 20, 52])
    query, pages = torch.randn(5, 4, 16), torch.randn(2, 4, 16, 2, 16)
    block_table = torch.tensor([[2, 0], [3, 1]], dtype=torch.int32)
    bias = torch.randn(2, 2, 1, 32)
    given = {"attn_bias": bias, "is_causal": is_causal, "keep_window_size": KEEP, "cu_seqlens_q": cu_seqlens_q}
    given = {**given, "cu_seqlens_k": cu_seqlens_k, "max_seqlen_q": 3, "max_seqlen_k": 32}
    out = flash_dmattn_varlen_func(query, *pages, block_table=block_table, **given)
    sequences = [tensor[block_table.long()].flatten(1, 2) for tensor in pages]  # (B, 32, H_kv, D)
    key, value = (torch.cat((tensor[0, :20], tensor[1])) for tensor in sequences)
    torch.testing.assert_close(out, flash_dmattn_varlen_func(query, key, value, **given))


@FORMS
def test_compiles_as_an_argument(is_causal: bool) -> None:
    def step(mask: DynamicMask, **leaves: torch.Tensor) -> torch.Tensor:
        return 2 * flash_dmattn_func(**leaves, attn_mask=mask, is_causal=is_causal, deterministic=True)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for seed in range(2):
        leaves = tensors()
        with torch.no_grad():
            leaves["attn_bias"].add_(torch.randn(LENGTH, generator=torch.Generator().manual_seed(seed)))
        mask = DynamicMask.topk(leaves["attn_bias"], KEEP, is_causal)
        assert_all_equal(results(compiled, leaves, mask=mask), results(step, leaves, mask=mask))
    assert counter.frame_count == 1


@FORMS
@PLACES
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_with_the_selection(place, dynamic: bool, is_causal: bool) -> None:
    def step(**leaves: torch.Tensor) -> torch.Tensor:
        mask = DynamicMask.topk(leaves["attn_bias"], KEEP, is_causal)
        first = flash_dmattn_func(**leaves, attn_mask=mask, is_causal=is_causal, deterministic=True)
        return first + flash_dmattn_func(**leaves, keep_window_size=2 * KEEP, is_causal=is_causal, deterministic=True)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=counter)
    lengths = (40, 57) if dynamic else (40,)
    for length in lengths:
        leaves = tensors(place, length)
        assert_all_equal(results(compiled, leaves), results(step, leaves))
    assert counter.frame_count == 1


@FORMS
def test_a_compiled_function_may_return_one(is_causal: bool) -> None:
    bias = torch.randn(1, 2, 1, LENGTH)
    compiled = torch.compile(lambda bias: DynamicMask.topk(bias, KEEP, is_causal), fullgraph=True, backend="aot_eager")
    mask, expected = compiled(bias), DynamicMask.topk(bias, KEEP, is_causal)
    assert repr(mask) == repr(expected)
    assert torch.equal(mask.data, expected.data)


@FORMS
def test_checkpoint(is_causal: bool) -> None:
    leaves = tensors()
    mask = DynamicMask.topk(leaves["attn_bias"], KEEP, is_causal)

    def recomputed(**arguments: Any) -> torch.Tensor:
        return checkpoint(flash_dmattn_func, **arguments, use_reentrant=False)

    options = {"attn_mask": mask, "is_causal": is_causal, "deterministic": True}
    assert_all_equal(results(recomputed, leaves, **options), results(flash_dmattn_func, leaves, **options))


@FORMS
def test_autocast(is_causal: bool) -> None:
    leaves = tensors()
    mask = DynamicMask.topk(leaves["attn_bias"], KEEP, is_causal)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, *_, grad_bias = results(flash_dmattn_func, leaves, attn_mask=mask)
    assert out.dtype == torch.bfloat16
    assert grad_bias.dtype == torch.float32


@FORMS
def test_the_lists_are_what_is_kept(is_causal: bool) -> None:
    leaves = tensors()
    mask = DynamicMask.topk(leaves["attn_bias"], KEEP, is_causal)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda kept: kept):
        flash_dmattn_func(**leaves, attn_mask=mask, is_causal=is_causal)
    assert [tensor.data_ptr() for tensor in saved if not tensor.is_floating_point()] == [mask.data.data_ptr()]


def test_changing_the_lists_before_backward_is_refused() -> None:
    leaves = tensors()
    mask = DynamicMask.topk(leaves["attn_bias"], KEEP)
    out = flash_dmattn_func(**leaves, attn_mask=mask)
    mask.data.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_explain_takes_one(capsys) -> None:
    leaves = tensors()
    explanation = explain(**leaves, attn_mask=DynamicMask.topk(leaves["attn_bias"], KEEP))
    assert explanation.faults == []
    assert explanation.chosen == "cpu"
    wrong = explain(**leaves, attn_mask=DynamicMask.topk(torch.zeros(1, 1, 7), KEEP))
    assert wrong.faults[0].startswith("attn_mask.shape is (1, 1, 7); accepted: ({B|1}, {H|H_kv|1}, Lk) with B = 2")


@pytest.mark.parametrize("shape", [(2, 4, 40, 40), (2, 2, 40, 40), (1, 1, 1, 40)])
@pytest.mark.parametrize("is_causal", [False, True])
@PLACES
def test_a_packed_mask_serves_causal_and_other_calls(place, is_causal: bool, shape) -> None:
    leaves = tensors(place)
    dense = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(place[0]) < 0.4
    options = {"is_causal": is_causal, "deterministic": True}
    packed = results(flash_dmattn_func, leaves, attn_mask=DynamicMask.from_dense(dense), **options)
    assert_all_equal(packed, results(flash_dmattn_func, leaves, attn_mask=dense, **options))


@PLACES
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_with_bits(place, dynamic: bool) -> None:
    def step(**leaves: torch.Tensor) -> torch.Tensor:
        leaves["attn_bias"] = leaves["attn_bias"] * leaves["query"].mean(dim=(2, 3))[:, None, :, None]
        return flash_dmattn_func(**leaves, keep_window_size=KEEP, is_causal=True, deterministic=True)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=counter)
    for length in (40, 57) if dynamic else (40,):
        leaves = tensors(place, length)
        assert_all_equal(results(compiled, leaves), results(step, leaves))
    assert counter.frame_count == 1


BACKENDS = pytest.mark.parametrize("backend", ["cpu", "flex"])
SHAPES = {"keys": (2, 2, LENGTH - 1), "one key": (1, 1, 1), "heads": (2, 3, LENGTH), "batch": (3, 2, LENGTH)}


@BACKENDS
@FORMS
@pytest.mark.parametrize("name", SHAPES)
def test_masks_of_other_extents_are_refused(name: str, is_causal: bool, backend: str) -> None:
    mask = DynamicMask.topk(torch.zeros(SHAPES[name]), KEEP, is_causal)
    with pytest.raises(ValueError, match=r"attn_mask\.shape is \(\d, \d, \d+\); accepted: \({B|1}, {H|H_kv|1}, "):
        flash_dmattn_func_auto(backend)(**tensors(), attn_mask=mask)


@BACKENDS
@pytest.mark.parametrize("shape", [(2, 2, LENGTH, LENGTH - 1), (2, 2, LENGTH - 1, LENGTH), (2, 3, 1, LENGTH)])
def test_bits_of_other_extents_are_refused(shape, backend: str) -> None:
    mask = DynamicMask.from_dense(torch.ones(shape))
    with pytest.raises(ValueError, match=r"attn_mask\.shape is \(\d, \d, \d+, \d+\); accepted: \({B|1}, {H|H_kv|1}, "):
        flash_dmattn_func_auto(backend)(**tensors(), attn_mask=mask)


@BACKENDS
def test_masks_on_other_devices_are_refused(backend: str) -> None:
    mask = DynamicMask.topk(torch.zeros(2, 2, LENGTH), KEEP).to("meta")
    with pytest.raises(ValueError, match=r"attn_mask .*on meta.*"):
        flash_dmattn_func_auto(backend)(**tensors(), attn_mask=mask)


@pytest.mark.gpu
def test_masks_on_the_cpu_are_refused_on_cuda() -> None:
    mask = DynamicMask.topk(torch.zeros(2, 2, LENGTH), KEEP)
    with pytest.raises(ValueError, match="attn_mask is on cpu and query on cuda:0; all tensors of a call must be on"):
        flash_dmattn_func(**tensors(("cuda", torch.bfloat16)), attn_mask=mask)


BIAS = torch.zeros(2, 2, 1, LENGTH)
REFUSALS = {
    "a mask too": ({"attn_mask": BIAS}, ValueError, "keep_window_size is 9 and attn_mask is given too; accepted: one"),
    "no bias": ({"attn_bias": None}, ValueError, "keep_window_size is 9 and attn_bias is None; accepted: with the"),
    "zero": ({"keep_window_size": 0}, ValueError, "keep_window_size is 0; accepted: 1 or more"),
    "no int": ({"keep_window_size": 0.5}, TypeError, "keep_window_size must be an int, got 0.5"),
    "is_causal": ({"is_causal": 1}, TypeError, "is_causal must be a bool"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_of_keep_window_size(name: str) -> None:
    arguments, exception, message = REFUSALS[name]
    leaves = {**tensors(), "keep_window_size": KEEP, **arguments}
    for function in (flash_dmattn_func, flash_dmattn_func_auto()):
        with pytest.raises(exception, match=message):
            function(**leaves)
    query, key, value = (leaves.pop(name) for name in ("query", "key", "value"))
    with pytest.raises(exception, match=message):
        flash_dmattn_kvpacked_func(query, torch.stack((key, value), dim=2), **leaves)


_LONG = {"heads": 16, "heads_kv": 8, "head_dim": 128, "options": {"is_causal": True, "keep_window_size": 2048}}
_LONG_CALLS = {  # and GiB that they may take: packed masks would be 4, 8 and 10
    "batch": (flash_dmattn_func, Case("long", len_q=65_536, len_k=65_536, bias="BG1K", **_LONG), 3),
    "heads": (flash_dmattn_func, Case("long", len_q=65_536, len_k=65_536, bias="BH1K", **_LONG), 4),
    "sequences": (flash_dmattn_varlen_func, VarlenCase("long", lengths_q=(60_000, 36, 5_500), bias="BG1K", **_LONG), 3),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", _LONG_CALLS)
def test_memory_is_linear_in_the_length(name: str) -> None:
    function, case, gib = _LONG_CALLS[name]
    inputs = case.inputs(torch.bfloat16, "cuda")
    grad_out = case.grad_out(torch.bfloat16, "cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call_with_gradients(function, inputs, case.options, grad_out)
    assert torch.cuda.max_memory_allocated() - before < gib << 30
