"""The bounded cache: generation and prefill with it are attention over all tokens with the causal top-w mask."""

import copy
import itertools
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from flash_dmattn import DynamicKVCache, DynamicMask, flash_dmattn_func
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.memory import new_memory_is_nan
from flash_dmattn.testing.recorder import Recorder
from flash_dmattn.testing.reference import reference_attention

INF, NAN = math.inf, math.nan
DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=pytest.mark.gpu)]

BIASES = {
    "normal": lambda shape: torch.randn(shape),
    "few values": lambda shape: torch.randint(-2, 3, shape).float(),
    "constant": lambda shape: torch.full(shape, -0.5),
    "signed zeros": lambda shape: torch.where(torch.rand(shape) < 0.5, 0.0, -0.0),
    "rising": lambda shape: torch.linspace(-3, 0, shape[-1]).expand(shape).clone(),
    "falling": lambda shape: torch.linspace(0, -3, shape[-1]).expand(shape).clone(),
    "hidden": lambda shape: torch.full(shape, -INF),
    "half hidden": lambda shape: torch.randn(shape).masked_fill(torch.rand(shape) < 0.5, -INF),
    "NaN": lambda shape: torch.randn(shape).masked_fill(torch.rand(shape) < 0.3, NAN),
}


def tokens(
    length: int, *, batch: int = 2, heads: int = 4, heads_kv: int = 2, dim: int = 16, bias: str = "normal", **of
):
    """Query, key, value and bias of `length` tokens; `of` has dtype, device and bias_dtype."""
    dtype, device = of.get("dtype", torch.float32), of.get("device", "cpu")
    shapes = ((batch, length, heads, dim), (batch, length, heads_kv, dim), (batch, length, heads_kv, dim))
    tensors = [torch.randn(shape).to(device, dtype) for shape in shapes]
    return (*tensors, BIASES[bias]((batch, heads_kv, length)).to(device, of.get("bias_dtype") or dtype))


def cache_for(window: int, query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor) -> DynamicKVCache:
    batch, _, heads, dim = key.shape
    return DynamicKVCache(
        window,
        batch_size=batch,
        num_kv_heads=heads,
        head_dim=dim,
        dtype=key.dtype,
        device=key.device,
        bias_dtype=bias.dtype,
    )


def generate(cache: DynamicKVCache, inputs, sizes, **options):
    """Output and lse of all tokens, appended in chunks of `sizes`, in turn."""
    query, key, value, bias = inputs
    parts, begin = [], 0
    for size in itertools.cycle(sizes):
        if begin >= query.shape[1]:
            break
        rows = slice(begin, begin + size)
        chunk = (query[:, rows], key[:, rows], value[:, rows], bias[..., rows])
        parts.append(cache.attend(*chunk, return_lse=True, **options))
        begin += size
    outs, lses = zip(*parts)
    return torch.cat(outs, dim=1), torch.cat(lses, dim=2)


def expected(inputs, window: int, dtype: torch.dtype = torch.float64, **options):
    """The whole sequence at once. A NaN bias is that of a token that nobody sees."""
    query, key, value, bias = (tensor.cpu() for tensor in inputs)
    mask = DynamicMask.topk(bias, window)
    return reference_attention(
        query, key, value, mask, bias.nan_to_num(nan=0.0, neginf=-INF)[:, :, None], dtype=dtype, **options
    )


def assert_equals_full_attention(inputs, window: int, sizes, **options) -> None:
    cache = cache_for(window, inputs[0], inputs[1], inputs[3])
    actual = generate(cache, inputs, sizes, **options)
    exact, eager = (expected(inputs, window, dtype, **options) for dtype in (torch.float64, inputs[0].dtype))
    for name, result, reference, same_dtype in zip(("out", "lse"), actual, exact, eager):
        assert_matches(result.cpu(), reference, same_dtype, f"{name}, w {window}, chunks {sizes}")
    assert cache.seen_tokens == inputs[0].shape[1]


