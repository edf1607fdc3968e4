"""``DynamicKVCache``: the keys and values that generation needs, in memory that does not grow with the length."""

import math
from typing import Any, Dict, List, Optional, Tuple, Union

import torch

from flash_dmattn import cache_operators
from flash_dmattn.attention import flash_dmattn_func
from flash_dmattn.calls import Result
from flash_dmattn.decode import flash_dmattn_with_kvcache
from flash_dmattn.dynamic_mask import DynamicMask
from flash_dmattn.inputs import check_scalars
from flash_dmattn.refusals import checked_int, not_a_tensor

_DTYPES = {"cpu": (torch.float16, torch.bfloat16, torch.float32), "cuda": (torch.float16, torch.bfloat16)}
_BIAS_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MAX_HEAD_DIM = 256


class DynamicKVCache:
    """The ``w = keep_window_size`` tokens of largest bias of each batch entry and kv head.

    With a bias for each key and causal selection (:meth:`flash_dmattn.DynamicMask.topk`) a key that has been pushed out
    never returns, so these are all that later queries can see: what :meth:`attend` returns is attention over all tokens
    so far with the causal top-w mask, exactly, and not an approximation of it.

    A new token pushes out the one of smallest bias; of equal ones the oldest goes, so that a constant bias makes a
    sliding window. A token whose bias is -inf or NaN never enters and takes nobody's place: give that to padding.

    All tensors stay where they are for the life of the cache and nothing waits for the device, so that a step of
    one token can be captured in a CUDA graph and replayed. A cache keeps no gradients.

    Parameters
    ----------
    keep_window_size : int
        ``w``, 1 or more.
    batch_size, num_kv_heads, head_dim : int
        ``B``, ``H_kv`` and ``D``, a multiple of 8 up to 256.
    dtype : torch.dtype
        Of keys and values: float16 or bfloat16; float32 on the CPU too.
    device : torch.device or str or int
        The CPU or a CUDA device.
    bias_dtype : torch.dtype, optional
        Of the biases: float16, bfloat16 or float32. Default `dtype`.

    Raises
    ------
    ValueError, TypeError
        An argument out of its range or of the wrong type. The message says what is accepted.

    Examples
    --------
    >>> import torch
    >>> from flash_dmattn import DynamicKVCache
    >>> cache = DynamicKVCache(16, batch_size=1, num_kv_heads=2, head_dim=32, dtype=torch.float32, device="cpu")
    >>> query, key, value = torch.randn(1, 100, 4, 32), torch.randn(1, 100, 2, 32), torch.randn(1, 100, 2, 32)
    >>> bias = torch.randn(1, 2, 100)
    >>> cache.prefill(query, key, value, bias).shape
    torch.Size([1, 100, 4, 32])
    >>> cache.attend(query[:, :1], key[:, :1], value[:, :1], bias[..., :1]).shape  # one more token
    torch.Size([1, 1, 4, 32])
    >>> cache.seen_tokens, cache.key.shape
    (101, torch.Size([1, 16, 2, 32]))
    """

    def __init__(
        self,
        keep_window_size: int,
        *,
        batch_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: Union[torch.device, str, int],
        bias_dtype: Optional[torch.dtype] = None,
    ):
        slots = _positive("keep_window_size", keep_window_size)
        batch, heads = _positive("batch_size", batch_size), _positive("num_kv_heads", num_kv_heads)
        dim = _positive("head_dim", head_dim)
        if dim % 8 or dim > _MAX_HEAD_DIM:
            raise ValueError(f"head_dim is {dim}; accepted: multiples of 8 from 8 to {_MAX_HEAD_DIM}")
        place = torch.device(device)
        if place.type not in _DTYPES:
            raise ValueError(f"device is {place}; accepted: cpu or cuda")
        _check_dtype("dtype", dtype, _DTYPES[place.type], f" on {place.type}")
        bias_dtype = dtype if bias_dtype is None else bias_dtype
        _check_dtype("bias_dtype", bias_dtype, _BIAS_DTYPES, "")
        # Tensors that were made in inference mode could not be changed outside of it.
        with torch.inference_mode(False):
            self._key = torch.empty((batch, slots, heads, dim), dtype=dtype, device=place)
            self._value = torch.empty_like(self._key)
            self._bias = torch.empty((batch, heads, slots), dtype=bias_dtype, device=place)
            self._position = torch.empty((batch, heads, slots), dtype=torch.int64, device=place)
            self._next_position = torch.empty(batch, dtype=torch.int64, device=place)
        self.reset()

    @property
    def keep_window_size(self) -> int:
        """``w``."""
        return self._key.shape[1]

    @property
    def key(self) -> torch.Tensor:
        """``(B, w, H_kv, D)``, in no particular order; zeros in slots that are empty."""
        return self._key

    @property
    def value(self) -> torch.Tensor:
        """``(B, w, H_kv, D)``, as :attr:`key`."""
        return self._value

    @property
    def bias(self) -> torch.Tensor:
        """``(B, H_kv, w)``; -inf in slots that are empty."""
        return self._bias

    @property
    def position(self) -> torch.Tensor:
        """``(B, H_kv, w)``, int64: how many tokens came before the one in the slot; -1 in slots that are empty."""
        return self._position

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._key.device

    @property
    def seen_tokens(self) -> int:
        """How many tokens were appended. The host waits for the device."""
        return int(self._next_position[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def reset(self) -> None:
        """Forget all tokens."""
        self._key.zero_()
        self._value.zero_()
        self._bias.fill_(-math.inf)
        self._position.fill_(-1)
        self._next_position.zero_()

    def append(self, key: torch.Tensor, value: torch.Tensor, attn_bias: torch.Tensor) -> None:
        """Put T new tokens into the cache. What it then holds does not depend on how tokens are split into calls.

        Parameters
        ----------
        key, value : torch.Tensor
            ``(B, T, H_kv, D)``, of the dtype and device of the cache, the last dimension contiguous.
        attn_bias : torch.Tensor
            ``(B, H_kv, T)`` or ``(B, H_kv, 1, T)``, of the bias dtype of the cache, the last dimension contiguous.

        Raises
        ------
        ValueError, TypeError
            A shape, a layout, a device or a dtype that does not fit. The cache is then as it was.
        RuntimeError
            A tensor that requires a gradient, unless gradients are off.
        """
        bias = self._checked_tokens(key, value, attn_bias)
        _refuse_gradients({"key": key, "value": value, "attn_bias": bias})
        self._append(key, value, bias)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_bias: torch.Tensor,
        *,
        scale: Optional[float] = None,
        softcap: Optional[float] = None,
        return_lse: bool = False,
    ) -> Result:
        """Append T new tokens and return the attention of their queries.

        Each query sees, of all tokens up to its own, the ``w`` of largest bias: its own only if it is among them. For
        T = 1, a step of generation, the slots are attended to; a chunk of more takes ``w + T`` keys for its time.

        Parameters
        ----------
        query : torch.Tensor
            ``(B, T, H, D)``, like `key`; ``H`` is a multiple of ``H_kv``.
        key, value, attn_bias : torch.Tensor
            As for :meth:`append`.
        scale, softcap, return_lse
            As for :func:`flash_dmattn.flash_dmattn_func`.

        Returns
        -------
        out : torch.Tensor
            ``(B, T, H, D)``.
        lse : torch.Tensor
            With `return_lse`: ``(B, H, T)``, float32.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            As :meth:`append` and :func:`flash_dmattn.flash_dmattn_func`. The cache is then as it was.
        """
        bias = self._checked_tokens(key, value, attn_bias)
        self._check_query(query, key.shape[1], scale, softcap, return_lse)
        _refuse_gradients({"query": query, "key": key, "value": value, "attn_bias": bias})
        return self._attend(query, key, value, bias, scale, softcap, return_lse)

    def prefill(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_bias: torch.Tensor,
        chunk_size: int = 8192,
        *,
        scale: Optional[float] = None,
        softcap: Optional[float] = None,
        return_lse: bool = False,
    ) -> Result:
        """:meth:`attend` to a long prompt in chunks: the same result, in memory of ``w + chunk_size`` tokens.

        Parameters
        ----------
        query, key, value, attn_bias, scale, softcap, return_lse
            As for :meth:`attend`, of all tokens of the prompt.
        chunk_size : int
            Tokens of a chunk, 1 or more.

        Returns
        -------
        out, lse
            As of :meth:`attend`.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            As :meth:`attend`.
        """
        chunk = _positive("chunk_size", chunk_size)
        bias = self._checked_tokens(key, value, attn_bias)
        length = key.shape[1]
        self._check_query(query, length, scale, softcap, return_lse)
        _refuse_gradients({"query": query, "key": key, "value": value, "attn_bias": bias})
        if length <= chunk:
            return self._attend(query, key, value, bias, scale, softcap, return_lse)
        out: Optional[torch.Tensor] = None
        lse: Optional[torch.Tensor] = None
        for begin in range(0, length, chunk):
            rows = slice(begin, begin + chunk)
            inputs = (query[:, rows], key[:, rows], value[:, rows], bias[..., rows])
            result = self._attend(*inputs, scale, softcap, return_lse)
            part, part_lse = (result, None) if isinstance(result, torch.Tensor) else result
            if part_lse is not None:
                lse = part_lse.new_empty((query.shape[0], query.shape[2], length)) if lse is None else lse
                lse[..., rows] = part_lse
            out = part.new_empty(query.shape) if out is None else out
            out[:, rows] = part
        assert out is not None, "there is a chunk"
        return out if lse is None else (out, lse)

    def reorder(self, beam_indices: torch.Tensor) -> None:
        """Make batch entry b what entry ``beam_indices[b]`` is, as beam search does.

        Parameters
        ----------
        beam_indices : torch.Tensor
            ``(B,)``, int32 or int64, on the device of the cache. Values from 0 to B - 1; on CUDA they are not looked
            at by the host, and others end the process's use of the device, as for all indices there.

        Raises
        ------
        ValueError, TypeError
            A shape, a device, a dtype or, on the CPU, a value that does not fit.
        """
        batch = self._key.shape[0]
        if not isinstance(beam_indices, torch.Tensor):
            raise TypeError(not_a_tensor("beam_indices", beam_indices))
        if tuple(beam_indices.shape) != (batch,):
            raise ValueError(f"beam_indices.shape is {tuple(beam_indices.shape)}; accepted: (B,) = ({batch},)")
        _check_dtype("beam_indices.dtype", beam_indices.dtype, (torch.int32, torch.int64), "")
        self._check_device("beam_indices", beam_indices)
        if not beam_indices.is_cuda and not bool(((beam_indices >= 0) & (beam_indices < batch)).all()):
            raise ValueError(f"beam_indices is {beam_indices.tolist()}; accepted: values from 0 to {batch - 1}")
        for tensor in self._tensors():
            tensor.copy_(tensor.index_select(0, beam_indices))

    def to(self, device: Union[torch.device, str, int]) -> "DynamicKVCache":
        """The same cache on another device; itself if it is there."""
        if self._key.to(device) is self._key:
            return self
        batch, slots, heads, dim = self._key.shape
        dtypes = {"dtype": self._key.dtype, "bias_dtype": self._bias.dtype}
        moved = DynamicKVCache(
            slots, batch_size=batch, num_kv_heads=heads, head_dim=dim, device=torch.device(device), **dtypes
        )
        for target, source in zip(moved._tensors(), self._tensors()):
            target.copy_(source)
        return moved

    def __repr__(self) -> str:
        batch, slots, heads, dim = self._key.shape
        return (
            f"DynamicKVCache({slots}, batch_size={batch}, num_kv_heads={heads}, head_dim={dim}, "
            f"dtype={self._key.dtype}, device='{self.device}', bias_dtype={self._bias.dtype})"
        )

    def _slots(self) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._key, self._value, self._bias, self._position

    def _tensors(self) -> List[torch.Tensor]:
        return [*self._slots(), self._next_position]

    def _append(self, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> None:
        cache_operators.append(*self._tensors(), key, value, bias)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor,
        scale: Optional[float],
        softcap: Optional[float],
        return_lse: bool,
    ) -> Result:
        """:meth:`attend` on arguments that have been checked; `bias` is ``(B, H_kv, T)``."""
        options: Dict[str, Any] = {"scale": scale, "softcap": softcap, "return_lse": return_lse}
        if key.shape[1] == 1:
            self._append(key, value, bias)
            return _attend_slots(query, *self._slots()[:3], **options)
        # Keys that the cache has pushed out would not come back: they need not be there for the choice to be exact.
        all_key, all_value, all_bias = cache_operators.with_tokens(*self._slots(), key, value, bias)
        mask = DynamicMask.topk(all_bias, self.keep_window_size)
        result = flash_dmattn_func(query, all_key, all_value, mask, all_bias[:, :, None], is_causal=True, **options)
        self._append(key, value, bias)
        return result

    def _checked_tokens(self, key: Any, value: Any, attn_bias: Any) -> torch.Tensor:
        """`attn_bias` as ``(B, H_kv, T)``."""
        for name, given in (("key", key), ("value", value), ("attn_bias", attn_bias)):
            if not isinstance(given, torch.Tensor):
                raise TypeError(not_a_tensor(name, given))
        batch, _, heads, dim = self._key.shape
        if key.dim() != 4:
            raise ValueError(f"key.dim() is {key.dim()}; accepted: 4, (B, T, H_kv, D)")
        tokens = key.shape[1]
        for name, given in (("key", key), ("value", value)):
            self._check(name, given, (batch, tokens, heads, dim), "(B, T, H_kv, D)", self._key.dtype)
        bias: torch.Tensor = attn_bias[:, :, 0] if attn_bias.dim() == 4 and attn_bias.shape[2] == 1 else attn_bias
        if tuple(bias.shape) != (batch, heads, tokens):
            accepted = f"(B, H_kv, T) or (B, H_kv, 1, T) with (B, H_kv, T) = {(batch, heads, tokens)}"
            raise ValueError(f"attn_bias.shape is {tuple(attn_bias.shape)}; accepted: {accepted}")
        self._check("attn_bias", bias, (batch, heads, tokens), "(B, H_kv, T)", self._bias.dtype)
        return bias

    def _check_query(self, query: Any, tokens: int, scale: Any, softcap: Any, return_lse: Any) -> None:
        """Everything that attention could refuse: the cache must not have changed by then."""
        if not isinstance(query, torch.Tensor):
            raise TypeError(not_a_tensor("query", query))
        if query.dim() != 4:
            raise ValueError(f"query.dim() is {query.dim()}; accepted: 4, (B, T, H, D)")
        batch, _, heads_kv, dim = self._key.shape
        heads = query.shape[2]
        if heads == 0 or heads % heads_kv:
            raise ValueError(f"query.shape is {tuple(query.shape)}; accepted: (B, T, H, D), H a multiple of {heads_kv}")
        self._check("query", query, (batch, tokens, heads, dim), "(B, T, H, D)", self._key.dtype)
        check_scalars(scale, None, softcap)
        if scale is not None and not math.isfinite(scale):
            raise ValueError(f"scale is {scale}; accepted: a finite number, or None")
        if softcap is not None and not (math.isfinite(softcap) and softcap >= 0):
            raise ValueError(f"softcap is {softcap}; accepted: 0 or None (off), or a positive finite number")
        if return_lse is not True and return_lse is not False:
            raise TypeError(f"return_lse must be a bool, got {return_lse!r}")

    def _check(self, name: str, given: torch.Tensor, shape: Tuple[int, ...], dims: str, dtype: torch.dtype) -> None:
        if tuple(given.shape) != shape:
            raise ValueError(f"{name}.shape is {tuple(given.shape)}; accepted: {dims} = {shape}")
        _check_dtype(f"{name}.dtype", given.dtype, (dtype,), " by this cache")
        self._check_device(name, given)
        if given.shape[-1] > 1 and given.stride(-1) != 1:
            raise ValueError(f"{name}.stride() is {given.stride()}; accepted: a stride of 1 in the last dimension")

    def _check_device(self, name: str, given: torch.Tensor) -> None:
        if given.device != self.device:
            raise ValueError(f"{name} is on {given.device} and the cache on {self.device}; accepted: the same device")


def _attend_slots(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, **options: Any
) -> Result:
    """A step of generation: one query over all slots, with their biases ``(B, H_kv, w)``."""
    return flash_dmattn_with_kvcache(query, key, value, bias, is_causal=False, **options)


def _positive(name: str, given: Any) -> int:
    number = checked_int(name, given)
    if number < 1:
        raise ValueError(f"{name} is {number}; accepted: 1 or more")
    return number


def _check_dtype(name: str, given: Any, accepted: Tuple[torch.dtype, ...], where: str) -> None:
    if given not in accepted:
        names = ", ".join(str(dtype)[6:] for dtype in accepted)
        raise TypeError(f"{name} is {str(given).replace('torch.', '')}; accepted{where}: {names}")


def _refuse_gradients(given: "dict[str, torch.Tensor]") -> None:
    if not torch.is_grad_enabled():
        return
    names = " and ".join(name for name, tensor in given.items() if tensor.requires_grad)
    if names:
        raise RuntimeError(
            f"a gradient of {names} is asked for; accepted by a cache: calls under torch.no_grad() or "
            f"torch.inference_mode(), or tensors that require no gradient"
        )
