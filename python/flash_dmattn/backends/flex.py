"""FlexAttention as a backend: torch's own attention with mask and bias, compiled on CUDA and eager on the CPU."""

import itertools
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from flash_dmattn.backends.base import Backend, CallKind, ignored_options
from flash_dmattn.backends.checks import DTYPES, check_call
from flash_dmattn.dynamic_mask import AttentionMask, dense_mask
from flash_dmattn.inputs import needs_gradient

BLOCK = 128  # Rows and keys of a block of the block mask: what FlexAttention's kernels are tuned for.
SMALLEST_HEAD_DIM = 16  # Of Triton's matrix product.
COMPILED_CALLS = 128  # Forms of calls whose compiled functions are kept.
_NUMBERS = itertools.count()
Outputs = Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]
"""The output, or with `return_lse` the output and the lse."""


def flex_dmattn_func(
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
) -> Outputs:
    """Attention with a mask and a bias, by ``torch.nn.attention.flex_attention``.

    The arguments and the result are those of :func:`flash_dmattn.flash_dmattn_func`, but for what is said here.

    On CUDA each form of call (dtype, heads, head dim, broadcast dimensions, scalars) is compiled once, at its first
    use, and once more when lengths turn out to vary; other values of any tensor compile nothing. On the CPU it runs
    eagerly and holds all scores at once.

    Parameters
    ----------
    query : torch.Tensor
        ``(B, Lq, H, D)``, float16, bfloat16 or float32 on either device. ``D`` is a multiple of 8 up to 256.
    key, value : torch.Tensor
        ``(B, Lk, H_kv, D)``, of the dtype and device of `query`; ``H`` is a multiple of ``H_kv``.
    attn_mask : torch.Tensor or DynamicMask, optional
        ``({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})``, bool or any integer or floating dtype: non-zero is visible. Blocks of
        128 x 128 scores that it hides whole are skipped. The mask itself is kept for backward. A DynamicMask
        is expanded to a dense mask first.
    attn_bias : torch.Tensor, optional
        ``({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1})``, float16, bfloat16 or float32, with a gradient of its shape and dtype.
    scale : float, optional
        Factor of the scores, any finite number. Default ``1 / sqrt(D)``. Each value is compiled for.
    is_causal : bool, optional
        Hide the keys after each query; the diagonal ends in the bottom-right corner. Default False.
    softcap, deterministic : optional
        Checked, and ignored: only libfdma has them.
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
        is accepted.
    TypeError
        An argument of the wrong type, or a dtype that the argument does not take.
    RuntimeError
        This torch has no FlexAttention, or none for this device. The message says why.

    Examples
    --------
    >>> import torch
    >>> from flash_dmattn import flex_dmattn_func
    >>> query = torch.randn(1, 32, 4, 16)
    >>> key, value = torch.randn(2, 1, 32, 2, 16).unbind()
    >>> bias = torch.randn(1, 2, 1, 32)
    >>> keep = bias.topk(8, dim=-1).values[..., -1:] <= bias
    >>> flex_dmattn_func(query, key, value, attn_mask=keep, attn_bias=bias, is_causal=True).shape
    torch.Size([1, 32, 4, 16])
    """
    reason = unavailable_reason()
    if reason is not None:
        raise RuntimeError(f"backend 'flex' is not available: {reason}")
    check_call(query, key, value, attn_mask, attn_bias, scale, is_causal, softcap, deterministic, return_lse)
    if query.device.type not in backend.device_types:
        raise ValueError(f"query is on {query.device}; accepted: {' or '.join(backend.device_types)}")
    attn_mask = dense_mask(attn_mask, query.shape[1])
    if attn_mask is not None:
        attn_mask = _readable_mask(attn_mask.detach())
    if 0 in query.shape or key.shape[1] == 0:
        out, lse = _results_without_keys(query, key, value, attn_bias)
        return (out, lse) if return_lse else out
    form = CallForm.of(query, key, attn_mask, attn_bias, scale, bool(is_causal), return_lse)
    if query.is_cuda:
        return _attend_compiled(form, query, key, value, attn_mask, attn_bias)
    if not needs_gradient((query, key, value), attn_bias):
        return _attend_eagerly(form, query, key, value, attn_mask, attn_bias)
    results = _record_eager(form, query, key, value, attn_mask, attn_bias)
    if isinstance(results, torch.Tensor):
        return results
    return results[0], _without_gradient_of_dead_rows(results[1])


