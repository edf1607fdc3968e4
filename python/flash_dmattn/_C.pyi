"""Extension module over libfdma. Tensors are read where they lie; outputs are written in place."""

from collections.abc import Callable, Sequence

from torch import Tensor

__version__: str

def build_info() -> str:
    """Version, CUDA architectures and compiler, CPU instruction sets, on one line."""

def cuda_built() -> bool:
    """Whether the library has CUDA kernels. Touches no device."""

def cuda_unsupported_reason(device: int) -> str | None:
    """Why calls cannot run on this CUDA device; None when they can."""

def packed_mask_size(attn_mask: Tensor, len_k: int) -> int:
    """Bytes of the packed form of a dense mask over `len_k` keys."""

def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    attn_bias: Tensor | None,
    scale: float | None,
    is_causal: bool | None,
    softcap: float | None,
    out: Tensor,
    lse: Tensor | None,
    packed_mask: Tensor | None,
    num_threads: int,
    stream: int,
    allocate: Callable[[Tensor, int], Tensor],
) -> None:
    """Write `out` and, where given, `lse` and `packed_mask`.

    `allocate(query, bytes)` is called for scratch, when a call needs some. `num_threads` is for the CPU, `stream` (the
    raw pointer) for CUDA.
    """

def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed_mask: Tensor | None,
    mask_shape: Sequence[int] | None,
    attn_bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float | None,
    is_causal: bool | None,
    softcap: float | None,
    deterministic: bool,
    grad_query: Tensor | None,
    grad_key: Tensor | None,
    grad_value: Tensor | None,
    grad_bias: Tensor | None,
    num_threads: int,
    stream: int,
    allocate: Callable[[Tensor, int], Tensor],
) -> None:
    """Write the gradients that are given."""
