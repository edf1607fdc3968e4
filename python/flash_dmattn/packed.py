"""Attention on packed tensors: read where they lie, their gradients written where they belong."""

from typing import Any, Optional, Sequence

import torch

from flash_dmattn.calls import Result, attend
from flash_dmattn.dynamic_mask import AttentionMask, selected_mask
from flash_dmattn.inputs import check_types
from flash_dmattn.layouts import KVPACKED, QKVPACKED, Layout
from flash_dmattn.refusals import not_a_tensor


def flash_dmattn_qkvpacked_func(
    qkv: torch.Tensor,
    attn_mask: Optional[AttentionMask] = None,
    attn_bias: Optional[torch.Tensor] = None,
    scale: Optional[float] = None,
    is_causal: Optional[bool] = None,
    softcap: Optional[float] = None,
    deterministic: Optional[bool] = None,
    *,
    return_lse: bool = False,
    keep_window_size: Optional[int] = None,
) -> Result:
    """Attention on query, key and value in one tensor, as one projection gives them.

    As :func:`flash_dmattn.flash_dmattn_func` on ``qkv[:, :, 0]``, ``qkv[:, :, 1]`` and ``qkv[:, :, 2]``; see there for
    the other arguments. Nothing is copied, and the gradient of `qkv` is one tensor that backward writes in place.

    Parameters
    ----------
    qkv : torch.Tensor
        ``(B, L, 3, H, D)``, any strides with a contiguous last dimension. Dtypes and ``D`` as for `query` there.
    attn_mask, attn_bias : torch.Tensor, optional
        ``({B|1}, {H|1}, {L|1}, {L|1})``. `attn_mask` may be a :class:`flash_dmattn.DynamicMask`.
    scale, is_causal, softcap, deterministic, return_lse, keep_window_size
        As there.

    Returns
    -------
    out : torch.Tensor
        ``(B, L, H, D)``, contiguous, of the dtype of `qkv`.
    lse : torch.Tensor
        With `return_lse`: ``(B, H, L)``, float32.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As there. Messages call query, key and value ``qkv[:, :, 0]``, ``qkv[:, :, 1]`` and ``qkv[:, :, 2]``.

    Examples
    --------
    >>> import torch
    >>> from flash_dmattn import flash_dmattn_qkvpacked_func
    >>> qkv = torch.randn(2, 64, 3, 4, 32, requires_grad=True)
    >>> out = flash_dmattn_qkvpacked_func(qkv, is_causal=True)
    >>> out.sum().backward()
    >>> out.shape, qkv.grad.shape
    (torch.Size([2, 64, 4, 32]), torch.Size([2, 64, 3, 4, 32]))
    """
    _check_packed("qkv", qkv, 3, "(B, L, 3, H, D)")
    options = (scale, is_causal, softcap, deterministic, return_lse)
    return _attend_packed(QKVPACKED, (qkv,), attn_mask, attn_bias, *options, keep_window_size)


def flash_dmattn_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    attn_mask: Optional[AttentionMask] = None,
    attn_bias: Optional[torch.Tensor] = None,
    scale: Optional[float] = None,
    is_causal: Optional[bool] = None,
    softcap: Optional[float] = None,
    deterministic: Optional[bool] = None,
    *,
    return_lse: bool = False,
    keep_window_size: Optional[int] = None,
) -> Result:
    """Attention on key and value in one tensor.

    As :func:`flash_dmattn.flash_dmattn_func` on `q`, ``kv[:, :, 0]`` and ``kv[:, :, 1]``; see there for the other
    arguments. Nothing is copied, and the gradient of `kv` is one tensor that backward writes in place.

    Parameters
    ----------
    q : torch.Tensor
        ``(B, Lq, H, D)``. Dtypes and ``D`` as for `query` there.
    kv : torch.Tensor
        ``(B, Lk, 2, H_kv, D)``, any strides with a contiguous last dimension; ``H`` is a multiple of ``H_kv``.
    attn_mask, attn_bias : torch.Tensor, optional
        ``({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})``. `attn_mask` may be a :class:`flash_dmattn.DynamicMask`.
    scale, is_causal, softcap, deterministic, return_lse, keep_window_size
        As there.

    Returns
    -------
    out : torch.Tensor
        ``(B, Lq, H, D)``, contiguous, of the dtype of `q`.
    lse : torch.Tensor
        With `return_lse`: ``(B, H, Lq)``, float32.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As there. Messages call query, key and value ``q``, ``kv[:, :, 0]`` and ``kv[:, :, 1]``.

    Examples
    --------
    >>> import torch
    >>> from flash_dmattn import flash_dmattn_kvpacked_func
    >>> q, kv = torch.randn(2, 10, 8, 32), torch.randn(2, 64, 2, 4, 32)
    >>> out, lse = flash_dmattn_kvpacked_func(q, kv, is_causal=True, return_lse=True)
    >>> out.shape, lse.shape
    (torch.Size([2, 10, 8, 32]), torch.Size([2, 8, 10]))
    """
    if not isinstance(q, torch.Tensor):
        raise TypeError(not_a_tensor("q", q))
    _check_packed("kv", kv, 2, "(B, Lk, 2, H_kv, D)")
    options = (scale, is_causal, softcap, deterministic, return_lse)
    return _attend_packed(KVPACKED, (q, kv), attn_mask, attn_bias, *options, keep_window_size)


def _check_packed(name: str, given: Any, count: int, shape: str) -> None:
    if not isinstance(given, torch.Tensor):
        raise TypeError(not_a_tensor(name, given))
    if given.dim() != 5:
        raise ValueError(f"{name}.dim() is {given.dim()}; accepted: 5, {shape}")
    if given.shape[2] != count:
        raise ValueError(f"{name}.shape is {tuple(given.shape)}; accepted: {shape}, {count} in the third dimension")


def _attend_packed(
    layout: Layout,
    tensors: Sequence[torch.Tensor],
    attn_mask: Optional[AttentionMask],
    attn_bias: Optional[torch.Tensor],
    scale: Optional[float],
    is_causal: Optional[bool],
    softcap: Optional[float],
    deterministic: Optional[bool],
    return_lse: bool,
    keep_window_size: Optional[int],
) -> Result:
    first = tensors[0]
    check_types(first, first, first, attn_mask, attn_bias, deterministic, return_lse)
    try:
        if keep_window_size is not None:
            attn_mask = selected_mask(attn_mask, attn_bias, keep_window_size, is_causal)
        return attend(layout, tensors, attn_mask, attn_bias, scale, is_causal, softcap, deterministic, return_lse)
    except (TypeError, ValueError) as refusal:
        raise type(refusal)(layout.in_words_of_caller(str(refusal))) from None