class CallForm(NamedTuple):
    """What a call is compiled for, beside the lengths, which may vary.

    `mask` and `bias` name the dimensions that are not broadcast, of ``"BHQK"``, with ``"G"`` for kv heads; None where
    there is no such tensor.
    """

    heads: int
    heads_kv: int
    scale: float
    is_causal: bool
    mask: Optional[str]
    bias: Optional[str]
    return_lse: bool = False

    @classmethod
    def of(
        cls,
        query: torch.Tensor,
        key: torch.Tensor,
        attn_mask: Optional[torch.Tensor],
        attn_bias: Optional[torch.Tensor],
        scale: Optional[float],
        is_causal: bool,
        return_lse: bool = False,
    ) -> "CallForm":
        """Form of a checked call."""
        heads, head_dim = query.shape[2:]
        heads_kv = key.shape[2]
        scale = head_dim**-0.5 if scale is None else float(scale)
        mask, bias = (None if t is None else _live_dims(t, heads) for t in (attn_mask, attn_bias))
        return cls(heads, heads_kv, scale, is_causal, mask, bias, return_lse)


def _live_dims(tensor: torch.Tensor, heads: int) -> str:
    names = ("B", "H" if tensor.shape[1] == heads else "G", "Q", "K")
    return "".join(name for name, extent in zip(names, tensor.shape) if extent > 1)


def _is_of_kv_heads(dims: Optional[str]) -> bool:
    return dims is not None and "G" in dims


def _readable_mask(mask: torch.Tensor) -> torch.Tensor:
    """Wide unsigned integers compare with 0 on no device; as signed ones of the same bits they do."""
    if mask.is_floating_point() or mask.dtype in (torch.bool, torch.uint8) or torch.iinfo(mask.dtype).min < 0:
        return mask
    return mask.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[mask.element_size()])


