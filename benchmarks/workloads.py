"""What is measured: one table of workloads, and the tensors of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

SEED = 1234
LAYOUTS = ("apart", "qkvpacked", "varlen")  # (B, L, H, D) each; one (B, L, 3, H, D); (total, H, D) each
MASK_TILE = 64  # rows and keys of the tiles that the "tiles" mask hides or shows as a whole


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

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is {self.layout!r}; accepted: {', '.join(LAYOUTS)}")
        if self.layout == "varlen":
            described = (len(self.lengths), max(self.lengths, default=0)) == (self.batch, self.length)
            if not described or self.mask or self.bias:
                raise ValueError(f"{self.name}: a varlen workload has `batch` lengths up to `length`, no mask, no bias")

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """Queries and keys of each sequence of the batch."""
        return self.lengths or (self.length,) * self.batch

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
        return f"{extents} H{heads} D{self.head_dim}, " + ", ".join(extras)

    def flops(self, which: str) -> float | None:
        """Floating-point operations of dense attention of this shape: a mask does not lower them. None: no formula."""
        if which == "select":
            return None
        forward = 4.0 * self.heads * self.head_dim * sum(length * length for length in self.sequence_lengths)
        if self.is_causal:
            forward /= 2
        return forward if which == "fwd" else 2.5 * forward

    @property
    def dense_mask_gib(self) -> float:
        """Of a mask in the dtype of the query with an element for every score."""
        return self.batch * self.heads * self.length**2 * getattr(torch, self.dtype).itemsize / 2**30

    def quick(self) -> Workload:
        """The same kind of problem, small enough for a smoke test on a CPU."""
        length = min(self.length, 256)
        return replace(
            self,
            length=length,
            heads=max(1, self.heads // self.heads_kv) * min(self.heads_kv, 2),
            heads_kv=min(self.heads_kv, 2),
            keep=length * self.keep // self.length,
            lengths=tuple(length * each // self.length for each in self.lengths),
        )

    def on(self, device: str) -> Workload:
        return replace(self, device=device)


DYNAMIC = {"bias": "keys", "mask": "dynamic", "keep": 2048, "passes": ("select", "fwd", "bwd")}
WORKLOADS = (
    Workload("dense-causal", 1, 16384, 16, 16, 128),
    Workload("dense-full", 1, 16384, 16, 16, 128, is_causal=False),
    Workload("dense-d64", 1, 16384, 32, 32, 64),
    Workload("gqa", 1, 16384, 32, 8, 128),
    Workload("seed-dma", 2, 4096, 12, 12, 128, bias="random", mask="topk", keep=1024, passes=("select", "fwd", "bwd")),
    Workload("dma-16k", 1, 16384, 16, 8, 128, **DYNAMIC),
    Workload("dma-32k-col", 1, 32768, 16, 8, 128, is_causal=False, **DYNAMIC),
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
        rows = (sum(workload.lengths),) if workload.layout == "varlen" else (batch, length)
        self.leaves: dict[str, torch.Tensor]  # what backward differentiates, as this project's functions take it
        if workload.layout == "qkvpacked":
            self.leaves = {"qkv": randn(*rows, 3, workload.heads, dim).requires_grad_()}
            self.query, self.key, self.value = self.leaves["qkv"].unbind(2)
        else:
            heads = {"query": workload.heads, "key": workload.heads_kv, "value": workload.heads_kv}
            self.leaves = {name: randn(*rows, count, dim).requires_grad_() for name, count in heads.items()}
            self.query, self.key, self.value = self.leaves.values()
        self.grad_out = randn(*rows, workload.heads, dim)
        self.cu_seqlens = torch.tensor((0, *workload.lengths), device=device).cumsum(0, dtype=torch.int32)
        self.bias: torch.Tensor | None = None
        if workload.bias == "random":
            self.bias = randn(batch, workload.heads, length, length).requires_grad_()
        if workload.bias == "keys":  # as dynamic mask attention has it: never positive, stronger from head to head
            strength = torch.linspace(0.5, 2.0, workload.heads_kv, device=device).view(-1, 1, 1)
            weakness = torch.nn.functional.softplus(randn(batch, workload.heads_kv, 1, length).float())
            self.bias = (-strength * weakness).to(dtype).requires_grad_()
        self._tiles = tile_mask(workload, generator) if workload.mask == "tiles" else None
        if workload.mask in ("topk", "tiles"):
            # A row that sees no key has no gradient here, and no agreed output among the peers.
            self.grad_out *= self.sees.any(-1).transpose(1, 2).unsqueeze(-1)

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """The mask as a dense tensor, (B, H|H_kv, Q, K); made when it is first asked for."""
        if self.workload.mask == "topk":
            return topk_mask(self.bias, self.workload.keep)
        return self._tiles if self.workload.mask != "dynamic" else self.dynamic_mask.to_dense(self.workload.length)

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

    @cached_property
    def additive(self) -> torch.Tensor:
        """Mask, causality and bias folded into one term, as torch SDPA takes them, with a gradient where bias has one.

        Hidden scores get the smallest finite number, since SDPA answers NaN for a row of -inf.
        """
        hidden = self.of_query_heads(self.sees.logical_not_())
        if self.bias is None:
            folded = torch.zeros(hidden.shape, dtype=self.query.dtype, device=hidden.device)
        else:
            folded = self.of_query_heads(self.bias.detach()).expand(hidden.shape).clone()
        folded.masked_fill_(hidden, torch.finfo(folded.dtype).min)
        return folded.requires_grad_(self.bias is not None)


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
