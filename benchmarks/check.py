"""No timing without a right answer: each implementation is first compared with float32 eager attention.

The comparison covers one kv head of the last sequence, with all its query heads and every row, and finiteness
everywhere. It tells a wrong kernel from a right one; how accurate a right one is, the tests say.
"""

from __future__ import annotations

import math

import torch

from benchmarks.workloads import ROWS_AT_ONCE, Inputs

# Largest accepted ||got - expected|| / ||expected|| of a whole slice. A right 16-bit kernel measures a few 1e-3 (the
# rounding of P, dS and the outputs to 8 or 11 bits); a wrong tile, head, scale or mask is at 1e-1 and beyond.
BOUNDS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 2e-2}


def _broadcast_head(tensor: torch.Tensor | None, head: int, heads: int) -> torch.Tensor | None:
    """(Q, K) of the last batch entry."""
    return None if tensor is None else tensor[-1, head // (heads // tensor.shape[1])]


def _attend_rows(query, key, value, bias, visible, scale) -> torch.Tensor:
    """(rows, D) of one head in float32. A row that sees nothing gives 0."""
    scores = query @ key.T * scale
    if bias is not None:
        scores = scores + bias
    seen = visible.any(-1, keepdim=True)
    # An unseen row keeps all its scores, so that no NaN arises, and is then multiplied by 0.
    weights = scores.masked_fill(~visible & seen, -math.inf).softmax(-1) * seen
    return weights @ value


class Reference:
    """Expected output and gradients of the slice, {"out", "query", "key", "value"[, "bias"]}, float32."""

    def __init__(self, inputs: Inputs, with_gradients: bool):
        workload = inputs.workload
        self.kv_head = workload.heads_kv - 1
        group = workload.heads // workload.heads_kv
        self.heads = range(self.kv_head * group, workload.heads)
        self.bound = BOUNDS[workload.dtype]
        self._last_sequence = inputs.last_sequence
        length = workload.queries or workload.sequence_lengths[-1]
        key, value = (
            inputs.last_sequence(tensor.detach())[:, self.kv_head].float().requires_grad_(with_gradients)
            for tensor in (inputs.key, inputs.value)
        )
        parts: dict[str, list[torch.Tensor]] = {"out": [], "query": [], "bias": []}
        sums = {"key": torch.zeros_like(key), "value": torch.zeros_like(value)}
        for head in self.heads:
            for begin in range(0, length, ROWS_AT_ONCE):
                rows = slice(begin, min(begin + ROWS_AT_ONCE, length))
                self._add_rows(inputs, head, rows, key, value, parts, sums, with_gradients)
        self.expected = {name: torch.cat(part).unflatten(0, (-1, length)) for name, part in parts.items() if part}
        if with_gradients:
            self.expected.update(sums)

    @staticmethod
    def _add_rows(inputs, head, rows, key, value, parts, sums, with_gradients) -> None:
        workload = inputs.workload
        query = inputs.last_sequence(inputs.query.detach())[rows, head].float().requires_grad_(with_gradients)
        bias = _broadcast_head(inputs.bias, head, workload.heads)
        leaves = {"query": query, "key": key, "value": value}
        if bias is not None:
            of_keys = bias.shape[0] == 1  # one row for all queries
            bias = bias.detach()[slice(None) if of_keys else rows]
            bias = leaves["bias"] = bias.float().requires_grad_(with_gradients)
        visible = inputs.sees_rows(workload.batch - 1, head, rows)
        out = _attend_rows(query, key, value, bias, visible, 1.0 / math.sqrt(workload.head_dim))
        parts["out"].append(out.detach())
        if not with_gradients:
            return
        grad_out = inputs.last_sequence(inputs.grad_out)[rows, head].float()
        grads = dict(zip(leaves, torch.autograd.grad(out, tuple(leaves.values()), grad_out)))
        parts["query"].append(grads["query"])
        if bias is not None and not of_keys:
            parts["bias"].append(grads["bias"])
        elif bias is not None:
            sums["bias"] = sums.get("bias", 0) + grads["bias"]
        for name in ("key", "value"):
            sums[name] += grads[name]

    def _slice(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        heads = slice(self.heads.start, self.heads.stop)
        if name in ("key", "value"):
            return self._last_sequence(tensor)[:, self.kv_head]
        if name == "bias":
            return tensor[-1, self.kv_head if tensor.shape[2] == 1 else heads]
        return self._last_sequence(tensor)[:, heads].transpose(0, 1)

    def fault(self, name: str, got: torch.Tensor) -> str | None:
        """What is wrong with a whole output or gradient, or None."""
        if name == "qkv":  # (B, L, 3, H, D)
            faults = (self.fault(part, grad) for part, grad in zip(("query", "key", "value"), got.unbind(2)))
            return next((fault for fault in faults if fault), None)
        if not torch.isfinite(got).all():
            return f"{name} has values that are not finite"
        expected = self.expected[name]
        part = self._slice(name, got).float()
        if name == "out":  # rows that see nothing: 0 by this project's contract, anything by the peers'
            part = part * (expected != 0).any(-1, keepdim=True)
        error = ((part - expected).norm() / expected.norm().clamp_min(1e-20)).item()
        return None if error <= self.bound else f"relative error of {name} is {error:.2g}, accepted is {self.bound:g}"
