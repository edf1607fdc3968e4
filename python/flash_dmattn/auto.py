"""``flash_dmattn_func_auto``: attention by the best backend for the tensors of each call."""

from functools import lru_cache
from typing import Any, Callable, Optional

import torch

from flash_dmattn.backends import backend_for_device, find_backend
from flash_dmattn.backends.base import AttentionFunction, Backend
from flash_dmattn.inputs import not_a_tensor

# What can run does not change while a process lives, and asking costs more than a small call. Refusals are not kept.
_backend_for_device: Callable[[str], Backend] = lru_cache(maxsize=None)(backend_for_device)


def flash_dmattn_func_auto(backend: Optional[str] = None) -> AttentionFunction:
    """Return an attention function with the signature of :func:`flash_dmattn.flash_dmattn_func`.

    Parameters
    ----------
    backend : str, optional
        ``"cuda"``, ``"triton"``, ``"flex"`` or ``"cpu"``. Default: each call takes the first of these, in that order,
        that is available and takes the device of its `query`.

    Returns
    -------
    callable
        The attention *function*, not its output.

    Raises
    ------
    ValueError
        `backend` is not the name of a backend.
    RuntimeError
        The backend cannot run in this process. The message says why. Calls raise it when they are given tensors that
        the forced backend does not take, or when no backend can run on the device of `query`.

    Examples
    --------
    >>> import torch
    >>> from flash_dmattn import flash_dmattn_func_auto
    >>> attention = flash_dmattn_func_auto()
    >>> query, key, value = torch.randn(3, 1, 64, 8, 32).unbind()
    >>> attention(query, key, value, is_causal=True).shape
    torch.Size([1, 64, 8, 32])
    """
    forced = None if backend is None else find_backend(backend)

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: Optional[torch.Tensor] = None,
        attn_bias: Optional[torch.Tensor] = None,
        scale: Optional[float] = None,
        is_causal: Optional[bool] = None,
        softcap: Optional[float] = None,
        deterministic: Optional[bool] = None,
    ) -> torch.Tensor:
        """Attention; see :func:`flash_dmattn.flash_dmattn_func`."""
        chosen = _choose(forced, query)
        return chosen.attention(query, key, value, attn_mask, attn_bias, scale, is_causal, softcap, deterministic)

    return attention


def _choose(forced: Optional[Backend], query: Any) -> Backend:
    try:
        device_type = query.device.type
    except AttributeError:
        raise TypeError(not_a_tensor("query", query)) from None
    if forced is None:
        return _backend_for_device(device_type)
    if device_type != forced.device_type:
        raise RuntimeError(
            f"backend {forced.name!r} takes {forced.device_type} tensors, query is on {query.device}; "
            f"move the tensors or leave the choice to flash_dmattn_func_auto()"
        )
    return forced
