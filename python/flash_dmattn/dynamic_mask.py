"""``DynamicMask``: the keys that queries see, as lists in proportion to the keys or as bits."""

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple, Union

import torch

from flash_dmattn import ops
from flash_dmattn.refusals import checked_int, not_a_tensor
from flash_dmattn.selection import pack, select

_KINDS: Dict[str, int] = {"interval": ops.MASK_INTERVAL, "columns": ops.MASK_COLUMNS, "bits": ops.MASK_BITS}
LIST_DIMS = "({B|1}, {H|H_kv|1}, Lk)"
BIT_DIMS = "({B|1}, {H|H_kv|1}, {Lq|1}, Lk)"


@dataclass(frozen=True, eq=False, repr=False)
class DynamicMask:
    """Which keys each query sees, without a tensor of the scores. Every attention function takes one as `attn_mask`.

    :meth:`topk` makes it from a bias, :meth:`from_dense` from a dense mask. Of the first two forms a call of libfdma
    walks the listed keys alone, and its time and memory, backward included, go with ``Lq * keep_window_size`` and
    ``Lk``, where the bias is the same for all queries and keys have no pages. Other calls of libfdma expand them to one
    bit a score, and Triton and Flex every form to a dense mask: slower, with the same result.

    Attributes
    ----------
    form : str
        ``"interval"``, causal selection by a bias of keys: the query at position ``p = q + Lk - Lq`` sees key k when
        ``k <= p < data[b, h, k]``. It is causal by itself, whatever `is_causal` is.
        ``"columns"``, selection over all keys by a bias of keys: every query sees the keys in ``data[b, h]``, and with
        `is_causal` those of them up to its position.
        ``"bits"``, a mask of every score, packed.
    data : torch.Tensor
        Interval: ``({B|1}, {H|H_kv|1}, Lk)``, int32, the position at which each key is pushed out. Columns:
        ``({B|1}, {H|H_kv|1}, W)``, int32, keys in rising order, -1 past the last. Bits: ``(bytes,)``, uint8.
    shape : tuple of int
        ``({B|1}, {H|H_kv|1}, Lk)``, of bits ``({B|1}, {H|H_kv|1}, {Lq|1}, Lk)``. ``Lk``, and of bits ``Lq`` where it is
        not 1, are those that a call has to have.
    keep_window_size : int or None
        The keys that a query keeps at most; None for a mask that was dense.

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
    data: torch.Tensor
    shape: Tuple[int, ...]
    keep_window_size: Optional[int] = None

    def __post_init__(self) -> None:
        if self.form not in _KINDS:
            raise ValueError(f"form is {self.form!r}; accepted: {', '.join(map(repr, _KINDS))}")
        if not isinstance(self.data, torch.Tensor):
            raise TypeError(not_a_tensor("data", self.data))
        dims = 4 if self.form == "bits" else 3
        if len(self.shape) != dims:
            raise ValueError(f"shape is {tuple(self.shape)}; accepted for {self.form!r}: {dims} extents, {self.dims}")
        expected: Tuple[Any, ...] = tuple(self.shape)
        if self.form == "bits":
            expected = (ops.packed_mask_bytes(*self.shape),)
        elif self.form == "columns" and self.data.dim() == 3:
            expected = (*self.shape[:2], self.data.shape[2])
        if tuple(self.data.shape) != expected:
            raise ValueError(f"data.shape is {tuple(self.data.shape)}; accepted for shape {self.shape}: {expected}")
        dtype = torch.uint8 if self.form == "bits" else torch.int32
        if self.data.dtype != dtype:
            raise TypeError(f"data.dtype is {str(self.data.dtype)[6:]}; accepted for {self.form!r}: {str(dtype)[6:]}")

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
            ``({B|1}, {H|H_kv|1}, 1, Lk)`` or ``({B|1}, {H|H_kv|1}, Lk)``, the same for all queries, or
            ``({B|1}, {H|H_kv|1}, Lq, Lk)``; float16, bfloat16 or float32, the last dimension contiguous.
        keep_window_size : int
            1 or more; from ``Lk`` on every key is kept.
        is_causal : bool
            Whether a query chooses among the keys up to its position ``q + Lk - Lq``, or among all. By a bias of keys
            the form is ``"interval"`` or ``"columns"``, by one of every query ``"bits"``.
        key_padding_mask : torch.Tensor, optional
            ``(B, Lk)``, bool or any integer or floating dtype: a key of zero is never kept and takes nobody's place.
        cu_seqlens_k : torch.Tensor, optional
            ``(B + 1,)``, int32 or int64: as for :func:`flash_dmattn.flash_dmattn_varlen_func`, where sequence b chooses
            among its own ``cu_seqlens_k[b + 1] - cu_seqlens_k[b]`` first keys of ``attn_bias[b]``. Not with a causal
            choice by a bias of every query, whose positions depend on the lengths of the queries too.
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
        >>> DynamicMask.topk(bias, keep_window_size=2).data
        tensor([[[4, 2, 4, 3]]], dtype=torch.int32)
        >>> DynamicMask.topk(bias, keep_window_size=2, is_causal=False).data
        tensor([[[0, 2]]], dtype=torch.int32)
        """
        bias = _bias_to_select_by(attn_bias)
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
            if is_causal and bias.dim() == 4:
                raise ValueError(
                    f"cu_seqlens_k is given, is_causal is True and attn_bias.shape is {tuple(attn_bias.shape)}; "
                    f"accepted with cu_seqlens_k and is_causal=True: an attn_bias that is the same for all queries"
                )
            key_padding_mask = _keys_of_sequences(cu_seqlens_k, bias, key_padding_mask)
        if key_padding_mask is not None and key_padding_mask.dim() == 2 and bias.shape[0] == 1:
            bias = bias.expand(key_padding_mask.shape[0], *bias.shape[1:])
        data = select(bias, keep, key_padding_mask, is_causal)
        form = "bits" if bias.dim() == 4 else "interval" if is_causal else "columns"
        return cls(form, data, tuple(bias.shape), keep)

    @classmethod
    def from_dense(cls, mask: torch.Tensor) -> "DynamicMask":
        """Pack a dense mask once for several calls: one bit a score, and one for each tile of 64 x 64.

        Parameters
        ----------
        mask : torch.Tensor
            ``({B|1}, {H|H_kv|1}, {Lq|1}, Lk)``, bool or any integer or floating dtype, the last dimension contiguous:
            non-zero is visible. It may be freed or changed afterwards.

        Returns
        -------
        DynamicMask
            Of the form ``"bits"``, for calls with and without `is_causal`.

        Raises
        ------
        ValueError, TypeError
            A shape, a layout or a dtype that is not accepted. The message says what is.

        Examples
        --------
        >>> import torch
        >>> from flash_dmattn import DynamicMask
        >>> mask = torch.rand(1, 4, 128, 128) < 0.5
        >>> packed = DynamicMask.from_dense(mask)
        >>> packed.nbytes, packed.to_dense().equal(mask)
        (8224, True)
        """
        if not isinstance(mask, torch.Tensor):
            raise TypeError(not_a_tensor("mask", mask))
        if mask.dim() != 4:
            raise ValueError(f"mask.dim() is {mask.dim()}; accepted: 4, {BIT_DIMS}")
        return cls("bits", pack(mask), tuple(mask.shape))

    @property
    def dims(self) -> str:
        """What `shape` has to be in a call."""
        return BIT_DIMS if self.form == "bits" else LIST_DIMS

    @property
    def len_k(self) -> int:
        """``Lk``."""
        return self.shape[-1]

    @property
    def kind(self) -> int:
        """The form as the C API numbers it."""
        return _KINDS[self.form]

    @property
    def device(self) -> torch.device:
        """Where `data` is."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of `data`."""
        return self.data.numel() * self.data.element_size()

    def to(self, device: Union[str, torch.device, int]) -> "DynamicMask":
        """The same mask on another device; itself if it is there."""
        data = self.data.to(device)
        return self if data is self.data else DynamicMask(self.form, data, self.shape, self.keep_window_size)

    def to_dense(self, len_q: Optional[int] = None, dtype: torch.dtype = torch.bool) -> torch.Tensor:
        """The mask with a value a score: what the queries see, but for what `is_causal` hides of columns.

        Parameters
        ----------
        len_q : int, optional
            ``Lq``. Query q is at position ``q + Lk - Lq``. Default: that of bits, where it is not 1, else ``Lk``.
        dtype : torch.dtype
            Of the result: 1 where a key is seen, 0 elsewhere.

        Returns
        -------
        torch.Tensor
            ``({B|1}, {H|H_kv|1}, Lq, Lk)``. Of columns, and of bits that are the same for
            all queries, all rows are one row in memory (a stride of 0).

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
        len_q = self._len_q(len_q)
        if self.form == "interval":
            key = torch.arange(self.len_k, device=self.device)
            position = torch.arange(self.len_k - len_q, self.len_k, device=self.device)[:, None]
            return ((key <= position) & (position < self.data[:, :, None, :])).to(dtype)
        rows = self._unpacked() if self.form == "bits" else self._row_of_columns()
        return rows.to(dtype).expand(-1, -1, len_q, -1)

    def _row_of_columns(self) -> torch.Tensor:
        # -1 goes to one column more, which is cut off.
        row = torch.zeros((*self.shape[:2], self.len_k + 1), dtype=torch.bool, device=self.device)
        row.scatter_(2, self.data.long().remainder(self.len_k + 1), True)
        return row[:, :, None, : self.len_k]

    def _unpacked(self) -> torch.Tensor:
        batch, heads, rows, len_k = self.shape
        # cpp/kernels/policy/mask_bits.hpp has the layout: rows of whole 16 bytes, then the bits of tiles.
        row_bytes = (len_k + 127) // 128 * 16
        row_bits = self.data[: batch * heads * rows * row_bytes].view(batch, heads, rows, row_bytes, 1)
        bits = (row_bits >> torch.arange(8, dtype=torch.uint8, device=self.device)) & 1
        return bits.view(batch, heads, rows, row_bytes * 8)[..., :len_k].bool()

    def _len_q(self, len_q: Optional[int]) -> int:
        rows = self.shape[2] if self.form == "bits" else 1
        if len_q is None:
            return self.len_k if rows == 1 else rows
        if rows not in (1, len_q):
            raise ValueError(f"len_q is {len_q}; accepted for a mask of bits of shape {self.shape}: {rows}")
        return len_q

    def density(self, len_q: Optional[int] = None) -> float:
        """The part of the scores that is seen, from 0 to 1, as :meth:`to_dense` has them; 0 where there are none.

        Costs time and memory in proportion to the lists; of bits, those of a dense mask. The host waits for the device.
        """
        len_q = self._len_q(len_q)
        lists = self.shape[0] * self.shape[1]
        if lists * len_q * self.len_k == 0:
            return 0.0
        if self.form == "bits":
            return self._unpacked().sum().item() / (lists * self.shape[2] * self.len_k)
        if self.form == "columns":
            return (self.data >= 0).sum().item() / (lists * self.len_k)
        first_position = torch.arange(self.len_k, device=self.device).clamp(min=self.len_k - len_q)
        return (self.data - first_position).clamp(min=0).sum().item() / (lists * len_q * self.len_k)

    def check_keys(self, len_k: Optional[int]) -> None:
        """Raise ValueError if a call has `len_k` keys and the mask another number."""
        if len_k is not None and self.len_k != len_k:
            raise ValueError(f"attn_mask.shape is {tuple(self.shape)}; accepted: {self.dims} with Lk = {len_k}")

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


def _bias_to_select_by(attn_bias: Any) -> torch.Tensor:
    """A bias without its gradient; one that is the same for all queries as ``(B, H, Lk)``."""
    if not isinstance(attn_bias, torch.Tensor):
        raise TypeError(not_a_tensor("attn_bias", attn_bias))
    if attn_bias.dim() not in (3, 4):
        raise ValueError(f"attn_bias.shape is {tuple(attn_bias.shape)}; accepted: {BIT_DIMS} or {LIST_DIMS}")
    bias = attn_bias.detach()
    return bias[:, :, 0] if bias.dim() == 4 and bias.shape[2] == 1 else bias


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
    inside = torch.arange(bias.shape[-1], device=bias.device) < cu_seqlens_k.diff()[:, None]
    if key_padding_mask is None:
        return inside
    if key_padding_mask.shape != inside.shape or key_padding_mask.device != inside.device:
        given = f"key_padding_mask.shape is {tuple(key_padding_mask.shape)}, on {key_padding_mask.device}"
        raise ValueError(f"{given}; accepted: (B, Lk) = {tuple(inside.shape)}, on {inside.device}")
    return inside & (key_padding_mask != 0)
