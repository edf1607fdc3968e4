"""Triton as a backend: this project's own kernels for GPUs and calls that libfdma's are not built for."""

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Callable, List, Optional, Tuple, Union

import torch
from torch.autograd.function import once_differentiable

from flash_dmattn.backends.base import Backend, CallKind, ignored_options
from flash_dmattn.backends.checks import check_call
from flash_dmattn.dynamic_mask import AttentionMask, dense_mask
from flash_dmattn.inputs import needs_gradient

OLDEST_TRITON = (3, 0)
OLDEST_CAPABILITY = (8, 0)


def triton_dmattn_func(
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
) -> Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]:
    """Attention with a mask and a bias, by kernels in Triton.

    The arguments and the result are those of :func:`flash_dmattn.flash_dmattn_func`, but for what is said here. Nothing
    is expanded, padded or converted beforehand, and no tensor of the size of the scores is made for a broadcast bias
    or its gradient. Tiles of scores that the mask or causality hides whole are skipped.

    Parameters
    ----------
    query : torch.Tensor
        ``(B, Lq, H, D)``, float16, bfloat16 or float32, on CUDA. ``D`` is a multiple of 8 up to 256; tiles are as wide
        as the next power of two. float32 is computed without tensor cores, in full precision.
    key, value : torch.Tensor
        ``(B, Lk, H_kv, D)``, of the dtype and device of `query`; ``H`` is a multiple of ``H_kv``.
    attn_mask : torch.Tensor or DynamicMask, optional
        ``({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})``, bool or any integer or floating dtype: non-zero is visible. One bit a
        score is kept for backward. A DynamicMask is expanded to a dense mask first.
    attn_bias : torch.Tensor, optional
        ``({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})``, float16, bfloat16 or float32. Its gradient has its shape and dtype and
        is summed in float32.
    scale : float, optional
        Factor of the scores, any finite number. Default ``1 / sqrt(D)``.
    is_causal : bool, optional
        Hide the keys after each query; the diagonal ends in the bottom-right corner. Default False.
    softcap, deterministic : optional
        Checked, and ignored: only libfdma has them. Gradients are reproducible all the same, but for that of a bias
        that is summed over the batch or over heads, which uses atomic additions.
    return_lse : bool
        Return the lse too.

    Returns
    -------
    out : torch.Tensor
        ``(B, Lq, H, D)``, contiguous, of the dtype of `query`; zeros where a row sees no key. Differentiable once in
        `query`, `key`, `value` and `attn_bias`.
    lse : torch.Tensor
        With `return_lse`: ``(B, H, Lq)``, float32, the natural logarithm of the sum of exponentials of the scores that
        a row sees; -inf for a row that sees no key. Differentiable once in `query`, `key` and `attn_bias`.

    Raises
    ------
    ValueError
        A shape, a layout, a device or a number that does not fit. The message names the argument, what it got and what
        is accepted. CPU tensors are accepted in Triton's interpreter (``TRITON_INTERPRET=1``) only.
    TypeError
        An argument of the wrong type, or a dtype that the argument does not take.
    RuntimeError
        Triton is missing or cannot run here. The message says why.

    Examples
    --------
    >>> import torch
    >>> from flash_dmattn import TRITON_AVAILABLE, triton_dmattn_func
    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> query = torch.randn(1, 64, 4, 32, device=device)
    >>> key, value = torch.randn(2, 1, 64, 2, 32, device=device).unbind()
    >>> bias = torch.randn(1, 2, 1, 64, device=device)
    >>> keep = bias.topk(16, dim=-1).values[..., -1:] <= bias
    >>> if TRITON_AVAILABLE:
    ...     assert triton_dmattn_func(query, key, value, attn_mask=keep, attn_bias=bias).shape == query.shape
    """
    _require_available()
    check_call(query, key, value, attn_mask, attn_bias, scale, is_causal, softcap, deterministic, return_lse)
    _check_device(query)
    arguments = (
        query,
        key,
        value,
        dense_mask(attn_mask, query.shape[1]),
        attn_bias,
        query.shape[-1] ** -0.5 if scale is None else float(scale),
        bool(is_causal),
    )
    if needs_gradient((query, key, value), attn_bias):
        out, lse = _record(*arguments)
    else:
        with _device_guard(query):
            out, lse, _ = _kernels().attention_forward(*arguments)
    return (out, lse) if return_lse else out


