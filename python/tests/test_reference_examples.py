"""Every example of the API reference: as written on a GPU, scaled down on the CPU.

`reference_examples.md` has their text. What an example prints or returns is looked at, and every call of attention
that it makes is compared with the float64 reference.
"""

import gc
import inspect
import os
import re
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

import pytest
import torch

import flash_dmattn
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.reference import reference_attention

EXAMPLES = dict(
    re.findall(
        r"^## ([^\n]*)\n\n```python\n(.*?)^```$",
        (Path(__file__).parent / "reference_examples.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)
SIGNATURES = {
    "flash_dmattn_func (CUDA backend)": ("flash_dmattn_func", "triton_dmattn_func", "flex_dmattn_func", "auto"),
    "flash_dmattn_qkvpacked_func": ("flash_dmattn_qkvpacked_func",),
    "flash_dmattn_kvpacked_func": ("flash_dmattn_kvpacked_func",),
    "flash_dmattn_varlen_func": ("flash_dmattn_varlen_func",),
}
WATCHED = ("flash_dmattn_varlen_func", "triton_dmattn_func", "flex_dmattn_func")
ROWS = 32  # query rows that are compared in each place

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant parameter should be passed explicitly"),
]


class Call(NamedTuple):
    """A call of attention that an example made."""

    arguments: Dict[str, Any]
    output: torch.Tensor


class Place:
    """Where examples run, with a watch on the calls of attention that they make."""

    def __init__(self, device: str):
        self.device = device
        self.as_written = device == "cuda"
        self.calls: List[Call] = []
        self.begun = 0

    def run(self, heading: str, scaled: Optional[Dict[str, str]] = None, **given: Any) -> Dict[str, Any]:
        """Run an example with the names of `given`, and return the names that it leaves.

        On the CPU the texts of `scaled` are replaced, and the device.
        """
        if not self.as_written:
            return self.run_replaced(heading, {"'cuda'": "'cpu'", **(scaled or {})}, **given)
        return self.run_replaced(heading, {}, **given)

    def run_replaced(self, heading: str, replaced: Dict[str, str], **given: Any) -> Dict[str, Any]:
        """Run an example with other texts in place of the keys of `replaced`, which are no parts of longer numbers."""
        code = EXAMPLES[heading]
        for text in replaced:
            assert text in code or text == "'cuda'", f"{text} is not in {heading}"
        if replaced:
            texts = "|".join(re.escape(text) for text in replaced)
            code = re.sub(rf"(?<!\d)(?:{texts})(?!\d)", lambda found: replaced[found.group()], code)
        names = dict(given)
        exec(compile(code, f"<{heading}>", "exec"), names)
        return names

    def watch(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """The function, with its calls kept."""

        def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.begun += 1
            output = function(*args, **kwargs)
            self.calls.append(Call(inspect.signature(function).bind(*args, **kwargs).arguments, output))
            return output

        return watched

    def tensors(self, length: int, count: int = 3, dtype: torch.dtype = torch.bfloat16) -> List[torch.Tensor]:
        """(1, length, 4, 64) each; the length is a sixteenth on the CPU."""
        shape = (1, length if self.as_written else length // 16, 4, 64)
        return [torch.randn(shape, device=self.device, dtype=dtype) for _ in range(count)]


@pytest.fixture(
    params=[
        pytest.param("cpu", id="scaled down on the CPU"),
        pytest.param("cuda", id="as written", marks=pytest.mark.gpu),
    ]
)
def place(request, monkeypatch) -> Iterator[Place]:
    torch.manual_seed(0)
    place = Place(request.param)
    auto = flash_dmattn.flash_dmattn_func_auto
    monkeypatch.setattr(flash_dmattn, "flash_dmattn_func_auto", lambda backend=None: place.watch(auto(backend)))
    for name in WATCHED:
        monkeypatch.setattr(flash_dmattn, name, place.watch(getattr(flash_dmattn, name)))
    yield place
    place.calls.clear()
    torch.autograd.set_detect_anomaly(False)
    if place.as_written:
        gc.collect()
        torch.cuda.empty_cache()


def assert_spot_matches(call: Dict[str, Any], output: torch.Tensor, batch: int, head: int, start: int) -> None:
    """Compare the rows from `start` on of one batch entry and head with the reference."""
    query, key, value = (call[name].detach() for name in ("query", "key", "value"))
    len_q, len_k = query.shape[1], key.shape[1]
    rows = slice(start, min(start + ROWS, len_q))
    # The last of these rows sees the keys up to `keys`: cut there, the diagonal ends in the corner again.
    keys = slice(0, rows.stop + len_k - len_q if call.get("is_causal") else len_k)
    batches, heads = slice(batch, batch + 1), slice(head, head + 1)
    kv_head = head // (query.shape[2] // key.shape[2])
    kv_heads = slice(kv_head, kv_head + 1)
    spot = {
        "query": query[batches, rows, heads],
        "key": key[batches, keys, kv_heads],
        "value": value[batches, keys, kv_heads],
        "scale": call.get("scale"),
        "is_causal": bool(call.get("is_causal")),
    }
    for name in ("attn_mask", "attn_bias"):
        if call.get(name) is not None:
            spot[name] = call[name].detach()[batches, heads, rows, keys]
    reference, _ = reference_attention(**spot)
    eager, _ = reference_attention(**spot, dtype=output.dtype)
    assert_matches(output.detach()[batches, rows, heads], reference, eager, f"batch {batch}, head {head}, row {start}")


def assert_matches_reference(call: Dict[str, Any], output: torch.Tensor) -> None:
    """Compare rows at the beginning, in the middle and at the end, of the first and last batch entry and head."""
    assert output.shape == call["query"].shape
    assert output.dtype == call["query"].dtype
    batch, len_q, heads, _ = output.shape
    for start in sorted({0, max(len_q // 2 - ROWS // 2, 0), max(len_q - ROWS, 0)}):
        assert_spot_matches(call, output, 0, 0, start)
        assert_spot_matches(call, output, batch - 1, heads - 1, start)


def assert_calls_match_reference(place: Place, count: int) -> None:
    assert len(place.calls) == count
    for call in place.calls:
        assert_matches_reference(*call)


def assert_sequences_match_reference(place: Place, lengths: List[int]) -> None:
    (call,) = place.calls
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        parts = {name: call.arguments[short][None, rows] for name, short in QKV}
        assert_matches_reference({**parts, "is_causal": True}, call.output[None, rows])
        start += length
    assert call.output.shape[0] == start


QKV = (("query", "q"), ("key", "k"), ("value", "v"))


@pytest.mark.parametrize(
    ("heading", "name"),
    [pytest.param(heading, name, id=name) for heading, names in SIGNATURES.items() for name in names],
)
def test_signature(heading: str, name: str) -> None:
    names: Dict[str, Any] = {"torch": torch, "Optional": Optional}
    exec(f"{EXAMPLES[heading].rstrip()}: ...", names)
    function = flash_dmattn.flash_dmattn_func_auto() if name == "auto" else getattr(flash_dmattn, name)
    documented = list(inspect.signature(names[heading.split()[0]]).parameters.values())
    actual = list(inspect.signature(function).parameters.values())
    assert [parameter.name for parameter in actual[: len(documented)]] == [parameter.name for parameter in documented]
    for ours, theirs in zip(actual, documented):
        assert ours.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert theirs.default is inspect.Parameter.empty or ours.default is theirs.default is None
    for more in actual[len(documented) :]:
        assert more.kind is inspect.Parameter.KEYWORD_ONLY, more
        assert more.default is not inspect.Parameter.empty, more


def test_automatic_backend_selection(place, capsys) -> None:
    q, k, v = place.tensors(2048)
    attention_bias = torch.randn(1, 4, q.shape[1], q.shape[1], device=place.device, dtype=q.dtype)
    attention_mask = (attention_bias > 0).to(q.dtype)
    given = {"q": q, "k": k, "v": v, "attention_mask": attention_mask, "attention_bias": attention_bias}
    place.run("Automatic Backend Selection", {'backend="cuda"': 'backend="cpu"'}, **given)
    assert capsys.readouterr().out == f"Available backends: {flash_dmattn.get_available_backends()}\n"
    assert_calls_match_reference(place, 2)


def test_available_backends(place, capsys) -> None:
    place.run("Available Backends")
    available = flash_dmattn.get_available_backends()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(available), " ".join(str(name in available) for name in ("cuda", "triton", "flex"))]


def test_backend_specific_functions(place) -> None:
    if not flash_dmattn.TRITON_AVAILABLE or not (place.as_written or os.environ.get("TRITON_INTERPRET") == "1"):
        pytest.skip("Triton takes CPU tensors in its interpreter only")
    # Triton's interpreter has no bfloat16.
    q, k, v = place.tensors(1024, dtype=torch.bfloat16 if place.as_written else torch.float32)
    bias = torch.randn(1, 4, q.shape[1], q.shape[1], device=place.device, dtype=q.dtype)
    place.run("Backend-Specific Functions", q=q, k=k, v=v, mask=(bias > 0).to(q.dtype), bias=bias)
    assert_calls_match_reference(place, 2)


def test_standard_attention(place, capsys) -> None:
    place.run("Standard Attention", {"4096": "128"})
    length = 4096 if place.as_written else 128
    assert capsys.readouterr().out == f"torch.Size([2, {length}, 12, 128])\n"
    assert_calls_match_reference(place, 1)


def test_dynamic_mask_attention(place) -> None:
    place.run("Dynamic Mask Attention", {"4096": "128", "1024": "32"})
    assert_calls_match_reference(place, 1)


def test_grouped_query_attention(place) -> None:
    place.run("Grouped-Query Attention (GQA)", {"2048": "128"})
    assert place.calls[0].arguments["key"].shape[2] == 8
    assert_calls_match_reference(place, 1)


def test_variable_length_sequences(place) -> None:
    names = place.run("Variable Length Sequences (CUDA backend)", {"512": "32", "1024": "64", "768": "48"})
    assert names["cu"].dtype == torch.int64
    assert_sequences_match_reference(place, names["seq_lens"])


def test_mixed_sequence_lengths_without_padding(place) -> None:
    given = {"torch": torch, "num_heads": 16, "head_dim": 128, "device": place.device, "dtype": torch.bfloat16}
    scaled = {"8192": "128", "16384": "256", "4096": "64"}
    names = place.run("2. Variable Length Sequences (No Padding Overhead)", scaled, **given)
    assert_sequences_match_reference(place, names["seq_lens"])


def test_dynamic_sparse_masking(place) -> None:
    # As written its bias and its mask take 68 GB each: on a GPU a quarter of the length, a sixteenth of that.
    scaled = {"32768": "8192", "2048": "512"} if place.as_written else {"32768": "256", "2048": "16", "'cuda'": "'cpu'"}
    place.run_replaced("1. Dynamic Sparse Masking", scaled)
    assert_calls_match_reference(place, 1)


def test_chunked_processing(place, capsys) -> None:
    given = {"torch": torch, "flash_dmattn_func_auto": flash_dmattn.flash_dmattn_func_auto}
    given.update(device=place.device, dtype=torch.bfloat16)
    names = place.run(
        "3. Chunked Processing for Extremely Long Sequences", {"131072": "2048", "8192": "128", "2048": "32"}, **given
    )
    length, chunk, window = (131072, 8192, 2048) if place.as_written else (2048, 128, 32)
    assert capsys.readouterr().out == f"Processed {length:,} tokens efficiently\n"
    output = names["output"]
    assert output.shape == names["q_long"].shape == (1, length, 16, 128)
    assert_calls_match_reference(place, length // chunk)
    # What the chunks mean: a query sees the keys up to itself, from half a window before its chunk on.
    for start in range(0, length, chunk):
        rows, keys = slice(start, start + chunk), slice(max(0, start - window // 2), start + chunk)
        parts = {"query": names["q_long"][:, rows], "is_causal": True}
        parts.update(key=names["k_long"][:, keys], value=names["v_long"][:, keys])
        assert_matches_reference(parts, output[:, rows])
    short = [names[name][:, :chunk] for name in ("q_long", "k_long", "v_long")]
    assert torch.equal(names["memory_efficient_long_attention"](*short, chunk_size=chunk), output[:, :chunk])


def test_memory_monitoring_and_best_practices(place, capsys) -> None:
    given = {"torch": torch, "flash_dmattn_func_auto": flash_dmattn.flash_dmattn_func_auto}
    names = place.run("4. Memory Monitoring and Best Practices", {"16384": "512", "2048": "64"}, **given)
    printed = dict(re.findall(r"^(.*): ([\d.]+)(?: MB|%)$", capsys.readouterr().out, re.MULTILINE))
    assert printed["Sparse mask density"] == "12.5"
    if place.as_written:
        kept = float(printed["After attention computation"]) - float(printed["After sparse masking"])
        output = names["result"]
        # Without gradients a call leaves its output and nothing else; allocations are rounded up to 2 MB.
        assert kept <= output.numel() * output.element_size() / 2**20 + 2
    assert_calls_match_reference(place, 1)


def test_memory_efficiency(place) -> None:
    names = place.run("Memory Efficiency", torch=torch)
    leaves = [tensor.requires_grad_() for tensor in place.tensors(4096)]
    plain = flash_dmattn.flash_dmattn_func_auto()
    for options in ({}, {"use_reentrant": False, "is_causal": True, "deterministic": True}):
        place.begun = 0
        output = names["attention_checkpoint"](*leaves, **options)
        output.float().square().sum().backward()
        assert place.begun == 2  # the call, and again for backward
        grads = [leaf.grad for leaf in leaves]
        expected = plain(*leaves, is_causal=options.get("is_causal"), deterministic=True)
        assert torch.equal(output, expected)
        for leaf, grad, plain_grad in zip(leaves, grads, torch.autograd.grad(expected.float().square().sum(), leaves)):
            torch.testing.assert_close(grad, plain_grad)
            leaf.grad = None
    for call in place.calls:
        assert_matches_reference(*call)

    place.calls.clear()
    query, key, value = (leaf.detach() for leaf in leaves)
    chunk = query.shape[1] // 4
    chunks = names["chunked_attention"](query, key, value, chunk_size=chunk)
    assert len(place.calls) == 4
    assert_matches_reference({"query": query, "key": key, "value": value}, chunks)


def test_backend_selection_for_performance(place, capsys) -> None:
    if not place.as_written and torch.cuda.is_available():
        pytest.skip("it measures with CUDA events: where there is a GPU it runs as written")
    q, k, v = place.tensors(1024)
    place.run("Backend Selection for Performance", q=q, k=k, v=v)
    lines = capsys.readouterr().out.splitlines()
    outcomes = {line.split(": ", 1)[0]: line.split(": ", 1)[1] for line in lines if ": " in line}
    assert [name for name in outcomes if name in ("cuda", "triton", "flex")] == ["cuda", "triton", "flex"]
    if place.as_written:
        assert re.fullmatch(r"\d+\.\d\d ms", outcomes["cuda"])
        assert_calls_match_reference(place, len(flash_dmattn.get_available_backends()) - 1)
    else:
        # Without a GPU there are no CUDA events; the example catches RuntimeError, and every refusal has to be one.
        assert all(outcome.startswith("not available - ") for outcome in outcomes.values())


def test_import_errors(capsys, place) -> None:
    place.run("Import Errors")
    assert capsys.readouterr().out == f"✅ Imported successfully {flash_dmattn.get_available_backends()}\n"


def test_debugging(place, capsys) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in place.tensors(2048))
    shape = (1, 4, q.shape[1], q.shape[1])
    attn_bias = torch.randn(shape, device=place.device, dtype=q.dtype).requires_grad_()
    attn_mask = (attn_bias.detach() > 0).to(q.dtype)
    names = place.run("Debugging", q=q, k=k, v=v, attn_mask=attn_mask, attn_bias=attn_bias)
    assert capsys.readouterr().out == ""
    names["output"].sum().backward()  # with anomaly detection on: a NaN in a gradient raises
    assert all(leaf.grad.shape == leaf.shape for leaf in (q, k, v, attn_bias))
    assert_calls_match_reference(place, 1)


def test_memory_monitoring(place, capsys) -> None:
    q, k, v = place.tensors(1024)
    place.run(
        "Memory Monitoring", torch=torch, flash_dmattn_func_auto=flash_dmattn.flash_dmattn_func_auto, q=q, k=k, v=v
    )
    assert capsys.readouterr().out.count("max alloc: ") == (2 if torch.cuda.is_available() else 0)
    assert_calls_match_reference(place, 1)


def test_every_example_is_run() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(EXAMPLES) == 20
    assert [heading for heading in EXAMPLES if f'"{heading}"' not in source] == []
