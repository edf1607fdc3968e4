"""What only a GPU can show: streams, graphs, tensors past 2^31 elements, other devices."""

from dataclasses import replace

import pytest
import torch

from flash_dmattn import (
    flash_dmattn_func,
    flash_dmattn_func_auto,
    flash_dmattn_varlen_func,
    get_available_backends,
)
from flash_dmattn.testing.cases import Case, VarlenCase
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.reference import GRADIENTS, call_with_gradients, reference_results

pytestmark = pytest.mark.gpu

DTYPE = torch.bfloat16
CASE = Case(
    "masked and biased",
    len_q=200,
    len_k=230,
    heads=4,
    head_dim=64,
    mask="BHQK",
    bias="BHQK",
    options={"is_causal": True, "deterministic": True},
)
SEQUENCES = VarlenCase(
    "masked and biased",
    lengths_q=(40, 0, 165, 7),
    lengths_k=(130, 9, 65, 180),
    heads=4,
    head_dim=64,
    mask="BHQK",
    bias="BHQK",
    options={"is_causal": True, "deterministic": True},
)
SELECTED = replace(CASE, mask=None, bias="BG1K", heads_kv=2, options={**CASE.options, "keep_window_size": 50})
SELECTED_COLUMNS = replace(SELECTED, options={**SELECTED.options, "is_causal": False})
SELECTED_SEQUENCES = replace(SEQUENCES, mask=None, bias="BG1K", options={**SEQUENCES.options, "keep_window_size": 50})
OTHER_SEQUENCES = replace(SEQUENCES, lengths_q=(7, 165, 40, 0), lengths_k=(180, 65, 9, 130))
# Each with values, and lengths where they are values, that its tensors may have later.
FUNCTIONS = pytest.mark.parametrize(
    ("function", "case", "later"),
    [
        pytest.param(flash_dmattn_func, CASE, CASE, id="dense"),
        pytest.param(flash_dmattn_varlen_func, SEQUENCES, OTHER_SEQUENCES, id="varlen"),
        pytest.param(flash_dmattn_func, SELECTED, SELECTED, id="selection"),
        pytest.param(flash_dmattn_func, SELECTED_COLUMNS, SELECTED_COLUMNS, id="selection of columns"),
        pytest.param(flash_dmattn_varlen_func, SELECTED_SEQUENCES, SELECTED_SEQUENCES, id="selection in sequences"),
    ],
)


def free_bytes() -> int:
    return torch.cuda.mem_get_info()[0]


@pytest.fixture
def inputs():
    return CASE.inputs(DTYPE, "cuda")


@pytest.fixture
def grad_out():
    return CASE.grad_out(DTYPE, "cuda")


def assert_equal(actual, expected) -> None:
    assert torch.equal(actual.out, expected.out)
    for name, grad in expected.grads.items():
        assert torch.equal(actual.grads[name], grad), name


def test_auto_takes_cuda_for_cuda_tensors_and_cpu_for_cpu_tensors(inputs) -> None:
    assert get_available_backends()[0] == "cuda"
    attention = flash_dmattn_func_auto()
    assert attention(**inputs).is_cuda
    assert not attention(**{name: tensor.cpu() for name, tensor in inputs.items()}).is_cuda


