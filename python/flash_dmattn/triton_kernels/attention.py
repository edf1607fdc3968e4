"""The kernels as functions of tensors: outputs are allocated here, nothing is recorded for autograd."""

from typing import Any, Dict, Optional, Sequence, Tuple

import torch
import triton

from flash_dmattn.triton_kernels.backward import key_gradient_kernel, query_gradient_kernel, row_dot_kernel
from flash_dmattn.triton_kernels.configs import Config, Configs, find_configs
from flash_dmattn.triton_kernels.forward import attention_forward_kernel
from flash_dmattn.triton_kernels.mask_bits import pack_mask_kernel

_WORD_BYTES = 8
_MIN_BLOCK_D = 16  # the smallest extent of a product
_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter: TRITON_INTERPRET=1 was set when they were defined."""
    return not isinstance(attention_forward_kernel, triton.runtime.JITFunction)


def pack_mask(attn_mask: torch.Tensor, len_q: int, len_k: int, is_causal: bool) -> torch.Tensor:
    """Return `attn_mask` as one bit a score, ``({B|1}, {H|H_kv|1}, {Lq|1}, bytes)`` uint8, rows padded to 128 keys.

    What causality hides anyway is not read, and its bits are 0.
    """
    batch, heads, rows, _ = attn_mask.shape
    word_count = max(triton.cdiv(len_k, 128), 1) * 4  # of 32 keys; never an empty row, which has no view as int64
    words = torch.empty((batch, heads, rows, word_count), dtype=torch.int32, device=attn_mask.device)
    block_rows, block_words = (64, 16) if is_interpreted() else (8, 16)
    grid = batch * heads * triton.cdiv(rows, block_rows) * triton.cdiv(word_count, block_words)
    if grid:
        pack_mask_kernel[(grid,)](
            attn_mask.view(_INTEGER_OF_SIZE[attn_mask.element_size()]),
            words,
            *_broadcast_strides(attn_mask),
            heads,
            rows,
            len_k,
            word_count,
            len_k - len_q,
            IS_CAUSAL=is_causal and rows == len_q,
            IS_FLOAT=attn_mask.is_floating_point(),
            ROWS=block_rows,
            WORDS=block_words,
        )
    return words.view(torch.uint8)


def attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    attn_bias: Optional[torch.Tensor],
    scale: float,
    is_causal: bool,
) -> Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]]:
    """Attention of tensors that have been checked.

    Returns
    -------
    out : torch.Tensor
        ``(B, Lq, H, D)``, contiguous.
    lse : torch.Tensor
        ``(B, H, Lq)``, float32: the natural logarithm of the sum of exponentials of each row.
    packed_mask : torch.Tensor or None
        `attn_mask` as one bit a score, see :func:`pack_mask`.
    """
    batch, len_q, heads, _ = query.shape
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = torch.empty((batch, heads, len_q), dtype=torch.float32, device=query.device)
    packed_mask = None if attn_mask is None else pack_mask(attn_mask, len_q, key.shape[1], is_causal)
    shared = _shared_arguments(query, key, packed_mask, attn_bias, is_causal)
    config = _find_configs(query, packed_mask, attn_bias).forward
    grid = batch * heads * triton.cdiv(len_q, config.block_m)
    if grid:
        attention_forward_kernel[(grid,)](
            query,
            key,
            value,
            _words(packed_mask),
            attn_bias,
            out,
            lse,
            *_strides3(query),
            *_strides3(key),
            *_strides3(value),
            *_strides3(out),
            *_score_strides(packed_mask),
            *_score_strides(attn_bias),
            scale,
            *_extents(query, key, packed_mask, attn_bias),
            **shared,
            **_launch(config),
        )
    return out, lse, packed_mask


def attention_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed_mask: Optional[torch.Tensor],
    attn_bias: Optional[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    is_causal: bool,
    needs: Tuple[bool, bool, bool, bool],
) -> Tuple[Optional[torch.Tensor], ...]:
    """Gradients of query, key, value and attn_bias: those that `needs` asks for, None for the others.

    Each is contiguous and has the shape and dtype of its input; that of a broadcast bias is summed in float32.
    """
    # Gradients of a sum or a mean arrive expanded; the kernels read rows of head_dim elements.
    if grad_out.stride(-1) != 1:
        grad_out = grad_out.contiguous()
    needs_query, needs_key, needs_value, needs_bias = needs
    grad_query, grad_key, grad_value = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if needed else None
        for tensor, needed in zip((query, key, value), needs)
    )
    bias_sum = _empty_bias_sum(query, key, packed_mask, attn_bias, is_causal) if needs_bias else None
    row_dots = _row_dots(out, grad_out, lse)
    configs = _find_configs(query, packed_mask, attn_bias)
    inputs = (query, key, value, _words(packed_mask), attn_bias, grad_out, lse, row_dots)
    strides = (
        *_strides3(query),
        *_strides3(key),
        *_strides3(value),
        *_strides3(grad_out),
        *_score_strides(packed_mask),
        *_score_strides(attn_bias),
    )
    grad_bias_strides = _score_strides(bias_sum)
    scalars = (scale, *_extents(query, key, packed_mask, attn_bias))
    shared = _shared_arguments(query, key, packed_mask, attn_bias, is_causal)
    bias_over_rows = needs_bias and shared["BIAS_BY_KEY"] and not shared["BIAS_BY_ROW"]
    bias_over_keys = needs_bias and not bias_over_rows

    config = configs.key_gradient
    grid = key.shape[0] * key.shape[2] * triton.cdiv(key.shape[1], config.block_n)
    if grid and (needs_key or needs_value or bias_over_rows):
        key_gradient_kernel[(grid,)](
            *inputs,
            grad_key,
            grad_value,
            bias_sum if bias_over_rows else None,
            *strides,
            *grad_bias_strides[:2],
            *scalars,
            **shared,
            NEEDS_KEY=needs_key,
            NEEDS_VALUE=needs_value,
            NEEDS_BIAS=bias_over_rows,
            **_launch(config),
        )
    config = configs.query_gradient
    grid = query.shape[0] * query.shape[2] * triton.cdiv(query.shape[1], config.block_m)
    if grid and (needs_query or bias_over_keys):
        query_gradient_kernel[(grid,)](
            *inputs,
            grad_query,
            bias_sum if bias_over_keys else None,
            *strides,
            *grad_bias_strides,
            *scalars,
            **shared,
            NEEDS_QUERY=needs_query,
            NEEDS_BIAS=bias_over_keys,
            BIAS_IS_FULL=bias_over_keys and _is_full(query, key, attn_bias),
            **_launch(config),
        )
    return grad_query, grad_key, grad_value, None if bias_sum is None else bias_sum.to(attn_bias.dtype)


def _row_dots(out: torch.Tensor, grad_out: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """Sum of `out` times `grad_out` over head_dim, ``(B, H, Lq)``, float32."""
    batch, len_q, heads, head_dim = out.shape
    row_dots = torch.empty_like(lse)
    block_m = 64
    grid = batch * heads * triton.cdiv(len_q, block_m)
    if grid:
        row_dot_kernel[(grid,)](
            out,
            grad_out,
            row_dots,
            *_strides3(out),
            *_strides3(grad_out),
            heads,
            len_q,
            HEAD_DIM=head_dim,
            BLOCK_D=_block_d(head_dim),
            BLOCK_M=block_m,
        )
    return row_dots


def _is_full(query: torch.Tensor, key: torch.Tensor, attn_bias: torch.Tensor) -> bool:
    """Whether each element of the bias belongs to one score."""
    return tuple(attn_bias.shape) == (query.shape[0], query.shape[2], query.shape[1], key.shape[1])


def _empty_bias_sum(
    query: torch.Tensor,
    key: torch.Tensor,
    packed_mask: Optional[torch.Tensor],
    attn_bias: torch.Tensor,
    is_causal: bool,
) -> torch.Tensor:
    """Where the gradient of the bias is written, in its own dtype, or summed, in float32."""
    if not _is_full(query, key, attn_bias):
        return torch.zeros(attn_bias.shape, dtype=torch.float32, device=attn_bias.device)
    # Tiles that causality or the mask hides are not visited.
    allocate = torch.empty if packed_mask is None and not is_causal else torch.zeros
    return allocate(attn_bias.shape, dtype=attn_bias.dtype, device=attn_bias.device)


def _block_d(head_dim: int) -> int:
    return max(_MIN_BLOCK_D, triton.next_power_of_2(head_dim))


def _find_configs(
    query: torch.Tensor, packed_mask: Optional[torch.Tensor], attn_bias: Optional[torch.Tensor]
) -> Configs:
    has_scores = packed_mask is not None or attn_bias is not None
    return find_configs(_block_d(query.shape[3]), query.dtype, query.device, has_scores)


def _launch(config: Config) -> Dict[str, int]:
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def _words(packed_mask: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    return None if packed_mask is None else packed_mask.view(torch.int64)


def _strides3(tensor: torch.Tensor) -> Sequence[int]:
    return tensor.stride()[:3]


def _broadcast_strides(tensor: torch.Tensor) -> Tuple[int, ...]:
    """Strides with 0 where the extent is 1, whatever the tensor says there."""
    return tuple(stride if extent > 1 else 0 for stride, extent in zip(tensor.stride(), tensor.shape))


def _score_strides(tensor: Optional[torch.Tensor]) -> Tuple[int, ...]:
    """Strides of the batch, the heads and the rows of a bias, or of a packed mask in words; 0 to broadcast."""
    if tensor is None:
        return 0, 0, 0
    strides = _broadcast_strides(tensor)[:3]
    return tuple(stride // _WORD_BYTES for stride in strides) if tensor.dtype == torch.uint8 else strides


def _extents(
    query: torch.Tensor, key: torch.Tensor, packed_mask: Optional[torch.Tensor], attn_bias: Optional[torch.Tensor]
) -> Tuple[int, ...]:
    """Heads, kv heads, heads of the mask and of the bias, Lq and Lk."""
    heads_of = (1 if tensor is None else tensor.shape[1] for tensor in (packed_mask, attn_bias))
    return (query.shape[2], key.shape[2], *heads_of, query.shape[1], key.shape[1])


def _shared_arguments(
    query: torch.Tensor,
    key: torch.Tensor,
    packed_mask: Optional[torch.Tensor],
    attn_bias: Optional[torch.Tensor],
    is_causal: bool,
) -> Dict[str, Any]:
    """Compile-time arguments of the kernels that walk tiles."""
    head_dim = query.shape[3]
    has_bias = attn_bias is not None
    return {
        "HAS_MASK": packed_mask is not None,
        "HAS_BIAS": has_bias,
        "BIAS_BY_ROW": has_bias and attn_bias.shape[2] == query.shape[1],
        "BIAS_BY_KEY": has_bias and attn_bias.shape[3] == key.shape[1],
        "IS_CAUSAL": is_causal,
        "HEAD_DIM": head_dim,
        "BLOCK_D": _block_d(head_dim),
    }
