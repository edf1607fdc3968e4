"""Attention under everything in torch that looks at a program: compilers, tracers, modes, checkpoints, autocast."""

import itertools
from typing import Any, Callable, Dict, Tuple

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from flash_dmattn import (
    _C,
    flash_dmattn_func,
    flash_dmattn_func_auto,
    flash_dmattn_kvpacked_func,
    flash_dmattn_qkvpacked_func,
    flash_dmattn_varlen_func,
    operators,
    ops,
)
from flash_dmattn.backends import libfdma
from flash_dmattn.testing.cases import CASES, Case
from flash_dmattn.testing.recorder import Recorder

pytestmark = pytest.mark.skipif(operators.UNAVAILABLE is not None, reason=str(operators.UNAVAILABLE))

PLACES = [
    pytest.param(("cpu", torch.float32), id="cpu"),
    pytest.param(("cuda", torch.bfloat16), id="cuda", marks=pytest.mark.gpu),
]


def varlen(query, key, value, attn_mask=None, attn_bias=None, **options):
    """Two sequences, of a quarter and of three quarters of the bound; half of the rows belong to none."""
    bound = query.shape[0] // 2
    offsets = torch.arange(3, device=query.device) ** 2 * (bound // 4)
    return flash_dmattn_varlen_func(query, key, value, attn_mask, attn_bias, offsets, offsets, bound, bound, **options)


FUNCTIONS = {
    "": flash_dmattn_func,
    "_kvpacked": flash_dmattn_kvpacked_func,
    "_qkvpacked": flash_dmattn_qkvpacked_func,
    "_varlen": varlen,
}
FORMS = list(FUNCTIONS)
OPTIONS = {"is_causal": True, "deterministic": True}


@pytest.fixture(params=PLACES)
def place(request) -> Tuple[str, torch.dtype]:
    return request.param


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def tensors_of(form: str, place, length: int = 40, requires_grad: bool = True) -> Tuple[torch.Tensor, ...]:
    """Tensors of a form's function, in its order."""
    device, dtype = place
    shapes = {
        "": [(2, length, 4, 16), (2, length, 2, 16), (2, length, 2, 16)],
        "_kvpacked": [(2, length, 4, 16), (2, length, 2, 2, 16)],
        "_qkvpacked": [(2, length, 3, 4, 16)],
        "_varlen": [(2 * length, 4, 16), (2 * length, 2, 16), (2 * length, 2, 16)],
    }[form]
    generator = torch.Generator().manual_seed(length)
    made = (torch.randn(shape, generator=generator).to(device=device, dtype=dtype) for shape in shapes)
    return tuple(tensor.requires_grad_(requires_grad) for tensor in made)


def mask_and_bias(place, length: int = 40) -> Tuple[torch.Tensor, torch.Tensor]:
    device, dtype = place
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand((2, 1, length, length), generator=generator) < 0.5
    bias = torch.randn((1, 4, 1, length), generator=generator)
    return mask.to(device), bias.to(device=device, dtype=dtype).requires_grad_()


def results(function: Callable[..., Any], *arguments: torch.Tensor, **options: Any) -> Tuple[torch.Tensor, ...]:
    """Outputs and gradients of all arguments that need one."""
    outputs = function(*arguments, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    leaves = [tensor for tensor in arguments if isinstance(tensor, torch.Tensor) and tensor.requires_grad]
    weights = [torch.linspace(0, 1, output.numel()).view_as(output).to(output) for output in outputs]
    return (*outputs, *torch.autograd.grad(outputs, leaves, weights))


def assert_all_equal(actual: Tuple[torch.Tensor, ...], expected: Tuple[torch.Tensor, ...]) -> None:
    assert len(actual) == len(expected)
    for index, (a, e) in enumerate(zip(actual, expected)):
        assert torch.equal(a, e), f"result {index}"


def detached(arguments: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """Arguments of a backward operator, which has no derivative."""
    return tuple(given.detach() if isinstance(given, torch.Tensor) else given for given in arguments)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_opcheck(form, masked, biased, place) -> None:
    mask, bias = mask_and_bias(place)
    with Recorder() as recorder:
        arguments = (*tensors_of(form, place), mask if masked else None, bias if biased else None)
        results(FUNCTIONS[form], *arguments, **OPTIONS, return_lse=biased)
    names = [func.overloadpacket.__name__ for func, _ in recorder.calls]
    assert names == [f"attention{form}", f"attention{form}_backward"]
    (forward, arguments), (backward, saved) = recorder.calls
    torch.library.opcheck(forward, arguments)
    torch.library.opcheck(backward, detached(saved))


@pytest.mark.parametrize(
    "needs", list(itertools.product([False, True], repeat=4))[1:], ids=lambda needs: "".join("01"[n] for n in needs)
)
def test_opcheck_of_backward_for_some_gradients(needs) -> None:
    place = ("cpu", torch.float32)
    mask, bias = mask_and_bias(place)
    with Recorder() as recorder:
        results(flash_dmattn_func, *tensors_of("", place), mask, bias)
    func, args = recorder.calls[1]
    torch.library.opcheck(func, (*detached(args[:-1]), list(needs)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operator_equals_the_direct_call(case: Case) -> None:
    inputs = case.inputs(torch.float32, "cpu")
    leaves = {
        name: tensor.requires_grad_() if tensor is not None and name != "attn_mask" else tensor
        for name, tensor in inputs.items()
    }
    options = {**case.options, "deterministic": True}
    expected = results(flash_dmattn_func, *leaves.values(), **options)
    with Recorder() as recorder:
        actual = results(flash_dmattn_func, *leaves.values(), **options)
    assert len(recorder.calls) == 2
    assert_all_equal(actual, expected)


@pytest.mark.parametrize("case", [case for case in CASES if case.mask], ids=lambda case: case.name)
def test_closed_form_of_the_size_of_a_packed_mask(case: Case) -> None:
    inputs = case.inputs(torch.float32, "cpu")
    _, _, packed = ops.attention_forward(**inputs, scale=None, is_causal=None, softcap=None, keep_for_backward=True)
    assert ops.packed_mask_bytes(*inputs["attn_mask"].shape[:3], case.len_k) == packed.numel()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_in_one_graph(form, dynamic, place) -> None:
    function = FUNCTIONS[form]

    def step(*arguments: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        scale = arguments[0].shape[-1] ** -0.5
        out, lse = function(*arguments, scale=scale, **OPTIONS, return_lse=True)
        return 2 * out, lse

    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=graphs)
    for length in (40, 129, 64):
        arguments = (*tensors_of(form, place, length), *mask_and_bias(place, length))
        assert_all_equal(results(compiled, *arguments), results(step, *arguments))
    assert graphs.frame_count == (1 if dynamic else 3)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_with_inductor(dynamic, place) -> None:
    def step(query, key, value, mask, bias):
        # Layouts that a compiler may be tempted to change, and arithmetic that is exact: a compiler keeps more digits
        # between other steps.
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
        return 2 * flash_dmattn_func(query * 2, key.relu(), value, mask, bias, deterministic=True)

    run = torch.compile(step, fullgraph=True, dynamic=dynamic)
    for length in (40, 129) if dynamic else (40,):
        arguments = (*tensors_of("", place, length), *mask_and_bias(place, length))
        assert_all_equal(results(run, *arguments), results(step, *arguments))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_compile_without_gradients(mode, form, place) -> None:
    arguments = (*tensors_of(form, place), *mask_and_bias(place))
    compiled = torch.compile(FUNCTIONS[form], fullgraph=True, backend="aot_eager")
    with mode():
        assert torch.equal(compiled(*arguments), FUNCTIONS[form](*arguments))


@pytest.mark.parametrize("form", FORMS)
def test_inference_mode(form, place) -> None:
    arguments = (*tensors_of(form, place), *mask_and_bias(place))
    expected = FUNCTIONS[form](*arguments, return_lse=True)
    with torch.inference_mode():
        actual = FUNCTIONS[form](*arguments, return_lse=True)
        # Tensors that were made in it have no version counter.
        inside = FUNCTIONS[form](*(tensor.clone() for tensor in arguments), return_lse=True)
    assert_all_equal(actual, expected)
    assert_all_equal(inside, expected)
    assert all(tensor.is_inference() for tensor in (*actual, *inside))


@pytest.mark.parametrize("backend", [None, "device"], ids=["chosen", "forced"])
@pytest.mark.filterwarnings("error:Dynamo detected a call to a `functools.lru_cache`-wrapped function")
def test_compile_what_auto_returns(backend, place) -> None:
    attention = flash_dmattn_func_auto(place[0] if backend else None)
    arguments = tensors_of("", place)
    compiled = torch.compile(lambda *tensors: attention(*tensors, **OPTIONS), fullgraph=True, backend="aot_eager")
    assert_all_equal(results(compiled, *arguments), results(attention, *arguments, **OPTIONS))


def test_compiled_code_does_not_trace_what_asks_the_driver(monkeypatch) -> None:
    def choose(kind):
        assert _C.cuda_built() in (False, True)  # no compiler knows what is in a binding
        return libfdma.cpu

    monkeypatch.setattr("flash_dmattn.auto._choose_backend", choose)
    attention = flash_dmattn_func_auto()
    arguments = tensors_of("", ("cpu", torch.float32))
    compiled = torch.compile(lambda *tensors: attention(*tensors), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), flash_dmattn_func(*arguments))


def test_compiled_code_refuses_what_no_backend_takes() -> None:
    attention = flash_dmattn_func_auto()
    compiled = torch.compile(lambda *tensors: attention(*tensors), backend="aot_eager")
    query = torch.empty(1, 4, 1, 8, device="meta")
    with pytest.raises(Exception, match="query is on a meta device; accepted: cpu or cuda"):
        compiled(query, query, query)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "big"}, "scale must be a real number or None, got 'big'"),
        ({"scale": True}, "scale must be a real number or None, got True"),
        ({"softcap": torch.tensor(1.0)}, "softcap must be a real number or None, got"),
        ({"is_causal": 1}, "is_causal must be a bool or None, got 1"),
    ],
)
def test_operators_refuse_what_the_library_refuses(options: Dict[str, Any], message: str) -> None:
    query = torch.zeros(1, 4, 1, 8)
    with Recorder(), pytest.raises(TypeError, match=message):
        flash_dmattn_func(query, query, query, **options)


