"""Who is measured: this project and its peers, each behind the same three questions.

`reason` says why an implementation cannot run a workload (None when it can), `build` turns the workload's tensors into
a call, `remark` says where the call does less than the contract asks.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from dataclasses import dataclass, field
from typing import Callable

import torch
import torch.nn.functional as F

from benchmarks.workloads import LAYOUTS, Inputs, Workload, topk_mask

DENSE_MASK_GIB = 10  # of a mask that a peer gets


@dataclass
class Call:
    """`forward` gives the output in the layout of query, `leaves` are what backward differentiates, by name."""

    forward: Callable[[], torch.Tensor]
    leaves: dict[str, torch.Tensor] = field(default_factory=dict)


class Impl:
    """One way to run a workload on some devices."""

    name: str
    devices: tuple[str, ...] = ("cuda",)
    passes: tuple[str, ...] = ("fwd", "bwd")
    layouts: tuple[str, ...] = ("apart",)
    compiles: bool = False  # tens of seconds for each workload: measured after everything that does not

    def is_for(self, workload: Workload) -> bool:
        return workload.device in self.devices and workload.layout in self.layouts

    def reason(self, workload: Workload) -> str | None:
        return None

    def remark(self, workload: Workload) -> str | None:
        return None

    def build(self, inputs: Inputs) -> Call:
        raise AssertionError(f"{type(self).__name__} defines no build")


def _import_reason(module: str, attribute: str) -> str | None:
    try:
        getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a broken installation raises anything; whatever it is, it is the reason
        return f"{module}.{attribute} cannot be imported: {type(error).__name__}: {error}"
    return None


def _too_large(workload: Workload) -> str | None:
    """Why an implementation that needs the dynamic mask as a dense tensor is left out."""
    if workload.mask == "dynamic" and workload.dense_mask_gib > DENSE_MASK_GIB:
        return f"its dense mask would take {workload.dense_mask_gib:.0f} GiB; at most {DENSE_MASK_GIB} GiB are tried"
    return None


# What makes or is the function of a layout.
FDMA_FUNCTIONS = {
    "apart": "flash_dmattn_func_auto",
    "qkvpacked": "flash_dmattn_qkvpacked_func",
    "varlen": "flash_dmattn_varlen_func",
}


class Fdma(Impl):
    """flash_dmattn itself, by one of its backends. `name` is the backend's, where no peer has that."""

    def __init__(self, backend: str, device: str | None = None, name: str | None = None):
        self.name = name or backend
        self.devices = (device or backend,)
        self._backend = backend
        if backend in ("cuda", "cpu"):  # libfdma, which alone has the other entry points
            self.layouts = LAYOUTS

    def reason(self, workload: Workload) -> str | None:
        unsupported = _import_reason("flash_dmattn", FDMA_FUNCTIONS[workload.layout])
        if unsupported:
            return unsupported
        import flash_dmattn

        backends = flash_dmattn.get_available_backends()
        available = self._backend in backends
        return None if available else f"backend {self._backend} is not available (available: {backends})"

    def build(self, inputs: Inputs) -> Call:
        import flash_dmattn

        function = getattr(flash_dmattn, FDMA_FUNCTIONS[inputs.workload.layout])
        if inputs.workload.layout == "apart":
            function = function(self._backend)
        mask = inputs.dynamic_mask if inputs.workload.mask == "dynamic" else inputs.mask
        masks = {"attn_mask": mask, "attn_bias": inputs.bias}
        options = {**masks, **inputs.sequences, "is_causal": inputs.workload.is_causal}
        tensors = tuple(inputs.leaves.values())

        def forward() -> torch.Tensor:
            return function(*tensors, **options)

        leaves = dict(inputs.leaves)
        if inputs.bias is not None:
            leaves["bias"] = inputs.bias
        return Call(forward, leaves)


