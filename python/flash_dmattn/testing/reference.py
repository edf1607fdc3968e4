"""Eager attention, written as its definition reads."""

import math
from functools import partial
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import torch

from flash_dmattn.dynamic_mask import AttentionMask, DynamicMask, dense_mask

GRADIENTS = ("query", "key", "value", "attn_bias")
"""Inputs that have a gradient."""

Outputs = Union[torch.Tensor, Tuple[torch.Tensor, ...]]
"""The output, or with ``return_lse`` the output and the lse."""


class Results(NamedTuple):
    """What a call and its backward pass give."""

    out: Outputs
    grads: Dict[str, torch.Tensor]


def _over_heads(scores_like: torch.Tensor, heads: int) -> torch.Tensor:
    """Repeat the heads of a mask or bias given for kv heads."""
    if scores_like.shape[1] in (1, heads):
        return scores_like
    return scores_like.repeat_interleave(heads // scores_like.shape[1], dim=1)


def reference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Optional[AttentionMask] = None,
    attn_bias: Optional[torch.Tensor] = None,
    scale: Optional[float] = None,
    is_causal: bool = False,
    softcap: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Attention in `dtype` throughout, differentiable; see :func:`flash_dmattn.flash_dmattn_func` for the arguments.

    Returns
    -------
    out : torch.Tensor
        ``(B, Lq, H, D)`` in `dtype`; zeros for a row that sees no key.
    lse : torch.Tensor
        ``(B, H, Lq)`` in `dtype`; -inf for such a row.
    """
    _, len_q, heads, head_dim = query.shape
    len_k, heads_kv = key.shape[1:3]
    attn_mask = dense_mask(attn_mask, len_q)
    query, key, value = (tensor.to(dtype).transpose(1, 2) for tensor in (query, key, value))  # (B, H, L, D)
    key = key.repeat_interleave(heads // heads_kv, dim=1)
    value = value.repeat_interleave(heads // heads_kv, dim=1)

    scores = (1.0 / math.sqrt(head_dim) if scale is None else scale) * (query @ key.transpose(2, 3))
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if attn_bias is not None:
        scores = scores + _over_heads(attn_bias, heads).to(dtype)
    sees = scores != -math.inf
    if attn_mask is not None:
        sees = sees & (_over_heads(attn_mask, heads) != 0)
    if is_causal:
        row = torch.arange(len_q, device=query.device)[:, None]
        sees = sees & (torch.arange(len_k, device=query.device) <= row + len_k - len_q)

    scores = scores.masked_fill(~sees, -math.inf)
    # A row that sees no key, or has none, has the maximum -inf: shifted by 0 instead, its exponentials are 0, not NaN.
    maximum = torch.nn.functional.pad(scores.detach(), (0, 1), value=-math.inf).amax(dim=-1, keepdim=True)
    shift = maximum.masked_fill(maximum == -math.inf, 0.0)
    exponentials = torch.exp(scores - shift)
    total = exponentials.sum(dim=-1, keepdim=True)
    dead = total == 0
    probabilities = exponentials / total.masked_fill(dead, 1.0)
    lse = (shift + torch.log(total.masked_fill(dead, 1.0))).masked_fill(dead, -math.inf).squeeze(-1)
    return (probabilities @ value).transpose(1, 2), lse


def attend_each_sequence(
    attention: Callable[..., Tuple[torch.Tensor, torch.Tensor]],
    out_dtype: torch.dtype,
    lse_dtype: torch.dtype,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Optional[AttentionMask] = None,
    attn_bias: Optional[torch.Tensor] = None,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    **options: Any,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Sequences of different lengths, one call of `attention` on each as a batch of one.

    `attention` returns an output and an lse, in the dtypes that are given. See
    :func:`flash_dmattn.flash_dmattn_varlen_func` for the other arguments; the bounds are not needed.

    Returns
    -------
    out : torch.Tensor
        Of the shape of `query`; zeros for a row of no sequence.
    lse : torch.Tensor
        ``(H, total_q)``, padded ``(B, H, Lq)``; -inf for such a row.
    """
    packed = query.dim() == 3
    ends_q, ends_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    out = torch.zeros_like(query, dtype=out_dtype)
    lse = torch.full_like(out[..., 0].transpose(-1, -2), -math.inf, dtype=lse_dtype)
    for b in range(len(ends_q) - 1):
        len_q, len_k = ends_q[b + 1] - ends_q[b], ends_k[b + 1] - ends_k[b]
        rows_q, rows_k = slice(0, len_q), slice(0, len_k)
        if packed:
            rows_q, rows_k = slice(ends_q[b], ends_q[b + 1]), slice(ends_k[b], ends_k[b + 1])
        of_query, of_key = ((rows_q,), (rows_k,)) if packed else ((b, rows_q), (b, rows_k))
        scores_like = (_scores_of(tensor, b, len_q, len_k) for tensor in (attn_mask, attn_bias))
        part, part_lse = attention(
            query[of_query][None], key[of_key][None], value[of_key][None], *scores_like, **options
        )
        out[of_query] = part[0]
        lse[(slice(None), rows_q) if packed else (b, slice(None), rows_q)] = part_lse[0]
    return out, lse


def reference_varlen_attention(
    *tensors: torch.Tensor, dtype: torch.dtype = torch.float64, **arguments: Any
) -> Tuple[torch.Tensor, torch.Tensor]:
    """:func:`reference_attention` by :func:`attend_each_sequence`."""
    return attend_each_sequence(partial(reference_attention, dtype=dtype), dtype, dtype, *tensors, **arguments)


def kept_keys(bias: torch.Tensor, keep: int, limits: Sequence[int]) -> torch.Tensor:
    """Which keys of a row of biases ``(..., Lk)`` each query keeps of those before its limit: ``(..., Lq, Lk)``, bool.

    The definition: largest first, of equals the newest, never -inf or NaN.
    """
    rows = []
    for limit in limits:
        candidates = bias.double().masked_fill(bias.isnan(), -math.inf)
        candidates[..., max(limit, 0) :] = -math.inf
        newest_first = candidates.flip(-1)
        order = newest_first.argsort(dim=-1, descending=True, stable=True)[..., :keep]
        kept = torch.zeros_like(bias, dtype=torch.bool).scatter(-1, bias.shape[-1] - 1 - order, True)
        rows.append(kept & (candidates != -math.inf))
    return torch.stack(rows, dim=-2)


def reference_decode(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    attn_bias: Optional[torch.Tensor] = None,
    cache_seqlens: Optional[torch.Tensor] = None,
    block_table: Optional[torch.Tensor] = None,
    keep_window_size: Optional[int] = None,
    is_causal: bool = False,
    **options: Any,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """:func:`reference_attention` for :func:`flash_dmattn.flash_dmattn_with_kvcache`, one batch entry after another."""
    batch, len_q = query.shape[:2]
    results = []
    for b in range(batch):
        of_batch = (
            (key_cache[b], value_cache[b])
            if block_table is None
            else (
                cache[block_table[b].long().clamp(0, cache.shape[0] - 1)].flatten(0, 1)
                for cache in (key_cache, value_cache)
            )
        )
        key, value = of_batch
        used = key.shape[0] if cache_seqlens is None else int(cache_seqlens[b])
        bias = mask = None
        if attn_bias is not None:
            bias = attn_bias[b if attn_bias.shape[0] > 1 else 0].flatten(1)[..., :used]  # (heads, used)
            if keep_window_size is not None:
                limits = [used - len_q + q + 1 if is_causal else used for q in range(len_q)]
                mask = kept_keys(bias, keep_window_size, limits)[None]
                bias = bias.masked_fill(bias.isnan(), 0.0)  # a key that nobody keeps
            bias = bias[None, :, None]
        part = (query[b][None], key[None, :used], value[None, :used])
        results.append(reference_attention(*part, mask, bias, is_causal=is_causal, **options))
    if not results:
        return query.double(), query.new_zeros((0, query.shape[2], len_q), dtype=torch.float64)
    out, lse = zip(*results)
    return torch.cat(out), torch.cat(lse)


def _scores_of(tensor: Optional[AttentionMask], b: int, len_q: int, len_k: int) -> Optional[torch.Tensor]:
    """A mask or bias of sequence `b`; dimensions of extent 1 broadcast."""
    if tensor is None:
        return None
    if isinstance(tensor, DynamicMask) and tensor.form == "bits":
        tensor = tensor.to_dense()
    elif isinstance(tensor, DynamicMask):
        # From the first position of any query on, a row a position; query 0 of the sequence is at len_k - len_q.
        before = max(0, len_q - len_k)
        rows_of_positions = tensor.to_dense(tensor.len_k + before)
        tensor = rows_of_positions[:, :, before + len_k - len_q : before + len_k]
    of_batch = tensor[b if tensor.shape[0] > 1 else 0][None]
    rows = of_batch if tensor.shape[2] == 1 else of_batch[:, :, :len_q]
    return rows if tensor.shape[3] == 1 else rows[..., :len_k]


def call_with_gradients(
    attention: Callable[..., Outputs],
    inputs: Dict[str, Optional[torch.Tensor]],
    options: Dict[str, object],
    grad_out: Outputs,
) -> Results:
    """Outputs of a call and the gradients of all of :data:`GRADIENTS` that are given.

    With the option ``return_lse`` there are two outputs, and `grad_out` has a gradient of each.
    """
    leaves = {
        name: tensor.detach().requires_grad_()
        for name, tensor in inputs.items()
        if name in GRADIENTS and tensor is not None
    }
    out = attention(**{**inputs, **leaves}, **options)
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out)
    out = out.detach() if isinstance(out, torch.Tensor) else tuple(tensor.detach() for tensor in out)
    return Results(out, dict(zip(leaves, grads)))


def reference_results(
    inputs: Dict[str, Optional[torch.Tensor]],
    options: Dict[str, object],
    grad_out: Outputs,
    dtype: torch.dtype = torch.float64,
) -> Results:
    """Outputs and gradients of the reference with all of the arithmetic in `dtype`.

    Inputs with ``cu_seqlens_q`` are those of :func:`reference_varlen_attention`, others of :func:`reference_attention`.
    """
    reference = reference_varlen_attention if "cu_seqlens_q" in inputs else reference_attention
    converted = {
        name: tensor.to(dtype) if name in GRADIENTS and tensor is not None else tensor
        for name, tensor in inputs.items()
    }

    def attention(return_lse: bool = False, **arguments: Any) -> Outputs:
        results = reference(**arguments, dtype=dtype)
        return results if return_lse else results[0]

    grads = grad_out.to(dtype) if isinstance(grad_out, torch.Tensor) else tuple(grad.to(dtype) for grad in grad_out)
    return call_with_gradients(attention, converted, options, grads)
