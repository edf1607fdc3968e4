"""``flash_dmattn_varlen_func``: the contract for sequences of different lengths, and what torch may do with a call."""

import math
from typing import Any

import pytest
import torch

from flash_dmattn import flash_dmattn_func, flash_dmattn_varlen_func
from flash_dmattn.testing.cases import VARLEN_CASES, VarlenCase
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.memory import new_memory_is_nan
from flash_dmattn.testing.reference import call_with_gradients, reference_results

CASE = VarlenCase(
    "masked and biased",
    lengths_q=(40, 0, 65, 7),
    lengths_k=(30, 9, 65, 80),
    heads=4,
    mask="BHQK",
    bias="BGQK",
    options={"is_causal": True, "deterministic": True},
)


@pytest.mark.parametrize("case", VARLEN_CASES, ids=lambda case: case.name)
def test_outputs_and_gradients(case: VarlenCase, libfdma_target) -> None:
    target = libfdma_target
    inputs = case.inputs(target.dtype, target.device)
    grads = (case.grad_out(target.dtype, target.device), case.grad_lse(target.device))
    options = {**case.options, "return_lse": True}
    reference = reference_results(inputs, options, grads)
    eager = reference_results(inputs, options, grads, target.dtype)
    with new_memory_is_nan():
        plain = flash_dmattn_varlen_func(**inputs, **case.options)  # saves nothing: another path through the library
        for deterministic in (False, True):
            call = {**options, "deterministic": deterministic}
            actual = call_with_gradients(flash_dmattn_varlen_func, inputs, call, grads)
            assert torch.equal(plain, actual.out[0])
            for name, results in zip(("out", "lse"), zip(actual.out, reference.out, eager.out)):
                assert_matches(*results, name)
            assert actual.grads.keys() == reference.grads.keys()
            for name, grad in actual.grads.items():
                assert grad.dtype == inputs[name].dtype
                assert grad.is_contiguous()
                assert_matches(grad, reference.grads[name], eager.grads[name], f"gradient of {name}")


@pytest.mark.parametrize("case", [case for case in VARLEN_CASES if case.spare_q], ids=lambda case: case.name)
def test_rows_of_no_sequence_are_exact_zeros(case: VarlenCase, libfdma_target) -> None:
    target = libfdma_target
    inputs = case.inputs(target.dtype, target.device)
    grads = (case.grad_out(target.dtype, target.device), case.grad_lse(target.device))
    with new_memory_is_nan():
        (out, lse), of_inputs = call_with_gradients(
            flash_dmattn_varlen_func, inputs, {**case.options, "return_lse": True}, grads
        )
    outside = case.rows_of_no_sequence(case.lengths_q, case.spare_q)
    assert outside.any()
    assert out[outside].eq(0).all()
    assert lse.transpose(-1, -2)[outside].eq(-math.inf).all()
    assert of_inputs["query"][outside].eq(0).all()
    outside_k = case.rows_of_no_sequence(case.lengths_k, case.spare_k)
    for name in ("key", "value"):
        assert of_inputs[name][outside_k].eq(0).all(), name


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_no_sequence_at_all(padded: bool, libfdma_target) -> None:
    target = libfdma_target
    case = VarlenCase("none", spare_q=5, spare_k=3, slack_q=2, slack_k=4, mask="BHQK", bias="1HQK", padded=padded)
    inputs = case.inputs(target.dtype, target.device)
    grads = (case.grad_out(target.dtype, target.device), case.grad_lse(target.device))
    with new_memory_is_nan():
        results = call_with_gradients(flash_dmattn_varlen_func, inputs, {"return_lse": True}, grads)
    out, lse = results.out
    assert (out.shape, lse.shape) == (case.query_shape(), case.lse_shape())
    assert lse.eq(-math.inf).all()
    for tensor in (out, *results.grads.values()):
        assert tensor.eq(0).all()


