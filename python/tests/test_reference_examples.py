"""The examples of the API reference: as written on a GPU, scaled down on the CPU.

The code of each is the reference's own, but for its extents, device and dtype, which come from `size`. Variable-length
examples are in a file of their own.
"""

import math
from typing import Any, Dict, NamedTuple

import pytest
import torch

from flash_dmattn import flash_dmattn_func_auto, get_available_backends
from flash_dmattn.testing.reference import reference_attention


class Size(NamedTuple):
    """Where an example runs, and what its extents are divided by."""

    device: str
    dtype: torch.dtype
    divisor: int

    def __call__(self, extent: int) -> int:
        return extent // self.divisor

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)


@pytest.fixture(
    params=[
        pytest.param(Size("cpu", torch.bfloat16, 32), id="scaled down on the CPU"),
        pytest.param(Size("cuda", torch.bfloat16, 1), id="as written", marks=pytest.mark.gpu),
    ]
)
def size(request) -> Size:
    torch.manual_seed(0)
    return request.param


def assert_close_to_reference(output: torch.Tensor, arguments: Dict[str, Any], rows: int = 64) -> None:
    """Compare the last `rows` rows of batch 0 and head 0 to the float64 reference."""

    def part(name: str) -> Any:
        given = arguments.get(name)
        if given is None:
            return None
        if name.startswith("attn"):
            return given[:1, :1, -rows:]
        return given[:1, -rows:, :1] if name == "query" else given[:1, :, :1]

    names = ("query", "key", "value", "attn_mask", "attn_bias")
    options = {name: arguments[name] for name in arguments if name not in names}
    expected, _ = reference_attention(**{name: part(name) for name in names}, **options)
    # Two roundings of bfloat16, of the probabilities and of the output.
    torch.testing.assert_close(output[:1, -rows:, :1].double(), expected, rtol=2**-7, atol=2**-7)


def test_available_backends() -> None:
    from flash_dmattn import CUDA_AVAILABLE, FLEX_AVAILABLE, TRITON_AVAILABLE

    backends = get_available_backends()
    assert [name in backends for name in ("cuda", "triton", "flex")] == [
        CUDA_AVAILABLE,
        TRITON_AVAILABLE,
        FLEX_AVAILABLE,
    ]


def test_automatic_selection_and_forced_backends(size) -> None:
    q, k, v = (size.randn(1, size(2048), 2, 64) for _ in range(3))
    attention_mask = torch.ones(1, 2, size(2048), size(2048), device=size.device, dtype=size.dtype)
    attention_bias = torch.zeros_like(attention_mask)
    attn = flash_dmattn_func_auto()
    expected = attn(q, k, v, attn_mask=attention_mask, attn_bias=attention_bias, is_causal=True, scale=None)
    for backend in get_available_backends():
        attn = flash_dmattn_func_auto(backend=backend)
        if (backend == "cpu") == (size.device == "cpu"):
            output = attn(q, k, v, attn_mask=attention_mask, attn_bias=attention_bias, is_causal=True, scale=None)
            torch.testing.assert_close(output, expected, rtol=2**-7, atol=2**-7)


def test_standard_attention(size) -> None:
    B, L, H, D = 2, size(4096), 12, 128  # noqa: N806 (the example's names)
    q, k, v = (size.randn(B, L, H, D) for _ in range(3))
    attn = flash_dmattn_func_auto()
    output = attn(q, k, v, is_causal=True)
    assert output.shape == (B, L, H, D)
    assert_close_to_reference(output, {"query": q, "key": k, "value": v, "is_causal": True})


def test_dynamic_mask_attention(size) -> None:
    B, H, L = 2, 12, size(4096)  # noqa: N806
    keep_window_size = size(1024)
    q, k, v = (size.randn(B, L, H, 128) for _ in range(3))
    attention_bias = size.randn(B, H, L, L)
    attention_mask = torch.zeros_like(attention_bias)

    if keep_window_size < L:
        topk_indices = torch.topk(attention_bias, keep_window_size, dim=-1, largest=True).indices
        attention_mask.scatter_(-1, topk_indices, 1.0)
    else:
        attention_mask.fill_(1.0)

    attn = flash_dmattn_func_auto()
    call = {"attn_mask": attention_mask, "attn_bias": attention_bias, "is_causal": True, "scale": 1.0 / math.sqrt(128)}
    output = attn(q, k, v, **call)
    assert_close_to_reference(output, {"query": q, "key": k, "value": v, **call})