def test_runs_on_the_current_stream(inputs, grad_out) -> None:
    expected = call_with_gradients(flash_dmattn_func, inputs, CASE.options, grad_out)
    stream = torch.cuda.Stream()
    late = {name: torch.full_like(tensor, 1) for name, tensor in inputs.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        # The inputs get their values only after this wait: a call on another stream would read ones.
        torch.cuda._sleep(100_000_000)
        for name, tensor in inputs.items():
            late[name].copy_(tensor)
        actual = call_with_gradients(flash_dmattn_func, late, CASE.options, grad_out)
    stream.synchronize()
    assert_equal(actual, expected)


@FUNCTIONS
def test_call_does_not_synchronise(function, case, later) -> None:
    inputs, grad_out = case.inputs(DTYPE, "cuda"), case.grad_out(DTYPE, "cuda")
    call_with_gradients(function, inputs, case.options, grad_out)
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    busy = torch.cuda.Event()
    busy.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call_with_gradients(function, inputs, case.options, grad_out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not busy.query()
    torch.cuda.synchronize()


@FUNCTIONS
def test_graph_capture_and_replay_on_new_values(function, case, later) -> None:
    inputs, grad_out = case.inputs(DTYPE, "cuda"), case.grad_out(DTYPE, "cuda")
    leaves = {name: inputs[name].requires_grad_() for name in GRADIENTS}

    def step():
        out = function(**inputs, **case.options)
        return out, torch.autograd.grad(out, list(leaves.values()), grad_out)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, grads = step()

    fresh = later.inputs(DTYPE, "cuda", seed=7)
    with torch.no_grad():
        for name, given in inputs.items():
            if isinstance(given, torch.Tensor):
                given.copy_(fresh[name])
    graph.replay()
    torch.cuda.synchronize()
    expected = call_with_gradients(function, fresh, case.options, grad_out)
    assert torch.equal(out, expected.out)
    for grad, name in zip(grads, leaves):
        assert torch.equal(grad, expected.grads[name]), name


def test_no_temporary_of_the_size_of_the_scores_for_a_broadcast_bias() -> None:
    case = Case("long", len_q=4096, len_k=4096, heads=8, head_dim=64, bias="BH1K", options={"is_causal": True})
    inputs = case.inputs(DTYPE, "cuda")
    grad_out = case.grad_out(DTYPE, "cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call_with_gradients(flash_dmattn_func, inputs, case.options, grad_out)
    scores = case.heads * case.len_q * case.len_k * DTYPE.itemsize
    assert torch.cuda.max_memory_allocated() - before < scores / 4


def test_mask_and_bias_of_more_than_two_to_the_31_elements() -> None:
    heads, length, head_dim = 3, 28672, 64  # 2.47e9 scores
    if free_bytes() < 30 << 30:
        pytest.skip(f"needs 30 GiB of GPU memory, {free_bytes() >> 30} GiB are free")
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(1, length, heads, head_dim, device="cuda", dtype=DTYPE, generator=generator) for _ in range(3)
    )
    bias = torch.randn(1, heads, length, length, device="cuda", dtype=DTYPE, generator=generator)
    mask = torch.empty(bias.shape, device="cuda", dtype=torch.bool).bernoulli_(0.1, generator=generator)
    query.requires_grad_()
    bias.requires_grad_()
    out = flash_dmattn_func(query, key, value, attn_mask=mask, attn_bias=bias, is_causal=True)
    grad_out = torch.randn_like(out)
    out.backward(grad_out)

    # The last rows of the last head, whose offsets need 64 bits, as a call of their own.
    rows, head = slice(length - 64, length), slice(heads - 1, heads)
    inputs = {
        "query": query.detach()[:, rows, head],
        "key": key[:, :, head],
        "value": value[:, :, head],
        "attn_mask": mask[:, head, rows],
        "attn_bias": bias.detach()[:, head, rows],
    }
    part = grad_out[:, rows, head]
    reference = reference_results(inputs, {"is_causal": True}, part)
    eager = reference_results(inputs, {"is_causal": True}, part, DTYPE)
    assert_matches(out[:, rows, head], reference.out, eager.out, "out")
    assert_matches(query.grad[:, rows, head], reference.grads["query"], eager.grads["query"], "gradient of query")
    assert_matches(
        bias.grad[:, head, rows], reference.grads["attn_bias"], eager.grads["attn_bias"], "gradient of attn_bias"
    )


def test_tensors_on_a_device_that_is_not_current(inputs, grad_out) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, there is {torch.cuda.device_count()}")
    expected = call_with_gradients(flash_dmattn_func, inputs, CASE.options, grad_out)
    other = {name: tensor.to("cuda:1") for name, tensor in inputs.items()}
    with torch.cuda.device(0):
        actual = call_with_gradients(flash_dmattn_func, other, CASE.options, grad_out.to("cuda:1"))
        assert torch.cuda.current_device() == 0
    assert actual.out.device == torch.device("cuda", 1)
    assert torch.equal(actual.out.cpu(), expected.out.cpu())
    for name, grad in expected.grads.items():
        assert torch.equal(actual.grads[name].cpu(), grad.cpu()), name


def test_changing_the_current_device_is_left_to_the_caller(inputs) -> None:
    before = torch.cuda.current_device()
    flash_dmattn_func(**inputs)
    assert torch.cuda.current_device() == before


def test_backward_from_another_thread_and_stream(inputs, grad_out) -> None:
    expected = call_with_gradients(flash_dmattn_func, inputs, CASE.options, grad_out)
    stream = torch.cuda.Stream()
    query = inputs["query"].detach().requires_grad_()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = flash_dmattn_func(**{**inputs, "query": query}, **CASE.options)
    torch.cuda.current_stream().wait_stream(stream)
    out.backward(grad_out)
    torch.cuda.synchronize()
    assert torch.equal(query.grad, expected.grads["query"])