def test_sequences_of_one_length_are_a_batch(libfdma_target) -> None:
    target = libfdma_target
    case = VarlenCase("alike", lengths_q=(70,) * 3, lengths_k=(90,) * 3, padded=True, heads=4, mask="BHQK", bias="BG1K")
    inputs = case.inputs(target.dtype, target.device)
    dense = {name: inputs[name] for name in ("query", "key", "value", "attn_mask", "attn_bias")}
    packed = {name: inputs[name].flatten(0, 1) for name in ("query", "key", "value")}
    expected, expected_lse = flash_dmattn_func(**dense, is_causal=True, return_lse=True)
    out, lse = flash_dmattn_varlen_func(**inputs, is_causal=True, return_lse=True)
    of_packed, packed_lse = flash_dmattn_varlen_func(**{**inputs, **packed}, is_causal=True, return_lse=True)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)
    assert torch.equal(of_packed, expected.flatten(0, 1))
    assert torch.equal(packed_lse, expected_lse.transpose(0, 1).flatten(1))


def test_names_of_the_example_of_the_reference() -> None:
    inputs = CASE.inputs(torch.float32, "cpu")
    expected = flash_dmattn_varlen_func(**inputs)
    renamed = {{"query": "q", "key": "k", "value": "v"}.get(name, name): given for name, given in inputs.items()}
    assert torch.equal(flash_dmattn_varlen_func(**renamed), expected)
    mixed = {**renamed, "query": renamed.pop("q")}
    mixed.pop("q")
    assert torch.equal(flash_dmattn_varlen_func(**mixed), expected)


def test_bounds_of_the_padded_layout_have_a_default() -> None:
    case = VarlenCase("padded", lengths_q=(40, 7), lengths_k=(30, 80), padded=True, spare_q=3, spare_k=2)
    inputs = case.inputs(torch.float32, "cpu")
    expected = flash_dmattn_varlen_func(**inputs)
    del inputs["max_seqlen_q"], inputs["max_seqlen_k"]
    # The default is the padded length, and with it the extents of mask and bias.
    inputs["attn_bias"] = torch.zeros(2, 2, 43, 82)
    inputs["attn_mask"] = torch.ones(1, 1, 43, 82)
    torch.testing.assert_close(flash_dmattn_varlen_func(**inputs), expected)


def test_bounds_may_be_integers_of_other_types() -> None:
    numpy = pytest.importorskip("numpy")
    inputs = CASE.inputs(torch.float32, "cpu")
    expected = flash_dmattn_varlen_func(**inputs)
    bounds = {name: numpy.int64(inputs[name]) for name in ("max_seqlen_q", "max_seqlen_k")}
    assert torch.equal(flash_dmattn_varlen_func(**{**inputs, **bounds}), expected)


def test_deterministic_gradients_repeat(libfdma_target) -> None:
    target = libfdma_target
    inputs = CASE.inputs(target.dtype, target.device)
    grad_out = CASE.grad_out(target.dtype, target.device)
    first = call_with_gradients(flash_dmattn_varlen_func, inputs, CASE.options, grad_out)
    for _ in range(5):
        again = call_with_gradients(flash_dmattn_varlen_func, inputs, CASE.options, grad_out)
        assert all(torch.equal(again.grads[name], grad) for name, grad in first.grads.items())


def test_backward_keeps_bits_and_refuses_changed_offsets() -> None:
    inputs = CASE.inputs(torch.float32, "cpu")
    inputs["query"].requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        flash_dmattn_varlen_func(**inputs)
    addresses = [tensor.data_ptr() for tensor in kept]
    assert inputs["attn_mask"].data_ptr() not in addresses
    assert all(inputs[name].data_ptr() in addresses for name in ("cu_seqlens_q", "cu_seqlens_k"))

    out = flash_dmattn_varlen_func(**inputs)
    inputs["cu_seqlens_q"].add_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_non_reentrant_checkpointing(libfdma_target) -> None:
    from torch.utils.checkpoint import checkpoint

    target = libfdma_target
    inputs = CASE.inputs(target.dtype, target.device)
    grad_out = CASE.grad_out(target.dtype, target.device)

    def step(**arguments: Any) -> torch.Tensor:
        return checkpoint(flash_dmattn_varlen_func, **arguments, use_reentrant=False)

    expected = call_with_gradients(flash_dmattn_varlen_func, inputs, CASE.options, grad_out)
    actual = call_with_gradients(step, inputs, CASE.options, grad_out)
    assert all(torch.equal(actual.grads[name], grad) for name, grad in expected.grads.items())
