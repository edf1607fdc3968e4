"""``DynamicMask``: the keys that queries see as lists of keys, in memory in proportion to the keys."""

from dataclasses import dataclass
from typing import Any, Dict, Optional, Union

import torch

from flash_dmattn import ops
from flash_dmattn.refusals import checked_int, not_a_tensor
from flash_dmattn.selection import select

_KINDS: Dict[str, int] = {"interval": ops.MASK_INTERVAL, "columns": ops.MASK_COLUMNS}
LIST_DIMS = "({B|1}, {H|H_kv|1}, Lk)"


@dataclass(frozen=True, eq=False, repr=False)
class DynamicMask:
    """Which keys each query sees, without a value a score. Every attention function takes one as `attn_mask`.

    :meth:`topk` makes it from a bias. With the functions of libfdma a call walks the listed keys alone, and time and
    memory, backward included, go with ``Lq * keep_window_size`` and ``Lk``: where the mask has 1 or H_kv heads, the
    bias is the same for all queries, and all sequences have one length. Other calls of theirs expand it to one bit a
    score, and Triton and Flex to a dense mask: slower, with the same result.

    Attributes
    ----------
    form : str
        ``"interval"``, causal selection: the query at position ``p = q + Lk - Lq`` sees key k when
        ``k <= p < lists[b, h, k]``. It is causal by itself, whatever `is_causal` is.
        ``"columns"``, selection over all keys: every query sees the keys in ``lists[b, h]``, and with `is_causal` those
        of them up to its position.
    lists : torch.Tensor
        int32. Interval: ``({B|1}, {H|H_kv|1}, Lk)``, the position at which each key is pushed out. Columns:
        ``({B|1}, {H|H_kv|1}, W)``, keys in rising order, -1 past the last.
    len_k : int
        ``Lk``, which the call has to have.
    keep_window_size : int
        The keys that a query keeps at most.

    Examples
    --------
    >>> import torch
    >>> from flash_dmattn import DynamicMask, flash_dmattn_func
    >>> query = torch.randn(1, 128, 4, 64)
    >>> key, value = torch.randn(2, 1, 128, 2, 64).unbind()
    >>> bias = torch.randn(1, 2, 1, 128, requires_grad=True)
    >>> mask = DynamicMask.topk(bias, keep_window_size=32)
    >>> mask
    DynamicMask(form='interval', shape=(1, 2, 128), keep_window_size=32, device='cpu')
    >>> flash_dmattn_func(query, key, value, attn_mask=mask, attn_bias=bias, is_causal=True).sum().backward()
    >>> bias.grad.shape, mask.nbytes
    (torch.Size([1, 2, 1, 128]), 1024)
    """

    form: str
    lists: torch.Tensor
    len_k: int
    keep_window_size: int

    def __post_init__(self) -> None:
        if self.form not in _KINDS:
            raise ValueError(f"form is {self.form!r}; accepted: {' or '.join(repr(form) for form in _KINDS)}")
        if not isinstance(self.lists, torch.Tensor):
            raise TypeError(not_a_tensor("lists", self.lists))
        if self.lists.dtype != torch.int32:
            raise TypeError(f"lists.dtype is {str(self.lists.dtype)[6:]}; accepted: int32")
        if self.lists.dim() != 3 or (self.form == "interval" and self.lists.shape[2] != self.len_k):
            dims = f"(B, H, Lk) with Lk = {self.len_k}" if self.form == "interval" else "(B, H, W)"
            raise ValueError(f"lists.shape is {tuple(self.lists.shape)}; accepted: {dims}")

    @classmethod
    def topk(
        cls,
        attn_bias: torch.Tensor,
        keep_window_size: int,
        is_causal: bool = True,
        key_padding_mask: Optional[torch.Tensor] = None,
        cu_seqlens_k: Optional[torch.Tensor] = None,
        *,
        check_nan: bool = False,
    ) -> "DynamicMask":
        """Keep, of the keys that a query may see, the `keep_window_size` with the largest bias.

        Of keys with equal bias the newer one (the larger index) goes first; -0.0 equals 0.0. A key whose bias is -inf
        or NaN is never kept and takes nobody's place. The result is the same on the CPU and on CUDA, bit for bit.

        The host does not wait for the device, so that this runs under ``torch.compile`` and in CUDA graphs. The choice
        has no gradient: that of the bias comes from the attention that adds it.

        Parameters
        ----------
        attn_bias : torch.Tensor
            ``({B|1}, {H|H_kv|1}, 1, Lk)`` or ``({B|1}, {H|H_kv|1}, Lk)``, float16, bfloat16 or float32, the last
            dimension contiguous: one value a key, the same for all queries.
        keep_window_size : int
            1 or more; from ``Lk`` on every key is kept.
        is_causal : bool
            True: each position chooses among the keys up to itself; the form is ``"interval"``. False: one choice among
            all keys; the form is ``"columns"``.
        key_padding_mask : torch.Tensor, optional
            ``(B, Lk)``, bool or any integer or floating dtype: a key of zero is never kept and takes nobody's place.
        cu_seqlens_k : torch.Tensor, optional
            ``(B + 1,)``, int32 or int64: as for :func:`flash_dmattn.flash_dmattn_varlen_func`, where sequence b chooses
            among its own ``cu_seqlens_k[b + 1] - cu_seqlens_k[b]`` first keys of ``attn_bias[b]``.
        check_nan : bool
            Raise if `attn_bias` has a NaN. The host waits for the device to tell, which neither a CUDA graph nor a
            compiled graph can hold.

        Returns
        -------
        DynamicMask
            Of ``B`` and the heads of `attn_bias`, on its device.

        Raises
        ------
        ValueError
            A shape, a layout, a device or a number that does not fit, or a NaN with `check_nan`. The message names the
            argument, what it got and what is accepted.
        TypeError
            An argument of the wrong type, or a dtype that it does not take.

        Examples
        --------
        >>> import torch
        >>> from flash_dmattn import DynamicMask
        >>> bias = torch.tensor([[[3.0, 1.0, 2.0, 1.0]]])
        >>> DynamicMask.topk(bias, keep_window_size=2).lists
        tensor([[[4, 2, 4, 3]]], dtype=torch.int32)
        >>> DynamicMask.topk(bias, keep_window_size=2, is_causal=False).lists
        tensor([[[0, 2]]], dtype=torch.int32)
        """
        bias = _key_bias(attn_bias)
        keep = checked_int("keep_window_size", keep_window_size)
        if keep < 1:
            raise ValueError(f"keep_window_size is {keep}; accepted: 1 or more")
        if is_causal is not True and is_causal is not False:
            raise TypeError(f"is_causal must be a bool, got {is_causal!r}")
        if check_nan and bool(torch.isnan(bias).any()):
            raise ValueError("attn_bias has a NaN; accepted with check_nan=True: numbers and infinities")
        if key_padding_mask is not None and not isinstance(key_padding_mask, torch.Tensor):
            raise TypeError(not_a_tensor("key_padding_mask", key_padding_mask, " or None"))
        if cu_seqlens_k is not None:
            key_padding_mask = _keys_of_sequences(cu_seqlens_k, bias, key_padding_mask)
        if key_padding_mask is not None and bias.shape[0] == 1:
            bias = bias.expand(key_padding_mask.shape[0], -1, -1)
        lists = select(bias, keep, key_padding_mask, is_causal)
        return cls("interval" if is_causal else "columns", lists, bias.shape[2], keep)

    @property
    def kind(self) -> int:
        """The form as the C API numbers it."""
        return _KINDS[self.form]

    @property
    def shape(self) -> torch.Size:
        """``({B|1}, {H|H_kv|1}, Lk)``."""
        return torch.Size((*self.lists.shape[:2], self.len_k))

    @property
    def device(self) -> torch.device:
        """Where the lists are."""
        return self.lists.device

    @property
    def nbytes(self) -> int:
        """Bytes of the lists."""
        return self.lists.numel() * self.lists.element_size()

    def to(self, device: Union[str, torch.device, int]) -> "DynamicMask":
        """The same mask on another device; itself if it is there."""
        lists = self.lists.to(device)
        return self if lists is self.lists else DynamicMask(self.form, lists, self.len_k, self.keep_window_size)

    def to_dense(self, len_q: Optional[int] = None, dtype: torch.dtype = torch.bool) -> torch.Tensor:
        """The mask with a value a score: what the queries see, but for what `is_causal` hides of columns.

        Parameters
        ----------
        len_q : int, optional
            ``Lq``. Query q is at position ``q + Lk - Lq``. Default: ``Lk``.
        dtype : torch.dtype
            Of the result: 1 where a key is seen, 0 elsewhere.

        Returns
        -------
        torch.Tensor
            ``({B|1}, {H|H_kv|1}, Lq, Lk)``. Of columns all rows are one row in memory (a stride of 0).

        Examples
        --------
        >>> import torch
        >>> from flash_dmattn import DynamicMask
        >>> mask = DynamicMask.topk(torch.tensor([[[3.0, 1.0, 2.0, 1.0]]]), keep_window_size=2)
        >>> mask.to_dense(len_q=3, dtype=torch.int32)[0, 0]
        tensor([[1, 1, 0, 0],
                [1, 0, 1, 0],
                [1, 0, 1, 0]], dtype=torch.int32)
        """
        len_q = self.len_k if len_q is None else len_q
        if self.form == "columns":
            batch, heads, _ = self.lists.shape
            # -1 goes to one column more, which is cut off.
            row = torch.zeros((batch, heads, self.len_k + 1), dtype=torch.bool, device=self.device)
            row.scatter_(2, self.lists.long().remainder(self.len_k + 1), True)
            return row[:, :, None, : self.len_k].to(dtype).expand(-1, -1, len_q, -1)
        key = torch.arange(self.len_k, device=self.device)
        position = torch.arange(self.len_k - len_q, self.len_k, device=self.device)[:, None]
        return ((key <= position) & (position < self.lists[:, :, None, :])).to(dtype)

    def density(self, len_q: Optional[int] = None) -> float:
        """The part of the scores that is seen, from 0 to 1, as :meth:`to_dense` has them; 0 where there are none.

        Costs time and memory in proportion to the lists. The host waits for the device.
        """
        len_q = self.len_k if len_q is None else len_q
        rows = self.lists.shape[0] * self.lists.shape[1] * len_q
        if rows * self.len_k == 0:
            return 0.0
        if self.form == "columns":
            return (self.lists >= 0).sum().item() * len_q / (rows * self.len_k)
        first_position = torch.arange(self.len_k, device=self.device).clamp(min=self.len_k - len_q)
        return (self.lists - first_position).clamp(min=0).sum().item() / (rows * self.len_k)

    def check_keys(self, len_k: Optional[int]) -> None:
        """Raise ValueError if a call has `len_k` keys and the mask another number."""
        if len_k is not None and self.len_k != len_k:
            raise ValueError(f"attn_mask.shape is {tuple(self.shape)}; accepted: {LIST_DIMS} with Lk = {len_k}")

    def __repr__(self) -> str:
        facts = f"shape={tuple(self.shape)}, keep_window_size={self.keep_window_size}, device='{self.device}'"
        return f"DynamicMask(form={self.form!r}, {facts})"