def test_refusals_of_the_library_reach_the_caller_of_compiled_code() -> None:
    compiled = torch.compile(flash_dmattn_func, backend="aot_eager")
    query = torch.zeros(1, 4, 1, 20)
    with pytest.raises(Exception, match="head_dim 20; accepted: multiples of 8"):
        compiled(query, query, query)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("form", FORMS)
def test_non_reentrant_checkpointing(form, compiled, place) -> None:
    def attention(*arguments: torch.Tensor) -> torch.Tensor:
        return FUNCTIONS[form](*arguments, **OPTIONS)

    def step(*arguments: torch.Tensor) -> torch.Tensor:
        return checkpoint(attention, *arguments, use_reentrant=False)

    arguments = (*tensors_of(form, place), *mask_and_bias(place))
    run = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
    assert_all_equal(results(run, *arguments), results(attention, *arguments))


def test_selective_checkpointing_can_keep_attention() -> None:
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    place = ("cpu", torch.float32)
    ours = torch.ops.flash_dmattn.attention.default

    def policy(ctx, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op is ours else CheckpointPolicy.PREFER_RECOMPUTE

    def step(*arguments: torch.Tensor) -> torch.Tensor:
        return checkpoint(
            lambda *tensors: flash_dmattn_func(*tensors, **OPTIONS),
            *arguments,
            use_reentrant=False,
            context_fn=lambda: create_selective_checkpoint_contexts(policy),
        )

    arguments = (*tensors_of("", place), *mask_and_bias(place))
    expected = results(flash_dmattn_func, *arguments, **OPTIONS)
    forwards = []
    run = ops.attention_forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "attention_forward", lambda *a, **k: forwards.append(1) or run(*a, **k))
        actual = results(step, *arguments)
    assert len(forwards) == 1
    assert_all_equal(actual, expected)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_query_key_and_value(form, compiled, dtype, place) -> None:
    device, _ = place
    tensors = tensors_of(form, (device, torch.float32))
    mask, bias = mask_and_bias((device, torch.float32))

    def attention(*arguments: torch.Tensor) -> torch.Tensor:
        return FUNCTIONS[form](*arguments, **OPTIONS)

    def cast(*arguments: torch.Tensor) -> torch.Tensor:
        *tensors, mask, bias = arguments
        return attention(*(tensor.to(dtype) for tensor in tensors), mask, bias)

    run = torch.compile(attention, fullgraph=True, backend="aot_eager") if compiled else attention
    expected = results(cast, *tensors, mask, bias)
    with torch.autocast(device, dtype=dtype):
        actual = results(run, *tensors, mask, bias)
    assert actual[0].dtype == dtype
    assert actual[-1].dtype == bias.dtype == torch.float32
    assert_all_equal(actual, expected)


