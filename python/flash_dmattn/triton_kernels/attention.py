"""The kernels as functions of tensors: outputs are allocated here, nothing is recorded for autograd."""

from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import torch
import triton

from flash_dmattn.triton_kernels.configs import Config, Configs, find_configs
from flash_dmattn.triton_kernels.forward import attention_forward_kernel
from flash_dmattn.triton_kernels.key_gradient import key_gradient_kernel
from flash_dmattn.triton_kernels.mask_bits import GROUP_ROWS, list_tiles_kernel, pack_mask_kernel
from flash_dmattn.triton_kernels.query_gradient import query_gradient_kernel
from flash_dmattn.triton_kernels.row_statistics import row_dot_kernel

_MIN_BLOCK_D = 16  # the smallest extent of a product
# Elements in which strides may be counted: of 16 bits, 8 are the widest load, and 2 the narrowest that is made ahead.
_STEPS = (8, 2, 1)
_MASK_STEPS = (16, 2, 1)
_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter: TRITON_INTERPRET=1 was set when they were defined."""
    return not isinstance(attention_forward_kernel, triton.runtime.JITFunction)


class PackedMask(NamedTuple):
    """A mask as the kernels read it.

    Attributes
    ----------
    words : torch.Tensor
        One bit a score, 64 keys to a word: int64 ``({B|1}, {H|H_kv|1}, {Lq|1}, words)``, an even number of words.
    alive : torch.Tensor
        Whether any score of 8 rows and 64 keys is visible: uint8 ``({B|1}, {H|H_kv|1}, groups of rows, words)``.
    """

    words: torch.Tensor
    alive: torch.Tensor


def pack_mask(attn_mask: torch.Tensor, len_q: int, len_k: int, is_causal: bool) -> PackedMask:
    """Pack `attn_mask`. What causality hides anyway is not read, and its bits are 0."""
    batch, heads, rows, _ = attn_mask.shape
    word_count = max(triton.cdiv(len_k, 128), 1) * 4  # of 32 keys; never an empty row, which has no view as int64
    words = torch.empty((batch, heads, rows, word_count), dtype=torch.int32, device=attn_mask.device)
    group_count = triton.cdiv(rows, GROUP_ROWS.value)
    alive = torch.empty((batch, heads, group_count, word_count // 2), dtype=torch.uint8, device=attn_mask.device)
    strides = _broadcast_strides(attn_mask)
    step = _common_step((len_k, *strides[:3]), _MASK_STEPS)
    block_rows, block_words = (64, 16) if is_interpreted() else (8, 16)
    grid = batch * heads * triton.cdiv(rows, block_rows) * triton.cdiv(word_count, block_words)
    if grid:
        pack_mask_kernel[(grid,)](
            attn_mask.view(_INTEGER_OF_SIZE[attn_mask.element_size()]),
            words,
            alive,
            *(stride // step for stride in strides[:3]),
            strides[3],
            heads,
            rows,
            len_k,
            word_count,
            _diagonal(len_q, len_k, is_causal and rows == len_q),
            STEP=step,
            IS_FLOAT=attn_mask.is_floating_point(),
            ROWS=block_rows,
            WORDS=block_words,
        )
    return PackedMask(words.view(torch.int64), alive)


class TileLists(NamedTuple):
    """Lists of the tiles of scores in which a mask shows anything: see :func:`list_tiles_kernel`."""

    tiles: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(
        cls, mask: Optional[PackedMask], len_q: int, len_k: int, is_causal: bool, config: Config, by_keys: bool
    ) -> Optional["TileLists"]:
        """One list for each tile of rows, or of keys, of `config`; None without a mask."""
        if mask is None:
            return None
        batch, heads, group_count, column_count = mask.alive.shape
        row_tiles, key_tiles = triton.cdiv(len_q, config.block_m), triton.cdiv(len_k, config.block_n)
        outer, inner = (key_tiles, row_tiles) if by_keys else (row_tiles, key_tiles)
        tiles = torch.empty((batch, heads, outer, inner), dtype=torch.int32, device=mask.alive.device)
        counts = torch.empty((batch, heads, outer, 2), dtype=torch.int32, device=mask.alive.device)
        if counts.numel():
            list_tiles_kernel[(batch * heads * outer,)](
                mask.alive,
                tiles,
                counts,
                group_count,
                column_count,
                len_q,
                len_k,
                _diagonal(len_q, len_k, is_causal),
                BY_KEYS=by_keys,
                BLOCK_M=config.block_m,
                BLOCK_N=config.block_n,
                CHUNK=128,
            )
        return cls(tiles, counts)

    @property
    def batch_stride(self) -> int:
        """Of the lists; 0 to broadcast."""
        batch, heads, outer, _ = self.counts.shape
        return heads * outer if batch > 1 else 0


def attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    attn_bias: Optional[torch.Tensor],
    scale: float,
    is_causal: bool,
) -> Tuple[torch.Tensor, torch.Tensor, Optional[PackedMask]]:
    """Attention of tensors that have been checked.

    Returns
    -------
    out : torch.Tensor
        ``(B, Lq, H, D)``, contiguous.
    lse : torch.Tensor
        ``(B, H, Lq)``, float32: the natural logarithm of the sum of exponentials of each row.
    packed_mask : PackedMask or None
        `attn_mask` as one bit a score.
    """
    batch, len_q, heads, _ = query.shape
    len_k = key.shape[1]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = torch.empty((batch, heads, len_q), dtype=torch.float32, device=query.device)
    packed_mask = None if attn_mask is None else pack_mask(attn_mask, len_q, len_k, is_causal)
    config = _find_configs(query, packed_mask, attn_bias).forward
    lists = TileLists.of(packed_mask, len_q, len_k, is_causal, config, by_keys=False)
    head_strides, heads_step = _head_strides(query, key, value, out)
    grid = batch * heads * triton.cdiv(len_q, config.block_m)
    if grid:
        attention_forward_kernel[(grid,)](
            query,
            key,
            value,
            *_mask_tensors(packed_mask, lists),
            attn_bias,
            out,
            lse,
            *head_strides,
            *_mask_strides(packed_mask, lists),
            *_score_strides(attn_bias, _bias_step(attn_bias, len_k)),
            abs(scale),
            *_extents(query, key, packed_mask, attn_bias, is_causal),
            **_shared_arguments(query, key, packed_mask, attn_bias),
            HEADS_STEP=heads_step,
            SCALE_IS_NEGATIVE=scale < 0,
            **_launch(config),
        )
    return out, lse, packed_mask


def attention_backward(
    grad_out: Optional[torch.Tensor],
    grad_lse: Optional[torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed_mask: Optional[PackedMask],
    attn_bias: Optional[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    is_causal: bool,
    needs: Tuple[bool, bool, bool, bool],
) -> Tuple[Optional[torch.Tensor], ...]:
    """Gradients of query, key, value and attn_bias: those that `needs` asks for, None for the others.

    Each is contiguous and has the shape and dtype of its input; that of a broadcast bias is summed in float32. A
    gradient of the output or of the lse that is None is zero.
    """
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    elif grad_out.stride(-1) != 1:
        # Gradients of a sum or a mean arrive expanded; the kernels read rows of head_dim elements.
        grad_out = grad_out.contiguous()
    needs_query, needs_key, needs_value, needs_bias = needs
    bias_sum, bias_over_rows = None, False
    if needs_bias and attn_bias is not None:
        bias_sum = _empty_bias_sum(query, key, packed_mask, attn_bias, is_causal)
        bias_over_rows = attn_bias.shape[2] != query.shape[1] and attn_bias.shape[3] == key.shape[1]
    call = _BackwardCall(
        (query, key, value, packed_mask, attn_bias, grad_out, lse, _row_dots(out, grad_out, lse, grad_lse)),
        scale,
        is_causal,
    )
    grad_key, grad_value, grad_query = None, None, None
    if needs_key or needs_value or bias_over_rows:
        grad_key, grad_value = call.key_gradients(needs_key or needs_value, bias_sum if bias_over_rows else None)
    if needs_query or (needs_bias and not bias_over_rows):
        grad_query = call.query_gradient(needs_query, None if bias_over_rows else bias_sum)
    return (
        grad_query,
        grad_key if needs_key else None,
        grad_value if needs_value else None,
        None if bias_sum is None or attn_bias is None else bias_sum.to(attn_bias.dtype),
    )


class _BackwardCall:
    """What the two kernels that walk tiles have in common."""

    def __init__(self, tensors: Tuple[Any, ...], scale: float, is_causal: bool):
        self.query, self.key, self.value, self.packed_mask, self.attn_bias = tensors[:5]
        self.grad_out, self.lse, self.row_dots = tensors[5:]
        self.scale = scale
        self.is_causal = is_causal
        self.configs = _find_configs(self.query, self.packed_mask, self.attn_bias)
        self.head_strides, heads_step = _head_strides(self.query, self.key, self.value, self.grad_out)
        self.bias_step = _bias_step(self.attn_bias, self.key.shape[1])
        self.shared = _shared_arguments(self.query, self.key, self.packed_mask, self.attn_bias)
        self.shared["HEADS_STEP"] = heads_step

    def key_gradients(
        self, needs_keys: bool, bias_sum: Optional[torch.Tensor]
    ) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
        """Gradients of key and value if needed; that of the bias is added to `bias_sum`."""
        config = self.configs.key_gradient
        grads = [_empty_gradient(tensor) if needs_keys else None for tensor in (self.key, self.value)]
        batch, len_k, heads_kv, _ = self.key.shape
        grid = batch * heads_kv * triton.cdiv(len_k, config.block_n)
        if grid:
            inputs, strides, scalars = self._arguments(config, by_keys=True)
            key_gradient_kernel[(grid,)](
                *inputs,
                *grads,
                bias_sum,
                *strides,
                *_score_strides(bias_sum, self.bias_step)[:2],
                *scalars,
                **self.shared,
                NEEDS_KEYS=needs_keys,
                NEEDS_BIAS=bias_sum is not None,
                **_launch(config),
            )
        return grads[0], grads[1]

    def query_gradient(self, needs_query: bool, bias_sum: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
        """Gradient of query if needed; that of the bias is written or added to `bias_sum`."""
        config = self.configs.query_gradient
        grad_query = _empty_gradient(self.query) if needs_query else None
        batch, len_q, heads, _ = self.query.shape
        grid = batch * heads * triton.cdiv(len_q, config.block_m)
        if grid:
            inputs, strides, scalars = self._arguments(config, by_keys=False)
            query_gradient_kernel[(grid,)](
                *inputs,
                grad_query,
                bias_sum,
                *strides,
                *_score_strides(bias_sum, self.bias_step),
                *scalars,
                **self.shared,
                NEEDS_QUERY=needs_query,
                NEEDS_BIAS=bias_sum is not None,
                BIAS_IS_FULL=bias_sum is not None and _is_full(self.query, self.key, self.attn_bias),
                **_launch(config),
            )
        return grad_query

    def _arguments(self, config: Config, by_keys: bool) -> Tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        """Tensors and strides of what is read, and the scalars."""
        query, key, mask = self.query, self.key, self.packed_mask
        lists = TileLists.of(mask, query.shape[1], key.shape[1], self.is_causal, config, by_keys)
        mask_tensors = _mask_tensors(mask, lists)
        tensors = (query, key, self.value, *mask_tensors, self.attn_bias, self.grad_out, self.lse, self.row_dots)
        bias_strides = _score_strides(self.attn_bias, self.bias_step)
        strides = (*self.head_strides, *_mask_strides(mask, lists), *bias_strides)
        return tensors, strides, (self.scale, *_extents(query, key, mask, self.attn_bias, self.is_causal))


def _empty_gradient(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _row_dots(
    out: torch.Tensor, grad_out: torch.Tensor, lse: torch.Tensor, grad_lse: Optional[torch.Tensor]
) -> torch.Tensor:
    """Sum of `out` times `grad_out` over head_dim, less `grad_lse`: ``(B, H, Lq)``, float32."""
    batch, len_q, heads, head_dim = out.shape
    row_dots = torch.empty_like(lse)
    head_strides, heads_step = _head_strides(out, grad_out)
    block_m = 64
    grid = batch * heads * triton.cdiv(len_q, block_m)
    if grid:
        row_dot_kernel[(grid,)](
            out,
            grad_out,
            lse,
            grad_lse,
            row_dots,
            *head_strides,
            *((0, 0, 0) if grad_lse is None else grad_lse.stride()),
            heads,
            len_q,
            HEADS_STEP=heads_step,
            HEAD_DIM=head_dim,
            BLOCK_D=_block_d(head_dim),
            BLOCK_M=block_m,
        )
    return row_dots


def _is_full(query: torch.Tensor, key: torch.Tensor, attn_bias: torch.Tensor) -> bool:
    """Whether each element of the bias belongs to one score."""
    return tuple(attn_bias.shape) == (query.shape[0], query.shape[2], query.shape[1], key.shape[1])


def _empty_bias_sum(
    query: torch.Tensor,
    key: torch.Tensor,
    packed_mask: Optional[PackedMask],
    attn_bias: torch.Tensor,
    is_causal: bool,
) -> torch.Tensor:
    """Where the gradient of the bias is written, in its own dtype, or summed, in float32."""
    if not _is_full(query, key, attn_bias):
        return torch.zeros(attn_bias.shape, dtype=torch.float32, device=attn_bias.device)
    # Tiles that causality or the mask hides are not visited.
    allocate = torch.empty if packed_mask is None and not is_causal else torch.zeros
    return allocate(attn_bias.shape, dtype=attn_bias.dtype, device=attn_bias.device)


def _block_d(head_dim: int) -> int:
    power: int = triton.next_power_of_2(head_dim)
    return max(_MIN_BLOCK_D, power)


def _find_configs(query: torch.Tensor, packed_mask: Optional[PackedMask], attn_bias: Optional[torch.Tensor]) -> Configs:
    has_scores = packed_mask is not None or attn_bias is not None
    return find_configs(_block_d(query.shape[3]), query.dtype, query.device, has_scores)


def _launch(config: Config) -> Dict[str, int]:
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def _diagonal(len_q: int, len_k: int, is_causal: bool) -> int:
    """Offset of the last key that a row sees from the row; without causality, so large that it hides none."""
    return len_k - len_q if is_causal else len_k


def _common_step(numbers: Sequence[int], steps: Sequence[int]) -> int:
    """Return the first of `steps`, whose last is 1, that divides all numbers."""
    return next(step for step in steps if not any(number % step for number in numbers))


def _head_strides(*tensors: torch.Tensor) -> Tuple[Sequence[int], int]:
    """Strides of the batch, the length and the heads of each tensor ``(B, L, H, D)``, in steps; and the step."""
    strides = [stride for tensor in tensors for stride in _broadcast_strides(tensor)[:3]]
    step = _common_step(strides, _STEPS)
    return [stride // step for stride in strides], step


def _bias_step(bias: Optional[torch.Tensor], len_k: int) -> int:
    """Step of the strides of a bias, and of its gradient; it divides Lk. 1 for a bias that is the same for all keys."""
    if bias is None or bias.shape[3] != len_k:
        return 1
    return _common_step((len_k, *_broadcast_strides(bias)[:3]), _STEPS)


def _broadcast_strides(tensor: torch.Tensor) -> Tuple[int, ...]:
    """Strides with 0 where the extent is 1, whatever the tensor says there."""
    return tuple(stride if extent > 1 else 0 for stride, extent in zip(tensor.stride(), tensor.shape))


def _score_strides(tensor: Optional[torch.Tensor], step: int = 1) -> Tuple[int, ...]:
    """Strides of the batch, the heads and the rows of a bias or of the words of a mask, in steps; 0 to broadcast."""
    return (0, 0, 0) if tensor is None else tuple(stride // step for stride in _broadcast_strides(tensor)[:3])


def _mask_tensors(mask: Optional[PackedMask], lists: Optional[TileLists]) -> Tuple[Optional[torch.Tensor], ...]:
    return (None, None, None) if mask is None or lists is None else (mask.words, *lists)


def _mask_strides(mask: Optional[PackedMask], lists: Optional[TileLists]) -> Tuple[int, ...]:
    """Strides of the words, and of the lists over the batch."""
    return (0, 0, 0, 0) if mask is None or lists is None else (*_score_strides(mask.words), lists.batch_stride)


def _extents(
    query: torch.Tensor,
    key: torch.Tensor,
    packed_mask: Optional[PackedMask],
    attn_bias: Optional[torch.Tensor],
    is_causal: bool,
) -> Tuple[int, ...]:
    """Heads, kv heads, heads of the mask and of the bias, Lq, Lk and the diagonal."""
    len_q, len_k = query.shape[1], key.shape[1]
    mask_heads = 1 if packed_mask is None else packed_mask.words.shape[1]
    bias_heads = 1 if attn_bias is None else attn_bias.shape[1]
    return query.shape[2], key.shape[2], mask_heads, bias_heads, len_q, len_k, _diagonal(len_q, len_k, is_causal)


def _shared_arguments(
    query: torch.Tensor, key: torch.Tensor, packed_mask: Optional[PackedMask], attn_bias: Optional[torch.Tensor]
) -> Dict[str, Any]:
    """Compile-time arguments of the kernels that walk tiles."""
    head_dim, len_k = query.shape[3], key.shape[1]
    return {
        "HAS_MASK": packed_mask is not None,
        "HAS_BIAS": attn_bias is not None,
        "BIAS_BY_ROW": attn_bias is not None and attn_bias.shape[2] == query.shape[1],
        "BIAS_BY_KEY": attn_bias is not None and attn_bias.shape[3] == len_k,
        "BIAS_STEP": _bias_step(attn_bias, len_k),
        "HEAD_DIM": head_dim,
        "BLOCK_D": _block_d(head_dim),
    }
