"""Random shapes, strides and broadcasts."""

from functools import partial

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flash_dmattn import flash_dmattn_func, flash_dmattn_varlen_func
from flash_dmattn.testing.cases import Case, VarlenCase
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.reference import attend_each_sequence, call_with_gradients, reference_results

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SETTINGS = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def restride(tensor: torch.Tensor, order, gaps, offset: int) -> torch.Tensor:
    """The same values in memory where the first three dimensions are in `order`, with gaps, from `offset` on."""
    dims = [*order, 3]
    extents = [tensor.shape[d] + gap for d, gap in zip(dims, gaps)]
    room = tensor.new_full((offset + torch.Size(extents).numel(),), float("nan"))[offset:].view(extents)
    slots = room[tuple(slice(0, tensor.shape[d]) for d in dims)].permute([dims.index(d) for d in range(4)])
    return slots.copy_(tensor)


layouts = st.builds(
    lambda order, gaps, offset: lambda tensor: restride(tensor, order, gaps, offset),
    st.permutations(range(3)),
    st.tuples(*[st.integers(0, 2)] * 3, st.integers(0, 9)),
    st.integers(0, 3),
)
extents = st.one_of(
    st.none(), st.builds(lambda *parts: "".join(parts), *map(st.sampled_from, ("B1", "HG1", "Q1", "K1")))
)


@st.composite
def cases(draw) -> Case:
    heads_kv = draw(st.integers(1, 3))
    return Case(
        "random",
        batch=draw(st.integers(0, 3)),
        len_q=draw(st.integers(0, 140)),
        len_k=draw(st.integers(0, 140)),
        heads=heads_kv * draw(st.integers(1, 3)),
        heads_kv=heads_kv,
        head_dim=8 * draw(st.integers(1, 10)),
        mask=draw(extents),
        bias=draw(extents),
        bias_dtype=draw(st.sampled_from([None, *DTYPES])),
        layout=draw(layouts),
        options={
            "is_causal": draw(st.booleans()),
            "scale": draw(st.one_of(st.none(), st.floats(-1, 1, width=32))),
            "softcap": draw(st.sampled_from([0.0, 0.5, 20.0])),
        },
    )


@SETTINGS
@given(case=cases(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**16))
def test_any_call_matches_the_reference(case: Case, dtype: torch.dtype, seed: int) -> None:
    inputs = case.inputs(dtype, "cpu", seed)
    grad_out = case.grad_out(dtype, "cpu")
    reference = reference_results(inputs, case.options, grad_out)
    eager = reference_results(inputs, case.options, grad_out, dtype)
    actual = call_with_gradients(flash_dmattn_func, inputs, case.options, grad_out)
    assert_matches(actual.out, reference.out, eager.out, "out")
    for name, grad in actual.grads.items():
        assert_matches(grad, reference.grads[name], eager.grads[name], f"gradient of {name}")


@SETTINGS
@given(case=cases(), layout=layouts)
def test_results_do_not_depend_on_the_layout(case: Case, layout) -> None:
    inputs = case.inputs(torch.float32, "cpu")
    grad_out = case.grad_out(torch.float32, "cpu")
    call = {**case.options, "deterministic": True}
    plain = call_with_gradients(flash_dmattn_func, inputs, call, grad_out)
    moved = {
        name: tensor if name == "attn_mask" or tensor is None else layout(tensor) for name, tensor in inputs.items()
    }
    actual = call_with_gradients(flash_dmattn_func, {**inputs, **moved}, call, layout(grad_out))
    assert torch.equal(actual.out, plain.out)
    for name, grad in plain.grads.items():
        assert torch.equal(actual.grads[name], grad), name


@SETTINGS
@given(case=cases().filter(lambda case: case.mask and case.bias))
def test_a_broadcast_mask_and_bias_equal_their_expansions(case: Case) -> None:
    inputs = case.inputs(torch.float32, "cpu")
    full = case.score_shape("BHQK")
    expanded = dict(inputs)
    for name in ("attn_mask", "attn_bias"):
        tensor = inputs[name]
        if tensor.shape[1] not in (1, case.heads):
            tensor = tensor.repeat_interleave(case.heads // case.heads_kv, dim=1)
        expanded[name] = tensor.expand(full).contiguous()
    torch.testing.assert_close(
        flash_dmattn_func(**inputs, **case.options), flash_dmattn_func(**expanded, **case.options)
    )


@st.composite
def varlen_cases(draw) -> VarlenCase:
    heads_kv = draw(st.integers(1, 2))
    sequences = draw(st.integers(1, 6))
    lengths = st.lists(st.integers(0, 90), min_size=sequences, max_size=sequences).map(tuple)
    slack = st.integers(0, 70)
    return VarlenCase(
        "random",
        lengths_q=draw(lengths),
        lengths_k=draw(lengths),
        slack_q=draw(slack),
        slack_k=draw(slack),
        spare_q=draw(slack),
        spare_k=draw(slack),
        padded=draw(st.booleans()),
        offsets_dtype=draw(st.sampled_from([torch.int32, torch.int64])),
        heads=heads_kv * draw(st.integers(1, 3)),
        heads_kv=heads_kv,
        head_dim=8 * draw(st.integers(1, 9)),
        mask=draw(extents),
        bias=draw(extents),
        options={"is_causal": draw(st.booleans()), "softcap": draw(st.sampled_from([0.0, 0.5])), "return_lse": True},
    )


@SETTINGS
@given(case=varlen_cases(), dtype=st.sampled_from(DTYPES))
def test_a_varlen_call_is_one_dense_call_for_each_sequence(case: VarlenCase, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype, "cpu")
    grads = (case.grad_out(dtype, "cpu"), case.grad_lse("cpu"))
    one_by_one = partial(attend_each_sequence, flash_dmattn_func, dtype, torch.float32)
    dense = call_with_gradients(one_by_one, inputs, case.options, grads)
    (out, lse), actual = call_with_gradients(flash_dmattn_varlen_func, inputs, case.options, grads)
    assert torch.equal(out, dense.out[0])
    assert torch.equal(lse, dense.out[1])
    for name, grad in actual.items():
        assert_matches(grad, dense.grads[name].double(), dense.grads[name], f"gradient of {name}")
