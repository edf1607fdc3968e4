"""How tensors are read: every way a tensor can reach the library gives the same result."""

import pytest
import torch

from flash_dmattn import flash_dmattn_func, flash_dmattn_varlen_func, ops
from flash_dmattn.testing.cases import CASES, Case, VarlenCase
from flash_dmattn.testing.reference import call_with_gradients

CASE = Case("masked and biased", heads=4, mask="BHQK", bias="BGQK", options={"is_causal": True, "deterministic": True})


class WithoutExchangeApi(torch.Tensor):
    """A tensor as torch before 2.10 has it."""

    __dlpack_c_exchange_api__ = None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attributes_serve_where_torch_has_no_exchange_api(dtype: torch.dtype) -> None:
    inputs = CASE.inputs(dtype, "cpu")
    old = {name: tensor.as_subclass(WithoutExchangeApi) for name, tensor in inputs.items()}
    assert torch.equal(flash_dmattn_func(**old, **CASE.options), flash_dmattn_func(**inputs, **CASE.options))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name.startswith("mask of")], ids=lambda case: case.name
)
def test_mask_dtypes_through_attributes(case: Case) -> None:
    inputs = case.inputs(torch.float32, "cpu")
    expected = flash_dmattn_func(**inputs)
    inputs["attn_mask"] = inputs["attn_mask"].as_subclass(WithoutExchangeApi)
    assert torch.equal(flash_dmattn_func(**inputs), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_offsets_of_sequences_through_attributes(dtype: torch.dtype) -> None:
    inputs = VarlenCase("offsets", lengths_q=(9, 0, 30), offsets_dtype=dtype).inputs(torch.float32, "cpu")
    expected = flash_dmattn_varlen_func(**inputs)
    old = {name: inputs[name].as_subclass(WithoutExchangeApi) for name in ("cu_seqlens_q", "cu_seqlens_k")}
    assert torch.equal(flash_dmattn_varlen_func(**{**inputs, **old}), expected)


@pytest.mark.parametrize(
    ("tensor", "exception", "message"),
    [
        (torch.zeros(1, 4, 1, 8, dtype=torch.complex64), TypeError, r"query\.dtype is torch\.complex64"),
        (torch.zeros(1, 4, 1, 8, device="meta"), ValueError, "query .*meta"),
        (torch.zeros(1, 1, 1, 1, 1, 8), ValueError, "query has 6 dimensions"),
    ],
    ids=["dtype", "device", "rank"],
)
def test_refusals_through_attributes(tensor, exception, message) -> None:
    other = torch.zeros(1, 4, 1, 8)
    with pytest.raises(exception, match=message):
        flash_dmattn_func(tensor.as_subclass(WithoutExchangeApi), other, other)


def test_parameters_and_leaves_are_read_where_they_lie() -> None:
    inputs = CASE.inputs(torch.float32, "cpu")
    expected = flash_dmattn_func(**inputs)
    inputs["query"] = torch.nn.Parameter(inputs["query"])
    inputs["value"].requires_grad_()
    assert torch.equal(flash_dmattn_func(**inputs), expected)
    with torch.no_grad():
        assert torch.equal(flash_dmattn_func(**inputs), expected)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_masks_of_wide_unsigned_integers(dtype: torch.dtype) -> None:
    inputs = CASE.inputs(torch.float32, "cpu")
    expected = flash_dmattn_func(**inputs)
    visible = inputs["attn_mask"]
    inputs["attn_mask"] = (visible.to(torch.int64) << (8 * dtype.itemsize - 1)).to(dtype)
    assert torch.equal(flash_dmattn_func(**inputs), expected)
    with pytest.raises(TypeError, match=r"attn_bias\.dtype is torch\.uint"):
        flash_dmattn_func(**{**inputs, "attn_bias": inputs["attn_mask"]})


def test_lazily_negated_tensors_are_read_after_resolve_neg() -> None:
    inputs = CASE.inputs(torch.float32, "cpu")
    expected = flash_dmattn_func(**inputs)
    negated = torch.complex(torch.zeros_like(inputs["key"]), -inputs["key"]).conj().imag
    assert negated.is_neg()
    assert torch.equal(flash_dmattn_func(**{**inputs, "key": negated.resolve_neg()}), expected)


def test_results_are_new_tensors() -> None:
    inputs = CASE.inputs(torch.float32, "cpu")
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    grad_out = CASE.grad_out(torch.float32, "cpu")
    first, second = (call_with_gradients(flash_dmattn_func, inputs, CASE.options, grad_out) for _ in range(2))
    assert first.out.data_ptr() != second.out.data_ptr()
    for name, tensor in inputs.items():
        assert torch.equal(tensor, before[name]), name


def test_packed_mask_is_one_bit_a_score_in_the_shape_of_the_mask() -> None:
    case = Case("broadcast", heads=4, len_q=128, len_k=256, mask="B1QK")
    inputs = case.inputs(torch.float32, "cpu")
    call = {"scale": None, "is_causal": None, "softcap": None}
    _, _, packed = ops.attention_forward(**inputs, **call, keep_for_backward=True)
    bits = packed[: 128 * 256 // 8].view(128, 256 // 8)
    unpacked = (bits[:, :, None] >> torch.arange(8)) & 1
    assert torch.equal(unpacked.reshape(128, 256).bool(), inputs["attn_mask"][0, 0])
    _, _, none = ops.attention_forward(**{**inputs, "attn_mask": None}, **call, keep_for_backward=True)
    assert none is None
