"""The autograd rule of attention."""

from typing import Any, Callable, List, Optional, Sequence, Tuple, Union

import torch
from torch.autograd.function import once_differentiable

from flash_dmattn import ops
from flash_dmattn.layouts import Layout
from flash_dmattn.sequences import Sequences

Options = Tuple[Optional[float], Optional[bool], Optional[float]]
"""scale, is_causal, softcap."""


def gradients(
    layout: Layout,
    grad_out: Optional[torch.Tensor],
    grad_lse: Optional[torch.Tensor],
    tensors: Sequence[torch.Tensor],
    kept_mask: Optional[torch.Tensor],
    mask_kind: int,
    mask_shape: Optional[Sequence[int]],
    attn_bias: Optional[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    options: Options,
    deterministic: bool,
    sequences: Optional[Sequences],
    needs: Sequence[bool],
) -> List[Optional[torch.Tensor]]:
    """Gradients of `tensors` and of `attn_bias`: those that `needs` asks for, None for the others.

    Each is contiguous and has the shape and dtype of its input. That of a packed tensor is one tensor, into whose parts
    the library writes.
    """
    grads = [
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if needed and tensor is not None else None
        for tensor, needed in zip((*tensors, attn_bias), needs)
    ]
    ops.attention_backward(
        grad_out,
        grad_lse,
        *layout.split(tensors),
        kept_mask,
        mask_kind,
        mask_shape,
        attn_bias,
        out,
        lse,
        *options,
        deterministic,
        sequences,
        (*layout.split(grads[:-1]), grads[-1]),
    )
    return grads


def shape_of_packed(attn_mask: torch.Tensor, key: torch.Tensor, sequences: Optional[Sequences]) -> Tuple[int, ...]:
    """Shape of the scores that a packed mask holds: its own, with a value for each key."""
    return (*attn_mask.shape[:3], key.shape[1] if sequences is None else sequences.max_seqlen_k)


def kept_for_backward(
    attn_mask: Optional[torch.Tensor],
    mask_kind: int,
    mask_shape: Optional[Sequence[int]],
    packed_mask: Optional[torch.Tensor],
    key: torch.Tensor,
    sequences: Optional[Sequences],
) -> Tuple[Optional[torch.Tensor], int, Optional[Sequence[int]]]:
    """What backward reads of a mask, its kind and, of bits, the shape of the scores that they stand for.

    A dense mask is kept as bits, others as they are.
    """
    if attn_mask is None or mask_kind != ops.MASK_DENSE:
        return attn_mask, mask_kind, mask_shape
    return packed_mask, ops.MASK_BITS, shape_of_packed(attn_mask, key, sequences)


class Attention(torch.autograd.Function):
    """Saves the inputs, the output, the lse and the mask as bits or lists; recomputes the scores in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        call: Tuple[
            Layout, Optional[torch.Tensor], int, Optional[Sequence[int]], Options, bool, bool, Optional[Sequences]
        ],
        attn_bias: Optional[torch.Tensor],
        *tensors: torch.Tensor,
    ) -> Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]:
        """Run attention and keep what backward reads.

        `call` is (layout, attn_mask, mask_kind, mask_shape, options, deterministic, return_lse, sequences), one
        argument because each costs; `tensors` hold query, key and value in the layout.
        """
        layout, attn_mask, mask_kind, mask_shape, options, deterministic, return_lse, sequences = call
        query, key, value = layout.split(tensors)
        out, lse, packed_mask = ops.attention_forward(
            query, key, value, attn_mask, attn_bias, *options, True, True, sequences, mask_kind, mask_shape
        )
        assert lse is not None, "it is asked for"
        # The dense mask itself is not kept.
        kept = kept_for_backward(attn_mask, mask_kind, mask_shape, packed_mask, key, sequences)
        if sequences is None:
            ctx.save_for_backward(kept[0], attn_bias, out, lse, *tensors)
        else:
            ctx.save_for_backward(kept[0], attn_bias, out, lse, *tensors, *sequences.offsets)
        ctx.call = (layout, kept[1:], options, deterministic, None if sequences is None else sequences.bounds)
        # So that a gradient that lse does not have costs nothing.
        ctx.set_materialize_grads(False)
        return (out, lse) if return_lse else out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_out: Optional[torch.Tensor], grad_lse: Optional[torch.Tensor] = None
    ) -> Tuple[Optional[torch.Tensor], ...]:
        """Compute the gradients that are needed, in the order of forward's arguments."""
        kept_mask, attn_bias, out, lse, *tensors = ctx.saved_tensors
        _, needs_bias, *needs = ctx.needs_input_grad
        if grad_out is None and grad_lse is None:
            return (None,) * (2 + len(needs))
        layout, (mask_kind, mask_shape), options, deterministic, bounds = ctx.call
        sequences = None
        if bounds is not None:
            *tensors, cu_seqlens_q, cu_seqlens_k = tensors
            sequences = Sequences(cu_seqlens_q, cu_seqlens_k, *bounds)
        *grads, grad_bias = gradients(
            layout,
            grad_out,
            grad_lse,
            tensors,
            kept_mask,
            mask_kind,
            mask_shape,
            attn_bias,
            out,
            lse,
            options,
            deterministic,
            sequences,
            (*needs, needs_bias),
        )
        return None, grad_bias, *grads


# Function.apply looks for functorch transforms and default arguments before it does this; callers have looked for the
# former, and there are none of the latter. It is a fifth of the host's work on a small call.
record: Callable[..., Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]] = super(
    torch.autograd.Function, Attention
).apply