class _TritonAttention(torch.autograd.Function):
    """Saves the inputs, the output, the lse and the mask as bits; recomputes the scores in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: Optional[torch.Tensor],
        attn_bias: Optional[torch.Tensor],
        scale: float,
        is_causal: bool,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Run attention and keep what backward reads."""
        with _device_guard(query):
            out, lse, packed_mask = _kernels().attention_forward(
                query, key, value, attn_mask, attn_bias, scale, is_causal
            )
        # The dense mask itself is not kept.
        ctx.save_for_backward(query, key, value, attn_bias, out, lse, *(packed_mask or ()))
        ctx.options = (scale, is_causal)
        # So that a gradient that lse does not have costs nothing.
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_out: Optional[torch.Tensor], grad_lse: Optional[torch.Tensor]
    ) -> Tuple[Optional[torch.Tensor], ...]:
        """Compute the gradients that are needed, in the order of forward's arguments."""
        if grad_out is None and grad_lse is None:
            return (None,) * 7
        query, key, value, attn_bias, out, lse, *packed_mask = ctx.saved_tensors
        needs_query, needs_key, needs_value, _, needs_bias = ctx.needs_input_grad[:5]
        kernels = _kernels()
        with _device_guard(query):
            grad_query, grad_key, grad_value, grad_bias = kernels.attention_backward(
                grad_out,
                grad_lse,
                query,
                key,
                value,
                kernels.PackedMask(*packed_mask) if packed_mask else None,
                attn_bias,
                out,
                lse,
                *ctx.options,
                needs=(needs_query, needs_key, needs_value, needs_bias),
            )
        return grad_query, grad_key, grad_value, None, grad_bias, None, None


_record: Callable[..., Tuple[torch.Tensor, torch.Tensor]] = _TritonAttention.apply


@lru_cache(maxsize=None)
def _kernels() -> Any:
    # Late, because importing triton takes longer than importing all of this package.
    return import_module("flash_dmattn.triton_kernels.attention")


def _device_guard(tensor: torch.Tensor) -> Any:
    """Kernels are launched on the current device; a device that is no GPU has no guard to set (index -1)."""
    return torch.cuda.device_of(tensor)


def _check_device(query: torch.Tensor) -> None:
    if _kernels().is_interpreted():
        if query.device.type not in ("cpu", "cuda"):
            raise ValueError(f"query is on {query.device}; accepted in Triton's interpreter: cpu or cuda")
        if query.dtype == torch.bfloat16:
            raise TypeError("query.dtype is bfloat16; accepted in Triton's interpreter: float16, float32")
    elif query.device.type != "cuda":
        raise ValueError(
            f"query is on {query.device}; accepted: cuda, or cpu in Triton's interpreter, which runs where "
            f"TRITON_INTERPRET=1 was set before Triton was imported"
        )


def unavailable_reason() -> Optional[str]:
    """Why the kernels cannot run in this process; None when they can. Imports triton, initialises no device."""
    reason = _broken_triton_reason()
    if reason is not None or _kernels().is_interpreted():
        return reason
    if torch.cuda.is_available():
        return None
    return (
        f"torch {torch.__version__} finds no usable GPU; TRITON_INTERPRET=1 in the environment runs the kernels on the "
        f"CPU, slowly"
    )


@lru_cache(maxsize=None)  # of success: asking costs more than a small call, and refusals are not kept
def _require_available() -> None:
    reason = unavailable_reason()
    if reason is not None:
        raise RuntimeError(f"backend 'triton' is not available: {reason}")


@lru_cache(maxsize=None)
def _broken_triton_reason() -> Optional[str]:
    """Why the kernels cannot be imported and defined."""
    if find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    try:
        import triton
    except Exception as error:  # a broken installation raises anything; whatever it is, it is the reason
        return f"triton cannot be imported: {type(error).__name__}: {error}"
    if _version(triton.__version__) < OLDEST_TRITON:
        return f"triton is {triton.__version__}; accepted: {'.'.join(map(str, OLDEST_TRITON))} or newer"
    if _kernels().is_interpreted():
        return _broken_interpreter_reason(triton.__version__)
    return None


def _broken_interpreter_reason(triton_version: str) -> Optional[str]:
    import numpy

    # Triton issue 9171: NumPy 2.4 no longer turns arrays of one element into the bounds of a loop.
    if _version(triton_version) < (3, 7) and _version(numpy.__version__) >= (2, 4):
        return (
            f"the interpreter of triton {triton_version} cannot run with numpy {numpy.__version__}; "
            f"accepted: numpy older than 2.4, or triton 3.7 or newer"
        )
    return None


def _version(text: str) -> Tuple[int, ...]:
    """Major and minor version."""
    return tuple(int(part) for part in text.split(".")[:2])


def _unsupported_reasons(kind: CallKind) -> List[str]:
    reasons = ignored_options(kind)
    if kind.device.type == "cuda":
        capability = torch.cuda.get_device_capability(kind.device)
        if capability < OLDEST_CAPABILITY:
            given, accepted = (".".join(map(str, version)) for version in (capability, OLDEST_CAPABILITY))
            reasons.append(f"{kind.device} has compute capability {given}; accepted: {accepted} or newer")
    return reasons


backend = Backend(
    "triton",
    "cuda",
    unavailable_reason,
    triton_dmattn_func,
    unsupported_reasons=_unsupported_reasons,
    also_takes=("cpu",),
)
