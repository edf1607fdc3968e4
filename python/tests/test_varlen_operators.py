"""Variable lengths and pages under compilers, modes and fake tensors, beyond what all layouts have in common."""

from typing import Any, Dict, Tuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from flash_dmattn import flash_dmattn_varlen_func, operators, ops
from flash_dmattn.testing.cases import VARLEN_CASES, VarlenCase
from flash_dmattn.testing.recorder import Recorder
from flash_dmattn.testing.reference import call_with_gradients

pytestmark = pytest.mark.skipif(operators.UNAVAILABLE is not None, reason=str(operators.UNAVAILABLE))

CASE = VarlenCase("flops", lengths_q=(40, 0, 7), lengths_k=(30, 9, 80), heads=4, spare_q=3, slack_k=9)
PRODUCTS = 2 * 4 * 32 * (40 * 30 + 7 * 80)  # FLOP of one product of matrices


def paged_call() -> Dict[str, Any]:
    """One query for each of two sequences, of 20 and 33 keys."""
    pages = torch.randn(2, 7, 16, 2, 32)
    return {
        "query": torch.randn(2, 4, 32),
        "key": pages[0],
        "value": pages[1],
        "cu_seqlens_q": torch.tensor([0, 1, 2], dtype=torch.int32),
        "cu_seqlens_k": torch.tensor([0, 20, 53], dtype=torch.int32),
        "max_seqlen_q": 1,
        "max_seqlen_k": 48,
        "block_table": torch.tensor([[6, 0, -1], [3, 1, 5]], dtype=torch.int32),
    }


@pytest.mark.parametrize("case", VARLEN_CASES, ids=lambda case: case.name)
def test_operator_equals_the_direct_call(case: VarlenCase) -> None:
    inputs = case.inputs(torch.float32, "cpu")
    grads = (case.grad_out(torch.float32, "cpu"), case.grad_lse("cpu"))
    options = {**case.options, "deterministic": True, "return_lse": True}
    expected = call_with_gradients(flash_dmattn_varlen_func, inputs, options, grads)
    with Recorder() as recorder:
        actual = call_with_gradients(flash_dmattn_varlen_func, inputs, options, grads)
    assert [func._opname for func, _ in recorder.calls] == ["attention_varlen", "attention_varlen_backward"]
    for tensor, expected_tensor in zip(actual.out, expected.out):
        assert torch.equal(tensor, expected_tensor)
    for name, grad in expected.grads.items():
        assert torch.equal(actual.grads[name], grad), name


def test_opcheck_of_pages() -> None:
    with Recorder() as recorder:
        flash_dmattn_varlen_func(**paged_call(), is_causal=True)
    ((func, arguments),) = recorder.calls
    torch.library.opcheck(func, arguments)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_pages_without_gradients(dynamic: bool) -> None:
    torch.compiler.reset()
    call = paged_call()
    compiled = torch.compile(flash_dmattn_varlen_func, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(**call), flash_dmattn_varlen_func(**call))


def test_compiled_bounds_that_change_are_not_compiled_again() -> None:
    torch.compiler.reset()
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph

    compiled = torch.compile(flash_dmattn_varlen_func, fullgraph=True, dynamic=True, backend=backend)
    for slack in (3, 30, 300):
        case = VarlenCase("bounds", lengths_q=(40, 7), slack_q=slack, slack_k=2 * slack)
        inputs = case.inputs(torch.float32, "cpu")
        with torch.no_grad():
            assert torch.equal(compiled(**inputs), flash_dmattn_varlen_func(**inputs))
    assert len(graphs) == 1


def test_gradients_of_pages_are_refused_by_the_operator_too() -> None:
    call = paged_call()
    call["key"].requires_grad_()
    with Recorder(), pytest.raises(RuntimeError, match="block_table is given and a gradient of key is asked for"):
        flash_dmattn_varlen_func(**call)
    tensors, sequences = list(call.values())[:3], list(call.values())[3:]
    with pytest.raises(RuntimeError, match="block_table is given and a gradient of key is asked for"):
        torch.ops.flash_dmattn.attention_varlen(
            *tensors, None, ops.MASK_DENSE, None, None, None, False, None, False, False, *sequences
        )


def count_flops(arguments: Dict[str, Any]) -> Tuple[int, int]:
    arguments["query"].requires_grad_()
    with FlopCounterMode(display=False) as forward:
        out = flash_dmattn_varlen_func(**arguments)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out.sum(), arguments["query"])
    return forward.get_total_flops(), backward.get_total_flops()


def test_flops_are_those_of_the_sequences() -> None:
    assert count_flops(CASE.inputs(torch.float32, "cpu")) == (2 * PRODUCTS, 5 * PRODUCTS)


def test_flops_of_lengths_that_nobody_knows_are_those_of_the_bounds() -> None:
    with FakeTensorMode() as mode:
        inputs = {
            name: mode.from_tensor(given) if isinstance(given, torch.Tensor) else given
            for name, given in CASE.inputs(torch.float32, "cpu").items()
        }
        product = 2 * 4 * 32 * 3 * CASE.len_q * CASE.len_k
        assert count_flops(inputs) == (2 * product, 5 * product)


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_fake_tensors_give_shapes(padded: bool) -> None:
    case = VarlenCase("fake", lengths_q=(40, 7), lengths_k=(30, 80), heads=4, padded=padded, spare_q=3)
    with FakeTensorMode() as mode:
        inputs = {
            name: mode.from_tensor(given) if isinstance(given, torch.Tensor) else given
            for name, given in case.inputs(torch.bfloat16, "cpu").items()
        }
    # Also outside the mode: the tensors say what they are.
    out, lse = flash_dmattn_varlen_func(**inputs, return_lse=True)
    assert (out.shape, out.dtype) == (case.query_shape(), torch.bfloat16)
    assert (lse.shape, lse.dtype) == (case.lse_shape(), torch.float32)
