"""``patch``: transformers' own Doge model on the keys of largest bias alone."""

import copy
import functools
import inspect
from typing import Any, Callable, Dict, Optional, Tuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionMaskInterface
from transformers.models.doge import modeling_doge
from transformers.models.doge.modeling_doge import DogeAttention, DogeModel, DogePreTrainedModel

from flash_dmattn.auto import flash_dmattn_func_auto
from flash_dmattn.dynamic_mask import DynamicMask
from flash_dmattn.inputs import in_autocast_dtype
from flash_dmattn.integrations.bounded_cache import BoundedCache
from flash_dmattn.operators import is_compiling
from flash_dmattn.varlen import flash_dmattn_varlen_func

# What the config of a patched model has as its attention implementation: its masks are those of padding alone. Not a
# name of FlashAttention, which "flash" in it would make it for transformers 5.
NAME = "dmattn_selection"

# Later versions of transformers 5 say `cache` for what had been `past_key_values`.
CACHE_NAME = "cache" if "cache" in inspect.signature(DogeModel.forward).parameters else "past_key_values"

# No call asks for the lse, so that the result is the output alone.
_attention = cast("Callable[..., torch.Tensor]", flash_dmattn_func_auto())
_varlen_attention = cast("Callable[..., torch.Tensor]", flash_dmattn_varlen_func)


def patch(model: nn.Module) -> nn.Module:
    """Make transformers' own Doge model train and generate on this package's attention, and return it.

    The selection is the model's own: each query keeps the ``keep_window_size`` visible keys of largest bias
    ``exp(A * softplus(dt_proj(value)))``, which is added to the scores. No mask of (query, key) is built: selection and
    attention take time and memory in proportion to ``Lq * keep_window_size``. Logits of all positions are those of
    ``attn_implementation="eager"``, and so are the gradients of a loss on positions that are not padding, those of `A`
    and `dt_proj` among them; of equal biases the newer key is kept, where eager keeps either.

    ``model.generate`` uses a :class:`BoundedCache`, which holds ``keep_window_size`` keys, unless it is given a cache,
    is told not to use one, or needs one that goes back (assisted generation). It is exact: tokens are those that the
    growing cache gives.

    The parameters, their names and the class of the model stay as they are; its config is a copy from then on, so that
    other models of the same config stay as they are too. Calling it again changes nothing.

    Parameters
    ----------
    model : torch.nn.Module
        ``DogeForCausalLM``, ``DogeModel``, or any module that holds one of transformers' own.

    Returns
    -------
    torch.nn.Module
        `model`, changed in place.

    Raises
    ------
    TypeError
        `model` holds no attention of transformers' Doge.
    ValueError
        The config has a `sliding_window` or is not causal, or something else has replaced `forward` of an attention. In
        calls: attention dropout while training, a mask that is not ``(B, Lk)``, a static cache, packed sequences with a
        cache.

    Examples
    --------
    >>> import torch
    >>> from transformers import DogeConfig, DogeForCausalLM
    >>> from flash_dmattn.integrations.transformers import patch
    >>> sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    >>> model = patch(DogeForCausalLM(DogeConfig(num_key_value_heads=2, keep_window_size=8, **sizes)))
    >>> tokens = torch.randint(64, (1, 32))
    >>> model(tokens, labels=tokens, use_cache=False).loss.backward()
    >>> model.model.layers[0].self_attn.A.grad.shape
    torch.Size([2])
    """
    layers = [module for module in model.modules() if isinstance(module, DogeAttention)]
    if not layers:
        raise TypeError(f"model is a {type(model).__name__}; accepted: transformers' own DogeForCausalLM or DogeModel")
    for layer in layers:
        _check_layer(layer)
    AttentionMaskInterface.register(NAME, padding_mask)
    for layer in layers:
        layer.__dict__.pop("forward", None)
        layer.__class__ = SelectedAttention
    _take_masks_of_padding(model)
    for module in model.modules():
        if isinstance(module, DogePreTrainedModel) and hasattr(module, "generate"):
            # Past nn.Module.__setattr__, which is for parameters and modules.
            module.__dict__["generate"] = functools.partial(_generate, module)
        if isinstance(module, DogeModel) and _find_sequences not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_find_sequences, with_kwargs=True)
    return model


def _take_masks_of_padding(model: nn.Module) -> None:
    """Set the attention implementation in configs of the model's own: others may share those that it had."""
    configs = {
        id(module.config): module.config
        for module in model.modules()
        if isinstance(module, DogePreTrainedModel) and module.config._attn_implementation != NAME
    }
    copies = {identity: copy.deepcopy(config) for identity, config in configs.items()}
    for config in copies.values():
        config._attn_implementation = NAME
    for module in model.modules():
        own = copies.get(id(getattr(module, "config", None)))
        if own is not None:
            module.__dict__["config"] = own  # as `generate` above


