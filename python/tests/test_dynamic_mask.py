"""What ``DynamicMask`` selects, equal to the definition, and what it says of itself."""

import dataclasses
import math
from typing import List, Optional

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from flash_dmattn import DynamicMask
from flash_dmattn.testing.memory import new_memory_is_nan
from flash_dmattn.testing.recorder import Recorder

ROWS = 60  # (batch, head) pairs of each case
INF, NAN = math.inf, math.nan


def kept(values: List[float], visible: List[bool], keep: int, position: Optional[int]) -> List[int]:
    """The definition: keys that are kept at a position, or of all keys."""
    keys = range(len(values) if position is None else position + 1)
    candidates = [k for k in keys if visible[k] and values[k] != -INF and not math.isnan(values[k])]
    return sorted(sorted(candidates, key=lambda k: (-values[k], -k))[:keep])


def definition(bias: torch.Tensor, keep: int, is_causal: bool, padding: Optional[torch.Tensor]) -> torch.Tensor:
    """Bools ``(B, H, Lk, Lk)``, by a sort for each position."""
    batch, heads, len_k = bias.shape
    dense = torch.zeros((batch, heads, len_k, len_k), dtype=torch.bool)
    for b in range(batch):
        visible = [True] * len_k if padding is None else (padding[b] != 0).tolist()
        for h in range(heads):
            values = bias[b, h].float().tolist()
            for position in range(len_k):
                dense[b, h, position, kept(values, visible, keep, position if is_causal else None)] = True
    return dense


def choice(*values: float):
    def make(shape, generator):
        return torch.tensor(values)[torch.randint(len(values), shape, generator=generator)]

    return make


def sparse(value: float):
    def make(shape, generator):
        return torch.randn(shape, generator=generator).masked_fill(torch.rand(shape, generator=generator) < 0.4, value)

    return make


BIASES = {
    "random": lambda shape, generator: torch.randn(shape, generator=generator),
    "ties": choice(-1.0, 0.5, 2.0),
    "signed zeros": choice(-0.0, 0.0),
    "signed zeros and tiny values": choice(-0.0, 0.0, 1e-41, -1e-41),
    "-inf": sparse(-INF),
    "+inf": choice(INF, -INF, 1.0, INF),
    "NaN": sparse(NAN),
    "negative NaN": sparse(-NAN),
    "everything": choice(NAN, -INF, INF, 0.0, -0.0, 3.0, -3.0),
    "nothing to keep": choice(-INF, NAN),
    "constant": lambda shape, generator: torch.full(shape, 0.25),
    "ascending": lambda shape, generator: torch.arange(shape[-1]).float().expand(shape).contiguous(),
    "descending": lambda shape, generator: -torch.arange(shape[-1]).float().expand(shape).contiguous(),
}


