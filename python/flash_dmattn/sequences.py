"""Sequences of different lengths: their arguments, and what follows from them for the shapes of a call."""

from typing import Any, NamedTuple, Optional, Sequence, Tuple

import torch

from flash_dmattn.refusals import checked_int, not_a_tensor


class Sequences(NamedTuple):
    """Where the sequences of a call lie; :func:`flash_dmattn.flash_dmattn_varlen_func` has the meanings.

    The binding and the operators take the fields in this order.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    block_table: Optional[torch.Tensor] = None

    @property
    def offsets(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """The tensors that backward reads."""
        return self[:2]

    @property
    def bounds(self) -> Tuple[int, int]:
        """Extents of the scores of one sequence, which are those of mask and bias."""
        return self[2:4]


def checked_sequences(
    query: torch.Tensor,
    key: torch.Tensor,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    block_table: Any,
) -> Sequences:
    """Sequences of a call; the library checks what only it can: shapes, dtypes, devices and, on the CPU, values.

    Raises
    ------
    TypeError
        An argument of the wrong type, or a missing bound that the shapes do not tell.
    ValueError
        A bound of 2^63 or more.
    """
    if not isinstance(cu_seqlens_q, torch.Tensor):
        raise TypeError(not_a_tensor("cu_seqlens_q", cu_seqlens_q))
    if not isinstance(cu_seqlens_k, torch.Tensor):
        advice = "; for self-attention pass cu_seqlens_q here too" if cu_seqlens_k is None else ""
        raise TypeError(not_a_tensor("cu_seqlens_k", cu_seqlens_k) + advice)
    if block_table is not None and not isinstance(block_table, torch.Tensor):
        raise TypeError(not_a_tensor("block_table", block_table, " or None"))
    if max_seqlen_q is None:
        max_seqlen_q = _rows_of_padded(query)
    if max_seqlen_k is None:
        max_seqlen_k = _rows_of_padded(key) if block_table is None else _rows_of_pages(key, block_table)
    return Sequences(
        cu_seqlens_q,
        cu_seqlens_k,
        _checked_bound("max_seqlen_q", max_seqlen_q),
        _checked_bound("max_seqlen_k", max_seqlen_k),
        block_table,
    )


def _rows_of_padded(tensor: torch.Tensor) -> Optional[int]:
    return tensor.shape[1] if tensor.dim() == 4 else None


def _rows_of_pages(key: torch.Tensor, block_table: torch.Tensor) -> Optional[int]:
    return block_table.shape[1] * key.shape[1] if block_table.dim() == 2 and key.dim() == 4 else None


def _checked_bound(name: str, given: Any) -> int:
    if given is None:
        raise TypeError(
            f"{name} must be an int where the tensors are packed, got None; any bound of the lengths serves (they "
            f"lie on the device, and reading the longest would make the host wait)"
        )
    return checked_int(name, given)


def refuse_gradient_of_pages(
    sequences: Sequences, tensors: Sequence[torch.Tensor], attn_bias: Optional[torch.Tensor]
) -> None:
    """Raise RuntimeError if keys lie in pages: a call that autograd records would fail only in backward."""
    if sequences.block_table is None:
        return
    named = zip(("query", "key", "value", "attn_bias"), (*tensors, attn_bias))
    names = " and ".join(name for name, tensor in named if tensor is not None and tensor.requires_grad)
    raise RuntimeError(
        f"block_table is given and a gradient of {names} is asked for; accepted with block_table: forward only, under "
        f"torch.no_grad() or with tensors that require no gradient"
    )


def lse_shape(query_shape: Sequence[int], sequences: Optional[Sequences]) -> Tuple[int, ...]:
    """Shape of the lse of a query; of no dimensions for a query that no call takes."""
    if len(query_shape) == 4:
        batch, rows, heads, _ = query_shape
        return batch, heads, rows
    if len(query_shape) == 3 and sequences is not None:
        rows, heads, _ = query_shape
        return heads, rows
    return ()
