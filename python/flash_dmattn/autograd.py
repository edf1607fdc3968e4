"""The autograd rule of attention."""

from typing import Any, Optional, Tuple

import torch
from torch.autograd.function import once_differentiable

from flash_dmattn import ops


class Attention(torch.autograd.Function):
    """Saves the inputs, the output, the lse and the mask as bits; recomputes the scores in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: Optional[torch.Tensor],
        attn_bias: Optional[torch.Tensor],
        scale: Optional[float],
        is_causal: Optional[bool],
        softcap: Optional[float],
        deterministic: bool,
    ) -> torch.Tensor:
        """Run attention and keep what backward reads."""
        out, lse, packed_mask = ops.attention_forward(
            query, key, value, attn_mask, attn_bias, scale, is_causal, softcap, keep_for_backward=True
        )
        ctx.save_for_backward(query, key, value, packed_mask, attn_bias, out, lse)
        # The dense mask itself is not kept.
        ctx.mask_shape = None if attn_mask is None else (*attn_mask.shape[:3], key.shape[1])
        ctx.options = (scale, is_causal, softcap, deterministic)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        """Compute the gradients that are needed, in the order of forward's arguments."""
        query, key, value, packed_mask, attn_bias, out, lse = ctx.saved_tensors
        needs_query, needs_key, needs_value, _, needs_bias = ctx.needs_input_grad[:5]
        grad_query, grad_key, grad_value, grad_bias = ops.attention_backward(
            grad_out,
            query,
            key,
            value,
            packed_mask,
            ctx.mask_shape,
            attn_bias,
            out,
            lse,
            *ctx.options,
            needs=(needs_query, needs_key, needs_value, needs_bias),
        )
        return grad_query, grad_key, grad_value, None, grad_bias, None, None, None, None
