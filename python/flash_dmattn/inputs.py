"""Checks that only Python can make; everything else is refused by libfdma, in its words."""

from typing import Any, Callable, Optional, Sequence

import torch

from flash_dmattn.dynamic_mask import DynamicMask
from flash_dmattn.refusals import not_a_tensor

_MASKS = (torch.Tensor, DynamicMask)


def check_types(
    query: Any, key: Any, value: Any, attn_mask: Any, attn_bias: Any, deterministic: Any, return_lse: Any = False
) -> None:
    """Raise TypeError unless the tensors are tensors and the flags are bools, or None where they may be.

    Shapes, dtypes, devices, layouts and the other scalars are checked where the call is described to the library.
    """
    tensor = torch.Tensor
    if (
        isinstance(query, tensor)
        and isinstance(key, tensor)
        and isinstance(value, tensor)
        and (attn_mask is None or isinstance(attn_mask, _MASKS))
        and (attn_bias is None or isinstance(attn_bias, tensor))
        and (deterministic is None or deterministic is True or deterministic is False)
        and (return_lse is False or return_lse is True)
    ):
        return
    for name, given in {"query": query, "key": key, "value": value}.items():
        if not isinstance(given, tensor):
            raise TypeError(not_a_tensor(name, given))
    if attn_mask is not None and not isinstance(attn_mask, _MASKS):
        raise TypeError(not_a_tensor("attn_mask", attn_mask, ", a DynamicMask or None"))
    if attn_bias is not None and not isinstance(attn_bias, tensor):
        raise TypeError(not_a_tensor("attn_bias", attn_bias, " or None"))
    if return_lse is not True and return_lse is not False:
        raise TypeError(f"return_lse must be a bool, got {return_lse!r}")
    raise TypeError(f"deterministic must be a bool or None, got {deterministic!r}")


def needs_gradient(tensors: Sequence[torch.Tensor], attn_bias: Optional[torch.Tensor]) -> bool:
    """Whether autograd has to record a call on these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # a loop: any() over a generator takes twice as long
            if tensor.requires_grad:
                return True
        return attn_bias is not None and attn_bias.requires_grad
    return False


def check_scalars(scale: Any, is_causal: Any, softcap: Any) -> None:
    """Raise TypeError for what libfdma's binding refuses and the schema of an operator would turn into a number."""
    for name, given in (("scale", scale), ("softcap", softcap)):
        if isinstance(given, (bool, str, torch.Tensor)):
            raise TypeError(f"{name} must be a real number or None, got {given!r}")
    if is_causal is not None and not isinstance(is_causal, bool):
        raise TypeError(f"is_causal must be a bool or None, got {is_causal!r}")


def _autocast_dtype_of_device(device_type: str) -> Optional[torch.dtype]:
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def _autocast_dtype_of_cpu_or_cuda(device_type: str) -> Optional[torch.dtype]:
    if device_type == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


# Functions of a device type came with get_autocast_dtype.
autocast_dtype: Callable[[str], Optional[torch.dtype]] = (
    _autocast_dtype_of_device if hasattr(torch, "get_autocast_dtype") else _autocast_dtype_of_cpu_or_cuda
)


# Where torch can tell in one word that autocast is off, which it mostly is.
autocast_may_be_enabled: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def in_autocast_dtype(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Return the tensors as autocast has them where it is enabled for the device of the first, else as they are.

    As for torch's own attention: floating-point tensors are cast, but those of float64.
    """
    dtype = autocast_dtype("cuda" if tensors[0].is_cuda else "cpu")
    if dtype is None:
        return tensors
    return [
        tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
        for tensor in tensors
    ]
