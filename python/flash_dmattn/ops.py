"""The operations of libfdma as functions of tensors: outputs are allocated here, nothing is recorded for autograd."""

from typing import Any, Callable, Optional, Sequence, Tuple

import torch

from flash_dmattn import _C
from flash_dmattn.sequences import Sequences, lse_shape

MASK_DENSE, MASK_BITS, MASK_COLUMNS, MASK_INTERVAL = _C.MASK_DENSE, _C.MASK_BITS, _C.MASK_COLUMNS, _C.MASK_INTERVAL
"""What the tensor of a mask holds, as the C API numbers it: ``FDMA_MASK_*`` in fdma/types.h."""


def attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    attn_bias: Optional[torch.Tensor],
    scale: Optional[float],
    is_causal: Optional[bool],
    softcap: Optional[float],
    keep_for_backward: bool = False,
    with_lse: bool = False,
    sequences: Optional[Sequences] = None,
    mask_kind: int = MASK_DENSE,
    mask_shape: Optional[Sequence[int]] = None,
) -> Tuple[torch.Tensor, Optional[torch.Tensor], Optional[torch.Tensor]]:
    """Attention and, with `keep_for_backward`, what :func:`attention_backward` wants of it.

    `mask_kind` says what `attn_mask` holds. Of :data:`MASK_BITS` `mask_shape` is the dense shape that they stand for.

    Returns
    -------
    out : torch.Tensor
        ``(B, Lq, H, D)``, contiguous; as `query` is packed, ``(total_q, H, D)``.
    lse : torch.Tensor or None
        ``(B, H, Lq)``, packed ``(H, total_q)``, float32: the natural logarithm of the sum of exponentials of each row.
        Given with `keep_for_backward` or `with_lse`.
    packed_mask : torch.Tensor or None
        A dense `attn_mask` as one bit a score, uint8. Given with `keep_for_backward`.
    """
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = None
    if keep_for_backward or with_lse:
        shape = lse_shape(query.shape, sequences)
        if shape:  # else the library refuses the call
            lse = torch.empty(shape, dtype=torch.float32, device=query.device)
    inputs = (query, key, value, attn_mask, mask_kind, mask_shape, attn_bias, scale, is_causal, softcap, sequences)
    packed_mask = _run(_C.attention_forward, query, (*inputs, out, lse, keep_for_backward))
    return out, lse, packed_mask


