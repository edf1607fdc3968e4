"""The contract, on every backend and dtype, against one reference."""

import math

import pytest
import torch

from flash_dmattn.testing.cases import CASES, Case
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.reference import call_with_gradients, reference_attention, reference_results


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_output_and_gradients(case: Case, target) -> None:
    target.skip_what_is_ignored(case.options)
    inputs = case.inputs(target.dtype, target.device)
    grad_out = case.grad_out(target.dtype, target.device)
    reference = reference_results(inputs, case.options, grad_out)
    eager = reference_results(inputs, case.options, grad_out, target.dtype)

    out, grads = call_with_gradients(target.attention, inputs, case.options, grad_out)
    plain = target.attention(**inputs, **case.options)  # saves nothing: another path through the library

    assert_matches(out, reference.out, eager.out, "out")
    assert_matches(plain, reference.out, eager.out, "out without gradients")
    assert grads.keys() == reference.grads.keys()
    for name, grad in grads.items():
        assert grad.dtype == inputs[name].dtype
        assert_matches(grad, reference.grads[name], eager.grads[name], f"gradient of {name}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_lse(case: Case, libfdma_target) -> None:
    target = libfdma_target
    inputs = case.inputs(target.dtype, target.device)
    expected_out = target.attention(**inputs, **case.options)
    _, reference = reference_attention(**inputs, **case.options)
    _, eager = reference_attention(**inputs, **case.options, dtype=torch.float32)
    out, lse = target.attention(**inputs, **case.options, return_lse=True)
    assert torch.equal(out, expected_out)
    assert lse.dtype == torch.float32
    assert_matches(lse, reference, eager, "lse")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_through_output_and_lse(case: Case, lse_target) -> None:
    target = lse_target
    target.skip_what_is_ignored(case.options)
    inputs = case.inputs(target.dtype, target.device)
    grads = (case.grad_out(target.dtype, target.device), case.grad_lse(target.device))
    options = {**case.options, "return_lse": True}
    reference = reference_results(inputs, options, grads)
    eager = reference_results(inputs, options, grads, target.dtype)
    actual = call_with_gradients(target.attention, inputs, options, grads)
    for name, results in zip(("out", "lse"), zip(actual.out, reference.out, eager.out)):
        assert_matches(*results, name)
    for name, grad in actual.grads.items():
        assert_matches(grad, reference.grads[name], eager.grads[name], f"gradient of {name}")


def test_rows_that_see_nothing_give_exact_zeros(target) -> None:
    case = next(case for case in CASES if case.name == "mask hides whole rows")
    inputs = case.inputs(target.dtype, target.device)
    inputs["attn_bias"] = torch.zeros(case.score_shape("BHQK"), dtype=target.dtype, device=target.device)
    dead = ~inputs["attn_mask"].any(dim=-1)  # (B, H, Lq)
    out, grads = call_with_gradients(target.attention, inputs, {}, case.grad_out(target.dtype, target.device))
    assert dead.any()
    assert out.transpose(1, 2)[dead].eq(0).all()
    assert grads["query"].transpose(1, 2)[dead].eq(0).all()
    assert grads["attn_bias"][dead].eq(0).all()


def test_is_causal_none_is_false(target) -> None:
    inputs = CASES[0].inputs(target.dtype, target.device)
    assert torch.equal(target.attention(**inputs, is_causal=None), target.attention(**inputs, is_causal=False))


def test_default_scale(target) -> None:
    case = CASES[0]
    inputs = case.inputs(target.dtype, target.device)
    given = target.attention(**inputs, scale=1 / math.sqrt(case.head_dim))
    assert torch.equal(target.attention(**inputs), given)


def test_all_ones_mask_and_zero_bias_change_nothing(target) -> None:
    case = CASES[0]
    inputs = case.inputs(target.dtype, target.device)
    plain = target.attention(**inputs)
    shape = case.score_shape("BHQK")
    inputs["attn_mask"] = torch.ones(shape, device=target.device)
    inputs["attn_bias"] = torch.zeros(shape, device=target.device)
    # A bias makes the scale a product of its own, so the last bits of fp32 sums may round the other way.
    rounding = torch.finfo(target.dtype).eps * plain.abs().max().item()
    torch.testing.assert_close(target.attention(**inputs), plain, rtol=0, atol=2 * rounding)


def test_a_float32_bias_keeps_its_precision(target) -> None:
    case = next(case for case in CASES if case.name == "bias of torch.float32")
    inputs = case.inputs(target.dtype, target.device)
    expected = target.attention(**inputs)
    # In 16 bits the spacing of numbers near 1024 is 1 or 8: a rounded bias would be nearly constant.
    shifted = target.attention(**{**inputs, "attn_bias": inputs["attn_bias"] + 1024})
    torch.testing.assert_close(shifted, expected, rtol=0, atol=2e-3 if target.dtype == torch.float32 else 2e-2)


def test_output_is_contiguous_whatever_the_layout_of_query(target) -> None:
    case = next(case for case in CASES if case.name == "head-major memory")
    inputs = case.inputs(target.dtype, target.device)
    assert not inputs["query"].is_contiguous()
    assert target.attention(**inputs).is_contiguous()