def _results_without_keys(
    query: torch.Tensor, *tensors: Optional[torch.Tensor]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Output and lse where nobody sees a key; they give every tensor a gradient of zeros."""
    everywhere = torch.ones((), dtype=torch.bool, device=query.device)
    query, *others = (tensor.masked_fill(everywhere, 0) for tensor in (query, *tensors) if tensor is not None)
    out = sum((other.sum().to(query.dtype) for other in others), query).contiguous()
    lse = out.float().sum(dim=-1).transpose(1, 2).masked_fill(everywhere, -torch.inf)
    return out, lse.contiguous()


def _without_gradient_of_dead_rows(lse: torch.Tensor) -> torch.Tensor:
    """Return `lse`, constant for rows that see nothing: merging two calls gives them a gradient of NaN."""
    return lse.masked_fill(lse == -torch.inf, -torch.inf)


def _reader(tensor: torch.Tensor, dims: str, heads: int, group: int) -> Callable[..., torch.Tensor]:
    """Function of (batch, head, query, key) indices that reads a mask or bias at them.

    Broadcast dimensions are left out of the index, rather than expanded: so is the gradient that autograd makes of it,
    which then has the tensor's own size.
    """
    if not dims:
        # One number for all: kernels do not compile with an index that is no block of any tile.
        tensor, dims = tensor.reshape(1, 1, 1, 1).expand(1, heads, 1, 1).contiguous(), "H"
    view = tensor.squeeze() if tensor.numel() > 1 else tensor.reshape(1)
    # FlexAttention's kernels compute with 32-bit indices unless its own tensors, not those captured here, need more.
    wide = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) >= 2**31

    def read(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        at = {"B": b, "H": h, "G": h // group, "Q": q, "K": k}
        index = tuple(at[dim] for dim in dims)
        return view[tuple(i.long() for i in index) if wide else index]

    return read


def _attend(
    form: CallForm,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    attn_bias: Optional[torch.Tensor],
    diagonal: Optional[torch.Tensor],
) -> Outputs:
    """The call in terms of FlexAttention; compiled as a whole or run as it is.

    `diagonal` is ``Lk - Lq``, int64 ``()``, of a causal call where that is not 0. Compiled for lengths that vary,
    kernels can read a tensor, but not a difference of lengths.
    """
    from torch.nn.attention.flex_attention import flex_attention

    group = form.heads // form.heads_kv
    score_mod = None
    if attn_bias is not None and form.bias is not None:
        read_bias = _reader(attn_bias, form.bias, form.heads, group)

        def score_mod(
            score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor
        ) -> torch.Tensor:
            return score + read_bias(b, h, q, k)

    results = flex_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        score_mod=score_mod,
        block_mask=_block_mask(form, query.shape[1], key.shape[1], attn_mask, diagonal, query.device),
        scale=form.scale,
        enable_gqa=group > 1,
        kernel_options=_kernel_options(form) if query.is_cuda else None,
        **(_lse_request() if form.return_lse else {}),
    )
    out: torch.Tensor
    lse: Any  # it or a tuple that holds it, as torch has it
    out, lse = results if form.return_lse else (results, None)
    out = out.transpose(1, 2).contiguous()
    if lse is None:
        return out
    if not isinstance(lse, torch.Tensor):
        lse = lse.lse
    return out, _without_gradient_of_dead_rows(lse)


def _kernel_options(form: CallForm) -> Any:  # FlexKernelOptions, which older torch does not have
    """What FlexAttention's choice of kernels and tiles does not take into account.

    Its kernel for few queries cannot read every mask or bias. Tiles of a mask or bias are staged in shared memory as
    keys and values are, and the three stages of its default tiles then need more of it than there is.
    """
    options: Dict[str, Any] = {"FORCE_USE_FLEX_ATTENTION": True}
    if form.mask is not None or form.bias is not None:
        options["num_stages"] = 2
    return options


def _lse_request() -> Dict[str, Any]:
    """Arguments by which this torch's FlexAttention returns the lse, as itself or in a tuple of what was asked for."""
    from torch.nn.attention import flex_attention

    if hasattr(flex_attention, "AuxRequest"):
        return {"return_aux": flex_attention.AuxRequest(lse=True)}
    return {"return_lse": True}


def _block_mask(
    form: CallForm,
    len_q: int,
    len_k: int,
    attn_mask: Optional[torch.Tensor],
    diagonal: Optional[torch.Tensor],
    device: torch.device,
) -> Optional[Any]:
    """BlockMask of mask and causality; None when neither hides a score.

    Made of the tensors directly: ``create_block_mask`` would first evaluate the rule on all (B, H, Lq, Lk) indices.
    """
    from torch.nn.attention.flex_attention import BlockMask

    if attn_mask is None and not form.is_causal:
        return None
    group = form.heads // form.heads_kv
    read_mask = None
    if attn_mask is not None and form.mask is not None:
        read_mask = _reader(attn_mask, form.mask, form.heads, group)

    def in_time(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return k <= (q if diagonal is None else q + diagonal)

    def sees(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        if read_mask is None:
            return in_time(q, k)
        visible = read_mask(b, h, q, k) != 0
        return visible & in_time(q, k) if form.is_causal else visible

    some, every = visible_blocks(form, len_q, len_k, attn_mask, device)
    full_counts, full_order = (None, None) if every is None else _as_lists(every)
    return BlockMask.from_kv_blocks(
        *_as_lists(some), full_counts, full_order, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(len_q, len_k)
    )


def visible_blocks(
    form: CallForm, len_q: int, len_k: int, attn_mask: Optional[torch.Tensor], device: torch.device
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Blocks in which some, but perhaps not every, score is visible; and those in which every score surely is.

    Bool ``({B|1}, {H|1}, Lq / BLOCK, Lk / BLOCK)``, lengths rounded up. With a mask there are none of the second kind:
    to know them, it would have to be read a second time. For calls with a mask or causality.
    """
    rows = torch.arange(-(-len_q // BLOCK), device=device)[:, None]
    keys = torch.arange(-(-len_k // BLOCK), device=device)
    if form.is_causal:
        last_row = torch.clamp((rows + 1) * BLOCK, max=len_q) - 1
        some = keys * BLOCK <= last_row + (len_k - len_q)
    else:
        some = (rows >= 0) & (keys >= 0)
    some = some[None, None]
    if attn_mask is None:
        within = ((rows + 1) * BLOCK <= len_q) & ((keys + 1) * BLOCK <= len_k)
        every = some & within & ((keys + 1) * BLOCK - 1 <= rows * BLOCK + (len_k - len_q))
        return some & ~every, every
    shown = _any_in_blocks(_any_in_blocks(attn_mask != 0, 3), 2)
    if _is_of_kv_heads(form.mask):
        shown = shown.repeat_interleave(form.heads // form.heads_kv, dim=1)
    return some & shown, None


def _any_in_blocks(visible: torch.Tensor, dim: int) -> torch.Tensor:
    """Dimension `dim`, unless broadcast, in blocks: whether one has a true element."""
    length = visible.shape[dim]
    if length == 1:
        return visible
    blocks = -(-length // BLOCK)
    padding = [0, 0] * (3 - dim) + [0, blocks * BLOCK - length]
    in_blocks: torch.Tensor = F.pad(visible, padding).unflatten(dim, (blocks, BLOCK))
    return in_blocks.any(dim=dim + 1)


def _as_lists(blocks: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Number of true blocks of each row, and their indices first, in order: int32 (B, H, rows), (B, H, rows, keys)."""
    counts = blocks.sum(dim=-1, dtype=torch.int32)
    order = torch.argsort(blocks.to(torch.int32), dim=-1, descending=True, stable=True)
    return counts, order.to(torch.int32)


def _diagonal(form: CallForm, query: torch.Tensor, key: torch.Tensor) -> Optional[torch.Tensor]:
    offset = key.shape[1] - query.shape[1]
    return torch.full((), offset, device=query.device) if form.is_causal and offset != 0 else None


def _attend_eagerly(
    form: CallForm,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    attn_bias: Optional[torch.Tensor],
) -> Outputs:
    """On the CPU, where FlexAttention refuses tensors that need a gradient even if none is recorded."""
    query, key, value = query.detach(), key.detach(), value.detach()
    bias = None if attn_bias is None else attn_bias.detach()
    return _attend(form, query, key, value, attn_mask, bias, _diagonal(form, query, key))


class _EagerAttention(torch.autograd.Function):
    """FlexAttention on the CPU, which has no backward there, with the derivative of its definition."""

    @staticmethod
    def forward(ctx: Any, form: CallForm, *tensors: Any) -> Outputs:
        """Run FlexAttention."""
        ctx.save_for_backward(*tensors)
        ctx.form = form
        return _attend_eagerly(form, *tensors)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_out: torch.Tensor, grad_lse: Optional[torch.Tensor] = None
    ) -> Tuple[Optional[torch.Tensor], ...]:
        """Gradients of query, key, value and attn_bias in float32, rounded to their dtypes at the end."""
        form, (query, key, value, attn_mask, attn_bias) = ctx.form, ctx.saved_tensors
        group = form.heads // form.heads_kv

        def head_major(tensor: torch.Tensor) -> torch.Tensor:  # (B, L, H or H_kv, D) to (B, H, L, D)
            tensor = tensor.float().transpose(1, 2)
            return tensor if tensor.shape[1] == form.heads else tensor.repeat_interleave(group, dim=1)

        def over_kv_heads(grad: torch.Tensor) -> torch.Tensor:  # (B, H, L, D) to (B, L, H_kv, D)
            by_group: torch.Tensor = grad.unflatten(1, (form.heads_kv, group))
            return by_group.sum(dim=2).transpose(1, 2)

        q, k, v, grad = (head_major(tensor) for tensor in (query, key, value, grad_out))
        weights = _weights(form, form.scale * (q @ k.transpose(2, 3)), attn_mask, attn_bias)
        grad_weights = grad @ v.transpose(2, 3)
        grad_of_sum = (weights * grad_weights).sum(dim=-1, keepdim=True)
        if grad_lse is not None:
            grad_of_sum = grad_of_sum - grad_lse[..., None]
        grad_scores = weights * (grad_weights - grad_of_sum)
        grads = (
            form.scale * (grad_scores @ k).transpose(1, 2),
            form.scale * over_kv_heads(grad_scores.transpose(2, 3) @ q),
            over_kv_heads(weights.transpose(2, 3) @ grad),
        )
        grad_bias = None
        if attn_bias is not None and ctx.needs_input_grad[5]:
            if _is_of_kv_heads(form.bias):
                grad_scores = grad_scores.unflatten(1, (form.heads_kv, group)).sum(dim=2)
            grad_bias = grad_scores.sum_to_size(attn_bias.shape).to(attn_bias.dtype)
        return (None, *(grad.to(query.dtype) for grad in grads), None, grad_bias)


_record_eager: Callable[..., Outputs] = _EagerAttention.apply


def _weights(
    form: CallForm, scores: torch.Tensor, attn_mask: Optional[torch.Tensor], attn_bias: Optional[torch.Tensor]
) -> torch.Tensor:
    """Softmax of the scores (B, H, Lq, Lk) over what is visible, zeros for a row that sees nothing."""
    group = form.heads // form.heads_kv

    def over_heads(tensor: torch.Tensor, dims: Optional[str]) -> torch.Tensor:
        return tensor.repeat_interleave(group, dim=1) if _is_of_kv_heads(dims) else tensor

    if attn_bias is not None:
        scores = scores + over_heads(attn_bias, form.bias).float()
    if attn_mask is not None:
        scores = scores.masked_fill(over_heads(attn_mask, form.mask) == 0, -torch.inf)
    if form.is_causal:
        len_q, len_k = scores.shape[2:]
        after = torch.ones(len_q, len_k, dtype=torch.bool).triu(1 + len_k - len_q)
        scores = scores.masked_fill(after, -torch.inf)
    sees_none = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return scores.softmax(dim=-1).masked_fill(sees_none, 0.0)


def _attend_compiled(
    form: CallForm,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    attn_bias: Optional[torch.Tensor],
) -> Outputs:
    head_dim = query.shape[3]
    # Backward writes gradients by the strides of their tensors, which a repeated row would make collide.
    query, key, value = (tensor if _is_injective(tensor) else tensor.contiguous() for tensor in (query, key, value))
    if head_dim < SMALLEST_HEAD_DIM:
        query, key, value = (F.pad(tensor, (0, SMALLEST_HEAD_DIM - head_dim)) for tensor in (query, key, value))
    tensors = (query, key, value, attn_mask, attn_bias, _diagonal(form, query, key))
    if torch.compiler.is_compiling():
        results = _attend(form, *tensors)  # becomes a part of the graph that the caller compiles
    else:
        records = torch.is_grad_enabled()
        signature = tuple(None if t is None else (t.dtype, records and t.requires_grad) for t in tensors)
        results = _compiled(form, query.shape[3], signature)(*tensors)
    if head_dim >= SMALLEST_HEAD_DIM:
        return results
    if isinstance(results, torch.Tensor):
        return results[..., :head_dim].contiguous()
    out, lse = results
    return out[..., :head_dim].contiguous(), lse


def _is_injective(tensor: torch.Tensor) -> bool:
    return all(stride > 0 or extent <= 1 for stride, extent in zip(tensor.stride(), tensor.shape))


@lru_cache(maxsize=COMPILED_CALLS)
def _compiled(form: CallForm, head_dim: int, signature: Tuple[Any, ...]) -> Callable[..., Outputs]:
    """A compiled :func:`_attend` for calls of one form; it recompiles for lengths and strides only."""

    def attend(*tensors: Any) -> Outputs:
        return _attend(form, *tensors)

    # torch.compile counts recompilations, up to a limit, by code object, and remembers which sizes vary by its name:
    # with one for all, many forms in one process would reach the limit.
    attend.__code__ = attend.__code__.replace(co_name=f"attend_{next(_NUMBERS)}")
    return torch.compile(attend, fullgraph=True)


def unavailable_reason() -> Optional[str]:
    """Why FlexAttention cannot run in this process; None when it can. Imports nothing of it."""
    if torch.__version__ < "2.6":  # compared as versions
        return f"torch {torch.__version__} has no FlexAttention with gradients of biases; torch 2.6 or newer has"
    return None


def unsupported_reasons(kind: CallKind) -> List[str]:
    """Why FlexAttention is not for calls of this kind."""
    reasons = ignored_options(kind)
    if kind.dtype not in DTYPES:
        reasons.append(f"query.dtype is {str(kind.dtype)[6:]}; accepted: float16, bfloat16, float32")
    if kind.device.type == "cuda" and find_spec("triton") is None:
        reasons.append("FlexAttention on CUDA is compiled by triton, which is not installed; pip install triton")
    return reasons


backend = Backend("flex", "cuda", unavailable_reason, flex_dmattn_func, unsupported_reasons, also_takes=("cpu",))
