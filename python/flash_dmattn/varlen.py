"""``flash_dmattn_varlen_func``: attention on sequences of different lengths, and on keys in pages."""

from typing import Any, Optional

import torch

from flash_dmattn.calls import Result, attend
from flash_dmattn.dynamic_mask import AttentionMask, selected_mask
from flash_dmattn.inputs import check_types
from flash_dmattn.layouts import VARLEN
from flash_dmattn.sequences import checked_sequences


def flash_dmattn_varlen_func(
    query: Optional[torch.Tensor] = None,
    key: Optional[torch.Tensor] = None,
    value: Optional[torch.Tensor] = None,
    attn_mask: Optional[AttentionMask] = None,
    attn_bias: Optional[torch.Tensor] = None,
    cu_seqlens_q: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    scale: Optional[float] = None,
    is_causal: Optional[bool] = None,
    softcap: Optional[float] = None,
    deterministic: Optional[bool] = None,
    block_table: Optional[torch.Tensor] = None,
    *,
    return_lse: bool = False,
    keep_window_size: Optional[int] = None,
    q: Optional[torch.Tensor] = None,
    k: Optional[torch.Tensor] = None,
    v: Optional[torch.Tensor] = None,
) -> Result:
    """Attention on ``B`` sequences of different lengths, in one call.

    As :func:`flash_dmattn.flash_dmattn_func` for each sequence by itself, where sequence ``b`` has
    ``len_q = cu_seqlens_q[b + 1] - cu_seqlens_q[b]`` queries and ``len_k`` keys likewise, either of which may be 0; see
    there for the other arguments. Mask and bias count positions inside the sequence, and the causal diagonal ends in
    the corner of ``len_q`` and ``len_k``. Sequences lie packed, one behind the other, or padded, each in the first rows
    of its own batch entry. Rows that belong to no sequence are not read; of the output and of gradients they are zeros.

    Nothing is copied and the host never waits for the device. On the CPU the values of `cu_seqlens_q`, `cu_seqlens_k`
    and `block_table` are checked. On CUDA they lie where only kernels can read them: a length that is wrong is cut to
    what `max_seqlen_q`, `max_seqlen_k` and the tensors hold, so that no other memory is touched.

    Parameters
    ----------
    query : torch.Tensor
        Packed ``(total_q, H, D)``, or padded ``(B, Lq, H, D)``. Dtypes and ``D`` as there. Also taken by the name `q`.
    key, value : torch.Tensor
        ``(total_k, H_kv, D)`` where `query` is packed, ``(B, Lk, H_kv, D)`` where it is padded, and with `block_table`
        ``(pages, page_size, H_kv, D)``. Also taken by the names `k` and `v`.
    attn_mask, attn_bias : torch.Tensor, optional
        ``({B|1}, {H|H_kv|1}, {max_seqlen_q|1}, {max_seqlen_k|1})``. What lies past the lengths of a sequence has no
        effect and a gradient of zero. `attn_mask` may be a :class:`flash_dmattn.DynamicMask` of `max_seqlen_k` keys.
    cu_seqlens_q, cu_seqlens_k : torch.Tensor
        ``(B + 1,)``, int32 or int64, both alike, contiguous, on the device of `query`: the sums of the lengths of the
        sequences before each, from 0 on. They say lengths in the padded layout and for pages too.
    max_seqlen_q, max_seqlen_k : int
        Upper bounds of the lengths, larger than the longest where that is convenient. They have a default where shapes
        tell one: ``Lq`` and ``Lk`` of padded tensors, and the keys for which a row of `block_table` has pages. Packed
        tensors tell none.
    scale, is_causal, softcap, deterministic, return_lse, keep_window_size
        As there; each sequence selects among its own keys.
    block_table : torch.Tensor, optional
        ``(B, pages of a sequence)``, int32, contiguous, on the device of `query`: key ``j`` of sequence ``b`` is row
        ``j % page_size`` of page ``block_table[b, j // page_size]``. ``page_size`` is 16 or more, pages come in any
        order and may be shared; entries past the last key of a sequence are not read. Forward only.

    Returns
    -------
    out : torch.Tensor
        Of the shape and dtype of `query`, contiguous. Differentiable once in `query`, `key`, `value` and `attn_bias`.
    lse : torch.Tensor
        With `return_lse`: ``(H, total_q)`` where `query` is packed, ``(B, H, Lq)`` where it is padded, float32; -inf
        for rows that see no key or belong to no sequence. Differentiable once in `query`, `key` and `attn_bias`.

    Raises
    ------
    ValueError, TypeError
        As there, and for both or neither of `query` and `q`, `key` and `k`, `value` and `v`.
    RuntimeError
        As there, and for `block_table` where a gradient would be recorded.

    Examples
    --------
    >>> import torch
    >>> from flash_dmattn import flash_dmattn_varlen_func
    >>> lengths = [5, 12, 8]
    >>> cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    >>> query = torch.randn(sum(lengths), 4, 32)
    >>> key, value = torch.randn(2, sum(lengths), 2, 32).unbind()
    >>> bias = torch.randn(3, 2, 1, 12, requires_grad=True)
    >>> out = flash_dmattn_varlen_func(
    ...     query, key, value, attn_bias=bias, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens,
    ...     max_seqlen_q=12, max_seqlen_k=12, is_causal=True,
    ... )
    >>> out.sum().backward()
    >>> out.shape, bias.grad.shape
    (torch.Size([25, 4, 32]), torch.Size([3, 2, 1, 12]))

    One new query for each of two sequences of 20 and 33 keys, which lie in pages of 16:

    >>> pages = torch.randn(2, 7, 16, 2, 32)
    >>> block_table = torch.tensor([[6, 0, -1], [3, 1, 5]], dtype=torch.int32)
    >>> flash_dmattn_varlen_func(
    ...     query=torch.randn(2, 1, 4, 32), key=pages[0], value=pages[1], block_table=block_table, is_causal=True,
    ...     cu_seqlens_q=torch.tensor([0, 1, 2]), cu_seqlens_k=torch.tensor([0, 20, 53]),
    ... ).shape
    torch.Size([2, 1, 4, 32])
    """
    query, key, value = _one_of("query", query, "q", q), _one_of("key", key, "k", k), _one_of("value", value, "v", v)
    check_types(query, key, value, attn_mask, attn_bias, deterministic, return_lse)
    sequences = checked_sequences(query, key, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, block_table)
    if keep_window_size is not None:
        attn_mask = selected_mask(attn_mask, attn_bias, keep_window_size, is_causal, cu_seqlens_k)
    options = (scale, is_causal, softcap, deterministic, return_lse)
    return attend(VARLEN, (query, key, value), attn_mask, attn_bias, *options, sequences)


def _one_of(name: str, given: Any, short_name: str, given_short: Any) -> Any:
    """The argument that is given by either of its two names."""
    if given_short is None:
        if given is None:
            raise TypeError(f"{name} is not given, nor by its other name {short_name}; accepted: one of them")
        return given
    if given is not None:
        raise TypeError(f"{name} is given twice, also by its other name {short_name}; accepted: one of them")
    return given_short
