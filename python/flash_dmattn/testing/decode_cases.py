"""The contract of decode as a table of calls: each rule once."""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

import torch

BIASES = ("normal", "ties", "constant", "slots", "specials", "hidden")
"""Values of a bias: five different ones, one, most -inf, -inf and NaN and both zeros, all -inf."""


@dataclass(frozen=True)
class DecodeCase:
    """One call of :func:`flash_dmattn.flash_dmattn_with_kvcache`.

    Attributes
    ----------
    name : str
        The rule that it stands for.
    used : tuple of int
        Keys in use of each batch entry.
    len_k : int
        Keys that there is room for.
    whole : bool
        No ``cache_seqlens``: all of the room is used.
    lengths_dtype : torch.dtype
        Of ``cache_seqlens``.
    bias : str, optional
        Extents: ``"BGK"`` with ``H`` for query heads, ``G`` for kv heads, ``1`` to broadcast. Default: none.
    bias_values : str
        One of :data:`BIASES`.
    bias_dtype : torch.dtype, optional
        Default: the dtype of the query.
    page_size : int, optional
        Default: no pages.
    options : dict
        Scalars of the call.
    """

    name: str
    used: Tuple[int, ...] = (70, 33)
    len_k: int = 80
    whole: bool = False
    lengths_dtype: torch.dtype = torch.int32
    len_q: int = 1
    heads: int = 4
    heads_kv: int = 2
    head_dim: int = 32
    bias: Optional[str] = None
    bias_values: str = "normal"
    bias_dtype: Optional[torch.dtype] = None
    page_size: Optional[int] = None
    options: Dict[str, object] = field(default_factory=dict)

    def inputs(self, dtype: torch.dtype, device: str, seed: int = 0) -> Dict[str, Any]:
        """Tensors of the call. Of the cache what no key in use fills is NaN, of a bias the largest number."""
        generator = torch.Generator().manual_seed(seed)
        batch = len(self.used)
        query = torch.randn(batch, self.len_q, self.heads, self.head_dim, generator=generator)
        caches = torch.randn(2, batch, self.len_k, self.heads_kv, self.head_dim, generator=generator)
        for b, used in enumerate(self.used):
            caches[:, b, used:] = math.nan
        inputs: Dict[str, Any] = {"query": query.to(dtype)}
        if self.bias is not None:
            bias = self._make_bias(generator)
            for b, used in enumerate(self.used):
                if bias.shape[0] > 1:
                    bias[b, ..., used:] = 60000.0
            inputs["attn_bias"] = bias.to(self.bias_dtype or dtype)
        keys, values = caches.to(dtype).unbind()
        if self.page_size is not None:
            table, (keys, values) = self._in_pages((keys, values), generator)
            inputs["block_table"] = table
        inputs["key_cache"], inputs["value_cache"] = keys, values
        if not self.whole:
            inputs["cache_seqlens"] = torch.tensor(self.used, dtype=self.lengths_dtype)
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def _make_bias(self, generator: torch.Generator) -> torch.Tensor:
        extents = {"B": len(self.used), "H": self.heads, "G": self.heads_kv, "K": self.len_k, "1": 1}
        bias = torch.randn([extents[extent] for extent in self.bias or ""], generator=generator)
        if self.bias_values == "ties":
            return bias.mul(2).round().clamp(-2, 2)
        if self.bias_values == "constant":
            return torch.full_like(bias, -1.5)
        if self.bias_values == "hidden":
            return torch.full_like(bias, -math.inf)
        pick = torch.randint(8, bias.shape, generator=generator)
        if self.bias_values == "slots":
            return bias.masked_fill(pick > 2, -math.inf)
        if self.bias_values == "specials":
            for index, value in enumerate((-math.inf, math.nan, 0.0, -0.0)):
                bias = bias.masked_fill(pick == index, value)
        return bias

    def _in_pages(
        self, caches: Tuple[torch.Tensor, ...], generator: torch.Generator
    ) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """A shuffled table, and the pages that it names among others. Entries past the last key are garbage."""
        size = self.page_size or 1
        batch, width = len(self.used), self.len_k // size
        total = batch * width + 3
        table = torch.randperm(total, generator=generator)[: batch * width].reshape(batch, width).to(torch.int32)
        pools = []
        for cache in caches:
            pool = cache.new_full((total, size, *cache.shape[2:]), math.nan)
            pool[table.flatten().long()] = cache.reshape(batch * width, size, *cache.shape[2:])
            pools.append(pool)
        for b, used in enumerate(self.used):
            table[b, -(-used // size) :] = torch.tensor([-1, 1 << 30, total])[b % 3]
        return table, pools


KEEP: Dict[str, object] = {"keep_window_size": 20}
CAUSAL: Dict[str, object] = {"is_causal": True}

DECODE_CASES = [
    DecodeCase("every key"),
    DecodeCase("the whole room", used=(80, 80), whole=True),
    DecodeCase("lengths in int64", lengths_dtype=torch.int64),
    DecodeCase("no key in some", used=(0, 5, 80)),
    DecodeCase("several queries", len_q=5),
    DecodeCase("several queries, causal", used=(70, 3, 5, 0), len_q=5, options=CAUSAL),
    DecodeCase("16 queries of 8 heads on one kv head", len_q=16, heads=8, heads_kv=1, options=CAUSAL),
    DecodeCase("many heads on a kv head", heads=40, heads_kv=2),
    DecodeCase("scale, softcap and bias", bias="BGK", options={"softcap": 2.0, "scale": -0.3}),
    DecodeCase("bias with a dimension of queries", bias="BG1K", bias_dtype=torch.float32),
    DecodeCase("bias that all share", bias="11K", bias_dtype=torch.bfloat16),
    DecodeCase("bias of query heads", bias="BHK", len_q=3, options=CAUSAL),
    DecodeCase("slots, most of them empty", used=(256, 256), len_k=256, whole=True, bias="BGK", bias_values="slots"),
    DecodeCase("every key hidden", bias="BGK", bias_values="hidden"),
    DecodeCase("keep", bias="BGK", options=KEEP),
    DecodeCase("keep one", bias="BGK", options={"keep_window_size": 1}),
    DecodeCase("keep, ties", bias="BGK", bias_values="ties", options=KEEP),
    DecodeCase("keep of equals: the newest", bias="BGK", bias_values="constant", options=KEEP),
    DecodeCase("keep, -inf and NaN", bias="BGK", bias_values="specials", options=KEEP),
    DecodeCase("keep, nothing to keep", bias="BGK", bias_values="hidden", options=KEEP),
    DecodeCase("keep all", bias="BGK", bias_values="specials", options={"keep_window_size": 80}),
    DecodeCase("keep more than there are", bias="BGK", options={"keep_window_size": 1 << 40}),
    DecodeCase("keep, causal", used=(70, 22, 4, 0), len_q=6, bias="BGK", options={**KEEP, **CAUSAL}),
    DecodeCase("keep, several queries", len_q=6, bias="BGK", bias_values="ties", options=KEEP),
    DecodeCase("keep by query heads, causal", len_q=3, bias="BH1K", options={**KEEP, **CAUSAL}),
    DecodeCase("keep, one bias for all", bias="11K", options={**KEEP, "softcap": 1.5}),
    DecodeCase("keep, float32 bias", bias="BGK", bias_dtype=torch.float32, options=KEEP),
    DecodeCase("keep, many", used=(1500, 700), len_k=1600, bias="BGK", options={"keep_window_size": 300}),
    DecodeCase("pages", used=(64, 33, 1, 0), len_k=64, page_size=16),
    DecodeCase("pages, keep", used=(200, 129), len_k=256, page_size=64, bias="BGK", options=KEEP),
    DecodeCase("pages, causal", used=(60, 33), len_k=68, page_size=17, len_q=4, bias="BHK", options=CAUSAL),
    DecodeCase("head dim 8", head_dim=8, bias="BGK", options=KEEP),
    DecodeCase("head dim 72", head_dim=72, bias="BGK", options=KEEP),
    DecodeCase("head dim 128", head_dim=128, used=(300, 40), len_k=300, bias="BGK", options={"keep_window_size": 130}),
    DecodeCase("head dim 256", head_dim=256, used=(300, 40), len_k=300, len_q=2, options=CAUSAL),
]
