"""``flash_dmattn_func_auto``: attention by the best backend for the tensors of each call."""

from functools import lru_cache
from numbers import Real
from typing import Any, Callable, Optional, Tuple, Union

import torch

from flash_dmattn.backends import BACKENDS, choose_backend, find_backend
from flash_dmattn.backends.base import AttentionFunction, Backend, CallKind
from flash_dmattn.dynamic_mask import AttentionMask, selected_mask
from flash_dmattn.operators import is_compiling
from flash_dmattn.refusals import not_a_tensor

# What can run does not change while a process lives, and asking costs more than a small call. Refusals are not kept.
_choose_backend: Callable[[CallKind], Backend] = lru_cache(maxsize=None)(choose_backend)


def _index_of_chosen(*kind: Any) -> int:
    return BACKENDS.index(_choose_backend(CallKind(*kind)))


# Compilers run the function and keep its answer, a number: they cannot trace what asks the driver. This is the mark of
# torch.compiler.assume_constant_result, which would import the compiler, and Triton with it, into every process.
_index_of_chosen._dynamo_marked_constant = True  # type: ignore[attr-defined]


def flash_dmattn_func_auto(backend: Optional[str] = None) -> AttentionFunction:
    """Return an attention function with the signature of :func:`flash_dmattn.flash_dmattn_func`.

    Parameters
    ----------
    backend : str, optional
        ``"cuda"``, ``"triton"``, ``"flex"`` or ``"cpu"``: every call goes to this one, or raises. Default: each call
        goes to the first that can serve it as it is, of ``"cuda"``, ``"triton"``, ``"flex"`` for CUDA tensors and
        ``"cpu"`` for CPU tensors. Device and dtype of `query` decide, and `softcap` and `deterministic`: a backend that
        would ignore one that is given is not chosen. :func:`flash_dmattn.explain` tells the choice and its reasons.

    Returns
    -------
    callable
        The attention *function*, not its output.

    Raises
    ------
    ValueError
        `backend` is not the name of a backend.
    RuntimeError
        The backend cannot run in this process. The message says why. Calls raise it when they are given tensors on a
        device that the forced backend does not take, or when no backend can serve them.

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
        attn_mask: Optional[AttentionMask] = None,
        attn_bias: Optional[torch.Tensor] = None,
        scale: Optional[float] = None,
        is_causal: Optional[bool] = None,
        softcap: Optional[float] = None,
        deterministic: Optional[bool] = None,
        *,
        return_lse: bool = False,
        keep_window_size: Optional[int] = None,
    ) -> Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]:
        """Attention; see :func:`flash_dmattn.flash_dmattn_func`."""
        if keep_window_size is not None:
            attn_mask = selected_mask(attn_mask, attn_bias, keep_window_size, is_causal)
        chosen = _choose(forced, query, softcap, deterministic)
        options = (scale, is_causal, softcap, deterministic)
        return chosen.attention(query, key, value, attn_mask, attn_bias, *options, return_lse=return_lse)

    return attention


def call_kind(query: Any, softcap: Any, deterministic: Any) -> CallKind:
    """What the choice of a backend looks at.

    Raises
    ------
    TypeError
        `query` is no tensor.
    """
    try:
        # An option of a wrong type is for the backend to refuse.
        has_softcap = isinstance(softcap, Real) and softcap != 0
        return CallKind(query.device, query.dtype, has_softcap, deterministic is True)
    except AttributeError:
        raise TypeError(not_a_tensor("query", query)) from None


def _choose(forced: Optional[Backend], query: Any, softcap: Any, deterministic: Any) -> Backend:
    kind = call_kind(query, softcap, deterministic)
    if forced is None:
        return BACKENDS[_index_of_chosen(*kind)] if is_compiling() else _choose_backend(kind)
    if kind.device.type not in forced.device_types:
        raise RuntimeError(
            f"backend {forced.name!r} takes {' or '.join(forced.device_types)} tensors, query is on {kind.device}; "
            f"move the tensors or leave the choice to flash_dmattn_func_auto()"
        )
    return forced