AttentionMask = Union[torch.Tensor, DynamicMask]
"""What attention functions take as `attn_mask`."""


def selected_mask(
    attn_mask: Any, attn_bias: Any, keep_window_size: int, is_causal: Any, cu_seqlens_k: Optional[torch.Tensor] = None
) -> DynamicMask:
    """The mask of a call with `keep_window_size`, which selects by the call's own bias.

    Raises
    ------
    ValueError
        A mask is given too, or no bias is; and what :meth:`DynamicMask.topk` refuses, which raises TypeError too.
    """
    if attn_mask is not None:
        raise ValueError(f"keep_window_size is {keep_window_size} and attn_mask is given too; accepted: one of them")
    if attn_bias is None:
        raise ValueError(
            f"keep_window_size is {keep_window_size} and attn_bias is None; accepted: with the attn_bias to select by"
        )
    causal = False if is_causal is None else is_causal
    return DynamicMask.topk(attn_bias, keep_window_size, causal, cu_seqlens_k=cu_seqlens_k)


def dense_mask(attn_mask: Optional[AttentionMask], len_q: int) -> Optional[torch.Tensor]:
    """The mask of a call for what knows dense masks only."""
    return attn_mask.to_dense(len_q) if isinstance(attn_mask, DynamicMask) else attn_mask


