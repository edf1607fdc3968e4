"""What a bounded cache does, as operators of torch.library, and the way to them. A cache keeps no gradients."""

from typing import Any, Tuple

import torch

from flash_dmattn import ops
from flash_dmattn.operators import NAMESPACE, UNAVAILABLE, operator_is_needed, operator_tags


def append(*tensors: torch.Tensor) -> None:
    """:func:`flash_dmattn.ops.cache_append`."""
    _call("cache_append", tensors)


def with_tokens(*tensors: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`flash_dmattn.ops.cache_with_tokens`."""
    result: Tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _call("cache_with_tokens", tensors)
    return result


def _call(name: str, tensors: Tuple[torch.Tensor, ...]) -> Any:
    if operator_is_needed(tensors, None, None):
        return getattr(getattr(torch.ops, NAMESPACE), name).default(*tensors)
    return getattr(ops, name)(*tensors)


def _fake_append(*tensors: torch.Tensor) -> None:
    return None


def _fake_with_tokens(
    cache_key: torch.Tensor,
    cache_value: torch.Tensor,
    cache_bias: torch.Tensor,
    cache_position: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, slots, heads, head_dim = cache_key.shape
    keys = slots + key.shape[1]
    all_key, all_value = (cache_key.new_empty((batch, keys, heads, head_dim)) for _ in range(2))
    return all_key, all_value, cache_bias.new_empty((batch, heads, keys))


def _register(library: "torch.library.Library") -> None:
    tokens = "Tensor key, Tensor value, Tensor attn_bias"
    changed = "Tensor(a!) cache_key, Tensor(b!) cache_value, Tensor(c!) cache_bias, Tensor(d!) cache_position"
    read = "Tensor cache_key, Tensor cache_value, Tensor cache_bias, Tensor cache_position"
    for schema, fake in (
        (f"cache_append({changed}, Tensor(e!) next_position, {tokens}) -> ()", _fake_append),
        (
            f"cache_with_tokens({read}, {tokens}) -> (Tensor all_key, Tensor all_value, Tensor all_bias)",
            _fake_with_tokens,
        ),
    ):
        name = schema.split("(")[0]
        library.define(schema, tags=operator_tags())
        for key in ("CPU", "CUDA"):
            library.impl(name, getattr(ops, name), key)
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)


_library = None if UNAVAILABLE else torch.library.Library(NAMESPACE, "FRAGMENT")
if _library is not None:
    _register(_library)