def test_grouped_query_attention(size) -> None:
    B, L, H, H_kv, D = 2, size(2048), 32, 8, 128  # noqa: N806
    q = size.randn(B, L, H, D)
    k, v = (size.randn(B, L, H_kv, D) for _ in range(2))
    attn_mask = torch.ones(B, H, L, L, device=size.device, dtype=size.dtype)
    attn = flash_dmattn_func_auto()
    output = attn(q, k, v, attn_mask=attn_mask, is_causal=True)
    assert output.shape == (B, L, H, D)
    assert_close_to_reference(output, {"query": q, "key": k, "value": v, "attn_mask": attn_mask, "is_causal": True})


def test_dynamic_sparse_masking_for_long_sequences(size) -> None:
    # As written its bias and mask alone take 137 GB: on a GPU an eighth of the length, which is a 64th of that.
    batch_size, seq_len, num_heads, head_dim = 2, size(32768) // 8, 16, 128
    keep_window_size = size(2048) // 8
    q, k, v = (size.randn(batch_size, seq_len, num_heads, head_dim) for _ in range(3))
    attention_bias = size.randn(batch_size, num_heads, seq_len, seq_len)
    attention_mask = torch.zeros_like(attention_bias)
    if seq_len > keep_window_size:
        topk_indices = torch.topk(attention_bias, keep_window_size, dim=-1, largest=True, sorted=False).indices
        attention_mask.scatter_(-1, topk_indices, 1.0)
    else:
        attention_mask.fill_(1.0)

    attn = flash_dmattn_func_auto()
    call = {"attn_mask": attention_mask, "attn_bias": attention_bias, "is_causal": True}
    output = attn(q, k, v, **call)
    assert_close_to_reference(output, {"query": q, "key": k, "value": v, **call})


