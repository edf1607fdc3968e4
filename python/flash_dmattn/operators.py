"""libfdma as operators of torch.library, for everything in torch that looks at programs rather than runs them.

Registering them needs ``torch.library.register_fake`` and ``register_autograd`` (torch 2.4). Without these
:data:`UNAVAILABLE` says so, nothing is registered and every call goes straight to the library: torch.compile breaks its
graph there, and FakeTensor, dispatch modes and functorch transforms have nothing to work with.

An eager call does not go through an operator: that would cost it several times what it costs to call the library.
"""

from functools import lru_cache
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from flash_dmattn import ops
from flash_dmattn.autograd import gradients, kept_for_backward, shape_of_packed
from flash_dmattn.layouts import LAYOUTS, Layout
from flash_dmattn.sequences import Sequences, lse_shape, refuse_gradient_of_pages

NAMESPACE = "flash_dmattn"

_MISSING = [name for name in ("register_fake", "register_autograd") if not hasattr(torch.library, name)]
UNAVAILABLE: Optional[str] = (
    f"torch {torch.__version__} has no torch.library.{_MISSING[0]}; torch.compile of attention in one graph, "
    f"FakeTensor and dispatch modes need torch 2.4 or newer"
    if _MISSING
    else None
)

_Tensor = torch.Tensor
_NO_DISPATCH = torch.Tensor.__torch_dispatch__
is_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)
# Modes in which tensors are watched rather than computed: __torch_dispatch__ modes, functorch, torch.jit.trace.
_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_transforms = torch._C._are_functorch_transforms_active
_jit_tracing_state = torch._C._get_tracing_state


def _operator_is_needed(
    tensors: Sequence[torch.Tensor], attn_mask: Optional[torch.Tensor], attn_bias: Optional[torch.Tensor]
) -> bool:
    if is_compiling() or _dispatch_modes() or _functorch_transforms() or _jit_tracing_state() is not None:
        return True
    for tensor in tensors:  # loops: any() over a generator takes twice as long
        if type(tensor) is not _Tensor and _has_dispatch(tensor):
            return True
    return (attn_mask is not None and _has_dispatch(attn_mask)) or (attn_bias is not None and _has_dispatch(attn_bias))


def _has_dispatch(tensor: torch.Tensor) -> bool:
    """Whether it is a FakeTensor, a DTensor or another tensor that is not what it seems to hold."""
    return type(tensor).__torch_dispatch__ is not _NO_DISPATCH


operator_is_needed: Callable[..., bool] = (lambda *call: False) if UNAVAILABLE else _operator_is_needed
"""Whether torch has to see a call on these tensors as an operator."""