def _check_layer(layer: DogeAttention) -> None:
    if type(layer) not in (DogeAttention, SelectedAttention):
        raise TypeError(f"model holds a {type(layer).__name__}; accepted: transformers' own DogeAttention")
    if layer.config.sliding_window is not None:
        raise ValueError(f"sliding_window of the config is {layer.config.sliding_window}; accepted: None")
    if not getattr(layer.config, "is_causal", True):
        raise ValueError("is_causal of the config is False; accepted: True")
    # transformers 4 leaves the method as an attribute after it has recorded outputs.
    replaced = layer.__dict__.get("forward")
    if replaced is not None and getattr(replaced, "__func__", None) is not type(layer).forward:
        raise ValueError(
            "forward of a DogeAttention has been replaced; accepted: a model without hooks around its methods, as "
            "accelerate puts them there: patch it first"
        )


class SelectedAttention(DogeAttention):
    """transformers' Doge attention, by its own parameters, on the keys of largest bias alone."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Tuple[torch.Tensor, torch.Tensor],
        attention_mask: Optional[torch.Tensor] = None,
        past_key_values: Optional[Any] = None,
        **kwargs: Any,
    ) -> Tuple[torch.Tensor, None]:
        """``(B, L, hidden)`` in and out. `attention_mask` ``(B, Lk)`` is that of padding, None where there is none."""
        cache = kwargs.get("cache", past_key_values)
        cu_seqlens = kwargs.get("cu_seq_lens_q")
        self._check_call(attention_mask, cache, cu_seqlens, kwargs)
        rows = hidden_states.shape[:-1]
        query = self.q_norm(self.q_proj(hidden_states).view(*rows, -1, self.head_dim))
        key = self.k_norm(self.k_proj(hidden_states).view(*rows, -1, self.head_dim))
        value = self.v_proj(hidden_states).view(*rows, -1, self.head_dim)
        query, key = modeling_doge.apply_rotary_pos_emb(query, key, *position_embeddings, unsqueeze_dim=2)
        layer = None
        if isinstance(cache, BoundedCache):
            layers: Any = cache.layers  # of BoundedLayer
            layer = layers[self.layer_idx]
        elif cache is not None:
            states = cache.update(key.transpose(1, 2), value.transpose(1, 2), self.layer_idx)
            key, value = (state.transpose(1, 2) for state in states)
        bias = self.attn_bias(value)
        if attention_mask is not None:
            shown = attention_mask[:, None, None, -value.shape[1] :]  # a bounded cache takes the new keys alone
            bias = bias.masked_fill(~shown, float("-inf"))
        # By this dtype the backend is chosen; the norms of query and key have left float32 where autocast is enabled.
        query, key, value = in_autocast_dtype((query, key, value))
        if layer is not None:
            out = layer.attend(query, key, value, bias, self.scaling)
        elif cu_seqlens is not None:
            out = self._attend_in_sequences(query, key, value, bias, cu_seqlens, kwargs["max_length_q"])
        else:
            mask = self._selection(bias)
            out = _attention(query, key, value, mask, bias, self.scaling, True)
        if attention_mask is not None and out.shape[1] > 1:
            out = _with_rows_of_padding(out, value, attention_mask)
        return self.o_proj(out.reshape(*rows, -1)), None

    def attn_bias(self, value: torch.Tensor) -> torch.Tensor:
        """The bias of the keys ``(B, H_kv, 1, Lk)`` by their values ``(B, Lk, H_kv, D)``."""
        steps = self.dt_proj(value.flatten(2))
        return torch.exp(self.A * F.softplus(steps)).transpose(1, 2).contiguous()[:, :, None]

    def _selection(self, bias: torch.Tensor, cu_seqlens_k: Optional[torch.Tensor] = None) -> Optional[DynamicMask]:
        if bias.shape[-1] <= self.keep_window_size:
            return None  # all keys
        return DynamicMask.topk(bias, self.keep_window_size, cu_seqlens_k=cu_seqlens_k)

    def _attend_in_sequences(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor,
        cu_seqlens: torch.Tensor,
        longest: int,
    ) -> torch.Tensor:
        """Attention of sequences that lie one behind the other, each by itself."""
        # The bias of each sequence from 0 on: (sequences, H_kv, 1, longest). What is past an end is not looked at.
        token = cu_seqlens[:-1, None].long() + torch.arange(longest, device=bias.device)
        by_token = bias.transpose(1, 3).reshape(-1, bias.shape[1])
        bias = by_token[token.clamp(max=by_token.shape[0] - 1)].transpose(1, 2).contiguous()[:, :, None]
        mask = self._selection(bias, cu_seqlens)
        tokens = (tensor.flatten(0, 1) for tensor in (query, key, value))
        lengths = (cu_seqlens, cu_seqlens, longest, longest)
        out = _varlen_attention(*tokens, mask, bias, *lengths, scale=self.scaling, is_causal=True)
        return out.view(query.shape)

    def _check_call(
        self, attention_mask: Optional[torch.Tensor], cache: Any, cu_seqlens: Optional[torch.Tensor], others: Any
    ) -> None:
        if self.training and self.attention_dropout:
            raise ValueError(
                f"attention_dropout is {self.attention_dropout}; accepted in training: 0, since attention that keeps "
                f"no weights drops none"
            )
        if others.get("output_attentions"):
            raise ValueError("output_attentions is True; accepted in a patched model: False, since no weights are kept")
        if attention_mask is not None and (attention_mask.dim() != 2 or attention_mask.dtype != torch.bool):
            kind = f"{str(attention_mask.dtype)[6:]} of shape {tuple(attention_mask.shape)}"
            raise ValueError(f"attention_mask is {kind}; accepted in a patched model: the padding, (B, Lk), or None")
        if cache is not None and cache.is_compileable:
            accepted = "BoundedCache, DynamicCache or None"
            raise ValueError(f"{CACHE_NAME} is a {type(cache).__name__}; accepted in a patched model: {accepted}")
        if cu_seqlens is None:
            return
        for name, given in ((CACHE_NAME, cache), ("attention_mask", attention_mask)):
            if given is not None:
                raise ValueError(
                    f"position_ids or cu_seq_lens_q hold several sequences a row and {name} is given; accepted: "
                    f"use_cache=False, and no attention_mask that hides a token"
                )
        if others.get("max_length_q") is None:
            raise ValueError("cu_seq_lens_q is given and max_length_q is None; accepted: both")


def padding_mask(*, kv_length: int, attention_mask: Optional[torch.Tensor] = None, **_: Any) -> Optional[torch.Tensor]:
    """The mask that transformers hands to the layers of a patched model: bools ``(B, Lk)``, or None without padding.

    Causality and the selection are the layers' own, and sequences in a row are found by :func:`_find_sequences`.
    """
    if attention_mask is None:
        return None
    if attention_mask.shape[-1] != kv_length:
        raise ValueError(f"attention_mask.shape is {tuple(attention_mask.shape)}; accepted: (B, {kv_length})")
    # One look by the host in a step, as transformers has it for its own kernels.
    return None if not is_compiling() and bool(attention_mask.all()) else attention_mask


def _with_rows_of_padding(out: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """`out` with the mean of all values where a query sees no key, which is what the model's own mask comes to.

    It gives hidden keys the lowest finite score, and where all scores are equal all weights are.
    """
    seen = attention_mask.cumsum(1)[:, -out.shape[1] :, None, None] > 0
    mean = value.mean(1, keepdim=True).repeat_interleave(out.shape[2] // value.shape[2], dim=2)
    return torch.where(seen, out, mean.to(out.dtype))


def _find_sequences(module: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """Tell the layers where sequences begin, if `position_ids` start anew inside a row, by transformers' own rule."""
    given = dict(zip(("input_ids", "attention_mask", "position_ids", CACHE_NAME), args), **kwargs)
    position_ids = given.get("position_ids")
    if position_ids is None or any(given.get(name) is not None for name in ("attention_mask", "cu_seq_lens_q")):
        return None
    if any(given.get(name) is not None for name in ("cache", "past_key_values")):
        return None
    tokens: Any = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
    position_ids = position_ids.expand(tokens.shape[0], -1)
    begins = F.pad(position_ids.diff(dim=1) != 1, (1, 0), value=True).flatten()
    cu_seqlens = F.pad(begins.nonzero()[:, 0], (0, 1), value=begins.numel()).int()
    if cu_seqlens.numel() - 1 == position_ids.shape[0]:
        return None
    return args, dict(kwargs, cu_seq_lens_q=cu_seqlens, max_length_q=int(cu_seqlens.diff().max()))


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """``generate`` of the model's class, with a bounded cache where nothing else is asked for."""
    config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None) or model.generation_config

    def asked(name: str) -> Any:
        return kwargs[name] if kwargs.get(name) is not None else getattr(config, name, None)

    others = ("cache", "past_key_values", "cache_implementation", "assistant_model", "prompt_lookup_num_tokens")
    if asked("use_cache") is not False and not any(asked(name) is not None for name in others):
        kwargs[CACHE_NAME] = BoundedCache(model.config)
    return type(model).generate(model, *args, **kwargs)