def _key_bias(attn_bias: Any) -> torch.Tensor:
    """A bias of keys as ``(B, H, Lk)``, without its gradient."""
    if not isinstance(attn_bias, torch.Tensor):
        raise TypeError(not_a_tensor("attn_bias", attn_bias))
    if attn_bias.dim() == 3:
        return attn_bias.detach()
    if attn_bias.dim() != 4 or attn_bias.shape[2] != 1:
        raise ValueError(
            f"attn_bias.shape is {tuple(attn_bias.shape)}; accepted: ({{B|1}}, {{H|H_kv|1}}, 1, Lk) or "
            f"({{B|1}}, {{H|H_kv|1}}, Lk), a bias that is the same for all queries"
        )
    return attn_bias.detach()[:, :, 0]


def _keys_of_sequences(cu_seqlens_k: Any, bias: torch.Tensor, key_padding_mask: Optional[torch.Tensor]) -> torch.Tensor:
    """Bools ``(B, Lk)``: whether a key lies inside its sequence and `key_padding_mask`, where given, is not zero."""
    if not isinstance(cu_seqlens_k, torch.Tensor):
        raise TypeError(not_a_tensor("cu_seqlens_k", cu_seqlens_k, " or None"))
    if cu_seqlens_k.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens_k.dtype is {str(cu_seqlens_k.dtype)[6:]}; accepted: int32, int64")
    batch = bias.shape[0]
    if cu_seqlens_k.dim() != 1 or (cu_seqlens_k.shape[0] != batch + 1 and (batch != 1 or cu_seqlens_k.shape[0] == 0)):
        raise ValueError(
            f"cu_seqlens_k.shape is {tuple(cu_seqlens_k.shape)}; accepted: (B + 1,) with B = {batch}, the batch of "
            f"attn_bias, or any B where that is 1"
        )
    if cu_seqlens_k.device != bias.device:
        raise ValueError(
            f"cu_seqlens_k is on {cu_seqlens_k.device} and attn_bias on {bias.device}; accepted: the same device"
        )
    inside = torch.arange(bias.shape[2], device=bias.device) < cu_seqlens_k.diff()[:, None]
    if key_padding_mask is None:
        return inside
    if key_padding_mask.shape != inside.shape or key_padding_mask.device != inside.device:
        given = f"key_padding_mask.shape is {tuple(key_padding_mask.shape)}, on {key_padding_mask.device}"
        raise ValueError(f"{given}; accepted: (B, Lk) = {tuple(inside.shape)}, on {inside.device}")
    return inside & (key_padding_mask != 0)
