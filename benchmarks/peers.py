"""The peers, called as their users call them."""

from __future__ import annotations

import importlib
import inspect
from contextlib import nullcontext
from typing import Callable

import torch
import torch.nn.functional as F

from benchmarks.calls import FIRST, SECOND, THIRD, Call, Impl, import_reason
from benchmarks.workloads import Inputs, Workload, topk_mask

DENSE_MASK_GIB = 32  # of a mask with an element for every score that a peer gets: on an H100 twice as much does not fit
SCORES_GIB = 8  # of the scores of eager attention, which has several tensors of their size at a time
BLOCK_MASK_GIB = 8  # of the mask of bool that a block mask is made from


def too_large(workload: Workload) -> str | None:
    """Why an implementation that needs the mask with an element for every score is left out."""
    needed = workload.dense_mask_gib
    if workload.mask and not workload.queries_alike and needed > DENSE_MASK_GIB:
        return f"its dense mask would take {needed:.0f} GiB; at most {DENSE_MASK_GIB} GiB are tried"
    return None


def _forced(backend: str | None):
    """Within it torch SDPA takes this backend; None leaves the choice to torch."""
    if backend is None:
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(getattr(SDPBackend, backend))


class Sdpa(Impl):
    """torch SDPA, forced to one of its backends; `backend` None leaves the choice to torch.

    Of a packed tensor it is given views, and autograd puts their gradients together. A backend without `gqa` gets keys
    and values that are repeated for the query heads, in each call.
    """

    layouts = ("apart", "qkvpacked")

    def __init__(
        self,
        name: str,
        backend: str | None,
        devices: tuple[str, ...],
        *,
        masks: bool,
        bias_grad: bool,
        gqa: bool = True,
        turn: int = FIRST,
    ):
        self.name = name
        self.devices = devices
        self.turn = turn
        self._backend = backend
        self._masks = masks
        self._bias_grad = bias_grad
        self._gqa = gqa

    def reason(self, workload: Workload) -> str | None:
        if (workload.mask or workload.bias) and not self._masks:
            return "takes neither mask nor bias"
        return too_large(workload)

    def remark(self, workload: Workload) -> str | None:
        remarks = []
        if workload.mask or workload.bias:
            remarks.append("mask, causality and bias are folded into one additive term beforehand, not timed")
        if workload.bias and not self._gives_bias_gradient(workload):
            remarks.append("no bias gradient")
        if not self._gqa and workload.heads != workload.heads_kv:
            remarks.append("keys and values are repeated for the query heads in each call")
        return "; ".join(remarks) or None

    def _gives_bias_gradient(self, workload: Workload) -> bool:
        # Of the folded term, which has an element for every score.
        return self._bias_grad and workload.bias != "keys"

    def build(self, inputs: Inputs) -> Call:
        workload = inputs.workload
        masked = workload.mask is not None or workload.bias is not None
        additive = expanded = inputs.additive if masked else None
        if additive is not None:
            additive = additive if self._gives_bias_gradient(workload) else additive.detach()
            expanded = additive.expand(-1, -1, workload.length, -1)
        group = workload.heads // workload.heads_kv

        def attend() -> torch.Tensor:
            query, key, value = (tensor.transpose(1, 2) for tensor in (inputs.query, inputs.key, inputs.value))
            if group > 1 and not self._gqa:
                key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
            out = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=expanded,
                is_causal=workload.is_causal and not masked,
                **({"enable_gqa": True} if group > 1 and self._gqa else {}),
            )
            return out.transpose(1, 2)

        def forward() -> torch.Tensor:
            with _forced(self._backend):
                return attend()

        leaves = dict(inputs.leaves)
        if additive is not None and additive.requires_grad:
            leaves["bias"] = additive
        return Call(forward, leaves, 0 if additive is None else additive.nbytes)


class Eager(Impl):
    """The dense path as models write it: scores, bias, mask and softmax one after the other, with every gradient."""

    name = "torch-eager"
    turn = SECOND

    def is_for(self, workload: Workload) -> bool:
        return super().is_for(workload) and workload.mask is not None

    def reason(self, workload: Workload) -> str | None:
        scores = workload.dense_mask_gib
        fit = scores <= SCORES_GIB
        return None if fit else f"its scores would take {scores:.0f} GiB; at most {SCORES_GIB} GiB are tried"

    def remark(self, workload: Workload) -> str | None:
        return "the dense mask is made beforehand, not timed"

    def build(self, inputs: Inputs) -> Call:
        workload = inputs.workload
        hidden = inputs.of_query_heads(inputs.sees.logical_not_())
        scale = workload.head_dim**-0.5

        def forward() -> torch.Tensor:
            query, key, value = (tensor.transpose(1, 2) for tensor in (inputs.query, inputs.key, inputs.value))
            scores = query @ inputs.of_query_heads(key).transpose(-1, -2) * scale
            if inputs.bias is not None:
                scores = scores + inputs.of_query_heads(inputs.bias)
            weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1)
            return (weights @ inputs.of_query_heads(value)).transpose(1, 2)

        leaves = dict(inputs.leaves)
        if inputs.bias is not None:
            leaves["bias"] = inputs.bias
        return Call(forward, leaves, hidden.nbytes)