MIXTURES = [(1,), (3,), (1, 3, 17, 200), (40, 1, 1, 1), (16, 17)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sizes", MIXTURES, ids=str)
@pytest.mark.parametrize("window", [1, 16, 300])
@pytest.mark.parametrize("bias", BIASES)
def test_generation_equals_full_attention(bias: str, window: int, sizes, device: str) -> None:
    length = 60 if sizes == (1,) else 230
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    inputs = tokens(length, bias=bias, dtype=dtype, device=device, bias_dtype=torch.bfloat16)
    assert_equals_full_attention(inputs, window, sizes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias_dtype", [None, torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype, bias_dtype, device: str) -> None:
    inputs = tokens(90, bias="few values", dtype=dtype, device=device, bias_dtype=bias_dtype)
    for sizes in ((1,), (50, 1, 7)):
        assert_equals_full_attention(inputs, 20, sizes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("heads", "heads_kv"), [(1, 1), (6, 2), (8, 8), (4, 1)])
def test_heads(heads: int, heads_kv: int, device: str) -> None:
    dtype = torch.float32 if device == "cpu" else torch.float16
    inputs = tokens(70, heads=heads, heads_kv=heads_kv, dim=40, dtype=dtype, device=device)
    assert_equals_full_attention(inputs, 11, (30, 1, 5))


def test_options_of_attention() -> None:
    assert_equals_full_attention(tokens(50), 8, (20, 1), scale=0.3, softcap=2.0)


def test_a_step_equals_the_last_row_of_the_cpu_backend() -> None:
    query, key, value, bias = inputs = tokens(80, bias="few values")
    cache = cache_for(13, query, key, bias)
    for t in range(80):
        row = slice(t, t + 1)
        step = cache.attend(query[:, row], key[:, row], value[:, row], bias[..., row])
        so_far = (key[:, : t + 1], value[:, : t + 1])
        full = flash_dmattn_func(
            query[:, row], *so_far, attn_bias=bias[:, :, None, : t + 1], is_causal=True, keep_window_size=13
        )
        torch.testing.assert_close(step, full)
    assert len(inputs) == 4


def survivors(cache: DynamicKVCache, b: int, h: int) -> dict:
    """Bias, key and value of each position that the cache holds."""
    return {
        position: (cache.bias[b, h, slot].item(), cache.key[b, slot, h].tolist(), cache.value[b, slot, h].tolist())
        for slot, position in enumerate(cache.position[b, h].tolist())
        if position >= 0
    }


def definition(bias: list, window: int) -> list:
    """The positions that the last query keeps."""
    candidates = [k for k in range(len(bias)) if bias[k] > -INF]
    return sorted(sorted(candidates, key=lambda k: (bias[k], k), reverse=True)[:window])


@pytest.mark.parametrize("device", DEVICES)
def test_survivors_of_thousands_of_small_caches(device: str) -> None:
    dtype = torch.float32 if device == "cpu" else torch.float16
    checked = 0
    for seed, bias_name in itertools.product(range(12), BIASES):
        torch.manual_seed(seed)
        batch, window, length = 12, int(torch.randint(1, 9, ())), int(torch.randint(1, 45, ()))
        sizes = [int(size) for size in torch.randint(1, 24, (4,))]
        _, key, value, bias = tokens(length, batch=batch, dim=8, bias=bias_name, dtype=dtype, device=device)
        cache, begin = cache_for(window, key, key, bias), 0
        for size in itertools.cycle(sizes):
            rows = slice(begin, begin + size)
            cache.append(key[:, rows], value[:, rows], bias[..., rows])
            begin += size
            if begin >= length:
                break
        for b, h in itertools.product(range(batch), range(2)):
            kept = survivors(cache, b, h)
            assert sorted(kept) == definition(bias[b, h].tolist(), window)
            for position, (of_bias, of_key, of_value) in kept.items():
                assert of_bias == bias[b, h, position].item()
                assert of_key == key[b, position, h].tolist()
                assert of_value == value[b, position, h].tolist()
            checked += 1
    assert checked > 2000


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 100, 1000])
def test_prefill_in_chunks(chunk_size: int, device: str) -> None:
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    inputs = tokens(100, dtype=dtype, device=device)
    whole = cache_for(24, inputs[0], inputs[1], inputs[3])
    out, lse = whole.prefill(*inputs, return_lse=True)
    cache = cache_for(24, inputs[0], inputs[1], inputs[3])
    with new_memory_is_nan():
        part, part_lse = cache.prefill(*inputs, chunk_size=chunk_size, return_lse=True)
    exact, eager = (expected(inputs, 24, of) for of in (torch.float64, dtype))
    for name, result, of_whole, reference, same_dtype in zip(
        ("out", "lse"), (part, part_lse), (out, lse), exact, eager
    ):
        assert_matches(result.cpu(), reference, same_dtype, name)
        assert_matches(of_whole.cpu(), reference, same_dtype, name)
    for b, h in itertools.product(range(2), range(2)):
        assert survivors(cache, b, h) == survivors(whole, b, h)
    again = cache_for(24, inputs[0], inputs[1], inputs[3])
    assert torch.equal(again.prefill(*inputs, chunk_size=chunk_size), part)


