"""Attention in which each query sees only the keys that a learned score says matter.

``flash_dmattn_func_auto()`` returns an attention function that chooses its backend by the tensors of each call;
``flash_dmattn_func`` is libfdma itself, on CUDA and on the CPU, and ``flex_dmattn_func`` is FlexAttention; ``explain``
says which backend serves a call and why. Importing this package touches no device: whether a GPU can be used is found
out when ``get_available_backends``, ``CUDA_AVAILABLE`` or a call asks.
"""

from typing import TYPE_CHECKING, List

from flash_dmattn._C import __version__
from flash_dmattn.attention import flash_dmattn_func
from flash_dmattn.auto import flash_dmattn_func_auto
from flash_dmattn.backends import get_available_backends
from flash_dmattn.backends.flex import flex_dmattn_func
from flash_dmattn.backends.triton import triton_dmattn_func
from flash_dmattn.decode import flash_dmattn_with_kvcache
from flash_dmattn.dynamic_mask import DynamicMask
from flash_dmattn.explanation import explain
from flash_dmattn.kv_cache import DynamicKVCache
from flash_dmattn.packed import flash_dmattn_kvpacked_func, flash_dmattn_qkvpacked_func
from flash_dmattn.varlen import flash_dmattn_varlen_func

if TYPE_CHECKING:
    CUDA_AVAILABLE: bool
    """Whether ``"cuda"`` is among :func:`flash_dmattn.get_available_backends`; asked when it is read."""
    TRITON_AVAILABLE: bool
    """Whether ``"triton"`` is."""
    FLEX_AVAILABLE: bool
    """Whether ``"flex"`` is."""

__all__ = [
    "CUDA_AVAILABLE",
    "FLEX_AVAILABLE",
    "TRITON_AVAILABLE",
    "DynamicKVCache",
    "DynamicMask",
    "__version__",
    "explain",
    "flash_dmattn_func",
    "flash_dmattn_func_auto",
    "flash_dmattn_kvpacked_func",
    "flash_dmattn_qkvpacked_func",
    "flash_dmattn_varlen_func",
    "flash_dmattn_with_kvcache",
    "flex_dmattn_func",
    "get_available_backends",
    "triton_dmattn_func",
]

_AVAILABILITY = {"CUDA_AVAILABLE": "cuda", "TRITON_AVAILABLE": "triton", "FLEX_AVAILABLE": "flex"}


def __getattr__(name: str) -> bool:
    # Lazily, because the answer for CUDA comes from the driver.
    if name in _AVAILABILITY:
        return _AVAILABILITY[name] in get_available_backends()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted(set(globals()) | set(__all__))
