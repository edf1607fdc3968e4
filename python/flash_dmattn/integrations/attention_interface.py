"""``register``: ``attn_implementation="flash_dmattn"`` for the models of transformers."""

import functools
from typing import Any, Callable, Optional, Tuple, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface, modeling_utils
from transformers.masking_utils import sdpa_mask

from flash_dmattn.auto import flash_dmattn_func_auto
from flash_dmattn.inputs import in_autocast_dtype
from flash_dmattn.varlen import flash_dmattn_varlen_func

NAME = "flash_dmattn"

# Arguments that change the result and that this attention does not know. Others that it does not name do not.
_UNKNOWN = ("head_mask", "s_aux", "block_table")

# No call asks for the lse, so that the result is the output alone.
_attention = cast("Callable[..., torch.Tensor]", flash_dmattn_func_auto())
_varlen_attention = cast("Callable[..., torch.Tensor]", flash_dmattn_varlen_func)
_PRELOAD = "lazy_import_flash_attention"


def register() -> None:
    """Offer ``attn_implementation="flash_dmattn"`` to the models of transformers.

    A model that hands a mask gets it applied: 4-d bool masks hide keys, additive ones are the bias. One that hands none
    is causal if its module says so (`is_causal`), aligned to the bottom-right corner. Sliding windows and packed
    sequences arrive in the mask that transformers builds, padding too. Key and value heads are not repeated, and
    `softcap` is passed on. The backend is chosen by each call as :func:`flash_dmattn.flash_dmattn_func_auto` does.

    What this attention cannot do raises ValueError in the call: `dropout`, and arguments that change the result in ways
    that it does not know.

    transformers 5 takes every name with "flash" in it for a FlashAttention kernel and looks for it on its hub. For this
    one name that look-up is switched off, in ``transformers.modeling_utils.lazy_import_flash_attention``.

    Calling it again changes nothing.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from flash_dmattn.integrations.transformers import register
    >>> register()
    >>> sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=64)
    >>> config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)
    >>> model = LlamaForCausalLM(config)
    >>> model.set_attn_implementation("flash_dmattn")
    >>> model(torch.arange(8)[None]).logits.shape
    torch.Size([1, 8, 64])
    """
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)
    _leave_out_of_preloading()


def attention_mask(
    *, batch_size: int, kv_length: int, allow_is_causal_skip: bool = True, **facts: Any
) -> Optional[torch.Tensor]:
    """The mask as torch's own attention gets it, bools ``(B, 1, Lq, Lk)``, or None where `is_causal` says all.

    None with more keys than queries would mean the top-left corner, so that there the mask is made.
    """
    queries = facts["q_length"] if "q_length" in facts else facts["cache_position"].shape[0]
    skip = allow_is_causal_skip and queries in (1, kv_length)
    return sdpa_mask(batch_size=batch_size, kv_length=kv_length, allow_is_causal_skip=skip, **facts)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    dropout: float = 0.0,
    scaling: Optional[float] = None,
    is_causal: Optional[bool] = None,
    softcap: Optional[float] = None,
    position_bias: Optional[torch.Tensor] = None,
    cu_seq_lens_q: Optional[torch.Tensor] = None,
    cu_seq_lens_k: Optional[torch.Tensor] = None,
    max_length_q: Optional[int] = None,
    max_length_k: Optional[int] = None,
    sliding_window: Optional[int] = None,
    **others: Any,
) -> Tuple[torch.Tensor, None]:
    """Attention as transformers' AttentionInterface calls it: ``(B, H, L, D)`` in, ``(B, L, H, D)`` out."""
    if dropout > 0:
        raise ValueError(
            f"dropout is {dropout}; accepted: 0, since attention that keeps no weights drops none: "
            f"set attention_dropout of the config to 0"
        )
    for name in _UNKNOWN:
        if others.get(name) is not None:
            raise ValueError(f"{name} is given; accepted by {NAME!r}: None")
    if others.get("output_attentions"):
        raise ValueError(f"output_attentions is True; accepted by {NAME!r}: False, since no weights are kept")
    # By this dtype the backend is chosen, and what leaves a norm is float32 where autocast is enabled.
    tensors = [tensor.transpose(1, 2) for tensor in in_autocast_dtype((query, key, value))]
    if attention_mask is None:
        if sliding_window is not None and key.shape[2] > sliding_window:
            raise ValueError(
                f"sliding_window is {sliding_window} for {key.shape[2]} keys and attention_mask is None; accepted: a "
                f"mask that has the window"
            )
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if cu_seq_lens_q is not None:
            if position_bias is not None:
                raise ValueError("position_bias is given with cu_seq_lens_q; accepted: one of them")
            lengths = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
            return _attention_of_sequences(tensors, lengths, scaling, causal, softcap), None
        return _attention(*tensors, None, position_bias, scaling, causal, softcap), None
    mask, bias = _mask_and_bias(attention_mask, key.shape[2])
    if position_bias is not None:
        bias = position_bias if bias is None else position_bias + bias
    return _attention(*tensors, mask, bias, scaling, False, softcap), None


def _mask_and_bias(given: torch.Tensor, keys: int) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
    """A mask of transformers as what hides keys, or as what is added to scores."""
    if given.dim() != 4:
        raise ValueError(
            f"attention_mask.shape is {tuple(given.shape)}; accepted by {NAME!r}: ({{B|1}}, {{H|1}}, Lq, Lk) or None"
        )
    given = given[..., :keys]
    if given.stride(-1) != 1:  # a mask that is the same for all keys, expanded
        given = given.contiguous()
    if given.dtype == torch.bool:
        return given, None
    if given.is_floating_point():
        return None, given
    raise TypeError(f"attention_mask.dtype is {str(given.dtype)[6:]}; accepted by {NAME!r}: bool, or floating to add")


def _attention_of_sequences(
    tensors: Any, lengths: Any, scaling: Optional[float], is_causal: bool, softcap: Optional[float]
) -> torch.Tensor:
    """Attention of sequences that lie one behind the other in a batch of 1, without a mask that says so."""
    batch = tensors[0].shape[0]
    if batch != 1:
        raise ValueError(f"cu_seq_lens_q is given and the batch is {batch}; accepted: a batch of 1")
    out = _varlen_attention(
        *(tensor[0] for tensor in tensors), None, None, *lengths, scale=scaling, is_causal=is_causal, softcap=softcap
    )
    return out[None]


def _leave_out_of_preloading() -> None:
    preload = getattr(modeling_utils, _PRELOAD, None)
    if preload is None or getattr(preload, "leaves_out", None) == NAME:
        return

    @functools.wraps(preload)
    def preload_others(implementation: Optional[str], *args: Any, **kwargs: Any) -> Any:
        return None if implementation == NAME else preload(implementation, *args, **kwargs)

    preload_others.leaves_out = NAME  # type: ignore[attr-defined]
    setattr(modeling_utils, _PRELOAD, preload_others)