def test_left_padding_never_enters() -> None:
    """Sequences of different lengths, padded on the left, are as they are alone."""
    lengths, longest = (5, 40), 40
    query, key, value, bias = inputs = tokens(longest)
    key[0, : longest - lengths[0]], value[0, : longest - lengths[0]] = NAN, NAN  # never read
    bias[0, :, : longest - lengths[0]] = -INF
    cache = cache_for(9, query, key, bias)
    outs = [cache.attend(query[:, :17], key[:, :17].nan_to_num(), value[:, :17].nan_to_num(), bias[..., :17])]
    for t in range(17, longest):
        outs.append(cache.attend(*(tensor[:, t : t + 1].nan_to_num() for tensor in inputs[:3]), bias[..., t : t + 1]))
    out = torch.cat(outs, dim=1)
    assert (out[0, : longest - lengths[0]] == 0).all()
    alone = tuple(tensor[:1, longest - lengths[0] :] for tensor in inputs[:3])
    reference, _ = expected((*alone, bias[:1, :, longest - lengths[0] :]), 9)
    torch.testing.assert_close(out[:1, longest - lengths[0] :].double(), reference, rtol=1e-5, atol=1e-5)
    assert (cache.position[0] >= longest - lengths[0]).sum() == 2 * lengths[0]


def test_a_token_that_does_not_enter_is_not_read() -> None:
    _, key, value, bias = tokens(10)
    bias[..., 4] = -INF
    key[:, 4], value[:, 4] = NAN, NAN
    cache = cache_for(4, key, key, bias)
    cache.append(key, value, bias)
    assert torch.isfinite(cache.key).all()
    assert torch.isfinite(cache.value).all()


