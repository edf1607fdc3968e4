"""Our side of what is measured: attention by each of its backends, and selection."""

from __future__ import annotations

import torch

from benchmarks.calls import FIRST, Call, Impl, import_reason
from benchmarks.workloads import LAYOUTS, Inputs, Workload

# What makes or is the function of a layout.
FDMA_FUNCTIONS = {
    "apart": "flash_dmattn_func_auto",
    "qkvpacked": "flash_dmattn_qkvpacked_func",
    "varlen": "flash_dmattn_varlen_func",
    "cache": "flash_dmattn_with_kvcache",
}


class Fdma(Impl):
    """flash_dmattn itself, by one of its backends. `name` is the backend's, where no peer has that."""

    passes = ("fwd", "bwd", "decode")

    def __init__(self, backend: str, device: str | None = None, name: str | None = None, turn: int = FIRST):
        self.name = name or backend
        self.devices = (device or backend,)
        self.turn = turn
        self._backend = backend
        if backend in ("cuda", "cpu"):  # libfdma, which alone has the other entry points
            self.layouts = LAYOUTS

    def reason(self, workload: Workload) -> str | None:
        unsupported = import_reason("flash_dmattn", FDMA_FUNCTIONS[workload.layout])
        if unsupported:
            return unsupported
        import flash_dmattn

        backends = flash_dmattn.get_available_backends()
        available = self._backend in backends
        return None if available else f"backend {self._backend} is not available (available: {backends})"

    def build(self, inputs: Inputs) -> Call:
        import flash_dmattn

        function = getattr(flash_dmattn, FDMA_FUNCTIONS[inputs.workload.layout])
        if inputs.workload.layout == "cache":  # selection is part of the call
            tensors, keep = tuple(inputs.leaves.values()), inputs.workload.keep
            return Call(lambda: function(*tensors, inputs.bias, keep_window_size=keep))
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
        return Call(forward, leaves, 0 if mask is None else mask.nbytes)


class FdmaSelect(Impl):
    """Selection of this project."""

    passes = ("select",)

    def __init__(self, device: str):
        self.name = f"{device}-topk"
        self.devices = (device,)

    def build(self, inputs: Inputs) -> Call:
        from flash_dmattn import DynamicMask

        # The mask of the reference is one of all keys, to which causality comes later.
        is_causal = inputs.workload.is_causal and inputs.workload.mask == "dynamic"
        return Call(lambda: DynamicMask.topk(inputs.bias, inputs.workload.keep, is_causal=is_causal))


class FdmaFlex(Fdma):
    """The backend over FlexAttention; :class:`~benchmarks.peers.Flex` is FlexAttention used directly."""

    def remark(self, workload: Workload) -> str | None:
        return "the block mask is built in each call" if workload.mask or workload.is_causal else None

    def build(self, inputs: Inputs) -> Call:
        import torch._functorch.config

        torch._dynamo.reset()  # one shape at a time: earlier ones would count against the recompile limit
        torch._functorch.config.donated_buffer = False  # backward is timed several times on one graph
        return super().build(inputs)
