"""``flash_dmattn_func``: attention by libfdma."""

from typing import Optional

import torch

from flash_dmattn.calls import Result, attend
from flash_dmattn.dynamic_mask import AttentionMask, selected_mask
from flash_dmattn.inputs import check_types
from flash_dmattn.layouts import APART


def flash_dmattn_func(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
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
    """Attention with a mask and a bias, by libfdma: CUDA tensors run its kernels, CPU tensors its CPU backend.

    For query row ``q`` of head ``h``, which reads kv head ``h // (H // H_kv)``::

        s(k)    = softcap(scale * q . k) + attn_bias(q, k)
        sees(k) = attn_mask(q, k) != 0 and (not is_causal or k <= q + Lk - Lq) and s(k) != -inf
        out     = sum over the seen k of softmax(s)(k) * value(k)

    A row that sees no key gives zeros, and zero gradients. The causal diagonal ends in the bottom-right corner.
    Sums are float32. Where autocast is enabled, `query`, `key` and `value` are cast to its dtype; `attn_bias` keeps its
    own, which costs nothing and loses nothing.

    Parameters
    ----------
    query : torch.Tensor
        ``(B, Lq, H, D)``. float16 or bfloat16 on CUDA; those or float32 on the CPU. ``D`` is a multiple of 8 up to 256.
    key, value : torch.Tensor
        ``(B, Lk, H_kv, D)``, of the dtype and device of `query`; ``H`` is a multiple of ``H_kv``.
    attn_mask : torch.Tensor or DynamicMask, optional
        ``({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})``, bool or any integer or floating dtype: non-zero is visible. It is a
        choice, not a weight: no gradient flows to it. Or a :class:`flash_dmattn.DynamicMask` of ``Lk`` keys.
    attn_bias : torch.Tensor, optional
        ``({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})``, float16, bfloat16 or float32, whatever the dtype of `query`. Its
        gradient has the bias's own shape and dtype.
    scale : float, optional
        Factor of the scores, any finite number. Default ``1 / sqrt(D)``.
    is_causal : bool, optional
        Hide the keys after each query. Default False.
    softcap : float, optional
        Bound scores to ``softcap * tanh(score / softcap)``, after `scale` and before `attn_bias`. Default 0, no bound.
    deterministic : bool, optional
        Make backward bitwise reproducible. Default: what ``torch.use_deterministic_algorithms`` has set.
    return_lse : bool
        Return the lse too.
    keep_window_size : int, optional
        Attend to the keys that ``DynamicMask.topk(attn_bias, keep_window_size, is_causal)`` selects. `attn_bias` is
        then given, and `attn_mask` is not. Default: all keys.

    Returns
    -------
    out : torch.Tensor
        ``(B, Lq, H, D)``, contiguous, of the dtype of `query`. Differentiable once in `query`, `key`, `value` and
        `attn_bias`.
    lse : torch.Tensor
        With `return_lse`: ``(B, H, Lq)``, float32, the natural logarithm of the sum over the seen ``k`` of
        ``exp(s(k))``; -inf for a row that sees no key. Differentiable once in `query`, `key` and `attn_bias`.

    Raises
    ------
    ValueError
        A shape, a layout (the last dimension of every tensor must be contiguous), a device or a number that does not
        fit. The message names the argument, what it got and what is accepted.
    TypeError
        An argument of the wrong type, or a dtype that the argument or the device does not take.
    RuntimeError
        The call cannot run here: built without CUDA, or a GPU without kernels. The message says why.

    Examples
    --------
    >>> import torch
    >>> from flash_dmattn import flash_dmattn_func
    >>> query = torch.randn(1, 128, 4, 64)
    >>> key, value = torch.randn(2, 1, 128, 2, 64).unbind()
    >>> bias = torch.randn(1, 2, 1, 128)
    >>> keep = bias.topk(32, dim=-1).values[..., -1:] <= bias
    >>> flash_dmattn_func(query, key, value, attn_mask=keep, attn_bias=bias, is_causal=True).shape
    torch.Size([1, 128, 4, 64])

    Each query keeps the 32 keys of largest bias up to itself:

    >>> flash_dmattn_func(query, key, value, attn_bias=bias, is_causal=True, keep_window_size=32).shape
    torch.Size([1, 128, 4, 64])
    """
    check_types(query, key, value, attn_mask, attn_bias, deterministic, return_lse)
    if keep_window_size is not None:
        attn_mask = selected_mask(attn_mask, attn_bias, keep_window_size, is_causal)
    tensors = (query, key, value)
    return attend(APART, tensors, attn_mask, attn_bias, scale, is_causal, softcap, deterministic, return_lse)
