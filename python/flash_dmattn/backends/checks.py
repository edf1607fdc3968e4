"""The contract of a call as checks in Python, in the words of libfdma, for the backends that libfdma does not check."""

import math
import numbers
from typing import Any, List, Optional, Sequence, Tuple, Type

import torch

from flash_dmattn.dynamic_mask import AttentionMask, DynamicMask
from flash_dmattn.inputs import check_types

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MASK_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    # Newer torch has these; a mask of them is read as signed integers of the same width.
    *(getattr(torch, name) for name in ("uint16", "uint32", "uint64") if hasattr(torch, name)),
)
SCORE_DIMS = "({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})"
Refusal = Tuple[Type[Exception], str]


def check_call(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    attn_bias: Any,
    scale: Any,
    is_causal: Any,
    softcap: Any,
    deterministic: Any,
    return_lse: Any = False,
) -> None:
    """Raise unless the arguments are a call of :func:`flash_dmattn.flash_dmattn_func`, on one device of any type.

    Raises
    ------
    TypeError, ValueError
        What the first fault calls for; the message has a line for each of them.
    """
    check_types(query, key, value, attn_mask, attn_bias, deterministic, return_lse)
    _check_scalar_types(scale, is_causal, softcap)
    tensors = {"query": query, "key": key, "value": value, "attn_mask": attn_mask, "attn_bias": attn_bias}
    refusals: List[Refusal] = []
    for name, tensor in tensors.items():
        if isinstance(tensor, DynamicMask):
            refusals += _device_refusals(name, tensor, query.device)
        elif tensor is not None:
            refusals += _tensor_refusals(name, tensor, query.device)
    refusals += _extent_refusals(query, key, value)
    for name, number, positive in (("scale", scale, False), ("softcap", softcap, True)):
        refusals += _number_refusals(name, number, positive)
    if not refusals:
        for name in ("attn_mask", "attn_bias"):
            refusals += _score_refusals(name, tensors[name], query, key)
    if refusals:
        raise refusals[0][0]("\n".join(message for _, message in refusals))


def _check_scalar_types(scale: Any, is_causal: Any, softcap: Any) -> None:
    for name, number in (("scale", scale), ("softcap", softcap)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, numbers.Real)):
            raise TypeError(f"{name} must be a real number or None, got {number!r}")
    if is_causal is not None and is_causal is not True and is_causal is not False:
        raise TypeError(f"is_causal must be a bool or None, got {is_causal!r}")


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(_name(dtype) for dtype in dtypes)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).replace("torch.", "")


def _tensor_refusals(name: str, tensor: torch.Tensor, device: torch.device) -> List[Refusal]:
    """What is wrong with a tensor by itself."""
    accepted = MASK_DTYPES if name == "attn_mask" else DTYPES
    if tensor.dtype not in accepted:
        return [(TypeError, f"{name}.dtype is {_name(tensor.dtype)}; accepted: {_names(accepted)}")]
    if tensor.layout is not torch.strided:
        return [(ValueError, f"{name} ({tensor.layout}) cannot be read; accepted: a strided tensor")]
    refusals = _device_refusals(name, tensor, device)
    if refusals:
        return refusals
    if tensor.dim() != 4:
        dims = {"query": "(B, Lq, H, D)", "key": "(B, Lk, H_kv, D)", "value": "(B, Lk, H_kv, D)"}.get(name, SCORE_DIMS)
        return [(ValueError, f"{name}.dim() is {tensor.dim()}; accepted: 4, {dims}")]
    if tensor.is_neg():
        return [(ValueError, f"{name} is a lazily negated view (is_neg() is True); pass {name}.resolve_neg()")]
    if tensor.numel() > 0 and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        strides = f"{name}.stride() is {tuple(tensor.stride())} for shape {tuple(tensor.shape)}"
        return [(ValueError, f"{strides}; accepted: a stride of 1 in the last dimension")]
    return []


def _device_refusals(name: str, given: AttentionMask, device: torch.device) -> List[Refusal]:
    if given.device == device:
        return []
    devices = f"{name} is on {given.device} and query on {device}"
    return [(ValueError, f"{devices}; all tensors of a call share a device")]


def _extent_refusals(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> List[Refusal]:
    """What is wrong between query, key and value."""
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        return []  # has been refused
    batch, _, heads, head_dim = query.shape
    len_k, heads_kv = key.shape[1:3]
    refusals: List[Refusal] = []
    if heads == 0:
        refusals.append((ValueError, f"query.shape is {tuple(query.shape)}; accepted: at least one head"))
    if head_dim % 8 != 0 or not 8 <= head_dim <= 256:
        accepted = "multiples of 8 from 8 to 256"
        refusals.append((ValueError, f"query.shape is {tuple(query.shape)}, head_dim {head_dim}; accepted: {accepted}"))
    if refusals:
        return refusals
    if heads_kv == 0 or heads % heads_kv != 0:
        shape = f"key.shape is {tuple(key.shape)}, H_kv = {heads_kv}"
        return [(ValueError, f"{shape}; accepted: a divisor of the {heads} heads of query")]
    expected = (batch, len_k, heads_kv, head_dim)
    for name, tensor in (("key", key), ("value", value)):
        if tuple(tensor.shape) != expected:
            shape = f"{name}.shape is {tuple(tensor.shape)}"
            refusals.append((ValueError, f"{shape}; accepted: (B, Lk, H_kv, D) = {expected}"))
        if tensor.dtype != query.dtype and tensor.dtype in DTYPES:
            dtype = f"{name}.dtype is {_name(tensor.dtype)}"
            refusals.append((TypeError, f"{dtype}; accepted: {_name(query.dtype)}, the dtype of query"))
    return refusals


def _number_refusals(name: str, number: Optional[float], positive: bool) -> List[Refusal]:
    if number is None or (math.isfinite(number) and not (positive and number < 0)):
        return []
    accepted = "0 (off) or a positive finite value" if positive else "finite values, or None"
    return [(ValueError, f"{name} is {number:g}; accepted: {accepted}")]


def _score_refusals(
    name: str, tensor: Optional[AttentionMask], query: torch.Tensor, key: torch.Tensor
) -> List[Refusal]:
    """What is wrong with a mask or bias, given that query and key are right."""
    if tensor is None:
        return []
    batch, len_q, heads, _ = query.shape
    len_k, heads_kv = key.shape[1:3]
    dims = SCORE_DIMS
    accepted: Tuple[Tuple[int, ...], ...] = ((1, batch), (1, heads_kv, heads), (1, len_q), (1, len_k))
    if isinstance(tensor, DynamicMask):
        dims = tensor.dims
        accepted = (*accepted[: len(tensor.shape) - 1], (len_k,))
    if all(extent in extents for extent, extents in zip(tensor.shape, accepted)):
        return []
    extents = f"B = {batch}, H = {heads}, H_kv = {heads_kv}, Lq = {len_q}, Lk = {len_k}"
    return [(ValueError, f"{name}.shape is {tuple(tensor.shape)}; accepted: {dims} with {extents}")]
