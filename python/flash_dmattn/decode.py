"""``flash_dmattn_with_kvcache``: a few new queries on a long cache, and its operator of torch.library."""

from typing import Any, Callable, Optional, Sequence, Tuple, cast

import torch

from flash_dmattn import ops
from flash_dmattn.calls import Result
from flash_dmattn.inputs import autocast_may_be_enabled, check_scalars, in_autocast_dtype, needs_gradient
from flash_dmattn.operators import NAMESPACE, UNAVAILABLE, operator_is_needed, operator_tags
from flash_dmattn.refusals import checked_int, not_a_tensor


def flash_dmattn_with_kvcache(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    attn_bias: Optional[torch.Tensor] = None,
    *,
    cache_seqlens: Optional[torch.Tensor] = None,
    block_table: Optional[torch.Tensor] = None,
    keep_window_size: Optional[int] = None,
    scale: Optional[float] = None,
    is_causal: Optional[bool] = None,
    softcap: Optional[float] = None,
    return_lse: bool = False,
) -> Result:
    """Attention of the newest 1 to 16 queries on a cache, on all of its keys or on those of largest bias.

    Of libfdma, on CUDA and on the CPU, forward only. The numerics are those of :func:`flash_dmattn.flash_dmattn_func`
    on the first ``n = cache_seqlens[b]`` keys of each batch entry: query ``q`` is at position ``n - Lq + q``. The keys
    of a group of heads are read once, split over the GPU; selection is a part of the call, and there is no wait for the
    device, so a CUDA graph of the call may be replayed on other lengths and values.

    Parameters
    ----------
    query : torch.Tensor
        ``(B, Lq, H, D)``, ``Lq`` from 1 to 16. float16 or bfloat16 on CUDA; those or float32 on the CPU. ``D`` is a
        multiple of 8 up to 256. Where autocast is enabled it is cast to its dtype; a cache is never cast.
    key_cache, value_cache : torch.Tensor
        ``(B, Lk, H_kv, D)``, or with `block_table` ``(pages, page_size, H_kv, D)``, of the dtype and device of `query`;
        ``H`` is a multiple of ``H_kv``, `page_size` 16 or more.
    attn_bias : torch.Tensor, optional
        ``({B|1}, {H|H_kv|1}, Lk)`` or ``({B|1}, {H|H_kv|1}, 1, Lk)``, float16, bfloat16 or float32. -inf hides a key,
        and what its place in the cache holds is not read.
    cache_seqlens : torch.Tensor, optional
        ``(B,)``, int32 or int64, on the device of `query`: keys in use. Default: all ``Lk``. On CUDA a value is cut to
        what the cache holds.
    block_table : torch.Tensor, optional
        ``(B, pages of a sequence)``, int32: key ``j`` of batch entry ``b`` is row ``j % page_size`` of page
        ``block_table[b, j // page_size]``, and ``Lk`` is what the pages of a sequence hold.
    keep_window_size : int, optional
        Attend only to so many keys, those of largest `attn_bias` among the ones that a query sees: of equals the newer
        one, never one of -inf or NaN. Default: all keys.
    scale : float, optional
        Factor of the scores, any finite number. Default ``1 / sqrt(D)``.
    is_causal : bool, optional
        Hide the keys after each query's position, from selection too. Default False.
    softcap : float, optional
        Bound scores to ``softcap * tanh(score / softcap)``, after `scale` and before `attn_bias`. Default 0, no bound.
    return_lse : bool
        Return the lse too.

    Returns
    -------
    out : torch.Tensor
        ``(B, Lq, H, D)``, contiguous, of the dtype of `query`; zeros for a query that sees no key.
    lse : torch.Tensor
        With `return_lse`: ``(B, H, Lq)``, float32; -inf for such a query.

    Raises
    ------
    ValueError
        A shape, a layout, a device or a number that does not fit; on the CPU also a length or page that is not there.
        The message names the argument, what it got and what is accepted.
    TypeError
        An argument of the wrong type, or a dtype that the argument or the device does not take.
    RuntimeError
        A gradient would be recorded, or the call cannot run here. The message says why.

    Examples
    --------
    >>> import torch
    >>> from flash_dmattn import flash_dmattn_with_kvcache
    >>> query = torch.randn(2, 1, 4, 64)
    >>> key_cache, value_cache = torch.randn(2, 2, 1024, 2, 64).unbind()
    >>> bias = torch.randn(2, 2, 1024)
    >>> used = torch.tensor([1000, 37])
    >>> flash_dmattn_with_kvcache(
    ...     query, key_cache, value_cache, bias, cache_seqlens=used, keep_window_size=64
    ... ).shape
    torch.Size([2, 1, 4, 64])
    """
    given = (query, key_cache, value_cache, attn_bias, cache_seqlens, block_table)
    _check_types(given, return_lse)
    keep = 0 if keep_window_size is None else checked_int("keep_window_size", keep_window_size)
    if keep_window_size is not None and keep < 1:
        raise ValueError(f"keep_window_size is {keep}; accepted: 1 or more, or None (every key)")
    if needs_gradient((query, key_cache, value_cache), attn_bias):
        _refuse_gradient((query, key_cache, value_cache, attn_bias))
    if autocast_may_be_enabled():
        (query,) = in_autocast_dtype((query,))
        given = (query, *given[1:])
    tensors = [tensor for tensor in given if tensor is not None]
    if operator_is_needed(tensors, None, None):
        check_scalars(scale, is_causal, softcap)
        operator = getattr(torch.ops, NAMESPACE).decode.default
        out, lse = operator(*given, keep, scale, bool(is_causal), softcap)
    else:
        out, lse = ops.decode(*given, keep, scale, is_causal, softcap, return_lse)
    return (out, lse) if return_lse else out