def test_a_constant_bias_is_a_sliding_window() -> None:
    _, key, value, bias = tokens(20, bias="constant")
    cache = cache_for(6, key, key, bias)
    for t in range(20):
        cache.append(key[:, t : t + 1], value[:, t : t + 1], bias[..., t : t + 1])
        assert sorted(p for p in cache.position[1, 1].tolist() if p >= 0) == list(range(max(0, t - 5), t + 1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_reorder(index_dtype: torch.dtype, device: str) -> None:
    dtype = torch.float32 if device == "cpu" else torch.float16
    query, key, _, bias = inputs = tokens(30, batch=3, dtype=dtype, device=device)
    beams = torch.tensor([2, 0, 2], device=device)
    cache = cache_for(8, query, key, bias)
    address = cache.key.data_ptr()
    generate(cache, [tensor[:, :25] for tensor in inputs[:3]] + [bias[..., :25]], (20, 1))
    cache.reorder(beams.to(index_dtype))
    assert cache.key.data_ptr() == address
    rest = [tensor[:, 25:] for tensor in inputs[:3]] + [bias[..., 25:]]
    out, _ = generate(cache, rest, (1, 4))
    for b, source in enumerate(beams.tolist()):
        joined = [torch.cat([tensor[source : source + 1, :25], tensor[b : b + 1, 25:]], dim=1) for tensor in inputs[:3]]
        joined.append(torch.cat([bias[source : source + 1, :, :25], bias[b : b + 1, :, 25:]], dim=2))
        exact, eager = (expected(joined, 8, of)[0][:, 25:] for of in (torch.float64, dtype))
        assert_matches(out[b : b + 1].cpu(), exact, eager, f"beam {b}")


def test_reset_forgets_everything() -> None:
    inputs = tokens(30)
    cache = cache_for(8, inputs[0], inputs[1], inputs[3])
    first = generate(cache, inputs, (10, 1))
    cache.reset()
    assert cache.seen_tokens == 0
    assert (cache.position == -1).all()
    assert (cache.bias == -INF).all()
    assert not cache.key.any()
    for before, after in zip(first, generate(cache, inputs, (10, 1))):
        assert torch.equal(before, after)


def test_facts() -> None:
    cache = DynamicKVCache(
        5, batch_size=2, num_kv_heads=3, head_dim=16, dtype=torch.bfloat16, device="cpu", bias_dtype=torch.float32
    )
    assert cache.keep_window_size == 5
    assert cache.key.shape == cache.value.shape == (2, 5, 3, 16)
    assert cache.bias.shape == cache.position.shape == (2, 3, 5)
    assert (cache.key.dtype, cache.bias.dtype, cache.position.dtype) == (torch.bfloat16, torch.float32, torch.int64)
    assert cache.nbytes == 2 * (2 * 5 * 3 * 16 * 2) + 2 * 3 * 5 * (4 + 8) + 2 * 8
    assert cache.device == torch.device("cpu")
    assert cache.to("cpu") is cache
    assert repr(cache) == (
        "DynamicKVCache(5, batch_size=2, num_kv_heads=3, head_dim=16, dtype=torch.bfloat16, device='cpu', "
        "bias_dtype=torch.float32)"
    )


def test_copies_are_apart() -> None:
    _, key, value, bias = tokens(9)
    cache = cache_for(4, key, key, bias)
    cache.append(key, value, bias)
    branch = copy.deepcopy(cache)
    branch.append(key, value, bias)
    assert (cache.seen_tokens, branch.seen_tokens) == (9, 18)


@pytest.mark.gpu
def test_to_another_device() -> None:
    inputs = tokens(40, dtype=torch.bfloat16)
    cache = cache_for(8, inputs[0], inputs[1], inputs[3])
    cache.append(*inputs[1:])
    moved = cache.to("cuda")
    assert moved.device.type == "cuda"
    assert moved.seen_tokens == 40
    assert torch.equal(moved.position.cpu(), cache.position)
    back = moved.to("cpu")
    assert torch.equal(back.key, cache.key)


def test_views_are_taken_as_they_are() -> None:
    query, key, value, bias = tokens(30)
    packed = torch.stack([key, value], dim=2)
    wide = torch.zeros(2, 2, 1, 40)
    wide[..., 5:35] = bias[:, :, None]
    heads_first = query.transpose(1, 2).contiguous().transpose(1, 2)
    expected_cache, cache = (cache_for(7, query, key, bias) for _ in range(2))
    out = expected_cache.attend(query, key, value, bias)
    assert torch.equal(cache.attend(heads_first, packed[:, :, 0], packed[:, :, 1], wide[..., 5:35]), out)
    assert torch.equal(cache.position, expected_cache.position)
    assert torch.equal(cache.key, expected_cache.key)


@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode(inside: bool) -> None:
    inputs = tokens(20)
    with torch.inference_mode(inside):
        cache = cache_for(6, inputs[0], inputs[1], inputs[3])
    with torch.inference_mode(not inside):
        out, _ = generate(cache, inputs, (9, 1))
        cache.reorder(torch.tensor([1, 0]))
        cache.reset()
    reference, _ = expected(inputs, 6)
    torch.testing.assert_close(out.double(), reference, rtol=1e-5, atol=1e-5)


def test_gradients_are_refused_where_they_would_be_recorded() -> None:
    query, key, value, bias = tokens(3)
    cache = cache_for(4, query, key, bias)
    key.requires_grad_()
    bias.requires_grad_()
    message = "a gradient of key and attn_bias is asked for; accepted by a cache: calls under torch.no_grad\\(\\)"
    for call in (cache.attend, cache.prefill):
        with pytest.raises(RuntimeError, match=message):
            call(query, key, value, bias)
    with pytest.raises(RuntimeError, match=message):
        cache.append(key, value, bias)
    assert cache.seen_tokens == 0
    with torch.no_grad():
        assert not cache.attend(query, key, value, bias).requires_grad


MAKE = {"batch_size": 2, "num_kv_heads": 2, "head_dim": 16, "dtype": torch.float32, "device": "cpu"}
REFUSALS_OF_THE_CLASS = {
    "window: zero": ({"keep_window_size": 0}, ValueError, "keep_window_size is 0; accepted: 1 or more"),
    "window: float": ({"keep_window_size": 1.0}, TypeError, "keep_window_size must be an int, got 1.0"),
    "batch": ({"batch_size": 0}, ValueError, "batch_size is 0; accepted: 1 or more"),
    "heads": ({"num_kv_heads": True}, TypeError, "num_kv_heads must be an int, got True"),
    "head_dim: 12": ({"head_dim": 12}, ValueError, "head_dim is 12; accepted: multiples of 8 from 8 to 256"),
    "head_dim: 264": ({"head_dim": 264}, ValueError, "head_dim is 264; accepted: multiples of 8 from 8 to 256"),
    "dtype": ({"dtype": torch.float64}, TypeError, "dtype is float64; accepted on cpu: float16, bfloat16, float32"),
    "dtype: text": ({"dtype": "half"}, TypeError, "dtype is half; accepted on cpu: float16, bfloat16, float32"),
    "bias": ({"bias_dtype": torch.int8}, TypeError, "bias_dtype is int8; accepted: float16, bfloat16, float32"),
    "device": ({"device": "meta"}, ValueError, "device is meta; accepted: cpu or cuda"),
    "dtype: cuda": ({"device": "cuda"}, TypeError, "dtype is float32; accepted on cuda: float16, bfloat16"),
}


@pytest.mark.parametrize("name", REFUSALS_OF_THE_CLASS)
def test_refusals_of_the_class(name: str) -> None:
    arguments, exception, message = REFUSALS_OF_THE_CLASS[name]
    with pytest.raises(exception, match=message):
        DynamicKVCache(**{"keep_window_size": 4, **MAKE, **arguments})


QUERY, KEY, BIAS = torch.zeros(2, 3, 4, 16), torch.zeros(2, 3, 2, 16), torch.zeros(2, 2, 3)
REFUSALS_OF_TOKENS = {
    "key: list": ({"key": [0]}, TypeError, "key must be a torch.Tensor, got list"),
    "key: dims": ({"key": KEY[0]}, ValueError, r"key.dim\(\) is 3; accepted: 4, \(B, T, H_kv, D\)"),
    "key: batch": (
        {"key": KEY[:1]},
        ValueError,
        r"key.shape is \(1, 3, 2, 16\); accepted: \(B, T, H_kv, D\) = \(2, 3, 2, 16\)",
    ),
    "key: dtype": ({"key": KEY.half()}, TypeError, "key.dtype is float16; accepted by this cache: float32"),
    "key: strides": (
        {"key": torch.zeros(2, 3, 2, 32)[..., ::2]},
        ValueError,
        r"key.stride\(\) is \(192, 64, 32, 2\); accepted: a stride of 1 in the last dimension",
    ),
    "key: device": ({"key": KEY.to("meta")}, ValueError, "key is on meta and the cache on cpu; accepted: the same"),
    "value: length": (
        {"value": KEY[:, :2]},
        ValueError,
        r"value.shape is \(2, 2, 2, 16\); accepted: \(B, T, H_kv, D\) = \(2, 3, 2, 16\)",
    ),
    "bias: heads": (
        {"attn_bias": torch.zeros(2, 4, 3)},
        ValueError,
        r"attn_bias.shape is \(2, 4, 3\); accepted: \(B, H_kv, T\) or \(B, H_kv, 1, T\) with .* = \(2, 2, 3\)",
    ),
    "bias: of queries": ({"attn_bias": torch.zeros(2, 2, 3, 3)}, ValueError, r"attn_bias.shape is \(2, 2, 3, 3\)"),
    "bias: dtype": (
        {"attn_bias": BIAS.bfloat16()},
        TypeError,
        "attn_bias.dtype is bfloat16; accepted by this cache: float32",
    ),
}
REFUSALS_OF_QUERIES = {
    "query: None": ({"query": None}, TypeError, "query must be a torch.Tensor, got NoneType"),
    "query: dims": ({"query": QUERY[0]}, ValueError, r"query.dim\(\) is 3; accepted: 4, \(B, T, H, D\)"),
    "query: heads": (
        {"query": QUERY[:, :, :3]},
        ValueError,
        r"query.shape is \(2, 3, 3, 16\); accepted: \(B, T, H, D\), H a multiple of 2",
    ),
    "query: length": (
        {"query": QUERY[:, :2]},
        ValueError,
        r"query.shape is \(2, 2, 4, 16\); accepted: \(B, T, H, D\) = \(2, 3, 4, 16\)",
    ),
    "query: dtype": ({"query": QUERY.half()}, TypeError, "query.dtype is float16; accepted by this cache: float32"),
    "scale": ({"scale": INF}, ValueError, "scale is inf; accepted: a finite number, or None"),
    "scale: text": ({"scale": "1"}, TypeError, "scale must be a real number or None, got '1'"),
    "softcap": ({"softcap": -1.0}, ValueError, r"softcap is -1.0; accepted: 0 or None \(off\), or a positive finite"),
    "return_lse": ({"return_lse": 1}, TypeError, "return_lse must be a bool, got 1"),
}


@pytest.mark.parametrize("name", [*REFUSALS_OF_TOKENS, *REFUSALS_OF_QUERIES])
def test_refusals_leave_the_cache_as_it_was(name: str) -> None:
    arguments, exception, message = {**REFUSALS_OF_TOKENS, **REFUSALS_OF_QUERIES}[name]
    cache = DynamicKVCache(4, **MAKE)
    given = {"query": QUERY, "key": KEY, "value": KEY, "attn_bias": BIAS, **arguments}
    for call in (cache.attend, cache.prefill):
        with pytest.raises(exception, match=message):
            call(**given)
    if name in REFUSALS_OF_TOKENS:
        with pytest.raises(exception, match=message):
            cache.append(given["key"], given["value"], given["attn_bias"])
    assert cache.seen_tokens == 0
    assert (cache.position == -1).all()


REFUSALS_OF_BEAMS = {
    "list": ([0, 1], TypeError, "beam_indices must be a torch.Tensor, got list"),
    "shape": (torch.tensor([0]), ValueError, r"beam_indices.shape is \(1,\); accepted: \(B,\) = \(2,\)"),
    "dtype": (torch.tensor([0.0, 1.0]), TypeError, "beam_indices.dtype is float32; accepted: int32, int64"),
    "value": (torch.tensor([0, 2]), ValueError, r"beam_indices is \[0, 2\]; accepted: values from 0 to 1"),
    "device": (
        torch.zeros(2, dtype=torch.int64, device="meta"),
        ValueError,
        "beam_indices is on meta and the cache on",
    ),
}


@pytest.mark.parametrize("name", REFUSALS_OF_BEAMS)
def test_refusals_of_reorder(name: str) -> None:
    beams, exception, message = REFUSALS_OF_BEAMS[name]
    with pytest.raises(exception, match=message):
        DynamicKVCache(4, **MAKE).reorder(beams)


def test_chunk_size_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size is 0; accepted: 1 or more"):
        DynamicKVCache(4, **MAKE).prefill(QUERY, KEY, KEY, BIAS, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    dtype = torch.float32 if device == "cpu" else torch.float16
    query, key, value, bias = tokens(7, dtype=dtype, device=device)
    cache = cache_for(4, query, key, bias)
    with Recorder() as recorder:
        cache.attend(query, key, value, bias)
    calls = {function.overloadpacket.__name__: (function, arguments) for function, arguments in recorder.calls}
    assert {"cache_with_tokens", "select_interval", "attention", "cache_append"} == set(calls)
    for name in ("cache_with_tokens", "cache_append"):
        torch.library.opcheck(*calls[name])


def test_shapes_without_values() -> None:
    with FakeTensorMode():
        query, key, bias = torch.empty(2, 3, 4, 16), torch.empty(2, 3, 2, 16), torch.empty(2, 2, 3)
        cache = cache_for(4, query, key, bias)
        assert cache.attend(query, key, key, bias).shape == (2, 3, 4, 16)
        assert cache.attend(query[:, :1], key[:, :1], key[:, :1], bias[..., :1]).shape == (2, 1, 4, 16)


@pytest.mark.gpu
def test_a_step_in_a_cuda_graph() -> None:
    query, key, value, bias = inputs = tokens(60, dtype=torch.bfloat16, device="cuda")
    cache = cache_for(16, query, key, bias)
    prompt, steps = 20, range(20, 60)
    cache.attend(query[:, :prompt], key[:, :prompt], value[:, :prompt], bias[..., :prompt])
    static = [tensor[:, :1].clone() for tensor in inputs[:3]] + [bias[..., :1].clone()]
    saved = copy.deepcopy(cache)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        copy.deepcopy(cache).attend(*static)  # warm-up
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = cache.attend(*static)
    assert torch.equal(cache.position, saved.position)  # a capture runs nothing
    outs = []
    for t in steps:
        for target, source in zip(static, [tensor[:, t : t + 1] for tensor in inputs[:3]] + [bias[..., t : t + 1]]):
            target.copy_(source)
        graph.replay()
        outs.append(out.clone())
    assert cache.seen_tokens == 60
    eager = saved
    for t, replayed in zip(steps, outs):
        rows = slice(t, t + 1)
        assert torch.equal(eager.attend(query[:, rows], key[:, rows], value[:, rows], bias[..., rows]), replayed)
    for b, h in itertools.product(range(2), range(2)):
        assert survivors(cache, b, h) == survivors(eager, b, h)
