"""``BoundedCache``: the keys of largest bias and no others, behind the interface of transformers' caches."""

from typing import Any, Optional, Tuple, Union, cast

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from flash_dmattn.kv_cache import DynamicKVCache


class BoundedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # of __init_subclass__, which has no types
    """The cache of one layer. :meth:`attend` appends and attends, since what is kept depends on the bias."""

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self, keep_window_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # it has no types
        self.keep_window_size = keep_window_size
        self.states: Optional[DynamicKVCache] = None
        self.seen_tokens = 0  # as the states have it, but without waiting for the device

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_bias: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Take in new keys ``(B, L, H_kv, D)`` with their bias ``(B, H_kv, 1, L)``; attention of the new queries."""
        batch, tokens, heads, head_dim = key.shape
        if self.states is None:
            self.states = DynamicKVCache(
                self.keep_window_size,
                batch_size=batch,
                num_kv_heads=heads,
                head_dim=head_dim,
                dtype=key.dtype,
                device=key.device,
                bias_dtype=attn_bias.dtype,
            )
            self.is_initialized = True
        out = self.states.prefill(query, key, value, attn_bias, scale=scale)
        self.seen_tokens += tokens
        return cast("torch.Tensor", out)  # no lse is asked for

    def get_seq_length(self, *_: Any) -> int:
        """Tokens taken in so far, those that have been pushed out too."""
        return self.seen_tokens

    def get_mask_sizes(self, query: Union[int, torch.Tensor]) -> Tuple[int, int]:
        """Length and offset of the keys that a mask speaks of: all tokens. transformers 4 gives the positions."""
        return self.get_seq_length() + (query if isinstance(query, int) else query.shape[0]), 0

    def get_max_length(self) -> int:
        """-1: the sequence may grow without end."""
        return -1

    get_max_cache_shape = get_max_length  # the older name

    def reset(self) -> None:
        """Forget all keys."""
        if self.states is not None:
            self.states.reset()
        self.seen_tokens = 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Take the rows of the batch that beam search goes on with."""
        if self.states is not None:
            self.states.reorder(beam_idx)

    def lazy_initialization(self, *_: Any) -> None:
        """Not of use: the first :meth:`attend` knows the sizes."""
        raise NotImplementedError("BoundedCache takes its sizes from the first call of a patched model")

    def update(self, *_: Any, **__: Any) -> Tuple[torch.Tensor, torch.Tensor]:
        """Raise: keys alone do not say which of them stay."""
        raise NotImplementedError(
            "BoundedCache.update has no bias to select by; accepted: models that "
            "flash_dmattn.integrations.transformers.patch has prepared"
        )

    def crop(self, *_: Any) -> None:
        """Raise: keys that have been pushed out do not come back."""
        raise NotImplementedError("BoundedCache.crop cannot bring back keys that were pushed out; use a DynamicCache")

    def batch_select_indices(self, *_: Any) -> None:
        """Raise: the batch of a bounded cache does not change."""
        raise NotImplementedError("BoundedCache keeps its batch size; use a DynamicCache")

    batch_repeat_interleave = batch_select_indices


class BoundedCache(Cache):
    """A cache of ``keep_window_size`` keys a layer, for models that :func:`patch` has prepared.

    The keys that a later query can still keep are the ``keep_window_size`` of largest bias so far, so that the others
    are dropped, and the result is that of a cache which grows. Its memory does not depend on the length.

    Parameters
    ----------
    config : DogeConfig
        Of the model: the number of layers and `keep_window_size`.

    Examples
    --------
    >>> import torch
    >>> from transformers import DogeConfig, DogeForCausalLM
    >>> from flash_dmattn.integrations.transformers import BoundedCache, patch
    >>> sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    >>> model = patch(DogeForCausalLM(DogeConfig(num_key_value_heads=2, keep_window_size=8, **sizes))).eval()
    >>> cache = BoundedCache(model.config)
    >>> with torch.no_grad():
    ...     _ = model.model(torch.randint(64, (1, 32)), None, None, cache)
    >>> cache.get_seq_length()
    32
    """

    def __init__(self, config: Any) -> None:
        super().__init__(layers=[BoundedLayer(config.keep_window_size) for _ in range(config.num_hidden_layers)])
