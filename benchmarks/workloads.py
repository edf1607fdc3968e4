"""What is measured: one table of workloads, and the tensors of each. :mod:`benchmarks.series` has more, in rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

SEED = 1234
# (B, L, H, D) each; one (B, L, 3, H, D); (total, H, D) each; (B, queries, H, D) at the end of a cache (B, L, H_kv, D)
LAYOUTS = ("apart", "qkvpacked", "varlen", "cache")
MASK_TILE = 64  # rows and keys of the tiles that the "tiles" mask hides or shows as a whole
ROWS_AT_ONCE = 2048  # of a mask that is expanded part by part


@dataclass(frozen=True)
class Workload:
    """One problem. `bias` and `mask` name a maker below; None leaves it out."""

    name: str
    batch: int
    length: int  # queries and keys
    heads: int
    heads_kv: int
    head_dim: int
    is_causal: bool = True
    dtype: str = "bfloat16"
    device: str = "cuda"
    bias: str | None = None
    mask: str | None = None
    keep: int = 0  # "topk", "dynamic": keys that a query keeps
    hidden: float = 0.0  # "tiles": share of the tiles that is hidden
    passes: tuple[str, ...] = ("fwd", "bwd")
    layout: str = "apart"
    lengths: tuple[int, ...] = ()  # "varlen": of the sequences, `length` being the longest
    beside: str | None = None  # the workload whose TFLOP/s the results compare its own with
    queries: int = 0  # "cache": of each sequence; elsewhere as many as keys
    impls: tuple[str, ...] = ()  # who runs it; none named: all that can

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is {self.layout!r}; accepted: {', '.join(LAYOUTS)}")
        if (self.layout == "cache") != (self.queries > 0) or (self.layout == "cache" and self.is_causal):
            raise ValueError(f"{self.name}: a cache has `queries`, the last of its positions, and no other layout does")
        if self.layout == "varlen":
            described = (len(self.lengths), max(self.lengths, default=0)) == (self.batch, self.length)
            if not described or self.mask or self.bias:
                raise ValueError(f"{self.name}: a varlen workload has `batch` lengths up to `length`, no mask, no bias")

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """Keys of each sequence of the batch, and queries where they are no cache."""
        return self.lengths or (self.length,) * self.batch

    @property
    def queries_alike(self) -> bool:
        """Whether all queries see the same keys: a mask then has one row for all."""
        return self.mask is not None and self.bias == "keys" and not self.is_causal

    @property
    def shape(self) -> str:
        heads = f"{self.heads}" if self.heads == self.heads_kv else f"{self.heads}/{self.heads_kv}"
        extras = [self.dtype, "causal" if self.is_causal else "not causal"]
        if self.bias:
            extras.append(f"{self.bias} bias")
        if self.mask in ("topk", "dynamic"):
            over = "" if self.mask == "topk" else " of the keys so far" if self.is_causal else " of all keys"
            extras.append(f"top-{self.keep}{over}")
        if self.mask == "tiles":
            extras.append(f"mask hiding {self.hidden:.0%} of the tiles")
        if self.layout == "qkvpacked":
            extras.append("query, key and value in one tensor, and so is their gradient")
        lengths = ", ".join(map(str, self.lengths))
        extents = f"sequences of {lengths}," if self.lengths else f"B{self.batch} L{self.length}"
        if self.queries:
            extents = f"B{self.batch} Q{self.queries} K{self.length}"
        return f"{extents} H{heads} D{self.head_dim}, " + ", ".join(extras)

    def flops(self, which: str) -> float | None:
        """Floating-point operations of dense attention of this shape: a mask does not lower them. None: no formula."""
        if which in ("select", "decode"):
            return None
        forward = 4.0 * self.heads * self.head_dim * sum(length * length for length in self.sequence_lengths)
        if self.is_causal:
            forward /= 2
        return forward if which == "fwd" else 2.5 * forward

    @property
    def dense_mask_gib(self) -> float:
        """Of a mask in the dtype of the query with an element for every score."""
        return self.batch * self.heads * self.length**2 * getattr(torch, self.dtype).itemsize / 2**30

    def small(self) -> Workload:
        """The same kind of problem, small enough for a smoke test on a CPU."""
        length = min(self.length, 256)
        return replace(
            self,
            batch=self.batch if self.lengths else min(self.batch, 2),
            length=length,
            heads=max(1, self.heads // self.heads_kv) * min(self.heads_kv, 2),
            heads_kv=min(self.heads_kv, 2),
            keep=min(self.keep, max(1, length * self.keep // self.length, length // 16 if self.keep else 0)),
            lengths=tuple(length * each // self.length for each in self.lengths),
        )

    def on(self, device: str) -> Workload:
        return replace(self, device=device)


DYNAMIC = {"bias": "keys", "mask": "dynamic", "keep": 2048, "passes": ("select", "fwd", "bwd")}
DECODE = {"bias": "keys", "mask": "topk", "keep": 1024, "layout": "cache", "queries": 1, "passes": ("decode",)}
WORKLOADS = (
    Workload("dense-causal", 1, 16384, 16, 16, 128),
    Workload("dense-full", 1, 16384, 16, 16, 128, is_causal=False),
    Workload("dense-d64", 1, 16384, 32, 32, 64),
    Workload("dense-d256", 1, 16384, 8, 8, 256),
    Workload("gqa", 1, 16384, 32, 8, 128),
    Workload("seed-dma", 2, 4096, 12, 12, 128, bias="random", mask="topk", keep=1024, passes=("select", "fwd", "bwd")),
    Workload("dma-16k", 1, 16384, 16, 8, 128, **DYNAMIC),
    Workload("dma-32k-col", 1, 32768, 16, 8, 128, is_causal=False, **DYNAMIC),
    Workload("decode-512k", 1, 524288, 16, 8, 128, is_causal=False, **DECODE),
    Workload("decode-batch", 32, 32768, 32, 8, 128, is_causal=False, **DECODE),
    Workload("qkvpacked", 1, 16384, 16, 16, 128, layout="qkvpacked", beside="dense-causal"),
    Workload("varlen", 3, 16384, 16, 16, 128, layout="varlen", lengths=(8192, 16384, 4096), beside="dense-causal"),
    Workload("cpu-dense", 1, 2048, 8, 8, 64, is_causal=False, dtype="float32", device="cpu"),
    Workload("cpu-tiles", 1, 2048, 8, 8, 64, False, "float32", "cpu", mask="tiles", hidden=0.9),
)


class Inputs:
    """The tensors of one workload; every implementation is given these same ones."""

    def __init__(self, workload: Workload):
        self.workload = workload
        device, dtype = torch.device(workload.device), getattr(torch, workload.dtype)
        generator = torch.Generator(device).manual_seed(SEED)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=device, dtype=dtype, generator=generator)

        batch, length, dim = workload.batch, workload.length, workload.head_dim
        keys = (sum(workload.lengths),) if workload.layout == "varlen" else (batch, length)
        rows = (batch, workload.queries) if workload.queries else keys
        self.leaves: dict[str, torch.Tensor]  # what backward differentiates, as this project's functions take it
        if workload.layout == "qkvpacked":
            self.leaves = {"qkv": randn(*keys, 3, workload.heads, dim).requires_grad_()}
            self.query, self.key, self.value = self.leaves["qkv"].unbind(2)
        else:
            heads = {"query": workload.heads, "key": workload.heads_kv, "value": workload.heads_kv}
            self.leaves = {
                name: randn(*(rows if name == "query" else keys), count, dim).requires_grad_("bwd" in workload.passes)
                for name, count in heads.items()
            }
            self.query, self.key, self.value = self.leaves.values()
        self.grad_out = randn(*rows, workload.heads, dim)
        self.cu_seqlens = torch.tensor((0, *workload.lengths), device=device).cumsum(0, dtype=torch.int32)
        self.bias: torch.Tensor | None = None
        if workload.bias == "random":
            self.bias = randn(batch, workload.heads, length, length).requires_grad_()
        if workload.bias == "keys":  # as dynamic mask attention has it: never positive, stronger from head to head
            strength = torch.linspace(0.5, 2.0, workload.heads_kv, device=device).view(-1, 1, 1)
            weakness = torch.nn.functional.softplus(randn(batch, workload.heads_kv, 1, length).float())
            self.bias = (-strength * weakness).to(dtype)
            if workload.mask == "topk":  # everyone selects by a rule of his own, so that the cut must leave no choice
                self.bias = without_ties(self.bias, workload.keep)
            self.bias.requires_grad_("bwd" in workload.passes)
        self._tiles = tile_mask(workload, generator) if workload.mask == "tiles" else None
        if workload.mask in ("topk", "tiles") and not workload.queries_alike:
            # A row that sees no key has no gradient here, and no agreed output among the peers.
            self.grad_out *= self.sees.any(-1).transpose(1, 2).unsqueeze(-1)

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """The mask as a dense tensor, (B, H|H_kv, Q|1, K); made when it is first asked for."""
        if self.workload.mask == "topk":
            return topk_mask(self.bias, self.workload.keep)
        return self._tiles if self.workload.mask != "dynamic" else self._dense_dynamic_mask()

    def _dense_dynamic_mask(self) -> torch.Tensor:
        return self.dynamic_mask.to_dense(1 if self.workload.queries_alike else self.workload.length)

    @cached_property
    def dynamic_mask(self) -> Any:
        """The mask as this project selects it."""
        from flash_dmattn import DynamicMask

        return DynamicMask.topk(self.bias, self.workload.keep, is_causal=self.workload.is_causal)

    def of_query_heads(self, tensor: torch.Tensor) -> torch.Tensor:
        """(B, H, Q, K): a mask or bias of kv heads, once for each of the query heads that share it."""
        return tensor.repeat_interleave(self.workload.heads // tensor.shape[1], dim=1)

    @property
    def sequences(self) -> dict[str, object]:
        """Arguments that tell of sequences, as this project and FlashAttention name them; none where all are alike."""
        if self.workload.layout != "varlen":
            return {}
        ends, longest = self.cu_seqlens, self.workload.length
        return {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_q": longest, "max_seqlen_k": longest}

    def last_sequence(self, tensor: torch.Tensor) -> torch.Tensor:
        """(L, ...): the rows of the last sequence, of a tensor as query or as its packed form."""
        return tensor[-self.workload.lengths[-1] :] if self.workload.layout == "varlen" else tensor[-1]

    @property
    def sees(self) -> torch.Tensor:
        """Bool, (B, H, Q, K) or what broadcasts to it: the scores that mask and causality leave visible."""
        length = self.workload.length
        visible = torch.ones(1, 1, length, length, dtype=torch.bool, device=self.query.device)
        if self.mask is not None:
            visible = self.mask != 0
        return visible.tril_() if self.workload.is_causal else visible

    def sees_rows(self, batch: int, head: int, rows: slice) -> torch.Tensor:
        """Bool (rows, K) of one query head: what mask and causality leave visible. No mask of all rows is made for it.

        Of a dynamic mask these are the lists as `DynamicMask` documents them: a bound for each key, or the kept keys.
        """
        workload, device = self.workload, self.query.device
        keys = torch.arange(workload.sequence_lengths[batch], device=device)
        positions = torch.arange(rows.start, rows.stop, device=device).unsqueeze(1)
        visible = positions >= keys if workload.is_causal else (keys >= 0).expand(len(positions), -1)
        if workload.mask == "dynamic":
            lists = self.dynamic_mask.data
            of_head = lists[batch % lists.shape[0], head // (workload.heads // lists.shape[1])]
            if workload.is_causal:
                return visible & (positions < of_head)
            return visible & torch.zeros_like(keys, dtype=torch.bool).index_fill_(0, of_head[of_head >= 0].long(), True)
        if self.mask is None:
            return visible
        of_head = self.mask[batch % self.mask.shape[0], head // (workload.heads // self.mask.shape[1])]
        return visible & (of_head if workload.queries_alike else of_head[rows]).bool()

    @cached_property
    def additive(self) -> torch.Tensor:
        """Mask, causality and bias folded into one term, as torch SDPA takes them, with a gradient where bias has one.

        (B, H, Q|1, K). Hidden scores get the smallest finite number, since SDPA answers NaN for a row of -inf.
        """
        workload = self.workload
        count = 1 if workload.queries_alike else workload.length
        shape = (workload.batch, workload.heads, count, workload.length)
        if self.bias is None:
            folded = torch.zeros(shape, dtype=self.query.dtype, device=self.query.device)
        else:
            folded = self.of_query_heads(self.bias.detach()).expand(shape).clone()
        for batch in range(workload.batch):
            for head in range(workload.heads):
                for begin in range(0, count, ROWS_AT_ONCE):
                    rows = slice(begin, min(begin + ROWS_AT_ONCE, count))
                    hidden = self.sees_rows(batch, head, rows).logical_not_()
                    folded[batch, head, rows].masked_fill_(hidden, torch.finfo(folded.dtype).min)
        return folded.requires_grad_(self.bias is not None)


def without_ties(bias: torch.Tensor, keep: int) -> torch.Tensor:
    """Negative biases (..., K) of which no one outside the `keep` largest equals one of them.

    Of those that equal the smallest kept one, the older ones that are one too many are lowered by two percent.
    """
    smallest = bias.topk(keep, dim=-1).values[..., -1:]
    equal = bias == smallest
    room = keep - (bias > smallest).sum(-1, keepdim=True)
    too_many = equal & (equal.flip(-1).cumsum(-1).flip(-1) > room)
    return torch.where(too_many, bias * 1.02, bias)


def topk_mask(bias: torch.Tensor, keep: int) -> torch.Tensor:
    """The API reference's way to a dynamic mask: each query keeps its `keep` keys of largest bias, 1.0 = visible."""
    mask = torch.zeros_like(bias, requires_grad=False)
    return mask.scatter_(-1, torch.topk(bias.detach(), keep, dim=-1, largest=True).indices, 1.0)


def tile_mask(workload: Workload, generator: torch.Generator) -> torch.Tensor:
    """Bool (1, H, L, L): whole tiles are hidden at random, those on the diagonal stay so that every row sees a key."""
    tiles = -(-workload.length // MASK_TILE)
    shape = (1, workload.heads, tiles, tiles)
    # The diagonal takes one visible tile of each row, so the others are drawn a little more rarely.
    shown_per_row = (1.0 - workload.hidden) * tiles
    threshold = max(shown_per_row - 1.0, 0.0) / max(tiles - 1, 1)
    shown = torch.rand(shape, generator=generator, device=workload.device) < threshold
    shown |= torch.eye(tiles, dtype=torch.bool, device=workload.device)
    mask = shown.repeat_interleave(MASK_TILE, 2).repeat_interleave(MASK_TILE, 3)
    return mask[..., : workload.length, : workload.length].contiguous()