def call_operator(
    layout: Layout,
    tensors: Sequence[torch.Tensor],
    attn_mask: Optional[torch.Tensor],
    mask_kind: int,
    mask_shape: Optional[Sequence[int]],
    attn_bias: Optional[torch.Tensor],
    scale: Optional[float],
    is_causal: Optional[bool],
    softcap: Optional[float],
    deterministic: bool,
    recorded: bool,
    sequences: Optional[Sequences] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Output and lse by the operator of `layout`. `recorded` says that a backward pass may follow."""
    if not is_compiling():
        _give_formulas_to_flop_counters()
    operator = getattr(getattr(torch.ops, NAMESPACE), f"attention{layout.suffix}")
    keep_mask = recorded and attn_mask is not None and mask_kind == ops.MASK_DENSE
    options = (scale, bool(is_causal), softcap, deterministic, keep_mask)
    out, lse, _ = operator.default(*tensors, attn_mask, mask_kind, mask_shape, attn_bias, *options, *(sequences or ()))
    return out, lse


def _schemas(layout: Layout) -> Tuple[str, str]:
    tensors = ", ".join(f"Tensor {name}" for name in layout.arguments)
    options = "float? scale, bool is_causal, float? softcap, bool deterministic"
    grads = ", ".join(f"Tensor grad_{name}" for name in (*layout.arguments, "bias"))
    lengths = table = ""
    if layout.has_sequences:
        lengths = ", Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k"
        table = ", Tensor? block_table"
    forward = (
        f"attention{layout.suffix}({tensors}, Tensor? attn_mask, int mask_kind, "
        f"SymInt[]? mask_shape, Tensor? attn_bias, {options}, bool keep_mask{lengths}{table})"
        f" -> (Tensor out, Tensor lse, Tensor packed_mask)"
    )
    backward = (
        f"attention{layout.suffix}_backward(Tensor? grad_out, Tensor? grad_lse, {tensors}, Tensor? kept_mask, "
        f"int mask_kind, SymInt[]? mask_shape, Tensor? attn_bias, Tensor out, Tensor lse, {options}, bool[] needs"
        f"{lengths}) -> ({grads})"
    )
    return forward, backward


# Arguments between the tensors of a layout and its sequences.
_FORWARD_OPTIONS = 9
_BACKWARD_OPTIONS = 11


class _Operator:
    """The kernels of one layout's operators. What an operator does not give is a tensor of no elements."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.count = len(layout.arguments)

    def forward(self, *arguments: Any) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tensors, inputs, sequences = self._split(arguments, _FORWARD_OPTIONS)
        attn_mask, mask_kind, mask_shape, attn_bias, scale, is_causal, softcap, _, keep_mask = inputs
        query, key, value = self.layout.split(tensors)
        options = (scale, is_causal, softcap, keep_mask, True, sequences, mask_kind, mask_shape)
        out, lse, packed_mask = ops.attention_forward(query, key, value, attn_mask, attn_bias, *options)
        assert lse is not None, "it is asked for"
        return out, lse, query.new_empty(0, dtype=torch.uint8) if packed_mask is None else packed_mask

    def fake_forward(self, *arguments: Any) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tensors, (attn_mask, *_, keep_mask), sequences = self._split(arguments, _FORWARD_OPTIONS)
        query, key, _ = self.layout.split(tensors)
        mask_bytes = 0
        if keep_mask and attn_mask is not None:
            mask_bytes = ops.packed_mask_bytes(*shape_of_packed(attn_mask, key, sequences))
        return (
            query.new_empty(query.shape),
            query.new_empty(lse_shape(query.shape, sequences), dtype=torch.float32),
            query.new_empty(mask_bytes, dtype=torch.uint8),
        )

    def backward(self, grad_out: Any, grad_lse: Any, *arguments: Any) -> Tuple[torch.Tensor, ...]:
        tensors, saved, sequences = self._split(arguments, _BACKWARD_OPTIONS)
        kept_mask, mask_kind, mask_shape, attn_bias, out, lse, *options, deterministic, needs = saved
        grads = gradients(
            self.layout,
            grad_out,
            grad_lse,
            tensors,
            kept_mask,
            mask_kind,
            mask_shape,
            attn_bias,
            out,
            lse,
            tuple(options),
            deterministic,
            sequences,
            needs,
        )
        return tuple(out.new_empty(0) if grad is None else grad for grad in grads)

    def fake_backward(self, grad_out: Any, grad_lse: Any, *arguments: Any) -> Tuple[torch.Tensor, ...]:
        tensors, (_, _, _, attn_bias, out, *_, needs), _ = self._split(arguments, _BACKWARD_OPTIONS)
        return tuple(
            tensor.new_empty(tensor.shape) if needed and tensor is not None else out.new_empty(0)
            for tensor, needed in zip((*tensors, attn_bias), needs)
        )

    def keep(self, ctx: Any, inputs: Tuple[Any, ...], output: Tuple[torch.Tensor, ...]) -> None:
        tensors, others, sequences = self._split(inputs, _FORWARD_OPTIONS)
        attn_mask, mask_kind, mask_shape, attn_bias, *options, keep_mask = others
        if attn_mask is not None and mask_kind == ops.MASK_DENSE and not keep_mask:
            raise RuntimeError("keep_mask is False in a call that is differentiated; accepted: True")
        offsets: Sequence[torch.Tensor] = ()
        ctx.bounds = ()
        if sequences is not None:
            refuse_gradient_of_pages(sequences, tensors, attn_bias)
            offsets, ctx.bounds = sequences.offsets, sequences.bounds
        out, lse, packed_mask = output
        key = self.layout.split(tensors)[1]
        kept = kept_for_backward(attn_mask, mask_kind, mask_shape, packed_mask, key, sequences)
        kept_mask, *ctx.kind_and_shape = kept
        ctx.save_for_backward(kept_mask, attn_bias, out, lse, *tensors, *offsets)
        ctx.options = options
        ctx.set_materialize_grads(False)

    def differentiate(self, ctx: Any, grad_out: Any, grad_lse: Any, _: Any) -> Tuple[Optional[torch.Tensor], ...]:
        kept_mask, attn_bias, out, lse, *kept = ctx.saved_tensors
        tensors, offsets = kept[: self.count], kept[self.count :]
        needs: List[bool] = [*ctx.needs_input_grad[: self.count], ctx.needs_input_grad[self.count + 3]]
        no_gradient = (None,) * (len(ctx.needs_input_grad) - self.count - 4)
        if grad_out is None and grad_lse is None:
            return (*(None,) * (self.count + 4), *no_gradient)
        operator = getattr(getattr(torch.ops, NAMESPACE), f"attention{self.layout.suffix}_backward")
        saved = (*tensors, kept_mask, *ctx.kind_and_shape, attn_bias, out, lse)
        results = operator.default(grad_out, grad_lse, *saved, *ctx.options, needs, *offsets, *ctx.bounds)
        *grads, grad_bias = (grad if needed else None for grad, needed in zip(results, needs))
        return (*grads, None, None, None, grad_bias, *no_gradient)

    def flops(self, *arguments: Any, out_val: Any = None, **others: Any) -> int:
        """Two products of matrices, whatever is hidden: as torch counts its own attention."""
        tensors, _, sequences = self._split(arguments, _FORWARD_OPTIONS)
        return 2 * _flops_of_a_product(tensors, sequences)

    def flops_of_backward(
        self, grad_out: Any, grad_lse: Any, *arguments: Any, out_val: Any = None, **others: Any
    ) -> int:
        """Five: the scores again, and one for each operand of each product of forward."""
        tensors, _, sequences = self._split(arguments, _BACKWARD_OPTIONS)
        return 5 * _flops_of_a_product(tensors, sequences)

    def _split(
        self, arguments: Sequence[Any], options: int
    ) -> Tuple[Sequence[Any], Sequence[Any], Optional[Sequences]]:
        """The tensors of the layout, what all layouts have, and the sequences."""
        end = self.count + options
        sequences = Sequences(*arguments[end:]) if self.layout.has_sequences else None
        return arguments[: self.count], arguments[self.count : end], sequences


def _flops_of_a_product(tensors: Sequence[torch.Tensor], sequences: Optional[Sequences]) -> int:
    # Packed or not, the first tensor ends in the heads and head dim of query, the last has the length of key.
    *_, heads, head_dim = tensors[0].shape
    if sequences is None:
        batch, len_q = tensors[0].shape[:2]
        scores = batch * len_q * tensors[-1].shape[1]
    else:
        lengths_q, lengths_k = (_lengths(*side) for side in zip(sequences.offsets, sequences.bounds))
        scores = sum(len_q * len_k for len_q, len_k in zip(lengths_q, lengths_k))
    return 2 * heads * scores * head_dim


def _lengths(offsets: torch.Tensor, bound: int) -> Sequence[int]:
    """Lengths of sequences, or their bound where nobody knows the values."""
    if offsets.is_meta or _has_dispatch(offsets):
        return [bound] * (offsets.shape[0] - 1)
    return offsets.diff().tolist()


def _refuse_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("attention is differentiable once: its gradients have no derivative")


def operator_tags() -> Tuple[Any, ...]:
    """Tags of an operator that reads the strides that it was traced with."""
    # A compiler may not change the strides of what it passes: last dimensions have to stay contiguous.
    strides = next(
        (getattr(torch.Tag, n) for n in ("needs_exact_strides", "needs_fixed_stride_order") if hasattr(torch.Tag, n)),
        None,
    )
    return (torch.Tag.pt2_compliant_tag,) if strides is None else (torch.Tag.pt2_compliant_tag, strides)


def _register(library: "torch.library.Library", layout: Layout) -> None:
    operator = _Operator(layout)
    forward, backward = (f"attention{layout.suffix}", f"attention{layout.suffix}_backward")
    for schema in _schemas(layout):
        library.define(schema, tags=operator_tags())
    for key in ("CPU", "CUDA"):
        library.impl(forward, operator.forward, key)
        library.impl(backward, operator.backward, key)
    torch.library.register_fake(f"{NAMESPACE}::{forward}", operator.fake_forward, lib=library)
    torch.library.register_fake(f"{NAMESPACE}::{backward}", operator.fake_backward, lib=library)
    torch.library.register_autograd(
        f"{NAMESPACE}::{forward}", operator.differentiate, setup_context=operator.keep, lib=library
    )
    torch.library.register_autograd(f"{NAMESPACE}::{backward}", _refuse_second_derivative, lib=library)


def _give_formulas_to_flop_counters() -> None:
    """To torch's table, and to the counters that are counting: each has copied the table when it was made."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    formulas = _register_flop_formulas()
    for mode in _get_current_dispatch_mode_stack():
        # In older torch a counter is its own mode.
        table = getattr(getattr(mode, "counter", mode), "flop_registry", None)
        if table is not None:
            table.update({target: formula for target, formula in formulas.items() if target not in table})


@lru_cache(maxsize=None)
def _register_flop_formulas() -> Dict[Any, Callable[..., int]]:
    """Formulas for FlopCounterMode; at the first call that torch watches, because its module imports Triton."""
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    namespace = getattr(torch.ops, NAMESPACE)
    for layout in LAYOUTS:
        operator = _Operator(layout)
        for name, formula in (("", operator.flops), ("_backward", operator.flops_of_backward)):
            target = getattr(namespace, f"attention{layout.suffix}{name}")
            register_flop_formula(target, get_raw=True)(formula)
    return {target: formula for target, formula in flop_registry.items() if NAMESPACE in str(target)}


# A fragment: other modules may add operators to the namespace. Registrations last as long as this object.
_library = None if UNAVAILABLE else torch.library.Library(NAMESPACE, "FRAGMENT")
if _library is not None:
    for _layout in LAYOUTS:
        _register(_library, _layout)
