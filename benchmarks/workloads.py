"""What is measured: one table of workloads, and the tensors of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

SEED = 1234
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
    keep: int = 0  # "topk": keys that a query keeps
    hidden: float = 0.0  # "tiles": share of the tiles that is hidden
    passes: tuple[str, ...] = ("fwd", "bwd")

    @property
    def shape(self) -> str:
        heads = f"{self.heads}" if self.heads == self.heads_kv else f"{self.heads}/{self.heads_kv}"
        extras = [self.dtype, "causal" if self.is_causal else "not causal"]
        if self.bias:
            extras.append(f"{self.bias} bias")
        if self.mask == "topk":
            extras.append(f"top-{self.keep} mask")
        if self.mask == "tiles":
            extras.append(f"mask hiding {self.hidden:.0%} of the tiles")
        return f"B{self.batch} L{self.length} H{heads} D{self.head_dim}, " + ", ".join(extras)

    def flops(self, which: str) -> float | None:
        """Floating-point operations of dense attention of this shape: a mask does not lower them. None: no formula."""
        if which == "select":
            return None
        forward = 4.0 * self.batch * self.heads * self.length * self.length * self.head_dim
        if self.is_causal:
            forward /= 2
        return forward if which == "fwd" else 2.5 * forward

    def quick(self) -> Workload:
        """The same kind of problem, small enough for a smoke test on a CPU."""
        length = min(self.length, 256)
        return replace(
            self,
            length=length,
            heads=max(1, self.heads // self.heads_kv) * min(self.heads_kv, 2),
            heads_kv=min(self.heads_kv, 2),
            keep=length * self.keep // self.length,
        )

    def on(self, device: str) -> Workload:
        return replace(self, device=device)


WORKLOADS = (
    Workload("dense-causal", 1, 16384, 16, 16, 128),
    Workload("dense-full", 1, 16384, 16, 16, 128, is_causal=False),
    Workload("dense-d64", 1, 16384, 32, 32, 64),
    Workload("gqa", 1, 16384, 32, 8, 128),
    Workload("seed-dma", 2, 4096, 12, 12, 128, bias="random", mask="topk", keep=1024, passes=("select", "fwd", "bwd")),
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
        self.query = randn(batch, length, workload.heads, dim).requires_grad_()
        self.key = randn(batch, length, workload.heads_kv, dim).requires_grad_()
        self.value = randn(batch, length, workload.heads_kv, dim).requires_grad_()
        self.grad_out = randn(batch, length, workload.heads, dim)
        self.bias: torch.Tensor | None = None
        self.mask: torch.Tensor | None = None
        if workload.bias == "random":
            self.bias = randn(batch, workload.heads, length, length).requires_grad_()
        if workload.mask == "topk":
            self.mask = topk_mask(self.bias, workload.keep)
        if workload.mask == "tiles":
            self.mask = tile_mask(workload, generator)
        if self.mask is not None:
            # A row that sees no key has no gradient here, and no agreed output among the peers.
            self.grad_out *= self.sees.any(-1).transpose(1, 2).unsqueeze(-1)

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
        hidden = ~self.sees
        if self.bias is None:
            folded = torch.zeros(hidden.shape, dtype=self.query.dtype, device=hidden.device)
        else:
            folded = self.bias.detach().clone()
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
