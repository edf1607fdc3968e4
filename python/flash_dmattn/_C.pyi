# ruff: noqa: N999 (the name that extension modules have)
"""Extension module over libfdma. Tensors are read where they lie; outputs are written in place."""

from collections.abc import Callable, Sequence

from torch import Tensor

from flash_dmattn.sequences import Sequences

__version__: str
MASK_DENSE: int
MASK_BITS: int
MASK_COLUMNS: int
MASK_INTERVAL: int

def build_info() -> str:
    """Version, CUDA architectures and compiler, CPU instruction sets, on one line."""

def cuda_built() -> bool:
    """Whether the library has CUDA kernels. Touches no device."""

def cuda_unsupported_reason(device: int) -> str | None:
    """Why calls cannot run on this CUDA device; None when they can."""

def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    mask_kind: int,
    mask_shape: Sequence[int] | None,
    attn_bias: Tensor | None,
    scale: float | None,
    is_causal: bool | None,
    softcap: float | None,
    sequences: Sequences | None,
    out: Tensor,
    lse: Tensor | None,
    keep_mask: bool,
    num_threads: int,
    stream: int,
    allocate: Callable[[Tensor, int], Tensor],
) -> Tensor | None:
    """Write `out` and, where given, `lse`; with `keep_mask` return a dense mask in its packed form.

    `mask_shape`, for bits, is the dense shape that `attn_mask` stands for.

    `allocate(query, bytes)` makes the packed mask and, on CUDA, scratch. `num_threads` is for the CPU, `stream` (the
    raw pointer) for CUDA. With `sequences` the shapes are those of variable lengths or pages.
    """

def attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kept_mask: Tensor | None,
    mask_kind: int,
    mask_shape: Sequence[int] | None,
    attn_bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float | None,
    is_causal: bool | None,
    softcap: float | None,
    sequences: Sequences | None,
    deterministic: bool,
    grad_query: Tensor | None,
    grad_key: Tensor | None,
    grad_value: Tensor | None,
    grad_bias: Tensor | None,
    num_threads: int,
    stream: int,
    allocate: Callable[[Tensor, int], Tensor],
) -> None:
    """Write the gradients that are given. `mask_shape` as in forward."""

def select_keys(
    attn_bias: Tensor,
    key_padding_mask: Tensor | None,
    keep_window_size: int,
    end: Tensor | None,
    columns: Tensor | None,
    counts: Tensor | None,
    packed_mask: Tensor | None,
    is_causal: bool,
    num_threads: int,
    stream: int,
    allocate: Callable[[Tensor, int], Tensor],
) -> None:
    """Write `end`, or `columns` and `counts`, or `packed_mask`, to which `is_causal` belongs."""

def pack_mask(
    mask: Tensor,
    len_k: int,
    packed_mask: Tensor,
    num_threads: int,
    stream: int,
    allocate: Callable[[Tensor, int], Tensor],
) -> None:
    """Write the bits of a dense mask."""

def cache_append(
    cache: Sequence[Tensor],
    next_position: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor,
    num_threads: int,
    stream: int,
    allocate: Callable[[Tensor, int], Tensor],
) -> None:
    """Change `cache` (key, value, bias, position) in place; add the number of tokens to `next_position`."""

def cache_gather(
    cache: Sequence[Tensor],
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor,
    num_threads: int,
    stream: int,
    allocate: Callable[[Tensor, int], Tensor],
) -> None:
    """Write the slots of `cache` in order of position."""