def memory_efficient_long_attention(q, k, v, chunk_size=8192, keep_window_size=2048):
    _, seq_len, _, _ = q.shape

    if seq_len <= chunk_size:
        return flash_dmattn_func_auto()(q, k, v, is_causal=True)

    outputs = []
    attn = flash_dmattn_func_auto()

    for i in range(0, seq_len, chunk_size):
        end_idx = min(i + chunk_size, seq_len)
        q_chunk = q[:, i:end_idx]
        context_start = max(0, i - keep_window_size // 2)
        k_chunk = k[:, context_start:end_idx]
        v_chunk = v[:, context_start:end_idx]
        output_chunk = attn(q_chunk, k_chunk, v_chunk, is_causal=True)
        outputs.append(output_chunk)

    return torch.cat(outputs, dim=1)


def test_chunked_processing_of_long_sequences(size) -> None:
    length, chunk, window = size(131072), size(8192), size(2048)
    q, k, v = (size.randn(1, length, 16, 128) for _ in range(3))
    output = memory_efficient_long_attention(q, k, v, chunk_size=chunk, keep_window_size=window)
    assert output.shape == (1, length, 16, 128)
    # The last chunk sees itself and half a window before it.
    seen = slice(length - chunk - window // 2, length)
    assert_close_to_reference(output, {"query": q, "key": k[:, seen], "value": v[:, seen], "is_causal": True})
    short = slice(0, chunk)
    whole = memory_efficient_long_attention(q[:, short], k[:, short], v[:, short], chunk_size=chunk)
    torch.testing.assert_close(whole, output[:, short], rtol=0, atol=0)


def test_monitoring_of_memory(size) -> None:
    def get_memory_mb():
        return torch.cuda.memory_allocated() / (1024**2) if size.device == "cuda" else 0.0

    seq_len = size(16384)
    q, k, v = (size.randn(1, seq_len, 16, 128) for _ in range(3))
    attention_bias = size.randn(1, 16, seq_len, seq_len)
    sparse_mask = torch.zeros_like(attention_bias)
    topk_indices = torch.topk(attention_bias, size(2048), dim=-1).indices
    sparse_mask.scatter_(-1, topk_indices, 1.0)
    # Counted in float32: a bfloat16 sum of so many ones would stand still at 256.
    assert sparse_mask.sum(dtype=torch.float32).item() / sparse_mask.numel() == pytest.approx(0.125)

    before = get_memory_mb()
    attn = flash_dmattn_func_auto()
    output = attn(q, k, v, attn_mask=sparse_mask, attn_bias=attention_bias)
    # Without gradients the call keeps its output alone.
    assert get_memory_mb() - before <= output.numel() * output.element_size() / 2**20 + 4
    call = {"attn_mask": sparse_mask, "attn_bias": attention_bias}
    assert_close_to_reference(output, {"query": q, "key": k, "value": v, **call})


def test_gradient_checkpointing_of_the_example(size) -> None:
    from torch.utils import checkpoint

    attn = flash_dmattn_func_auto()

    def attention_checkpoint(q, k, v, *args, **kwargs):
        return checkpoint.checkpoint(lambda *a, **kw: attn(*a, **kw), q, k, v, *args, **kwargs)

    q, k, v = (size.randn(1, size(4096), 4, 64).requires_grad_() for _ in range(3))
    # The reference passes no use_reentrant, for which torch warns; the non-reentrant kind takes keyword arguments too.
    output = attention_checkpoint(q, k, v, is_causal=True, deterministic=True, use_reentrant=False)
    expected = attn(q, k, v, is_causal=True, deterministic=True)
    assert torch.equal(output, expected)
    grads, of_plain = (torch.autograd.grad(out.float().sum(), (q, k, v)) for out in (output, expected))
    for actual, plain in zip(grads, of_plain):
        assert torch.equal(actual, plain)


@pytest.mark.filterwarnings("ignore:.*use_reentrant parameter should be passed explicitly")
def test_gradient_checkpointing_as_written(size) -> None:
    import torch.utils.checkpoint as checkpoint

    attn = flash_dmattn_func_auto()
    q, k, v = (size.randn(1, size(4096), 4, 64).requires_grad_() for _ in range(3))
    output = checkpoint.checkpoint(lambda *a, **kw: attn(*a, **kw), q, k, v)
    assert torch.equal(output, attn(q, k, v))
    output.sum().backward()
    assert q.grad.shape == q.shape


def test_chunks_of_queries(size) -> None:
    attn = flash_dmattn_func_auto()

    def chunked_attention(q, k, v, chunk_size=8192, **kwargs):
        L = q.shape[1]  # noqa: N806
        outs = []
        for i in range(0, L, chunk_size):
            outs.append(attn(q[:, i : i + chunk_size], k, v, **kwargs))
        return torch.cat(outs, dim=1)

    q, k, v = (size.randn(1, size(16384), 4, 64) for _ in range(3))
    output = chunked_attention(q, k, v, chunk_size=size(8192))
    assert_close_to_reference(output, {"query": q, "key": k, "value": v})


def test_loop_over_backends(size) -> None:
    q, k, v = (size.randn(1, size(2048), 4, 64) for _ in range(3))
    backends = ["cuda", "triton", "flex"]
    outcome = {}
    for backend in backends:
        try:
            attn = flash_dmattn_func_auto(backend=backend)
            if size.device == "cpu":
                _ = attn(q, k, v, is_causal=True)
            else:
                start = torch.cuda.Event(enable_timing=True)
                end = torch.cuda.Event(enable_timing=True)
                start.record()
                _ = attn(q, k, v, is_causal=True)
                end.record()
                torch.cuda.synchronize()
                assert start.elapsed_time(end) > 0
            outcome[backend] = "ran"
        except RuntimeError as e:  # the example catches no other
            assert backend in str(e)
            outcome[backend] = "not available"
    assert list(outcome) == backends
    if size.device == "cuda":
        assert outcome["cuda"] == "ran"


def test_import_of_the_example() -> None:
    from flash_dmattn import flash_dmattn_func_auto, get_available_backends

    assert callable(flash_dmattn_func_auto())
    assert get_available_backends()


def test_debugging(size) -> None:
    q, k, v = (size.randn(1, size(2048), 4, 64).requires_grad_() for _ in range(3))
    attn_bias = size.randn(1, 4, size(2048), size(2048)).requires_grad_()
    attn_mask = (attn_bias.detach() > 0).to(size.dtype)
    torch.autograd.set_detect_anomaly(True)
    try:
        attn = flash_dmattn_func_auto()
        output = attn(q, k, v, attn_mask=attn_mask, attn_bias=attn_bias, is_causal=True)
        assert not torch.isnan(output).any()
        output.sum().backward()
    finally:
        torch.autograd.set_detect_anomaly(False)
    assert all(not tensor.grad.isnan().any() for tensor in (q, k, v, attn_bias))


@pytest.mark.gpu
def test_memory_statistics() -> None:
    q, k, v = (torch.randn(1, 1024, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    before = torch.cuda.memory_allocated()
    output = flash_dmattn_func_auto()(q, k, v)
    assert torch.cuda.memory_allocated() - before <= 2 * output.numel() * output.element_size()
    torch.cuda.empty_cache()