def attention_backward(
    grad_out: Optional[torch.Tensor],
    grad_lse: Optional[torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept_mask: Optional[torch.Tensor],
    mask_kind: int,
    mask_shape: Optional[Sequence[int]],
    attn_bias: Optional[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: Optional[float],
    is_causal: Optional[bool],
    softcap: Optional[float],
    deterministic: bool,
    sequences: Optional[Sequences],
    grads: Sequence[Optional[torch.Tensor]],
) -> None:
    """Write the gradients of query, key, value and attn_bias into `grads`; those that are None are not computed.

    At least one of `grad_out` and `grad_lse` is given; None is a gradient of zero. Of a dense mask forward has kept
    the bits: `mask_kind` is :data:`MASK_BITS` and `mask_shape` the shape of the dense mask with the last dimension
    expanded to ``Lk``, which with `sequences` is their `max_seqlen_k`. Gradients of query, key and value have the shape
    and dtype of their inputs and any layout that addresses no element twice; that of a bias is contiguous and summed
    over the dimensions that broadcast.
    """
    if grad_out is None:
        grad_out = out.new_zeros(out.shape[-1]).expand_as(out)
    elif grad_out.stride(-1) != 1:
        # Gradients of a sum or a mean arrive expanded; the kernels read rows of head_dim elements.
        grad_out = grad_out.contiguous()
    if grad_lse is not None:
        grad_lse = grad_lse.contiguous()
    saved = (query, key, value, kept_mask, mask_kind, mask_shape, attn_bias, out, lse)
    options = (scale, is_causal, softcap, sequences, deterministic)
    _run(_C.attention_backward, query, (grad_out, grad_lse, *saved, *options, *grads))


def decode(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    attn_bias: Optional[torch.Tensor],
    cache_seqlens: Optional[torch.Tensor],
    block_table: Optional[torch.Tensor],
    keep_window_size: int,
    scale: Optional[float],
    is_causal: Optional[bool],
    softcap: Optional[float],
    with_lse: bool = False,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Output and, with `with_lse`, lse of :func:`flash_dmattn.flash_dmattn_with_kvcache`; 0 keeps every key."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = None
    if with_lse and query.dim() == 4:  # else the library refuses the call
        lse = torch.empty(lse_shape(query.shape, None), dtype=torch.float32, device=query.device)
    cache = (key_cache, value_cache, attn_bias, cache_seqlens, block_table)
    _run(_C.decode, query, (query, *cache, keep_window_size, scale, is_causal, softcap, out, lse))
    return out, lse


def select_interval(
    attn_bias: torch.Tensor, keep_window_size: int, key_padding_mask: Optional[torch.Tensor]
) -> torch.Tensor:
    """The position at which each key is pushed out of the `keep_window_size` largest, for causal attention.

    Parameters
    ----------
    attn_bias : torch.Tensor
        ``(B, H, Lk)``.
    keep_window_size : int
        1 or more.
    key_padding_mask : torch.Tensor or None
        ``(B, Lk)``; a key of zero is never kept.

    Returns
    -------
    end : torch.Tensor
        ``(B, H, Lk)``, int32: position p keeps key k when ``k <= p < end[k]``.
    """
    end = attn_bias.new_empty(attn_bias.shape, dtype=torch.int32)
    _run(_C.select_keys, attn_bias, (attn_bias, key_padding_mask, keep_window_size, end, None, None, None, False))
    return end


def select_columns(
    attn_bias: torch.Tensor, keep_window_size: int, key_padding_mask: Optional[torch.Tensor]
) -> torch.Tensor:
    """The keys of the `keep_window_size` largest biases, in rising order. Parameters as of :func:`select_interval`.

    Returns
    -------
    columns : torch.Tensor
        ``(B, H, min(keep_window_size, Lk))``, int32; -1 where fewer keys can be kept.
    """
    batch, heads, len_k = attn_bias.shape
    columns = attn_bias.new_empty((batch, heads, min(keep_window_size, len_k)), dtype=torch.int32)
    counts = attn_bias.new_empty((batch, heads), dtype=torch.int32)
    _run(_C.select_keys, attn_bias, (attn_bias, key_padding_mask, keep_window_size, None, columns, counts, None, False))
    return columns


def select_bits(
    attn_bias: torch.Tensor, keep_window_size: int, key_padding_mask: Optional[torch.Tensor], is_causal: bool
) -> torch.Tensor:
    """The keys of the `keep_window_size` largest biases of every query. Parameters as of :func:`select_interval`.

    Parameters
    ----------
    attn_bias : torch.Tensor
        ``(B, H, Lq, Lk)``.
    is_causal : bool
        Whether query q chooses among the keys up to ``q + Lk - Lq``, or among all.

    Returns
    -------
    packed_mask : torch.Tensor
        Bits of a mask of the shape of `attn_bias`, uint8.
    """
    packed_mask = _bytes_like(attn_bias, packed_mask_bytes(*attn_bias.shape))
    outputs = (None, None, None, packed_mask, is_causal)
    _run(_C.select_keys, attn_bias, (attn_bias, key_padding_mask, keep_window_size, *outputs))
    return packed_mask


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """The bits of a dense mask ``({B|1}, {H|H_kv|1}, {Lq|1}, Lk)``, uint8."""
    packed_mask = _bytes_like(mask, packed_mask_bytes(*mask.shape))
    _run(_C.pack_mask, mask, (mask, mask.shape[3], packed_mask))
    return packed_mask


def cache_append(
    cache_key: torch.Tensor,
    cache_value: torch.Tensor,
    cache_bias: torch.Tensor,
    cache_position: torch.Tensor,
    next_position: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: torch.Tensor,
) -> None:
    """Put T new tokens into a bounded cache, in place; the weakest are pushed out.

    Parameters
    ----------
    cache_key, cache_value : torch.Tensor
        ``(B, w, H_kv, D)``.
    cache_bias, cache_position : torch.Tensor
        ``(B, H_kv, w)``, the latter int64; -inf and -1 in empty slots.
    next_position : torch.Tensor
        ``(B,)``, int64: the position of the first new token. T is added.
    key, value : torch.Tensor
        ``(B, T, H_kv, D)``, of the dtype of `cache_key`.
    attn_bias : torch.Tensor
        ``(B, H_kv, T)``, of the dtype of `cache_bias`.
    """
    cache = (cache_key, cache_value, cache_bias, cache_position)
    _run(_C.cache_append, cache_key, (cache, next_position, key, value, attn_bias))


def cache_with_tokens(
    cache_key: torch.Tensor,
    cache_value: torch.Tensor,
    cache_bias: torch.Tensor,
    cache_position: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tokens of a cache in order of position, and new ones behind them. Parameters as of :func:`cache_append`.

    Returns
    -------
    all_key, all_value : torch.Tensor
        ``(B, w + T, H_kv, D)``; zeros for empty slots, which come first.
    all_bias : torch.Tensor
        ``(B, H_kv, w + T)``; -inf for empty slots.
    """
    (batch, slots, heads, head_dim), tokens = cache_key.shape, key.shape[1]
    all_key, all_value = (cache_key.new_empty((batch, slots + tokens, heads, head_dim)) for _ in range(2))
    all_bias = cache_bias.new_empty((batch, heads, slots + tokens))
    cache = (cache_key, cache_value, cache_bias, cache_position)
    _run(_C.cache_gather, cache_key, (cache, all_key[:, :slots], all_value[:, :slots], all_bias[..., :slots]))
    all_key[:, slots:].copy_(key)
    all_value[:, slots:].copy_(value)
    all_bias[..., slots:].copy_(attn_bias)
    return all_key, all_value, all_bias


def packed_mask_bytes(batch: int, heads: int, rows: int, keys: int) -> int:
    """Size of the packed form of a mask of these extents, `keys` being ``Lk`` also where the mask broadcasts.

    Operators of torch.library state their outputs' shapes before anything runs, with symbols in place of extents; for
    numbers this is ``fdma_mask_packed_size`` of the C API. cpp/kernels/policy/mask_bits.hpp has the layout.
    """
    row_bytes = (keys + 127) // 128 * 16
    tile_row_bytes = (keys + 2047) // 2048 * 4
    return batch * heads * (rows * row_bytes + (rows + 63) // 64 * tile_row_bytes)


def _bytes_like(tensor: torch.Tensor, count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8, device=tensor.device)


def _stream_through_object(device_index: int) -> int:
    return torch.cuda.current_stream(device_index).cuda_stream


# The raw stream without the Stream object around it, where torch has that.
_current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _stream_through_object)


def _run(binding: Callable[..., Any], like: torch.Tensor, arguments: Tuple[Any, ...]) -> Any:
    """Call `binding` where `like` lives: on its device's current stream, or with torch's number of threads."""
    if not like.is_cuda:
        return binding(*arguments, torch.get_num_threads(), 0, _bytes_like)
    index = like.get_device()
    if index == torch.cuda.current_device():
        return binding(*arguments, 0, _current_stream(index), _bytes_like)
    # Kernels are launched on the current device, which the library leaves as it finds it.
    with torch.cuda.device(index):
        return binding(*arguments, 0, _current_stream(index), _bytes_like)
