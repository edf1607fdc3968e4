"""FlexAttention: the blocks that are skipped, what is compiled and how often, and the compiled kernels on a GPU."""

import shutil
from dataclasses import replace

import pytest
import torch

from flash_dmattn import flash_dmattn_func_auto, flex_dmattn_func
from flash_dmattn.backends import flex
from flash_dmattn.testing.cases import CASES, Case, random_mask
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.reference import call_with_gradients, reference_results

pytestmark = pytest.mark.skipif(flex.unavailable_reason() is not None, reason=str(flex.unavailable_reason()))


def form_of(inputs, options) -> flex.CallForm:
    tensors = (inputs[name] for name in ("query", "key", "attn_mask", "attn_bias"))
    flags = (options.get("is_causal", False), options.get("return_lse", False))
    return flex.CallForm.of(*tensors, options.get("scale"), *flags)


def some_blocks(shape, generator) -> torch.Tensor:
    """Visible scores in a third of the blocks of 128 x 128."""
    shown = torch.rand((*shape[:2], -(-shape[2] // 128), -(-shape[3] // 128)), generator=generator) < 0.3
    shown = shown.repeat_interleave(128, 2).repeat_interleave(128, 3)[:, :, : shape[2], : shape[3]]
    return shown & random_mask(shape, generator)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask", ["BHQK", "BG1K", "B1QK", "11Q1", "1111", None])
@pytest.mark.parametrize(("len_q", "len_k"), [(300, 300), (256, 384), (500, 130), (1, 300), (128, 1)])
def test_blocks_cover_what_is_visible_and_no_more(len_q, len_k, mask, is_causal) -> None:
    if mask is None and not is_causal:
        pytest.skip("nothing is hidden, and no block mask made")
    case = Case("blocks", 2, len_q, len_k, 4, 2, 16, mask, some_blocks, options={"is_causal": is_causal})
    inputs = case.inputs(torch.float32, "cpu")
    visible = torch.ones(2, 4, len_q, len_k, dtype=torch.bool)
    if mask is not None:
        given = inputs["attn_mask"]
        visible &= given.repeat_interleave(2, dim=1) if given.shape[1] == 2 else given
    if is_causal:
        visible &= torch.ones(len_q, len_k, dtype=torch.bool).tril(len_k - len_q)
    rows, keys = -(-len_q // 128), -(-len_k // 128)
    padded = torch.zeros(2, 4, rows * 128, keys * 128, dtype=torch.bool)
    padded[:, :, :len_q, :len_k] = visible
    blocks = padded.view(2, 4, rows, 128, keys, 128).transpose(3, 4).flatten(4)

    some, every = flex.visible_blocks(form_of(inputs, case.options), len_q, len_k, inputs["attn_mask"], "cpu")
    taken = some if every is None else some | every
    # Each factor of the rule is judged by itself: where a mask has scores of a block and causality others, it is taken.
    assert (taken.expand(2, 4, rows, keys) >= blocks.any(-1)).all()
    if mask is None or not is_causal:
        assert torch.equal(taken.expand(2, 4, rows, keys), blocks.any(-1))
    if every is not None:
        assert torch.equal(every.expand(2, 4, rows, keys), blocks.all(-1))
        assert not (some & every).any()


def test_lists_of_blocks_are_in_order() -> None:
    blocks = torch.tensor([[False, True, False, True], [False] * 4, [True] * 4])[None, None]
    counts, indices = flex._as_lists(blocks)
    assert counts.tolist() == [[[2, 0, 4]]]
    assert indices[0, 0, 0, :2].tolist() == [1, 3]
    assert indices[0, 0, 2].tolist() == [0, 1, 2, 3]


class Graphs:
    """torch.compile that counts what it compiles, and runs it as torch would without compiling."""

    def __init__(self) -> None:
        self.count = 0
        self._compile = torch.compile

    def __call__(self, function, **options):
        options.setdefault("backend", self._backend)
        return self._compile(function, **options)

    def _backend(self, graph, example_inputs):
        self.count += 1
        return graph


@pytest.fixture
def graphs(monkeypatch) -> Graphs:
    counter = Graphs()
    monkeypatch.setattr(torch, "compile", counter)
    flex._compiled.cache_clear()
    yield counter
    flex._compiled.cache_clear()


def run_as_on_cuda(case: Case, seed: int = 0) -> None:
    """Through the path of CUDA tensors, with the one gradient that FlexAttention has on the CPU too: of the bias."""
    inputs = case.inputs(torch.float32, "cpu", seed)
    grads = (case.grad_out(torch.float32, "cpu"), case.grad_lse("cpu"))
    options = {**case.options, "return_lse": True}
    bias = inputs["attn_bias"].requires_grad_()
    tensors = [inputs[name] for name in ("query", "key", "value", "attn_mask", "attn_bias")]
    outputs = flex._attend_compiled(form_of(inputs, options), *tensors)
    (grad_bias,) = torch.autograd.grad(outputs, bias, grads)
    reference = reference_results(inputs, options, grads)
    eager = reference_results(inputs, options, grads, torch.float32)
    assert outputs[0].is_contiguous()
    for name, output, *expected in zip(("out", "lse"), outputs, reference.out, eager.out):
        assert_matches(output.detach(), *expected, name)
    assert_matches(grad_bias, reference.grads["attn_bias"], eager.grads["attn_bias"], "gradient of attn_bias")


@pytest.mark.parametrize("bias", ["BHQK", "BG1K", "11Q1", "1111"])
@pytest.mark.parametrize("mask", ["BHQK", "BG1K", None])
def test_one_graph_and_another_for_lengths_that_vary(mask, bias, graphs) -> None:
    lengths = [(70, 90), (70, 90), (150, 200), (150, 333), (300, 400)]
    counts = []
    for seed, (len_q, len_k) in enumerate(lengths):
        options = {"is_causal": True}
        run_as_on_cuda(Case("lengths", 2, len_q, len_k, 4, 2, 16, mask, bias=bias, options=options), seed)
        counts.append(graphs.count)
    assert counts == [1, 1, 2, 2, 2]


def test_many_forms_in_one_process_do_not_reach_the_limit_of_recompilations(graphs) -> None:
    scales = [0.1 * n for n in range(1, 13)]
    for scale in scales:
        run_as_on_cuda(Case("forms", heads=2, head_dim=16, mask="BHQK", bias="BHQK", options={"scale": scale}))
    assert graphs.count == len(scales)


@pytest.mark.skipif(shutil.which("c++") is None, reason="the compiler's kernels for the CPU need c++")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask", ["BGQK", None])
def test_compiled_kernels_visit_the_listed_blocks(mask, is_causal) -> None:
    if mask is None and not is_causal:
        pytest.skip("nothing is hidden, and no block mask made")
    for len_q, len_k in [(300, 400), (450, 333), (260, 520)]:
        options = {"is_causal": is_causal}
        case = Case("blocks", 2, len_q, len_k, 4, 2, 16, mask, some_blocks, bias="BG1K", options=options)
        inputs = case.inputs(torch.float32, "cpu")
        tensors = [inputs[name] for name in ("query", "key", "value", "attn_mask", "attn_bias")]
        out = flex._attend_compiled(form_of(inputs, options), *tensors)
        torch.testing.assert_close(out, flex_dmattn_func(**inputs, **options), rtol=0, atol=1e-5)


def test_lse_of_rows_that_see_nothing_is_constant(graphs) -> None:
    # Merging two calls by their lse gives such rows a gradient of NaN.
    dead = next(case for case in CASES if case.name == "mask hides whole rows")
    case = replace(dead, bias="BHQK")
    inputs = case.inputs(torch.float32, "cpu")
    bias = inputs["attn_bias"].requires_grad_()
    tensors = [inputs[name] for name in ("query", "key", "value", "attn_mask", "attn_bias")]
    _, lse = flex._attend_compiled(form_of(inputs, {"return_lse": True}), *tensors)
    rows = ~inputs["attn_mask"].any(dim=-1)  # (B, H, Lq)
    (grad,) = torch.autograd.grad(lse, bias, torch.ones_like(lse).masked_fill(rows, torch.nan))
    assert rows.any()
    assert lse[rows].eq(-torch.inf).all()
    assert grad[rows].eq(0).all()
    torch.testing.assert_close(grad.sum(-1)[~rows], torch.ones_like(lse)[~rows])


@pytest.mark.parametrize("has_aux", [False, True])
def test_lse_is_asked_for_in_the_words_of_this_torch(has_aux, monkeypatch) -> None:
    from torch.nn.attention import flex_attention

    if has_aux:
        monkeypatch.setattr(flex_attention, "AuxRequest", lambda lse: {"lse": lse}, raising=False)
    else:
        monkeypatch.delattr(flex_attention, "AuxRequest", raising=False)
    assert flex._lse_request() == ({"return_aux": {"lse": True}} if has_aux else {"return_lse": True})


def test_head_dim_8_is_padded_for_the_compiled_kernels(graphs) -> None:
    run_as_on_cuda(Case("narrow", head_dim=8, bias="BHQK"))


def test_repeated_rows_are_spread_for_the_compiled_kernels(graphs) -> None:
    expand = next(case for case in CASES if case.name == "expanded over the batch").layout
    run_as_on_cuda(Case("expanded", batch=2, layout=expand, bias="BHQK"))


@pytest.mark.parametrize("option", [{"softcap": 0.5}, {"deterministic": True}], ids=str)
def test_options_of_libfdma_are_ignored(option) -> None:
    inputs = CASES[0].inputs(torch.float32, "cpu")
    for attention in (flex_dmattn_func, flash_dmattn_func_auto("flex")):
        assert torch.equal(attention(**inputs, **option), flex_dmattn_func(**inputs))


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in ("uint16", "uint32", "uint64")])
def test_masks_of_wide_unsigned_integers(dtype) -> None:
    inputs = Case("mask", mask="BHQK").inputs(torch.float32, "cpu")
    expected = flex_dmattn_func(**inputs)
    inputs["attn_mask"] = (inputs["attn_mask"].to(torch.int64) << (8 * dtype.itemsize - 1)).to(dtype)
    assert torch.equal(flex_dmattn_func(**inputs), expected)


# Compiling takes seconds a form: these cross every feature with every other kind of feature, not all with all.
DYNAMIC = Case("dynamic mask attention", 2, 260, 260, 4, 4, 128, "BHQK", None, "BHQK", options={"is_causal": True})
BLOCKS = Case("skipped blocks", 2, 400, 500, 4, 2, 32, "BGQK", some_blocks, "B1QK", bias_dtype=torch.float32)
GPU_CASES = [
    Case("full", head_dim=64),
    Case("causal, more keys", len_q=33, len_k=150, head_dim=64, options={"is_causal": True}),
    Case("causal, more queries", len_q=300, len_k=140, head_dim=64, options={"is_causal": True}),
    Case("one query", len_q=1, len_k=300, heads=4, bias="BG1K", mask="BHQK", options={"is_causal": True}),
    Case("GQA", 2, 300, 300, 6, 2, 64, mask="BGQK", bias="BG1K", options={"is_causal": True}),
    DYNAMIC,
    BLOCKS,
    Case("key padding", batch=2, len_k=200, mask="B11K", bias="1HQK"),
    Case("broadcast to all", batch=2, heads=4, mask="11Q1", bias="1111"),
    *(Case(f"head dim {d}", head_dim=d, bias="BHQK") for d in (8, 40, 256)),
    *(case for case in CASES if case.name in ("mask hides whole rows", "bias -inf hides", "no key")),
    *(case for case in CASES if case.name in ("rows that start anywhere", "expanded over the batch")),
    *(case for case in CASES if case.name == "scale below zero"),
]
LARGE = next(case for case in CASES if case.name == "large scores")
GPU_CALLS = [
    *((case, torch.bfloat16) for case in GPU_CASES),
    (DYNAMIC, torch.float16),
    (BLOCKS, torch.float32),
    (LARGE, torch.float32),
]
WITH_LSE = ("GQA", "one query", "mask hides whole rows", "skipped blocks", "no key")


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), GPU_CALLS, ids=lambda given: getattr(given, "name", str(given)))
def test_compiled_output_and_gradients(case, dtype) -> None:
    inputs = case.inputs(dtype, "cuda")
    returns_lse = case.name in WITH_LSE
    options = {**case.options, "return_lse": returns_lse}
    grad_out = case.grad_out(dtype, "cuda")
    grads_of_outputs = (grad_out, case.grad_lse("cuda")) if returns_lse else grad_out
    reference = reference_results(inputs, options, grads_of_outputs)
    eager = reference_results(inputs, options, grads_of_outputs, dtype)
    outputs, grads = call_with_gradients(flex_dmattn_func, inputs, options, grads_of_outputs)
    results = [outputs, reference.out, eager.out]
    for name, *result in zip(("out", "lse"), *(results if returns_lse else ([result] for result in results))):
        assert result[0].is_contiguous()
        assert_matches(*result, name)
    for name, grad in grads.items():
        assert grad.dtype == inputs[name].dtype
        assert_matches(grad, reference.grads[name], eager.grads[name], f"gradient of {name}")


