"""Checks that only Python can make; everything else is refused by libfdma, in its words."""

from typing import Any, Optional

import torch


def check_types(query: Any, key: Any, value: Any, attn_mask: Any, attn_bias: Any, deterministic: Any) -> None:
    """Raise TypeError unless the tensors are tensors and the flag is a bool or None.

    Shapes, dtypes, devices, layouts and the other scalars are checked where the call is described to the library.
    """
    tensor = torch.Tensor
    if (
        isinstance(query, tensor)
        and isinstance(key, tensor)
        and isinstance(value, tensor)
        and (attn_mask is None or isinstance(attn_mask, tensor))
        and (attn_bias is None or isinstance(attn_bias, tensor))
        and (deterministic is None or deterministic is True or deterministic is False)
    ):
        return
    for name, given in {"query": query, "key": key, "value": value}.items():
        if not isinstance(given, tensor):
            raise TypeError(not_a_tensor(name, given))
    for name, given in {"attn_mask": attn_mask, "attn_bias": attn_bias}.items():
        if given is not None and not isinstance(given, tensor):
            raise TypeError(not_a_tensor(name, given, " or None"))
    raise TypeError(f"deterministic must be a bool or None, got {deterministic!r}")


def not_a_tensor(name: str, given: Any, otherwise: str = "") -> str:
    """Message of a refusal."""
    return f"{name} must be a torch.Tensor{otherwise}, got {type(given).__name__}"


def needs_gradient(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_bias: Optional[torch.Tensor]
) -> bool:
    """Whether autograd has to record a call on these tensors."""
    return torch.is_grad_enabled() and (
        query.requires_grad
        or key.requires_grad
        or value.requires_grad
        or (attn_bias is not None and attn_bias.requires_grad)
    )
