"""The contract as a table of calls: each rule once."""

import math
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch

from flash_dmattn.dynamic_mask import DynamicMask

Shape = Tuple[int, int, int, int]
Maker = Callable[[Shape, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes
    ----------
    name : str
        The rule that it stands for.
    mask, bias : str, optional
        Extents of the score dimensions: ``"BHQK"`` in full, ``"G"`` for kv heads, ``"1"`` to broadcast. Default: none.
    make_mask, make_bias : callable
        Fill a tensor of that shape.
    bias_dtype : torch.dtype, optional
        Default: the dtype of the query.
    keep : int, optional
        The mask is a DynamicMask of so many keys. Default: none.
    keep_by : str
        Extents of the bias that selects them, the bias of the call where that has the same.
    keep_causal : bool
        Whether each position chooses among the keys up to itself.
    layout : callable
        Applied to query, key and value: another view of the same values.
    options : dict
        Scalars of the call.
    """

    name: str
    batch: int = 1
    len_q: int = 70
    len_k: int = 70
    heads: int = 2
    heads_kv: int = 2
    head_dim: int = 32
    mask: Optional[str] = None
    make_mask: Optional[Maker] = None
    bias: Optional[str] = None
    make_bias: Optional[Maker] = None
    bias_dtype: Optional[torch.dtype] = None
    keep: Optional[int] = None
    keep_by: str = "BG1K"
    keep_causal: bool = True
    layout: Callable[[torch.Tensor], torch.Tensor] = field(default=lambda tensor: tensor)
    options: Dict[str, object] = field(default_factory=dict)

    def score_shape(self, extents: str) -> Shape:
        """Shape that `extents` spells."""
        full = {
            "B": self.batch,
            "H": self.heads,
            "G": self.heads_kv,
            "Q": self.len_q,
            "K": self.len_k,
            "1": 1,
        }
        batch, heads, rows, keys = (full[extent] for extent in extents)
        return batch, heads, rows, keys

    def query_shape(self) -> Tuple[int, ...]:
        """Shape of query, out and their gradients."""
        return self.batch, self.len_q, self.heads, self.head_dim

    def key_shape(self) -> Tuple[int, ...]:
        """Shape of key, value and their gradients."""
        return self.batch, self.len_k, self.heads_kv, self.head_dim

    def lse_shape(self) -> Tuple[int, ...]:
        """Shape of the lse and its gradient."""
        return self.batch, self.heads, self.len_q

    def inputs(self, dtype: torch.dtype, device: str, seed: int = 0) -> Dict[str, Any]:
        """Tensors of the call. Their values do not depend on `dtype`, but for rounding, nor on `device`."""
        generator = torch.Generator().manual_seed(seed)

        def normal(shape: Tuple[int, ...]) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

        tensors: Dict[str, Any] = {
            "query": self.layout(normal(self.query_shape())),
            "key": self.layout(normal(self.key_shape())),
            "value": self.layout(normal(self.key_shape())),
            "attn_mask": None,
            "attn_bias": None,
        }
        if self.mask is not None:
            tensors["attn_mask"] = (self.make_mask or random_mask)(self.score_shape(self.mask), generator).to(device)
        if self.bias is not None:
            bias = (self.make_bias or random_bias)(self.score_shape(self.bias), generator)
            tensors["attn_bias"] = bias.to(device=device, dtype=self.bias_dtype or dtype)
        if self.keep is not None:
            tensors["attn_mask"] = self._selected(self.keep, tensors["attn_bias"], generator, device)
        return tensors

    def _selected(
        self, keep: int, bias: Optional[torch.Tensor], generator: torch.Generator, device: str
    ) -> DynamicMask:
        if bias is None or self.bias != self.keep_by:
            bias = random_bias(self.score_shape(self.keep_by), generator).to(device)
        return DynamicMask.topk(bias, keep, self.keep_causal)

    def grad_out(self, dtype: torch.dtype, device: str) -> torch.Tensor:
        """A gradient of the output."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.query_shape(), generator=generator).to(device=device, dtype=dtype)

    def grad_lse(self, device: str) -> torch.Tensor:
        """A gradient of the lse, float32."""
        generator = torch.Generator().manual_seed(2)
        return torch.randn(self.lse_shape(), generator=generator).to(device)


@dataclass(frozen=True)
class VarlenCase(Case):
    """One call on sequences of different lengths.

    `batch`, `len_q` and `len_k` follow from the lengths, the latter two as upper bounds. Rows of no sequence hold NaN,
    as does a bias past the lengths: reading them shows.

    Attributes
    ----------
    lengths_q, lengths_k : tuple of int
        Lengths of the sequences. Default of the keys: those of the queries.
    slack_q, slack_k : int
        How far the bounds are above the longest sequence.
    spare_q, spare_k : int
        Rows past the last sequence; padded, past the longest one.
    padded : bool
        One batch entry a sequence, else one sequence behind the other.
    offsets_dtype : torch.dtype
        Of cu_seqlens.
    """

    lengths_q: Tuple[int, ...] = ()
    lengths_k: Tuple[int, ...] = ()
    slack_q: int = 0
    slack_k: int = 0
    spare_q: int = 0
    spare_k: int = 0
    padded: bool = False
    offsets_dtype: torch.dtype = torch.int32

    def __post_init__(self) -> None:
        lengths_k = self.lengths_k or self.lengths_q
        derived = {
            "lengths_k": lengths_k,
            "batch": len(self.lengths_q),
            "len_q": max(self.lengths_q, default=0) + self.slack_q,
            "len_k": max(lengths_k, default=0) + self.slack_k,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # the way of frozen dataclasses

    def _rows(self, lengths: Tuple[int, ...], spare: int) -> Tuple[int, ...]:
        return (self.batch, max(lengths, default=0) + spare) if self.padded else (sum(lengths) + spare,)

    def query_shape(self) -> Tuple[int, ...]:
        """Shape of query, out and their gradients."""
        return (*self._rows(self.lengths_q, self.spare_q), self.heads, self.head_dim)

    def key_shape(self) -> Tuple[int, ...]:
        """Shape of key, value and their gradients."""
        return (*self._rows(self.lengths_k, self.spare_k), self.heads_kv, self.head_dim)

    def lse_shape(self) -> Tuple[int, ...]:
        """Shape of the lse and its gradient."""
        *batch, rows = self._rows(self.lengths_q, self.spare_q)
        return (*batch, self.heads, rows)

    def rows_of_no_sequence(self, lengths: Tuple[int, ...], spare: int) -> torch.Tensor:
        """Bools ``(total,)``, padded ``(B, L)``."""
        rows = torch.arange(self._rows(lengths, spare)[-1])
        return rows >= torch.tensor(lengths)[:, None] if self.padded else rows >= sum(lengths)

    def offsets(self, lengths: Tuple[int, ...], device: str) -> torch.Tensor:
        """cu_seqlens of `lengths`."""
        sums = torch.tensor([0, *lengths]).cumsum(0)
        return sums.to(device=device, dtype=self.offsets_dtype)

    def inputs(self, dtype: torch.dtype, device: str, seed: int = 0) -> Dict[str, Any]:
        """Arguments of the call: tensors, and the bounds of the lengths."""
        tensors = super().inputs(dtype, device, seed)
        tensors["query"][self.rows_of_no_sequence(self.lengths_q, self.spare_q).to(device)] = math.nan
        outside = self.rows_of_no_sequence(self.lengths_k, self.spare_k).to(device)
        tensors["key"][outside] = tensors["value"][outside] = math.nan
        if self.bias is not None:
            self._spoil_past_the_lengths(self.bias, tensors["attn_bias"])
        return {
            **tensors,
            "cu_seqlens_q": self.offsets(self.lengths_q, device),
            "cu_seqlens_k": self.offsets(self.lengths_k, device),
            "max_seqlen_q": self.len_q,
            "max_seqlen_k": self.len_k,
        }

    def _spoil_past_the_lengths(self, extents: str, bias: torch.Tensor) -> None:
        for b, (len_q, len_k) in enumerate(zip(self.lengths_q, self.lengths_k)):
            if "B" in extents and "Q" in extents:
                bias[b, :, len_q:] = math.nan
            if "B" in extents and "K" in extents:
                bias[b, :, :, len_k:] = math.nan

    def grad_out(self, dtype: torch.dtype, device: str) -> torch.Tensor:
        """A gradient of the output; NaN in rows of no sequence."""
        grad = super().grad_out(dtype, device)
        grad[self.rows_of_no_sequence(self.lengths_q, self.spare_q).to(device)] = math.nan
        return grad

    def grad_lse(self, device: str) -> torch.Tensor:
        """A gradient of the lse, float32; NaN in rows of no sequence."""
        grad = super().grad_lse(device)
        outside = self.rows_of_no_sequence(self.lengths_q, self.spare_q).to(device)
        grad.transpose(-1, -2)[outside] = math.nan
        return grad


def random_mask(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Half of the keys visible."""
    return torch.rand(shape, generator=generator) < 0.5


def random_bias(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Normal."""
    return torch.randn(shape, generator=generator)


def _mask_of_dtype(dtype: torch.dtype) -> Maker:
    return lambda shape, generator: random_mask(shape, generator).to(dtype)


def _mask_from_values(values: List[float], dtype: torch.dtype) -> Maker:
    choices = torch.tensor(values, dtype=torch.float64)

    def make(shape: Shape, generator: torch.Generator) -> torch.Tensor:
        return choices[torch.randint(len(values), shape, generator=generator)].to(dtype)

    return make


def _dead_rows(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    mask = random_mask(shape, generator)
    mask[:, :, ::3] = False
    return mask


def _nothing(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bool)


def _blocks(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Whole 64 x 64 tiles are hidden; in two of those that are not, one score is visible."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., :64, 64:128] = True
    mask[..., 100, 10] = True
    mask[..., 64:128, 190] = True
    return mask


def _top_quarter_of_random(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    scores = torch.rand(shape, generator=generator)
    keep = scores.topk(shape[-1] // 4, dim=-1).indices
    return torch.zeros(shape).scatter_(-1, keep, 1.0)


def _some_minus_infinity(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    bias = random_bias(shape, generator)
    bias[torch.rand(shape, generator=generator) < 0.3] = -math.inf
    bias[..., 5, :] = -math.inf  # a row that sees nothing
    return bias


def _minus_infinite_key(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    bias = random_bias(shape, generator)
    bias[..., ::4] = -math.inf
    return bias


def _large(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Exponentials of these overflow and underflow float32 unless the row's maximum is subtracted."""
    return 300.0 * random_bias(shape, generator)


def _head_major(tensor: torch.Tensor) -> torch.Tensor:
    """Memory of (B, H, L, D), as most models have it."""
    return tensor.transpose(-3, -2).contiguous().transpose(-3, -2)


def _padded_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Rows that are 3 elements longer than head_dim, from the second element on: no row starts at 16 bytes."""
    *extents, head_dim = tensor.shape
    room = tensor.new_full((*extents, head_dim + 3), math.nan)
    room[..., 1 : head_dim + 1] = tensor
    return room[..., 1 : head_dim + 1]


def _expanded_batch(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:1].expand_as(tensor)


def _every_second_position(tensor: torch.Tensor) -> torch.Tensor:
    batch, length, heads, head_dim = tensor.shape
    room = tensor.new_full((batch, 2 * length, heads, head_dim), math.nan)
    room[:, ::2] = tensor
    return room[:, ::2]


_MASK_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
_KEPT: Dict[str, Any] = {"len_q": 130, "len_k": 130, "keep": 33}
_BROADCASTS = ("BHQK", "BGQK", "B1QK", "1HQK", "BH1K", "BHQ1", "BG1K", "11QK", "111K", "11Q1", "B111", "1111")

CASES: Tuple[Case, ...] = (
    Case("full"),
    Case("batch of three", batch=3),
    Case("one query", len_q=1, len_k=131),
    Case("one key", len_k=1),
    Case("one of each", len_q=1, len_k=1),
    Case("lengths of whole tiles", len_q=128, len_k=192),
    Case("lengths of no whole tile", len_q=113, len_k=203),
    Case("causal", options={"is_causal": True}),
    Case("causal, more keys: the corner is bottom-right", len_q=33, len_k=150, options={"is_causal": True}),
    Case("causal, more queries: the first rows see nothing", len_q=150, len_k=33, options={"is_causal": True}),
    Case("causal, one query sees every key", len_q=1, len_k=90, options={"is_causal": True}),
    Case("heads share kv heads", heads=6, heads_kv=2),
    Case("heads share one kv head, causal", heads=4, heads_kv=1, len_k=101, options={"is_causal": True}),
    *(Case(f"head dim {d}", head_dim=d, len_q=40, len_k=77) for d in (8, 16, 40, 64, 72, 96, 128, 160, 192, 248, 256)),
    Case("scale", options={"scale": 0.3}),
    Case("scale zero weighs all alike", options={"scale": 0.0}),
    Case("scale below zero", options={"scale": -0.2}),
    Case("softcap", options={"softcap": 1.5, "scale": 0.7}),
    Case("softcap before bias before mask", mask="BHQK", bias="BHQK", options={"softcap": 0.8, "is_causal": True}),
    *(Case(f"mask of {t}", mask="BHQK", make_mask=_mask_of_dtype(t)) for t in _MASK_DTYPES),
    Case("mask: every integer but 0", mask="BHQK", make_mask=_mask_from_values([0, 2, -1, 127, -128], torch.int8)),
    Case("mask: high bytes count", mask="BHQK", make_mask=_mask_from_values([0, 256, 1 << 40], torch.int64)),
    Case(
        "mask: -0.0 hides, NaN and tiny values show",
        mask="BHQK",
        make_mask=_mask_from_values([0.0, -0.0, 0.25, -3.0, 1e-7, math.nan], torch.float16),
    ),
    *(Case(f"mask {m}", batch=2, heads=4, len_k=90, mask=m) for m in _BROADCASTS),
    Case("mask hides whole rows", mask="BHQK", make_mask=_dead_rows),
    Case("mask hides everything", mask="BHQK", make_mask=_nothing),
    Case("mask hides whole tiles", len_q=150, len_k=200, mask="BHQK", make_mask=_blocks),
    Case(
        "mask hides whole tiles, causal",
        len_q=200,
        len_k=200,
        mask="BHQK",
        make_mask=_blocks,
        options={"is_causal": True},
    ),
    *(Case(f"bias of {t}", bias="BHQK", bias_dtype=t) for t in (torch.float16, torch.bfloat16, torch.float32)),
    *(Case(f"bias {b}", batch=2, heads=4, len_k=90, bias=b) for b in _BROADCASTS),
    Case("bias of one query: no dimension is broadcast", len_q=1, len_k=90, heads=4, mask="BHQK", bias="BHQK"),
    Case("bias of one key: no dimension is broadcast", len_k=1, heads=4, mask="BHQK", bias="BHQK"),
    Case("bias -inf hides", bias="BHQK", make_bias=_some_minus_infinity),
    Case("bias -inf hides a key", bias="B11K", make_bias=_minus_infinite_key, options={"is_causal": True}),
    Case("large scores", bias="BHQK", make_bias=_large, bias_dtype=torch.float32),
    Case(
        "dynamic mask attention",
        batch=2,
        heads=4,
        len_q=130,
        len_k=130,
        mask="BHQK",
        make_mask=_top_quarter_of_random,
        bias="BHQK",
        options={"is_causal": True},
    ),
    Case(
        "dynamic mask attention, one bias per kv head and key",
        batch=2,
        heads=4,
        len_q=130,
        len_k=130,
        mask="BGQK",
        make_mask=_top_quarter_of_random,
        bias="BG1K",
        options={"is_causal": True},
    ),
    Case("listed keys, interval", batch=2, heads=4, **_KEPT, bias="BG1K", options={"is_causal": True}),
    Case("listed keys, interval is causal by itself", heads=4, **_KEPT, bias="BG1K"),
    Case("listed keys, columns", batch=2, heads=4, **_KEPT, keep_causal=False, bias="BG1K"),
    Case("listed keys, columns, causal", heads=4, **_KEPT, keep_causal=False, options={"is_causal": True}),
    Case("listed keys, one for all heads", batch=2, heads=4, **_KEPT, keep_by="111K", bias="111K"),
    Case("listed keys of every head", batch=2, heads=4, **_KEPT, keep_by="BH1K", bias="BH1K"),
    Case("listed keys of every head, columns", heads=4, **_KEPT, keep_by="BH1K", keep_causal=False, bias="BG1K"),
    Case("selected bits", batch=2, heads=4, **_KEPT, keep_by="BHQK", bias="BHQK", options={"is_causal": True}),
    Case("selected bits are causal by themselves", batch=2, heads=4, **_KEPT, keep_by="BGQK", bias="BG1K"),
    Case("selected bits, not causal", heads=4, **_KEPT, keep_by="BHQK", keep_causal=False, bias="BHQK"),
    Case("selected bits, more keys", len_q=33, len_k=150, keep=20, keep_by="11QK", bias="BHQK"),
    Case(
        "selected bits, more queries", batch=2, len_q=90, len_k=33, keep=7, keep_by="1HQK", options={"is_causal": True}
    ),
    Case("selected bits, no key", len_q=9, len_k=0, keep=4, keep_by="BHQK", bias="BHQK"),
    Case("selected bits, no query", len_q=0, keep=4, keep_by="BHQK", bias="BHQK"),
    Case("listed keys, bias of every score", batch=2, heads=4, **_KEPT, bias="BHQK"),
    Case("listed keys, columns, bias of every query", heads=4, **_KEPT, keep_causal=False, bias="BHQ1"),
    Case("listed keys, more keys", len_q=33, len_k=150, keep=20, bias="BG1K", options={"is_causal": True}),
    Case("listed keys, more queries: the first rows see nothing", len_q=90, len_k=33, keep=7, bias="BG1K"),
    Case("listed keys, columns, one query", len_q=1, len_k=130, keep=9, keep_causal=False, bias="BG1K"),
    Case("listed keys, one kept", keep=1, bias="BG1K"),
    Case("listed keys, all kept", keep=70, bias="BG1K"),
    Case("listed keys, columns, all kept", keep=90, keep_causal=False),
    Case("listed keys, some of -inf", **_KEPT, bias="BG1K", make_bias=_minus_infinite_key),
    Case(
        "listed keys, columns, fewer than asked for",
        keep=60,
        keep_causal=False,
        bias="BG1K",
        make_bias=_minus_infinite_key,
    ),
    Case("listed keys, softcap", **_KEPT, bias="BG1K", options={"is_causal": True, "softcap": 0.8}),
    Case("listed keys, head dim 128", head_dim=128, **_KEPT, bias="BG1K", options={"is_causal": True}),
    Case("listed keys, no key", len_k=0, keep=4, bias="BG1K"),
    Case("head-major memory", batch=2, layout=_head_major, bias="BHQK"),
    Case("rows that start anywhere", batch=2, layout=_padded_rows, mask="BHQK"),
    Case("expanded over the batch", batch=2, layout=_expanded_batch),
    Case("every second position", batch=2, layout=_every_second_position),
    Case("no batch", batch=0, mask="BHQK", bias="BHQK"),
    Case("no query", len_q=0, mask="BHQK", bias="BHQK"),
    Case("no key", len_k=0, mask="BHQK", bias="BHQK"),
    Case("no query, bias of keys", len_q=0, bias="B11K"),
    Case("no key, bias of queries", len_k=0, bias="B1Q1"),
)

_LENGTHS = (70, 5, 33)
_MORE_KEYS: Dict[str, Any] = {"lengths_q": (33, 1, 64), "lengths_k": (150, 90, 65)}
_MORE_QUERIES: Dict[str, Any] = {"lengths_q": (150, 90, 65), "lengths_k": (33, 1, 64)}
_UNLIKE: Dict[str, Any] = {"lengths_q": (40, 7, 65), "lengths_k": (30, 80, 65)}
_CAUSAL: Dict[str, object] = {"is_causal": True}
_BOUNDED: Dict[str, Any] = {"slack_q": 7, "slack_k": 50, "options": _CAUSAL}
_CAPPED: Dict[str, object] = {"is_causal": True, "softcap": 2.0}
_EVERYTHING: Dict[str, Any] = {"mask": "BHQK", "bias": "BGQK", "heads": 4, "options": _CAPPED}

VARLEN_CASES: Tuple[VarlenCase, ...] = (
    VarlenCase("packed", lengths_q=_LENGTHS),
    VarlenCase("one sequence", lengths_q=(77,)),
    VarlenCase("lengths of whole tiles", lengths_q=(128, 64)),
    VarlenCase("one short behind one long", lengths_q=(300, 1)),
    VarlenCase("many short", lengths_q=(3, 1, 2) * 15, options=_CAUSAL),
    VarlenCase("lengths of queries and keys differ", **_UNLIKE),
    VarlenCase("causal", lengths_q=_LENGTHS, options=_CAUSAL),
    VarlenCase("causal, more keys: the corner of each sequence", **_MORE_KEYS, options=_CAUSAL),
    VarlenCase("causal, more queries: first rows see nothing", **_MORE_QUERIES, options=_CAUSAL),
    VarlenCase("causal, more of either", **_UNLIKE, options=_CAUSAL),
    VarlenCase("causal, one query each", lengths_q=(1, 1, 1), lengths_k=(20, 131, 64), options=_CAUSAL),
    VarlenCase("no query in some", lengths_q=(0, 40, 0, 33, 0), lengths_k=(9, 40, 64, 30, 5), options=_CAUSAL),
    VarlenCase("no key in some", lengths_q=(20, 40, 9), lengths_k=(0, 40, 0), bias="BHQK"),
    VarlenCase("neither in some", lengths_q=(0, 40, 0, 0, 33), mask="BHQK", bias="BHQK"),
    VarlenCase("neither in any", lengths_q=(0, 0), mask="BHQK", bias="BHQK"),
    VarlenCase("neither in any, rows past the end", lengths_q=(0, 0), spare_q=5, spare_k=3, slack_q=9, slack_k=8),
    VarlenCase("rows past the end", lengths_q=_LENGTHS, spare_q=70, spare_k=9, options=_CAUSAL),
    VarlenCase("rows past the end, with everything", **_UNLIKE, spare_q=3, spare_k=80, **_EVERYTHING),
    VarlenCase("bounds above the lengths", lengths_q=_LENGTHS, slack_q=70, slack_k=200),
    VarlenCase("bounds above the lengths, with everything", **_UNLIKE, slack_q=7, slack_k=100, **_EVERYTHING),
    VarlenCase("int64 offsets", lengths_q=_LENGTHS, offsets_dtype=torch.int64, options=_CAUSAL),
    VarlenCase("int64 offsets, padded", lengths_q=_LENGTHS, padded=True, offsets_dtype=torch.int64),
    VarlenCase("padded", lengths_q=_LENGTHS, padded=True),
    VarlenCase("padded, causal, more of either", **_UNLIKE, padded=True, options=_CAUSAL),
    VarlenCase("padded, none in some", lengths_q=(0, 40, 9), lengths_k=(7, 0, 30), padded=True, bias="BHQK"),
    VarlenCase("padded past the longest", **_UNLIKE, padded=True, spare_q=30, spare_k=70, **_EVERYTHING),
    VarlenCase("padded, bounds above the padding", **_UNLIKE, padded=True, slack_q=90, slack_k=9, **_EVERYTHING),
    VarlenCase("padded, bounds inside the padding", **_UNLIKE, padded=True, spare_q=50, spare_k=9, slack_q=3),
    VarlenCase("heads share kv heads", **_UNLIKE, heads=6, heads_kv=2),
    VarlenCase("heads share one kv head, causal", **_UNLIKE, heads=4, heads_kv=1, options=_CAUSAL),
    *(VarlenCase(f"head dim {d}", **_UNLIKE, head_dim=d, options=_CAUSAL) for d in (8, 40, 64, 72, 128, 192, 256)),
    VarlenCase("scale", lengths_q=_LENGTHS, options={"scale": 0.3}),
    VarlenCase("softcap", lengths_q=_LENGTHS, options={"softcap": 1.5, "scale": 0.7}),
    *(VarlenCase(f"mask {m}", **_UNLIKE, heads=4, mask=m) for m in _BROADCASTS),
    *(VarlenCase(f"bias {b}", **_UNLIKE, heads=4, bias=b) for b in _BROADCASTS),
    *(VarlenCase(f"bias {b}, padded", **_UNLIKE, heads=4, bias=b, padded=True) for b in ("B1QK", "1G1K", "BHQ1")),
    *(
        VarlenCase(f"bias {b}, bounds above the lengths", **_UNLIKE, slack_q=66, slack_k=66, bias=b, options=_CAUSAL)
        for b in ("BHQK", "11QK", "B11K", "1HQ1")
    ),
    VarlenCase("float32 bias", lengths_q=_LENGTHS, bias="BHQK", bias_dtype=torch.float32),
    VarlenCase("mask of floats", lengths_q=_LENGTHS, mask="BHQK", make_mask=_mask_of_dtype(torch.float16)),
    VarlenCase("mask hides whole rows", lengths_q=_LENGTHS, mask="BHQK", make_mask=_dead_rows),
    VarlenCase("bias -inf hides", lengths_q=_LENGTHS, bias="BHQK", make_bias=_some_minus_infinity),
    VarlenCase("mask hides whole tiles", lengths_q=(200, 150), mask="BHQK", make_mask=_blocks, options=_CAUSAL),
    VarlenCase(
        "dynamic mask attention, one bias per kv head and key",
        lengths_q=(130, 40, 97),
        heads=4,
        mask="BGQK",
        make_mask=_top_quarter_of_random,
        bias="BG1K",
        options=_CAUSAL,
    ),
    VarlenCase("listed keys, interval", **_UNLIKE, heads=4, keep=20, bias="BG1K", options=_CAUSAL),
    VarlenCase("selected bits", **_UNLIKE, heads=4, keep=20, keep_by="BHQK", keep_causal=False, bias="BHQK"),
    VarlenCase("selected bits, causal", **_UNLIKE, keep=20, keep_by="BHQK", keep_causal=False, options=_CAUSAL),
    VarlenCase("listed keys, columns", **_UNLIKE, heads=4, keep=20, keep_causal=False, bias="BG1K"),
    VarlenCase("listed keys, columns, causal, padded", **_UNLIKE, padded=True, keep=9, keep_causal=False, **_BOUNDED),
    VarlenCase("listed keys, rows past the end", **_UNLIKE, heads=4, keep=20, bias="BG1K", spare_q=9, spare_k=3),
    VarlenCase("listed keys, interval, padded", **_UNLIKE, padded=True, heads=4, keep=20, bias="1H1K", spare_q=5),
    VarlenCase("listed keys, interval, more keys", **_MORE_KEYS, heads=4, keep=30, bias="B11K", options=_CAUSAL),
    VarlenCase("listed keys of every head", **_UNLIKE, heads=4, keep=20, keep_by="BH1K", bias="BG1K", options=_CAUSAL),
    VarlenCase("listed keys of every head, columns", **_UNLIKE, heads=4, keep=9, keep_by="BH1K", keep_causal=False),
    VarlenCase("listed keys, bias of every score", **_UNLIKE, heads=4, keep=20, bias="BHQK", options=_CAUSAL),
    VarlenCase("listed keys, one for all, bounds above the lengths", **_UNLIKE, keep=9, keep_by="111K", **_BOUNDED),
    VarlenCase("head-major memory", lengths_q=_LENGTHS, layout=_head_major, bias="BHQK"),
    VarlenCase("rows that start anywhere", lengths_q=_LENGTHS, layout=_padded_rows, mask="BHQK"),
    VarlenCase("rows that start anywhere, padded", lengths_q=_LENGTHS, layout=_padded_rows, padded=True),
)