def _gather(tensor: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """(B, H_kv, w, D): of keys or values (B, K, H_kv, D) the positions `kept`, (B, H_kv, w)."""
    return tensor.transpose(1, 2).gather(2, kept.unsqueeze(-1).expand(-1, -1, -1, tensor.shape[-1]))


class GatherSdpa(Impl):
    """SDPA on keys that were gathered first, which is right where all queries keep the same ones."""

    def __init__(self, name: str, backend: str | None, devices: tuple[str, ...], *, bias_grad: bool):
        self.name = name
        self.devices = devices
        self._backend = backend
        self._bias_grad = bias_grad

    def is_for(self, workload: Workload) -> bool:
        return super().is_for(workload) and workload.mask == "dynamic" and workload.queries_alike

    def remark(self, workload: Workload) -> str | None:
        gathered = "keys, values and bias are gathered in each call"
        return gathered if self._bias_grad else gathered + "; no bias gradient"

    def build(self, inputs: Inputs) -> Call:
        kept = inputs.dynamic_mask.data.long()
        bias_of_keys = inputs.bias if self._bias_grad else inputs.bias.detach()

        def forward() -> torch.Tensor:
            key, value = (inputs.of_query_heads(_gather(tensor, kept)) for tensor in (inputs.key, inputs.value))
            bias = inputs.of_query_heads(bias_of_keys.gather(3, kept.unsqueeze(2)))
            query = inputs.query.transpose(1, 2)
            bias = bias.expand(-1, -1, query.shape[2], -1)
            with _forced(self._backend):
                return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)

        leaves = {**inputs.leaves, "bias": inputs.bias} if self._bias_grad else dict(inputs.leaves)
        return Call(forward, leaves, kept.nbytes)


class TopkGatherSdpa(Impl):
    """Decoding with torch: topk of the bias, gather, and SDPA with the query heads of a kv head as its rows."""

    name = "topk-gather-sdpa"
    devices = ("cuda", "cpu")
    passes = ("decode",)
    layouts = ("cache",)

    def build(self, inputs: Inputs) -> Call:
        workload = inputs.workload
        group = workload.heads // workload.heads_kv

        def forward() -> torch.Tensor:
            bias, kept = inputs.bias.squeeze(2).topk(workload.keep, dim=-1, sorted=False)
            key, value = _gather(inputs.key, kept), _gather(inputs.value, kept)
            # (B, Q, H, D) to (B, H_kv, group * Q, D): the heads of a group follow each other.
            query = inputs.query.transpose(1, 2).reshape(workload.batch, workload.heads_kv, -1, workload.head_dim)
            rows = bias.unsqueeze(2).expand(-1, -1, group * workload.queries, -1)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=rows)
            return out.reshape(workload.batch, workload.heads, workload.queries, -1).transpose(1, 2)

        return Call(forward)