_NAMES = ("query", "key_cache", "value_cache", "attn_bias", "cache_seqlens", "block_table")


def _check_types(given: Sequence[Any], return_lse: Any) -> None:
    for index, (name, tensor) in enumerate(zip(_NAMES, given)):
        may_miss = index >= 3
        if not isinstance(tensor, torch.Tensor) and not (may_miss and tensor is None):
            raise TypeError(not_a_tensor(name, tensor, " or None" if may_miss else ""))
    if return_lse is not True and return_lse is not False:
        raise TypeError(f"return_lse must be a bool, got {return_lse!r}")


def _refuse_gradient(tensors: Sequence[Optional[torch.Tensor]]) -> None:
    names = " and ".join(name for name, tensor in zip(_NAMES, tensors) if tensor is not None and tensor.requires_grad)
    raise RuntimeError(
        f"a gradient of {names} is asked for; accepted by flash_dmattn_with_kvcache: forward only, under "
        f"torch.no_grad() or with tensors that require no gradient"
    )


def _decode(*arguments: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    decode = cast("Callable[..., Tuple[torch.Tensor, torch.Tensor]]", ops.decode)  # the lse is asked for
    return decode(*arguments, with_lse=True)


def _fake_decode(query: torch.Tensor, *_: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    batch, len_q, heads = query.shape[:3]
    return query.new_empty(query.shape), query.new_empty((batch, heads, len_q), dtype=torch.float32)


def _refuse_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("decode has no gradient; accepted: flash_dmattn_func, or tensors that require none")


def _register(library: "torch.library.Library") -> None:
    library.define(
        "decode(Tensor query, Tensor key_cache, Tensor value_cache, Tensor? attn_bias, Tensor? cache_seqlens, "
        "Tensor? block_table, SymInt keep_window_size, float? scale, bool is_causal, float? softcap) "
        "-> (Tensor out, Tensor lse)",
        tags=operator_tags(),
    )
    for key in ("CPU", "CUDA"):
        library.impl("decode", _decode, key)
    torch.library.register_fake(f"{NAMESPACE}::decode", _fake_decode, lib=library)
    torch.library.register_autograd(f"{NAMESPACE}::decode", _refuse_derivative, lib=library)


_library = None if UNAVAILABLE else torch.library.Library(NAMESPACE, "FRAGMENT")
if _library is not None:
    _register(_library)