@pytest.mark.parametrize("is_causal", [True, False], ids=["interval", "columns"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("len_k", [1, 2, 9])
@pytest.mark.parametrize("name", BIASES)
def test_equals_the_definition(name: str, len_k: int, padded: bool, is_causal: bool) -> None:
    generator = torch.Generator().manual_seed(len_k)
    bias = BIASES[name]((ROWS // 2, 2, len_k), generator)
    padding = torch.rand((ROWS // 2, len_k), generator=generator) < 0.7 if padded else None
    for keep in sorted({1, 2, max(1, len_k - 1), len_k, len_k + 3}):
        mask = DynamicMask.topk(bias, keep, is_causal, padding)
        assert mask.form == ("interval" if is_causal else "columns")
        assert torch.equal(mask.to_dense(), definition(bias, keep, is_causal, padding)), keep


@pytest.mark.parametrize("is_causal", [True, False], ids=["interval", "columns"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounded_biases_have_ties(dtype: torch.dtype, is_causal: bool) -> None:
    bias = (torch.randn((8, 2, 40), generator=torch.Generator().manual_seed(0)) * 0.01 + 1).to(dtype)
    for keep in (1, 7, 39):
        assert torch.equal(DynamicMask.topk(bias, keep, is_causal).to_dense(), definition(bias, keep, is_causal, None))


def definition_of_rows(bias: torch.Tensor, keep: int, is_causal: bool, padding: Optional[torch.Tensor]) -> torch.Tensor:
    """Bools ``(B, H, Lq, Lk)`` by a bias of every query."""
    batch, heads, len_q, len_k = bias.shape
    dense = torch.zeros(bias.shape, dtype=torch.bool)
    for b in range(batch):
        visible = [True] * len_k if padding is None else (padding[b] != 0).tolist()
        for h in range(heads):
            for q, values in enumerate(bias[b, h].float().tolist()):
                dense[b, h, q, kept(values, visible, keep, q + len_k - len_q if is_causal else None)] = True
    return dense


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("len_q", "len_k"), [(9, 9), (3, 9), (11, 8), (4, 1)])
@pytest.mark.parametrize("name", BIASES)
def test_bits_equal_the_definition(name: str, len_q: int, len_k: int, padded: bool, is_causal: bool) -> None:
    generator = torch.Generator().manual_seed(len_q)
    bias = BIASES[name]((3, 2, len_q, len_k), generator)
    padding = torch.rand((3, len_k), generator=generator) < 0.7 if padded else None
    for keep in sorted({1, max(1, len_k - 1), len_k + 3}):
        mask = DynamicMask.topk(bias, keep, is_causal, padding)
        assert (mask.form, mask.shape) == ("bits", bias.shape)
        expected = definition_of_rows(bias, keep, is_causal, padding)
        assert torch.equal(mask.to_dense(), expected), keep
        assert mask.density() == pytest.approx(expected.float().mean().item())


def test_rows_of_one_bias_choose_as_its_interval_says() -> None:
    bias = torch.randn(2, 3, 1, 300)
    assert torch.equal(
        DynamicMask.topk(bias.expand(-1, -1, 300, -1), 40).to_dense(), DynamicMask.topk(bias, 40).to_dense()
    )


def test_sequences_choose_by_a_bias_of_queries() -> None:
    bias, lengths = torch.randn(2, 3, 6, 12), torch.tensor([5, 12])
    mask = DynamicMask.topk(bias, 4, False, cu_seqlens_k=torch.tensor([0, 5, 17]))
    expected = definition_of_rows(bias, 4, False, torch.arange(12) < lengths[:, None])
    assert torch.equal(mask.to_dense(), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 70, 200), (1, 3, 1, 33), (2, 1, 5, 128), (0, 1, 4, 4), (1, 1, 3, 0)])
def test_a_dense_mask_comes_back(shape, dtype: torch.dtype) -> None:
    dense = torch.rand(shape) < 0.5
    mask = DynamicMask.from_dense(dense.to(dtype))
    assert (mask.form, mask.shape, mask.keep_window_size) == ("bits", shape, None)
    assert torch.equal(mask.to_dense(shape[2]), dense)
    assert (
        torch.equal(mask.to_dense(9), dense.expand(-1, -1, 9, -1)) if shape[2] == 1 else mask.to_dense().shape == shape
    )


def test_bits_have_their_own_number_of_queries() -> None:
    mask = DynamicMask.from_dense(torch.ones(1, 1, 5, 8))
    message = r"len_q is 4; accepted for a mask of bits of shape \(1, 1, 5, 8\): 5"
    for method in (mask.to_dense, mask.density):
        with pytest.raises(ValueError, match=message):
            method(4)


@pytest.mark.parametrize(
    ("mask", "exception", "message"),
    [
        ([1], TypeError, "mask must be a torch.Tensor, got list"),
        (torch.ones(4, 4), ValueError, r"mask.dim\(\) is 2; accepted: 4, \({B|1}, {H|H_kv|1}, {Lq|1}, Lk\)"),
        (torch.ones(1, 1, 4, 4, dtype=torch.complex64), TypeError, "mask.dtype is torch.complex64; accepted: bool"),
        (torch.ones(1, 1, 4, 8)[..., ::2], ValueError, r"mask.stride\(\) is"),
    ],
    ids=["type", "dims", "dtype", "strides"],
)
def test_refusals_of_from_dense(mask, exception, message) -> None:
    with pytest.raises(exception, match=message):
        DynamicMask.from_dense(mask)


def test_constant_bias_is_a_sliding_window() -> None:
    dense = DynamicMask.topk(torch.zeros(1, 1, 20), 5).to_dense()[0, 0]
    assert torch.equal(dense, torch.ones(20, 20, dtype=torch.bool).tril().triu(-4))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_dtypes_of_key_padding_mask(dtype: torch.dtype) -> None:
    bias, padding = torch.randn(3, 2, 12), torch.rand(3, 12) < 0.5
    expected = DynamicMask.topk(bias, 4, key_padding_mask=padding)
    assert torch.equal(DynamicMask.topk(bias, 4, key_padding_mask=padding.to(dtype)).data, expected.data)


@pytest.mark.parametrize("is_causal", [True, False], ids=["interval", "columns"])
def test_one_bias_for_a_batch_that_is_padded(is_causal: bool) -> None:
    bias, padding = torch.randn(1, 2, 12), torch.rand(3, 12) < 0.5
    mask = DynamicMask.topk(bias, 4, is_causal, padding)
    assert torch.equal(mask.to_dense(), definition(bias.expand(3, -1, -1), 4, is_causal, padding))


@pytest.mark.parametrize("with_padding", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("is_causal", [True, False], ids=["interval", "columns"])
def test_sequences_choose_among_their_own_keys(is_causal: bool, dtype: torch.dtype, with_padding: bool) -> None:
    bias, lengths = torch.randn(3, 2, 12), torch.tensor([5, 12, 0])
    padding = torch.rand(3, 12) < 0.7 if with_padding else None
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(dtype)
    inside = torch.arange(12) < lengths[:, None]
    mask = DynamicMask.topk(bias, 4, is_causal, padding, cu_seqlens)
    expected = definition(bias, 4, is_causal, inside if padding is None else inside & padding)
    assert torch.equal(mask.to_dense(), expected)


def test_layouts_of_the_bias() -> None:
    bias = torch.randn(2, 3, 1, 20)
    expected = DynamicMask.topk(bias, 6)
    views = (bias[:, :, 0], bias.transpose(0, 1).contiguous().transpose(0, 1), torch.zeros(2, 3, 1, 25)[..., 2:22])
    views[2].copy_(bias)
    for view in views:
        assert torch.equal(DynamicMask.topk(view, 6).data, expected.data)


@pytest.mark.parametrize("is_causal", [True, False], ids=["interval", "columns"])
@pytest.mark.parametrize("shape", [(0, 2, 5), (2, 3, 0), (2, 0, 5)])
def test_nothing_to_choose_from(shape, is_causal: bool) -> None:
    mask = DynamicMask.topk(torch.zeros(shape), 4, is_causal)
    assert mask.shape == shape
    assert mask.to_dense().shape == (*shape[:2], shape[2], shape[2])
    assert mask.density() == 0.0


@pytest.mark.parametrize("len_q", [1, 7, 12, 20])
@pytest.mark.parametrize("is_causal", [True, False], ids=["interval", "columns"])
def test_positions_count_from_the_last_key(is_causal: bool, len_q: int) -> None:
    mask = DynamicMask.topk(torch.randn(2, 3, 12), 5, is_causal)
    dense, square = mask.to_dense(len_q), mask.to_dense()
    assert dense.shape == (2, 3, len_q, 12)
    assert torch.equal(dense[:, :, -12:], square[:, :, -len_q:])
    if len_q > 12:  # before the first key
        assert not is_causal or not dense[:, :, :-12].any()
    assert mask.density(len_q) == pytest.approx(dense.float().mean().item())


def test_facts() -> None:
    bias = torch.randn(2, 3, 12, requires_grad=True)
    interval, columns = DynamicMask.topk(bias, 5), DynamicMask.topk(bias, 5, is_causal=False)
    assert (interval.nbytes, columns.nbytes) == (2 * 3 * 12 * 4, 2 * 3 * 5 * 4)
    for mask in (interval, columns):
        assert mask.shape == (2, 3, 12)
        assert mask.keep_window_size == 5
        assert mask.device == torch.device("cpu")
        assert not mask.data.requires_grad
        assert mask.to("cpu") is mask
        moved = mask.to("meta")
        assert (moved.form, moved.shape, moved.device.type) == (mask.form, mask.shape, "meta")
        assert mask.to_dense(dtype=torch.float16).dtype == torch.float16
        assert repr(mask) == f"DynamicMask(form='{mask.form}', shape=(2, 3, 12), keep_window_size=5, device='cpu')"
        with pytest.raises(dataclasses.FrozenInstanceError):
            mask.form = "columns"


BIAS = torch.zeros(2, 3, 1, 8)
REFUSALS = {
    "bias: list": ({"attn_bias": [0.0]}, TypeError, "attn_bias must be a torch.Tensor, got list"),
    "bias: dims": ({"attn_bias": BIAS[0, 0]}, ValueError, r"attn_bias.shape is \(1, 8\); accepted: \({B|1}, "),
    "bias: dtype": ({"attn_bias": BIAS.double()}, TypeError, "attn_bias.dtype is float64; accepted: float16, bfloat16"),
    "bias: strides": (
        {"attn_bias": BIAS[..., ::2]},
        ValueError,
        r"attn_bias.stride\(\) is .*; accepted: a stride of 1",
    ),
    "bias: device": ({"attn_bias": BIAS.to("meta")}, ValueError, r"attn_bias \(Tensor\) cannot be read: "),
    "keep: zero": ({"keep_window_size": 0}, ValueError, "keep_window_size is 0; accepted: 1 or more"),
    "keep: bool": ({"keep_window_size": True}, TypeError, "keep_window_size must be an int, got True"),
    "keep: float": ({"keep_window_size": 2.0}, TypeError, "keep_window_size must be an int, got 2.0"),
    "keep: large": ({"keep_window_size": 1 << 63}, ValueError, r"keep_window_size is \d+; accepted: below 2\^63"),
    "is_causal": ({"is_causal": None}, TypeError, "is_causal must be a bool, got None"),
    "padding: list": (
        {"key_padding_mask": [1]},
        TypeError,
        "key_padding_mask must be a torch.Tensor or None, got list",
    ),
    "padding: shape": (
        {"key_padding_mask": torch.ones(2, 7)},
        ValueError,
        r"key_padding_mask.shape is \(2, 7\); accepted: \(B, Lk\) = \(2, 8\)",
    ),
    "padding: dims": ({"key_padding_mask": torch.ones(8)}, ValueError, r"key_padding_mask.dim\(\) is 1; accepted: 2"),
    "padding: dtype": (
        {"key_padding_mask": torch.ones(2, 8, dtype=torch.complex64)},
        TypeError,
        "key_padding_mask.dtype is torch.complex64; accepted: bool, integers",
    ),
    "padding: shape, with sequences": (
        {"key_padding_mask": torch.ones(2, 7), "cu_seqlens_k": torch.tensor([0, 3, 6])},
        ValueError,
        r"key_padding_mask.shape is \(2, 7\), on cpu; accepted: \(B, Lk\) = \(2, 8\), on cpu",
    ),
    "sequences: list": (
        {"cu_seqlens_k": [0, 1, 2]},
        TypeError,
        "cu_seqlens_k must be a torch.Tensor or None, got list",
    ),
    "sequences: dtype": (
        {"cu_seqlens_k": torch.zeros(3)},
        TypeError,
        "cu_seqlens_k.dtype is float32; accepted: int32, int64",
    ),
    "sequences: shape": (
        {"cu_seqlens_k": torch.zeros(5, dtype=torch.int32)},
        ValueError,
        r"cu_seqlens_k.shape is \(5,\); accepted: \(B \+ 1,\) with B = 2",
    ),
    "sequences: device": (
        {"cu_seqlens_k": torch.zeros(3, dtype=torch.int32, device="meta")},
        ValueError,
        "cu_seqlens_k is on meta and attn_bias on cpu; accepted: the same device",
    ),
    "sequences: causal, bias of queries": (
        {"attn_bias": BIAS.expand(2, 3, 4, 8), "cu_seqlens_k": torch.tensor([0, 3, 6])},
        ValueError,
        r"cu_seqlens_k is given, is_causal is True and attn_bias.shape is \(2, 3, 4, 8\); accepted",
    ),
    "NaN": (
        {"attn_bias": BIAS.clone().index_fill_(3, torch.tensor([2]), NAN), "check_nan": True},
        ValueError,
        "attn_bias has a NaN; accepted with check_nan=True: numbers and infinities",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    arguments, exception, message = REFUSALS[name]
    with pytest.raises(exception, match=message):
        DynamicMask.topk(**{"attn_bias": BIAS, "keep_window_size": 4, **arguments})


LISTS = torch.zeros(1, 2, 8, dtype=torch.int32)
BITS = torch.zeros(80, dtype=torch.uint8)
REFUSALS_OF_THE_CLASS = {
    "form": (("dense", LISTS, (1, 2, 8)), ValueError, "form is 'dense'; accepted: 'interval', 'columns', 'bits'"),
    "data": (("columns", None, (1, 2, 8)), TypeError, "data must be a torch.Tensor, got NoneType"),
    "dtype": (("columns", LISTS.long(), (1, 2, 8)), TypeError, "data.dtype is int64; accepted for 'columns': int32"),
    "shape": (("columns", LISTS, (1, 8)), ValueError, r"shape is \(1, 8\); accepted for 'columns': 3 extents, \("),
    "dims": (("columns", LISTS[0], (1, 2, 8)), ValueError, r"data.shape is \(2, 8\); accepted for shape \(1, 2, 8\)"),
    "keys": (("interval", LISTS, (1, 2, 9)), ValueError, r"data.shape is \(1, 2, 8\); accepted .*: \(1, 2, 9\)"),
    "heads": (("columns", LISTS, (1, 3, 9)), ValueError, r"data.shape is \(1, 2, 8\); accepted .*: \(1, 3, 8\)"),
    "bits": (("bits", BITS, (1, 1, 4, 9)), ValueError, r"data.shape is \(80,\); accepted .*: \(68,\)"),
}


@pytest.mark.parametrize("name", REFUSALS_OF_THE_CLASS)
def test_refusals_of_the_class(name: str) -> None:
    arguments, exception, message = REFUSALS_OF_THE_CLASS[name]
    with pytest.raises(exception, match=message):
        DynamicMask(*arguments)


def test_numbers_pass_the_check_for_nan() -> None:
    bias = torch.tensor([[[1.0, -INF, INF]]])
    assert torch.equal(DynamicMask.topk(bias, 2, check_nan=True).data, DynamicMask.topk(bias, 2).data)


PLACES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("is_causal", "operator"), [(True, "select_interval"), (False, "select_columns")])
def test_opcheck(is_causal: bool, operator: str, padded: bool, device: str) -> None:
    bias = torch.randn(2, 3, 1, 12, device=device, requires_grad=True)
    with Recorder() as recorder:
        DynamicMask.topk(bias, 5, is_causal, torch.ones(2, 12, device=device) if padded else None)
    ((function, arguments),) = recorder.calls
    assert function.overloadpacket.__name__ == operator
    torch.library.opcheck(function, arguments)


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("shape", [(2, 3, 1, 200), (2, 3, 70, 200)], ids=["lists", "bits"])
def test_everything_is_written(shape, is_causal: bool, device: str) -> None:
    bias = torch.randn(shape).masked_fill(torch.rand(shape) < 0.5, -INF).to(device)
    bias[1, 1] = -INF
    expected = DynamicMask.topk(bias, 120, is_causal)
    with new_memory_is_nan():
        mask = DynamicMask.topk(bias, 120, is_causal)
        packed = DynamicMask.from_dense(expected.to_dense())
    assert torch.equal(mask.data, expected.data)
    assert torch.equal(packed.to_dense(), expected.to_dense())


@pytest.mark.parametrize("device", PLACES)
def test_opcheck_of_bits(device: str) -> None:
    bias = torch.randn(2, 3, 7, 12, device=device, requires_grad=True)
    with Recorder() as recorder:
        DynamicMask.topk(bias, 5)
        DynamicMask.from_dense(bias)
    names = [function.overloadpacket.__name__ for function, _ in recorder.calls]
    assert names == ["select_bits", "pack_mask"]
    for function, arguments in recorder.calls:
        torch.library.opcheck(function, arguments)


@pytest.mark.parametrize("is_causal", [True, False], ids=["interval", "columns"])
def test_shapes_without_values(is_causal: bool) -> None:
    with FakeTensorMode():
        mask = DynamicMask.topk(torch.empty(2, 3, 1, 12), 5, is_causal)
        assert mask.to_dense(4).shape == (2, 3, 4, 12)
    assert mask.data.shape == (2, 3, 12 if is_causal else 5)


@pytest.mark.gpu
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", BIASES)
def test_cuda_selects_the_bits_that_the_cpu_selects(name: str, dtype: torch.dtype, is_causal: bool) -> None:
    for len_q, len_k in ((70, 1), (33, 130), (130, 33), (50, 3000)):
        bias = BIASES[name]((2, 2, len_q, len_k), torch.Generator().manual_seed(len_k)).to(dtype)
        for keep in sorted({1, len_k // 8 + 1, max(1, len_k - 1), len_k}):
            expected = DynamicMask.topk(bias, keep, is_causal)
            on_cuda = DynamicMask.topk(bias.cuda(), keep, is_causal)
            assert torch.equal(on_cuda.data.cpu(), expected.data), (len_q, len_k, keep)
            assert torch.equal(DynamicMask.from_dense(expected.to_dense().cuda()).data.cpu(), expected.data)


@pytest.mark.gpu
@pytest.mark.parametrize("is_causal", [True, False], ids=["interval", "columns"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("len_k", [1, 33, 1000, 20_000])
@pytest.mark.parametrize("name", BIASES)
def test_cuda_selects_what_the_cpu_selects(name: str, len_k: int, dtype: torch.dtype, is_causal: bool) -> None:
    generator = torch.Generator().manual_seed(len_k)
    bias = BIASES[name]((2, 2, len_k), generator).to(dtype)
    padding = torch.rand((2, len_k), generator=generator) < 0.8
    for keep in sorted({1, len_k // 8 + 1, max(1, len_k - 1), len_k}):
        for given in (None, padding):
            expected = DynamicMask.topk(bias, keep, is_causal, given)
            on_cuda = DynamicMask.topk(bias.cuda(), keep, is_causal, None if given is None else given.cuda())
            assert torch.equal(on_cuda.data.cpu(), expected.data), (keep, given is not None)