class FdmaSelect(Impl):
    """Selection of this project."""

    passes = ("select",)

    def __init__(self, device: str):
        self.name = f"{device}-topk"
        self.devices = (device,)

    def reason(self, workload: Workload) -> str | None:
        return None if workload.mask in ("topk", "dynamic") else "this workload selects nothing"

    def build(self, inputs: Inputs) -> Call:
        from flash_dmattn import DynamicMask

        # The mask of the reference is one of all keys, to which causality comes later.
        is_causal = inputs.workload.is_causal and inputs.workload.mask == "dynamic"
        return Call(lambda: DynamicMask.topk(inputs.bias, inputs.workload.keep, is_causal=is_causal))


class FdmaFlex(Fdma):
    """The backend over FlexAttention; :class:`Flex` is FlexAttention used directly."""

    compiles = True

    def remark(self, workload: Workload) -> str | None:
        return "the block mask is built in each call" if workload.mask or workload.is_causal else None

    def build(self, inputs: Inputs) -> Call:
        import torch._functorch.config

        torch._functorch.config.donated_buffer = False  # backward is timed several times on one graph
        return super().build(inputs)


class Sdpa(Impl):
    """torch SDPA, forced to one of its backends; `backend` None leaves the choice to torch.

    Of a packed tensor it is given views, and autograd puts their gradients together.
    """

    layouts = ("apart", "qkvpacked")

    def __init__(self, name: str, backend: str | None, devices: tuple[str, ...], *, masks: bool, bias_grad: bool):
        self.name = name
        self.devices = devices
        self._backend = backend
        self._masks = masks
        self._bias_grad = bias_grad

    def reason(self, workload: Workload) -> str | None:
        if (workload.mask or workload.bias) and not self._masks:
            return "takes neither mask nor bias"
        return _too_large(workload)

    def remark(self, workload: Workload) -> str | None:
        if not (workload.mask or workload.bias):
            return None
        folded = "mask, causality and bias are folded into one additive term beforehand, not timed"
        return folded if not workload.bias or self._gives_bias_gradient(workload) else folded + "; no bias gradient"

    def _gives_bias_gradient(self, workload: Workload) -> bool:
        # Of the folded term, which has an element for every score.
        return self._bias_grad and workload.bias != "keys"

    def build(self, inputs: Inputs) -> Call:
        workload = inputs.workload
        masked = inputs.mask is not None or inputs.bias is not None
        additive = inputs.additive if masked else None
        if additive is not None and not self._gives_bias_gradient(workload):
            additive = additive.detach()

        def attend() -> torch.Tensor:
            out = F.scaled_dot_product_attention(
                inputs.query.transpose(1, 2),
                inputs.key.transpose(1, 2),
                inputs.value.transpose(1, 2),
                attn_mask=additive,
                is_causal=workload.is_causal and not masked,
                **({"enable_gqa": True} if workload.heads != workload.heads_kv else {}),
            )
            return out.transpose(1, 2)

        def forward() -> torch.Tensor:
            if self._backend is None:
                return attend()
            from torch.nn.attention import SDPBackend, sdpa_kernel

            with sdpa_kernel(getattr(SDPBackend, self._backend)):
                return attend()

        leaves = dict(inputs.leaves)
        if additive is not None and additive.requires_grad:
            leaves["bias"] = additive
        return Call(forward, leaves)


