"""Who is measured: one table of this project and its peers."""

from __future__ import annotations

from benchmarks.calls import LAST, SECOND, Impl
from benchmarks.ours import Fdma, FdmaFlex, FdmaSelect
from benchmarks.peers import Eager, FlashAttention, Flex, GatherSdpa, Sdpa, TopkGatherSdpa, TorchTopk, TorchVarlen

# In order of interest, within each turn: when the time runs out, the last ones go unmeasured.
IMPLS: tuple[Impl, ...] = (
    Fdma("cuda"),
    Fdma("cpu"),
    FdmaSelect("cuda"),
    FdmaSelect("cpu"),
    TorchTopk(),  # before those whose dense term stays in memory
    Sdpa("sdpa-cudnn", "CUDNN_ATTENTION", ("cuda",), masks=True, bias_grad=False),
    Sdpa("sdpa-flash", "FLASH_ATTENTION", ("cuda",), masks=False, bias_grad=False),
    Sdpa("sdpa", None, ("cpu",), masks=True, bias_grad=True, gqa=False),
    GatherSdpa("gather-cudnn", "CUDNN_ATTENTION", ("cuda",), bias_grad=False),
    GatherSdpa("gather-efficient", "EFFICIENT_ATTENTION", ("cuda",), bias_grad=True),
    TopkGatherSdpa(),
    TorchVarlen(),
    Fdma("triton", "cuda", turn=SECOND),
    FlashAttention("fa2", "flash_attn"),
    FlashAttention("fa4", "flash_attn.cute"),
    Sdpa("sdpa-efficient", "EFFICIENT_ATTENTION", ("cuda",), masks=True, bias_grad=True, gqa=False, turn=SECOND),
    Eager(),
    Flex(),
    FdmaFlex("flex", "cuda", "flex-dmattn", turn=LAST),
)
OURS = ("cuda", "cpu", "cuda-topk", "cpu-topk", "triton", "flex-dmattn")
