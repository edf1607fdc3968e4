"""What the entry points of libfdma have in common: checks, autocast, and the way into the library."""

from typing import Optional, Sequence, Tuple, Union

import torch

from flash_dmattn import ops
from flash_dmattn.autograd import record
from flash_dmattn.dynamic_mask import AttentionMask
from flash_dmattn.inputs import autocast_may_be_enabled, check_scalars, in_autocast_dtype, needs_gradient
from flash_dmattn.layouts import Layout
from flash_dmattn.operators import call_operator, operator_is_needed
from flash_dmattn.sequences import Sequences, refuse_gradient_of_pages

Result = Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]
"""The output, or with `return_lse` the output and the lse."""


def attend(
    layout: Layout,
    tensors: Sequence[torch.Tensor],
    attn_mask: Optional[AttentionMask],
    attn_bias: Optional[torch.Tensor],
    scale: Optional[float],
    is_causal: Optional[bool],
    softcap: Optional[float],
    deterministic: Optional[bool],
    return_lse: bool,
    sequences: Optional[Sequences] = None,
) -> Result:
    """Attention on `tensors`, which hold query, key and value in `layout`.

    A call goes one of three ways: as an operator where torch watches it, through autograd where a gradient is needed,
    and otherwise straight to the library.
    """
    mask_kind, mask_shape = ops.MASK_DENSE, None
    if attn_mask is None or isinstance(attn_mask, torch.Tensor):
        mask = attn_mask
    else:
        attn_mask.check_keys(_keys_of(layout, tensors, sequences))
        mask, mask_kind, mask_shape = attn_mask.data, attn_mask.kind, attn_mask.shape
    described = tensors if sequences is None else (*tensors, *sequences.offsets)
    watched = operator_is_needed(described, mask, attn_bias)
    if watched or autocast_may_be_enabled():
        tensors = in_autocast_dtype(tensors)
    recorded = needs_gradient(tensors, attn_bias)
    if recorded and sequences is not None:
        refuse_gradient_of_pages(sequences, tensors, attn_bias)
    if deterministic is None and (watched or recorded):
        deterministic = torch.are_deterministic_algorithms_enabled()
    if watched:
        check_scalars(scale, is_causal, softcap)
        options = (scale, is_causal, softcap, bool(deterministic))
        results = call_operator(layout, tensors, mask, mask_kind, mask_shape, attn_bias, *options, recorded, sequences)
        return results if return_lse else results[0]
    if recorded:
        call = (
            layout,
            mask,
            mask_kind,
            mask_shape,
            (scale, is_causal, softcap),
            deterministic,
            return_lse,
            sequences,
        )
        return record(call, attn_bias, *tensors)
    query, key, value = layout.split(tensors)
    inputs = (query, key, value, mask, attn_bias, scale, is_causal, softcap)
    out, lse, _ = ops.attention_forward(*inputs, False, return_lse, sequences, mask_kind, mask_shape)
    return out if lse is None else (out, lse)


def _keys_of(layout: Layout, tensors: Sequence[torch.Tensor], sequences: Optional[Sequences]) -> Optional[int]:
    """``Lk`` of the call, or None for a key that the library refuses."""
    if sequences is not None:
        return sequences.max_seqlen_k
    key = layout.split(tensors)[1]
    return key.shape[1] if key.dim() == 4 else None
