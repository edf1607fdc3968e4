"""Selection and packing as operators of torch.library, and the way to them. A choice has no gradient."""

from typing import Any, Callable, Optional

import torch

from flash_dmattn import ops
from flash_dmattn.operators import NAMESPACE, UNAVAILABLE, operator_is_needed, operator_tags


def select(
    attn_bias: torch.Tensor, keep_window_size: int, key_padding_mask: Optional[torch.Tensor], is_causal: bool
) -> torch.Tensor:
    """What is kept, in the form that the bias allows.

    By a bias of every query ``(B, H, Lq, Lk)`` the bits of a mask; by one of keys ``(B, H, Lk)`` the interval of each
    key if `is_causal`, else the columns that are kept.
    """
    attn_bias = attn_bias.detach()
    if attn_bias.dim() == 4:
        return _call("select_bits", attn_bias, keep_window_size, key_padding_mask, is_causal)
    name = "select_interval" if is_causal else "select_columns"
    return _call(name, attn_bias, keep_window_size, key_padding_mask)


def pack(mask: torch.Tensor) -> torch.Tensor:
    """:func:`flash_dmattn.ops.pack_mask`."""
    return _call("pack_mask", mask.detach())


def _call(name: str, tensor: torch.Tensor, *arguments: Any) -> torch.Tensor:
    key_padding_mask = arguments[1] if arguments else None
    run: Callable[..., torch.Tensor] = getattr(ops, name)
    if operator_is_needed((tensor,), key_padding_mask, None):
        run = getattr(getattr(torch.ops, NAMESPACE), name).default
    return run(tensor, *arguments)


def _fake_interval(
    attn_bias: torch.Tensor, keep_window_size: int, key_padding_mask: Optional[torch.Tensor]
) -> torch.Tensor:
    return attn_bias.new_empty(attn_bias.shape, dtype=torch.int32)


def _fake_columns(
    attn_bias: torch.Tensor, keep_window_size: int, key_padding_mask: Optional[torch.Tensor]
) -> torch.Tensor:
    batch, heads, len_k = attn_bias.shape
    return attn_bias.new_empty((batch, heads, torch.sym_min(keep_window_size, len_k)), dtype=torch.int32)


def _fake_bits(
    attn_bias: torch.Tensor, keep_window_size: int, key_padding_mask: Optional[torch.Tensor], is_causal: bool
) -> torch.Tensor:
    return _fake_packed(attn_bias)


def _fake_packed(scores_like: torch.Tensor) -> torch.Tensor:
    return scores_like.new_empty(ops.packed_mask_bytes(*scores_like.shape), dtype=torch.uint8)


def _register(library: "torch.library.Library") -> None:
    inputs = "Tensor attn_bias, SymInt keep_window_size, Tensor? key_padding_mask"
    for schema, fake in (
        (f"select_interval({inputs}) -> Tensor end", _fake_interval),
        (f"select_columns({inputs}) -> Tensor columns", _fake_columns),
        (f"select_bits({inputs}, bool is_causal) -> Tensor packed_mask", _fake_bits),
        ("pack_mask(Tensor mask) -> Tensor packed_mask", _fake_packed),
    ):
        name = schema.split("(")[0]
        library.define(schema, tags=operator_tags())
        for key in ("CPU", "CUDA"):
            library.impl(name, getattr(ops, name), key)
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)


_library = None if UNAVAILABLE else torch.library.Library(NAMESPACE, "FRAGMENT")
if _library is not None:
    _register(_library)