@pytest.mark.gpu
@pytest.mark.parametrize("case", [DYNAMIC, GPU_CASES[0], GPU_CASES[3]], ids=lambda case: case.name)
def test_compiled_without_gradients(case) -> None:
    inputs = case.inputs(torch.bfloat16, "cuda")
    grad_out = case.grad_out(torch.bfloat16, "cuda")
    reference = reference_results(inputs, case.options, grad_out)
    eager = reference_results(inputs, case.options, grad_out, torch.bfloat16)
    assert_matches(flex_dmattn_func(**inputs, **case.options), reference.out, eager.out, "out")


@pytest.mark.gpu
def test_compiled_for_lengths_that_vary() -> None:
    for length in (130, 200, 333, 1000):
        case = Case("lengths", 2, length, length + 40, 4, 2, 64, "BHQK", bias="BG1K", options={"is_causal": True})
        test_compiled_output_and_gradients(case, torch.bfloat16)


@pytest.mark.gpu
def test_compiled_mask_and_bias_of_more_than_two_to_the_31_elements() -> None:
    heads, length = 3, 28672  # 2.47e9 scores
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip(f"needs 40 GiB of GPU memory, {torch.cuda.mem_get_info()[0] >> 30} GiB are free")
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = torch.randn(3, 1, length, heads, 64, device="cuda", dtype=torch.bfloat16, generator=generator)
    bias = torch.randn(1, heads, length, length, device="cuda", dtype=torch.bfloat16, generator=generator)
    mask = torch.empty(bias.shape, device="cuda", dtype=torch.bool).bernoulli_(0.1, generator=generator)
    out = flex_dmattn_func(query, key, value, attn_mask=mask, attn_bias=bias, is_causal=True)
    rows, head = slice(length - 64, length), slice(heads - 1, heads)
    inputs = {
        "query": query[:, rows, head],
        "key": key[:, :, head],
        "value": value[:, :, head],
        "attn_mask": mask[:, head, rows],
        "attn_bias": bias[:, head, rows],
    }
    grad_out = torch.zeros_like(inputs["query"])
    reference = reference_results(inputs, {"is_causal": True}, grad_out)
    eager = reference_results(inputs, {"is_causal": True}, grad_out, torch.bfloat16)
    assert_matches(out[:, rows, head], reference.out, eager.out, "out")