def test_autocast_leaves_float64_to_be_refused() -> None:
    query = torch.zeros(1, 4, 1, 8, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match=r"query\.dtype is float64"):
        flash_dmattn_func(query, query, query)


def test_autocast_of_another_device_changes_nothing() -> None:
    query = torch.randn(1, 4, 1, 8)
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", dtype=torch.bfloat16, enabled=True):
        assert flash_dmattn_func(query, query, query).dtype == torch.float32


@pytest.mark.parametrize("form", ["", "_kvpacked", "_qkvpacked"])
def test_flops_are_counted_as_those_of_torch(form) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    tensors = tensors_of(form, ("cpu", torch.float32))
    with FlopCounterMode(display=False) as counter:
        results(FUNCTIONS[form], *tensors)
    query, key, value = (torch.empty(2, 4, 40, 16, device="meta", requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as expected:
        scores = query @ key.mT
        torch.autograd.grad((scores @ value).sum(), (query, key, value))
    # Backward of attention computes the scores again: a fifth product beside the four of autograd.
    product = 2 * 2 * 4 * 40 * 40 * 16
    assert expected.get_total_flops() == 6 * product
    assert counter.get_total_flops() == 7 * product


def test_flops_of_the_first_call_that_is_watched_are_counted(monkeypatch) -> None:
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    for target in [target for target in flop_registry if operators.NAMESPACE in str(target)]:
        monkeypatch.delitem(flop_registry, target)
    operators._register_flop_formulas.cache_clear()
    query, key, value = tensors_of("", ("cpu", torch.float32))
    with FlopCounterMode(display=False) as counter:
        flash_dmattn_func(query, key, value)
    assert counter.get_total_flops() == 2 * (2 * 2 * 4 * 40 * 40 * 16)


def test_fake_tensors_give_shapes_and_strides() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        query, kv = torch.empty(2, 5, 4, 16, dtype=torch.bfloat16, device="cuda"), torch.empty(2, 9, 2, 2, 16)
    # Also outside the mode: the tensors say what they are.
    out, lse = flash_dmattn_func(query, query, query, return_lse=True)
    assert (out.shape, out.dtype, out.device.type) == (query.shape, torch.bfloat16, "cuda")
    assert out.is_contiguous()
    assert (lse.shape, lse.dtype) == ((2, 4, 5), torch.float32)
    assert flash_dmattn_kvpacked_func(kv[:, :, 0], kv).shape == (2, 9, 2, 16)


def test_export() -> None:
    class Module(torch.nn.Module):
        def forward(self, query: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return flash_dmattn_func(query, query, query, mask)

    query, mask = torch.randn(1, 6, 2, 8), torch.rand(1, 1, 6, 6) < 0.5
    length = torch.export.Dim("length", min=2, max=64)
    shapes = {"query": {1: length}, "mask": {2: length, 3: length}}
    program = torch.export.export(Module(), (query, mask), dynamic_shapes=shapes)
    query, mask = torch.randn(1, 9, 2, 8), torch.rand(1, 1, 9, 9) < 0.5
    assert torch.equal(program.module()(query, mask), Module()(query, mask))


def test_an_eager_call_goes_past_the_dispatcher(monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("an operator was called")

    monkeypatch.setattr("flash_dmattn.calls.call_operator", refuse)
    results(flash_dmattn_func, *tensors_of("", ("cpu", torch.float32)))
    assert flash_dmattn_func(*tensors_of("", ("cpu", torch.float32), requires_grad=False)).grad_fn is None


def test_gradient_of_lse_that_is_not_used_is_not_given_to_the_operator() -> None:
    with Recorder() as recorder:
        out, _ = flash_dmattn_func(*tensors_of("", ("cpu", torch.float32)), return_lse=True)
        out.sum().backward()
    func, args = recorder.calls[1]
    assert func is torch.ops.flash_dmattn.attention_backward.default
    assert args[1] is None


def test_second_derivative_is_refused() -> None:
    query = torch.randn(1, 4, 1, 8, requires_grad=True)
    with Recorder(), pytest.raises(RuntimeError, match="attention is differentiable once"):
        (grad,) = torch.autograd.grad(flash_dmattn_func(query, query, query).sum(), query, create_graph=True)
        grad.sum().backward()


def test_a_mask_that_was_not_kept_is_refused() -> None:
    query, mask = torch.randn(1, 4, 1, 8, requires_grad=True), torch.ones(1, 1, 4, 4)
    with pytest.raises(RuntimeError, match="keep_mask is False in a call that is differentiated; accepted: True"):
        torch.ops.flash_dmattn.attention(
            query, query, query, mask, ops.MASK_DENSE, None, None, None, False, None, False, False
        )


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_graph_capture_of_forward(form) -> None:
    place = ("cuda", torch.bfloat16)
    arguments = (*tensors_of(form, place, requires_grad=False), *mask_and_bias(place))
    with torch.no_grad():
        FUNCTIONS[form](*arguments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = FUNCTIONS[form](*arguments, is_causal=True, return_lse=True)
        for tensor in (*arguments[:-2], arguments[-1]):
            tensor.mul_(0.5)
        arguments[-2].logical_not_()
        for output in outputs:
            output.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert_all_equal(outputs, FUNCTIONS[form](*arguments, is_causal=True, return_lse=True))


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_graph_capture_of_compiled_code(form) -> None:
    place = ("cuda", torch.bfloat16)
    compiled = torch.compile(FUNCTIONS[form], fullgraph=True, mode="reduce-overhead")
    for length in (64, 64, 64):
        tensors = tensors_of(form, place, length, requires_grad=False)
        assert torch.equal(compiled(*tensors).clone(), FUNCTIONS[form](*tensors))
