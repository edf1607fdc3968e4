"""What autograd records, keeps and returns."""

import itertools

import pytest
import torch

from flash_dmattn.testing.cases import Case
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.reference import GRADIENTS, call_with_gradients, reference_results

CASE = Case("masked and biased", heads=4, mask="BHQK", bias="BGQK", options={"is_causal": True})


@pytest.fixture
def inputs(target):
    return CASE.inputs(target.dtype, target.device)


@pytest.fixture
def grad_out(target):
    return CASE.grad_out(target.dtype, target.device)


SUBSETS = [names for size in range(1, 5) for names in itertools.combinations(GRADIENTS, size)]


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_gradients_of_exactly_the_inputs_that_need_one(names, target, inputs, grad_out) -> None:
    everything = call_with_gradients(target.attention, inputs, {**CASE.options, "deterministic": True}, grad_out).grads
    leaves = {name: inputs[name].detach().requires_grad_(name in names) for name in GRADIENTS}
    out = target.attention(**{**inputs, **leaves}, **CASE.options, deterministic=True)
    out.backward(grad_out)
    for name, leaf in leaves.items():
        if name not in names:
            assert leaf.grad is None
        else:
            assert torch.equal(leaf.grad, everything[name])


def test_no_graph_without_inputs_that_need_a_gradient(target, inputs) -> None:
    assert target.attention(**inputs).grad_fn is None
    inputs["query"].requires_grad_()
    with torch.no_grad():
        assert target.attention(**inputs).grad_fn is None
    with torch.inference_mode():
        assert not target.attention(**inputs).requires_grad
    assert target.attention(**inputs).grad_fn is not None


@pytest.mark.parametrize(
    "expand",
    [
        pytest.param(lambda grad: grad[:, :1, :1, :1].expand_as(grad), id="one value, as after sum()"),
        pytest.param(lambda grad: grad[:, :1].expand_as(grad), id="one row"),
        pytest.param(lambda grad: grad.transpose(1, 3).contiguous().transpose(1, 3), id="head_dim not last in memory"),
        pytest.param(lambda grad: grad.transpose(1, 2).contiguous().transpose(1, 2), id="head-major"),
    ],
)
def test_any_strides_of_grad_out(expand, target, inputs, grad_out) -> None:
    strided = expand(grad_out)
    call = {**CASE.options, "deterministic": True}
    expected = call_with_gradients(target.attention, inputs, call, strided.contiguous())
    actual = call_with_gradients(target.attention, inputs, call, strided)
    for name in GRADIENTS:
        assert torch.equal(actual.grads[name], expected.grads[name])


def test_sum_backward(target, inputs) -> None:
    inputs["query"].requires_grad_()
    target.attention(**inputs).sum().backward()
    assert inputs["query"].grad.shape == inputs["query"].shape


def test_dense_mask_is_not_kept(libfdma_target) -> None:
    inputs = CASE.inputs(libfdma_target.dtype, libfdma_target.device)
    inputs["query"].requires_grad_()
    inputs["attn_mask"] = inputs["attn_mask"].float()
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        libfdma_target.attention(**inputs, **CASE.options)
    mask = inputs["attn_mask"]
    assert all(tensor.data_ptr() != mask.data_ptr() for tensor in kept)
    packed = [tensor for tensor in kept if not tensor.is_floating_point()]
    assert packed
    # 70 keys are 3 words, padded to 4: 16 bytes a row, where the float mask had 280.
    assert sum(tensor.nbytes for tensor in packed) < mask.nbytes / 16


def test_changing_the_mask_after_forward_changes_no_gradient(libfdma_target) -> None:
    inputs = CASE.inputs(libfdma_target.dtype, libfdma_target.device)
    grad_out = CASE.grad_out(libfdma_target.dtype, libfdma_target.device)
    call = {**CASE.options, "deterministic": True}
    expected = call_with_gradients(libfdma_target.attention, inputs, call, grad_out).grads["query"]
    query = inputs["query"].detach().requires_grad_()
    out = libfdma_target.attention(**{**inputs, "query": query}, **call)
    inputs["attn_mask"].zero_()
    out.backward(grad_out)
    assert torch.equal(query.grad, expected)


def test_changing_an_input_in_place_before_backward_is_refused(target, inputs, grad_out) -> None:
    inputs["query"].requires_grad_()
    out = target.attention(**inputs)
    inputs["value"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(grad_out)


def test_no_gradient_flows_to_a_float_mask(target, inputs, grad_out) -> None:
    inputs["attn_mask"] = inputs["attn_mask"].float().requires_grad_()
    inputs["query"].requires_grad_()
    target.attention(**inputs).backward(grad_out)
    assert inputs["attn_mask"].grad is None


def test_gradients_accumulate_over_calls(target, inputs, grad_out) -> None:
    query = inputs["query"].detach().requires_grad_()
    call = {**inputs, **CASE.options, "query": query, "deterministic": True}
    target.attention(**call).backward(grad_out)
    once = query.grad.clone()
    target.attention(**call).backward(grad_out)
    assert torch.equal(query.grad, 2 * once)


def test_same_tensor_as_query_key_and_value(target) -> None:
    case = Case("self", heads=2)
    tensor = case.inputs(target.dtype, target.device)["query"]
    grad_out = case.grad_out(target.dtype, target.device)
    inputs = {"query": tensor, "key": tensor, "value": tensor, "attn_mask": None, "attn_bias": None}
    shared = tensor.detach().requires_grad_()
    target.attention(shared, shared, shared).backward(grad_out)
    reference, eager = (
        sum(reference_results(inputs, {}, grad_out, dtype).grads.values()) for dtype in (torch.float64, target.dtype)
    )
    assert_matches(shared.grad, reference, eager, "gradient of the shared tensor")


def test_second_derivative_is_refused(target, inputs) -> None:
    inputs["query"].requires_grad_()
    out = target.attention(**inputs)
    (grad,) = torch.autograd.grad(out.float().square().sum(), inputs["query"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.float().sum().backward()


def test_checkpointing(target, inputs, grad_out) -> None:
    from torch.utils.checkpoint import checkpoint

    query = inputs["query"].detach().requires_grad_()
    call = {**inputs, **CASE.options, "deterministic": True}
    target.attention(**{**call, "query": query}).backward(grad_out)
    expected, query.grad = query.grad, None
    checkpoint(lambda q: target.attention(**{**call, "query": q}), query, use_reentrant=False).backward(grad_out)
    assert torch.equal(query.grad, expected)
