"""Top-w selection as operators of torch.library, and the way to them. A choice has no gradient."""

from typing import Optional

import torch

from flash_dmattn import ops
from flash_dmattn.operators import NAMESPACE, UNAVAILABLE, operator_is_needed, operator_tags


def select(
    attn_bias: torch.Tensor, keep_window_size: int, key_padding_mask: Optional[torch.Tensor], is_causal: bool
) -> torch.Tensor:
    """:func:`flash_dmattn.ops.select_interval` if `is_causal`, else :func:`flash_dmattn.ops.select_columns`."""
    name = "select_interval" if is_causal else "select_columns"
    arguments = (attn_bias.detach(), keep_window_size, key_padding_mask)
    if operator_is_needed((attn_bias,), key_padding_mask, None):
        return getattr(getattr(torch.ops, NAMESPACE), name).default(*arguments)
    return getattr(ops, name)(*arguments)


def _fake_interval(
    attn_bias: torch.Tensor, keep_window_size: int, key_padding_mask: Optional[torch.Tensor]
) -> torch.Tensor:
    return attn_bias.new_empty(attn_bias.shape, dtype=torch.int32)


def _fake_columns(
    attn_bias: torch.Tensor, keep_window_size: int, key_padding_mask: Optional[torch.Tensor]
) -> torch.Tensor:
    batch, heads, len_k = attn_bias.shape
    return attn_bias.new_empty((batch, heads, torch.sym_min(keep_window_size, len_k)), dtype=torch.int32)


def _register(library: "torch.library.Library") -> None:
    parameters = "Tensor attn_bias, SymInt keep_window_size, Tensor? key_padding_mask"
    for name, result, fake in (
        ("select_interval", "end", _fake_interval),
        ("select_columns", "columns", _fake_columns),
    ):
        library.define(f"{name}({parameters}) -> Tensor {result}", tags=operator_tags())
        for key in ("CPU", "CUDA"):
            library.impl(name, getattr(ops, name), key)
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)


_library = None if UNAVAILABLE else torch.library.Library(NAMESPACE, "FRAGMENT")
if _library is not None:
    _register(_library)