class Flex(Impl):
    """FlexAttention, compiled; the bias is a score_mod, mask and causality are a block mask.

    A dynamic mask is given as the bound that each key has, or as the kept keys: a rule that reads a dense mask would
    read an element for every score.
    """

    name = "flex"
    turn = THIRD

    def __init__(self, compiled: bool = True):
        self._compiled = compiled

    def reason(self, workload: Workload) -> str | None:
        needed = workload.length**2 * workload.batch * workload.heads / 2**30
        if workload.mask and needed > BLOCK_MASK_GIB:
            return f"its block mask is made from one of {needed:.0f} GiB; at most {BLOCK_MASK_GIB} GiB are tried"
        return import_reason("torch.nn.attention.flex_attention", "flex_attention")

    def remark(self, workload: Workload) -> str | None:
        if not (workload.mask or workload.bias):
            return None
        built = "the block mask is built beforehand, not timed"
        if workload.mask == "dynamic":
            built += "; its rule reads the selection of this project"
        return built + "; no bias gradient" if workload.bias else built

    def build(self, inputs: Inputs) -> Call:
        import torch._functorch.config
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        workload = inputs.workload
        if self._compiled:
            torch._dynamo.reset()  # one shape at a time: earlier ones would count against the recompile limit
            torch._functorch.config.donated_buffer = False  # backward is timed several times on one graph
            flex_attention = torch.compile(flex_attention, dynamic=False)
        sees, held = _flex_rule(inputs)
        bias = None if inputs.bias is None else inputs.bias.detach()
        shared = workload.heads // (workload.heads if bias is None else bias.shape[1])  # query heads of a bias

        def add_bias(score, b, h, q, k):
            return score + bias[b, h // shared, 0 if bias.shape[2] == 1 else q, k]

        block_mask = None
        if sees is not None:
            batch, heads = (workload.batch, workload.heads) if workload.mask else (None, None)
            # Not compiled: that would take longer than all that is timed.
            block_mask = create_block_mask(sees, batch, heads, workload.length, workload.length, workload.device)

        def forward() -> torch.Tensor:
            out = flex_attention(
                inputs.query.transpose(1, 2),
                inputs.key.transpose(1, 2),
                inputs.value.transpose(1, 2),
                score_mod=None if bias is None else add_bias,
                block_mask=block_mask,
                enable_gqa=workload.heads != workload.heads_kv,
            )
            return out.transpose(1, 2)

        return Call(forward, dict(inputs.leaves), held)


def _flex_rule(inputs: Inputs) -> tuple[Callable | None, int]:
    """(mask_mod, bytes of the tensor that it reads); None where every query sees every key."""
    workload = inputs.workload
    if workload.mask is None:
        return (lambda b, h, q, k: q >= k) if workload.is_causal else None, 0
    if workload.mask == "dynamic" and workload.is_causal:
        bounds = inputs.dynamic_mask.data
        shared = workload.heads // bounds.shape[1]
        return lambda b, h, q, k: (q >= k) & (q < bounds[b, h // shared, k]), bounds.nbytes
    mask = inputs.mask
    batches, shared, rows = mask.shape[0], workload.heads // mask.shape[1], mask.shape[2]

    def sees(b, h, q, k):
        visible = mask[b if batches > 1 else 0, h // shared, q if rows > 1 else 0, k] != 0
        return visible & (q >= k) if workload.is_causal else visible

    return sees, mask.nbytes


class FlashAttention(Impl):
    """FlashAttention-2 (flash_attn) or -4 (flash_attn.cute), where installed."""

    layouts = ("apart", "qkvpacked", "varlen")
    turn = SECOND
    _functions = {  # noqa: RUF012 (read only)
        "apart": "flash_attn_func",
        "qkvpacked": "flash_attn_qkvpacked_func",
        "varlen": "flash_attn_varlen_func",
    }

    def __init__(self, name: str, module: str):
        self.name = name
        self._module = module

    def reason(self, workload: Workload) -> str | None:
        if workload.mask or workload.bias:
            return "takes neither mask nor bias"
        return import_reason(self._module, self._functions[workload.layout])

    def build(self, inputs: Inputs) -> Call:
        function = getattr(importlib.import_module(self._module), self._functions[inputs.workload.layout])
        options = {**inputs.sequences, "causal": inputs.workload.is_causal}
        tensors = tuple(inputs.leaves.values())

        def forward() -> torch.Tensor:
            out = function(*tensors, **options)
            return out[0] if isinstance(out, tuple) else out

        return Call(forward, dict(inputs.leaves))


class TorchVarlen(Impl):
    """torch's own attention of packed sequences, which is FlashAttention-2."""

    name = "torch-varlen"
    layouts = ("varlen",)

    def reason(self, workload: Workload) -> str | None:
        return import_reason("torch.nn.attention.varlen", "varlen_attn")

    def build(self, inputs: Inputs) -> Call:
        from torch.nn.attention.varlen import varlen_attn

        # torch 2.10 has `is_causal`, later ones a window.
        if "is_causal" in inspect.signature(varlen_attn).parameters:
            options = {"is_causal": inputs.workload.is_causal}
        else:
            options = {"window_size": (-1, 0 if inputs.workload.is_causal else -1)}
        if inputs.workload.heads != inputs.workload.heads_kv:
            options["enable_gqa"] = True
        ends, longest = (inputs.cu_seqlens,) * 2, (inputs.workload.length,) * 2
        tensors = (inputs.query, inputs.key, inputs.value)
        return Call(lambda: varlen_attn(*tensors, *ends, *longest, **options), dict(inputs.leaves))


class TorchTopk(Impl):
    """Building the dynamic mask from the bias as the API reference does, with torch."""

    name = "torch-topk"
    devices = ("cuda", "cpu")
    passes = ("select",)

    def reason(self, workload: Workload) -> str | None:
        return too_large(workload)

    def remark(self, workload: Workload) -> str | None:
        return "makes a mask of one row for all queries" if workload.queries_alike else "makes a dense mask"

    def build(self, inputs: Inputs) -> Call:
        workload = inputs.workload
        if workload.mask == "topk" or workload.queries_alike:
            return Call(lambda: topk_mask(inputs.bias, workload.keep))

        def select() -> torch.Tensor:
            scores = inputs.bias.detach().expand(-1, -1, workload.length, -1)
            scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu_(1), -torch.inf)
            return topk_mask(scores, workload.keep)

        return Call(select)