class Flex(Impl):
    """FlexAttention, compiled; the bias is a score_mod, mask and causality are a block mask."""

    name = "flex"

    def __init__(self, compiled: bool = True):
        self._compiled = self.compiles = compiled

    def reason(self, workload: Workload) -> str | None:
        if workload.mask == "dynamic":
            return "its rule would read a dense mask; the other peers show what that costs"
        return _import_reason("torch.nn.attention.flex_attention", "flex_attention")

    def remark(self, workload: Workload) -> str | None:
        if not (workload.mask or workload.bias):
            return None
        built = "the block mask is built beforehand, not timed"
        return built + "; no bias gradient" if workload.bias else built

    def build(self, inputs: Inputs) -> Call:
        import torch._functorch.config
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        workload = inputs.workload
        mask, bias = inputs.mask, None if inputs.bias is None else inputs.bias.detach()
        if self._compiled:
            torch._dynamo.reset()  # one shape at a time: earlier ones would count against the recompile limit
            torch._functorch.config.donated_buffer = False  # backward is timed several times on one graph
            flex_attention = torch.compile(flex_attention, dynamic=False)

        def sees(b, h, q, k):
            visible = q >= k if workload.is_causal else q >= 0
            return visible if mask is None else visible & (mask[b, h, q, k] != 0)

        def add_bias(score, b, h, q, k):
            return score + bias[b, h, q, k]

        block_mask = None
        if mask is not None or workload.is_causal:
            batch, heads = (None, None) if mask is None else mask.shape[:2]
            block_mask = create_block_mask(
                sees, batch, heads, workload.length, workload.length, device=workload.device, _compile=self._compiled
            )

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

        return Call(forward, dict(inputs.leaves))


class FlashAttention(Impl):
    """FlashAttention-2 (flash_attn) or -4 (flash_attn.cute), where installed."""

    layouts = LAYOUTS
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
        return _import_reason(self._module, self._functions[workload.layout])

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
        return _import_reason("torch.nn.attention.varlen", "varlen_attn")

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
        if workload.mask not in ("topk", "dynamic"):
            return "this workload selects nothing"
        return _too_large(workload)

    def remark(self, workload: Workload) -> str | None:
        return "makes a dense mask" if workload.mask == "dynamic" else None

    def build(self, inputs: Inputs) -> Call:
        workload = inputs.workload
        if workload.mask == "topk":
            return Call(lambda: topk_mask(inputs.bias, workload.keep))

        def select() -> torch.Tensor:
            scores = inputs.bias.detach().expand(-1, -1, workload.length, -1)
            if workload.is_causal:
                scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu_(1), -torch.inf)
            return topk_mask(scores, workload.keep)

        return Call(select)


# In order of interest: when the time runs out, the last ones go unmeasured. Flex compiles for each workload.
IMPLS: tuple[Impl, ...] = (
    Fdma("cuda"),
    Fdma("cpu"),
    FdmaSelect("cuda"),
    FdmaSelect("cpu"),
    Fdma("triton", "cuda"),
    TorchTopk(),
    TorchVarlen(),
    FlashAttention("fa2", "flash_attn"),
    Sdpa("sdpa-flash", "FLASH_ATTENTION", ("cuda",), masks=False, bias_grad=False),
    Sdpa("sdpa-cudnn", "CUDNN_ATTENTION", ("cuda",), masks=True, bias_grad=False),
    FlashAttention("fa4", "flash_attn.cute"),
    Sdpa("sdpa-efficient", "EFFICIENT_ATTENTION", ("cuda",), masks=True, bias_grad=True),
    Sdpa("sdpa", None, ("cpu",), masks=True, bias_grad=True),
    Flex(),
    FdmaFlex("flex", "cuda", "flex-dmattn"),
)
OURS = ("cuda", "cpu", "cuda-topk", "cpu-topk", "triton", "flex-dmattn")


def explain_failure(run: Callable[[], object]) -> str | None:
    """Why `run` fails, in one line, or None. torch SDPA gives its reasons as warnings: they are part of the answer."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run()
        except torch.cuda.OutOfMemoryError as error:
            return f"out of memory: {str(error).splitlines()[0]}"
        except Exception as error:  # a peer may fail in any way; the table says how
            first = (str(error).splitlines() or [""])[0]
            reasons = [str(warning.message).splitlines()[0] for warning in caught]
            return "; ".join([f"{type(error).__name__}: {first}", *reasons[:4]])
    return None
