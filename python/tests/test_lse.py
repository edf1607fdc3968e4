"""What ``return_lse=True`` adds, beyond the table of cases."""

import pytest
import torch

from flash_dmattn import flash_dmattn_func, ops
from flash_dmattn.testing.cases import CASES, Case
from flash_dmattn.testing.reference import GRADIENTS, call_with_gradients

CASE = Case("masked and biased", heads=4, mask="BHQK", bias="BGQK", options={"is_causal": True, "deterministic": True})
OPTIONS = {**CASE.options, "return_lse": True}


@pytest.fixture
def inputs(target):
    return CASE.inputs(target.dtype, target.device)


def test_keyword_only() -> None:
    query = torch.zeros(1, 4, 1, 8)
    with pytest.raises(TypeError, match="positional"):
        flash_dmattn_func(query, query, query, None, None, None, None, None, None, True)


@pytest.mark.parametrize("given", [None, 1, "yes"])
def test_it_is_a_bool(given) -> None:
    query = torch.zeros(1, 4, 1, 8)
    with pytest.raises(TypeError, match=f"return_lse must be a bool, got {given!r}"):
        flash_dmattn_func(query, query, query, return_lse=given)


def test_a_gradient_of_lse_alone(target, inputs) -> None:
    grad_out = torch.zeros_like(CASE.grad_out(target.dtype, target.device))
    grad_lse = CASE.grad_lse(target.device)
    expected = call_with_gradients(target.attention, inputs, OPTIONS, (grad_out, grad_lse)).grads
    leaves = {name: inputs[name].detach().requires_grad_() for name in GRADIENTS}
    _, lse = target.attention(**{**inputs, **leaves}, **CASE.options, return_lse=True)
    lse.backward(grad_lse)
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[name]), name
    assert leaves["value"].grad.eq(0).all()


@pytest.mark.parametrize("expanded", [False, True])
def test_any_strides_of_its_gradient(expanded, target, inputs) -> None:
    grad_out, grad_lse = CASE.grad_out(target.dtype, target.device), CASE.grad_lse(target.device)
    strided = grad_lse[:1, :1, :1].expand_as(grad_lse) if expanded else grad_lse.mT.contiguous().mT
    expected = call_with_gradients(target.attention, inputs, OPTIONS, (grad_out, strided.contiguous()))
    actual = call_with_gradients(target.attention, inputs, OPTIONS, (grad_out, strided))
    for name in GRADIENTS:
        assert torch.equal(actual.grads[name], expected.grads[name]), name


def test_a_gradient_of_rows_that_see_nothing_goes_nowhere(target) -> None:
    # Merging two calls by their lse gives such rows a gradient of NaN: both terms of the merge are -inf.
    case = next(case for case in CASES if case.name == "mask hides whole rows")
    inputs = case.inputs(target.dtype, target.device)
    inputs["attn_bias"] = torch.zeros(case.score_shape("BHQ1"), dtype=target.dtype, device=target.device)
    dead = ~inputs["attn_mask"].any(dim=-1)  # (B, H, Lq)
    grad_out, grad_lse = case.grad_out(target.dtype, target.device), case.grad_lse(target.device)
    options = {"deterministic": True, "return_lse": True}
    expected, actual = (
        call_with_gradients(target.attention, inputs, options, (grad_out, grad_lse.masked_fill(dead, fill)))
        for fill in (0.0, torch.nan)
    )
    assert dead.any()
    assert actual.out[1][dead].eq(-torch.inf).all()
    for name, grad in expected.grads.items():
        assert torch.equal(actual.grads[name], grad), name


def test_an_lse_that_nothing_differentiates_costs_nothing(libfdma_target, monkeypatch) -> None:
    target = libfdma_target
    inputs = CASE.inputs(target.dtype, target.device)
    given = []
    run = ops.attention_backward

    def spy(grad_out, grad_lse, *rest):
        given.append((grad_out is not None, grad_lse is not None))
        return run(grad_out, grad_lse, *rest)

    monkeypatch.setattr(ops, "attention_backward", spy)
    inputs["query"].requires_grad_()
    target.attention(**inputs)[0].sum().backward()
    out, lse = target.attention(**inputs, return_lse=True)
    out.sum().backward()
    out, lse = target.attention(**inputs, return_lse=True)
    (out.sum() + lse.sum().nan_to_num()).backward()
    assert given == [(True, False), (True, False), (True, True)]


def test_two_halves_of_the_keys_merge_to_the_whole(target) -> None:
    case = Case("halves", len_q=40, len_k=90, heads=4, heads_kv=2, bias="BG1K")
    inputs = case.inputs(target.dtype, target.device)
    whole = target.attention(**inputs)
    parts = []
    for keys in (slice(0, 37), slice(37, 90)):
        half = {**inputs, "key": inputs["key"][:, keys], "value": inputs["value"][:, keys]}
        parts.append(target.attention(**{**half, "attn_bias": inputs["attn_bias"][..., keys]}, return_lse=True))
    (out1, lse1), (out2, lse2) = parts
    total = torch.logaddexp(lse1, lse2)
    weights = [(lse - total).exp().transpose(1, 2)[..., None] for lse in (lse1, lse2)]
    merged = weights[0] * out1.float() + weights[1] * out2.float()
    # Each of the three outputs is rounded once to the dtype.
    rounding = torch.finfo(target.dtype).eps * whole.abs().max().item()
    torch.testing.assert_close(merged, whole.float(), rtol=0, atol=3 * rounding + 1e-5)
