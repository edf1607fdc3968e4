"""The Triton backend: the shared tests, and what it alone has. On a GPU compiled, elsewhere in Triton's interpreter."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Dict, List, Tuple

import pytest
import test_autograd
import test_lse
import test_refusals
import test_semantics
import torch
from conftest import Target

from flash_dmattn import TRITON_AVAILABLE, flash_dmattn_func_auto, get_available_backends, triton_dmattn_func
from flash_dmattn.backends import triton
from flash_dmattn.backends.base import CallKind
from flash_dmattn.testing.cases import CASES, Case
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.reference import call_with_gradients, reference_results

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Interpreting and compiling take minutes: one dtype takes the whole table in the interpreter, and on a GPU each rule
# that is a kernel of its own is compiled in one dtype. Cases are named by what they start with.
SHORT_TABLE = (
    "full",
    "causal",
    "heads",
    "head dim 40",
    "scale",
    "bias of",
    "dynamic",
    "rows",
    "mask hides",
    "no ",
)
CASES_OF = {
    ("cpu", torch.float32): ("",),
    ("cpu", torch.float16): SHORT_TABLE,
    ("cuda", torch.bfloat16): (
        "full",
        "one ",
        "lengths",
        "causal",
        "heads",
        *(f"head dim {d}" for d in (8, 40, 64, 128, 192, 256)),
        "scale",
        *(f"mask of torch.{t}" for t in ("bool", "bfloat16", "float32", "int64")),
        "mask: ",
        *(f"mask {extents}" for extents in ("BHQK", "BG1K", "11Q1", "1111")),
        "mask hides",
        "bias of torch.float32",
        *(f"bias {extents}" for extents in ("BHQK", "BGQK", "BG1K", "BHQ1", "1111")),
        "bias -inf",
        "bias of one",
        "large",
        "dynamic",
        "head-major",
        "rows",
        "expanded",
        "every second",
        "no ",
    ),
    ("cuda", torch.float16): ("full", "scale below", "bias -inf hides a key", "dynamic mask attention, one"),
    ("cuda", torch.float32): ("full", "causal", "head dim 40", "mask hides whole rows", "bias of", "dynamic"),
}
DTYPE_OF_OTHER_TESTS = {"cpu": (torch.float32, torch.float16), "cuda": (torch.bfloat16,)}
TARGETS = [
    pytest.param(target, id=f"{name}-{str(target[1])[6:]}", marks=marks)
    for device, name, marks in (("cpu", "interpreter", []), ("cuda", "cuda", [pytest.mark.gpu]))
    for target in CASES_OF
    if target[0] == device
]
# Everything they ask of libfdma they ask of Triton; they take their target from here.
test_output_and_gradients = test_semantics.test_output_and_gradients
test_gradients_through_output_and_lse = test_semantics.test_gradients_through_output_and_lse
test_rows_that_see_nothing_give_exact_zeros = test_semantics.test_rows_that_see_nothing_give_exact_zeros
test_is_causal_none_is_false = test_semantics.test_is_causal_none_is_false
test_default_scale = test_semantics.test_default_scale
test_a_float32_bias_keeps_its_precision = test_semantics.test_a_float32_bias_keeps_its_precision
test_output_is_contiguous = test_semantics.test_output_is_contiguous_whatever_the_layout_of_query
inputs, grad_out = test_autograd.inputs, test_autograd.grad_out
test_gradients_of_exactly_the_inputs_that_need_one = test_autograd.test_gradients_of_exactly_the_inputs_that_need_one
test_no_graph_without_inputs_that_need_a_gradient = test_autograd.test_no_graph_without_inputs_that_need_a_gradient
test_any_strides_of_grad_out = test_autograd.test_any_strides_of_grad_out
test_dense_mask_is_not_kept = test_autograd.test_dense_mask_is_not_kept
test_changing_the_mask_after_forward = test_autograd.test_changing_the_mask_after_forward_changes_no_gradient
test_changing_an_input_in_place = test_autograd.test_changing_an_input_in_place_before_backward_is_refused
test_no_gradient_flows_to_a_float_mask = test_autograd.test_no_gradient_flows_to_a_float_mask
test_same_tensor_as_query_key_and_value = test_autograd.test_same_tensor_as_query_key_and_value
test_second_derivative_is_refused = test_autograd.test_second_derivative_is_refused
test_checkpointing = test_autograd.test_checkpointing
test_a_gradient_of_lse_alone = test_lse.test_a_gradient_of_lse_alone
test_any_strides_of_its_gradient = test_lse.test_any_strides_of_its_gradient
test_two_halves_of_the_keys_merge = test_lse.test_two_halves_of_the_keys_merge_to_the_whole
test_a_gradient_of_dead_rows = test_lse.test_a_gradient_of_rows_that_see_nothing_goes_nowhere


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    """Triton on each device with each of its dtypes."""
    return _target(request, SHORT_TABLE)


@pytest.fixture(params=TARGETS)
def lse_target(request: pytest.FixtureRequest) -> Target:
    """The same, for all that is to be tested there: without lse, backward lacks a subtraction, and no more."""
    return _target(request, ("",))


def _target(request: pytest.FixtureRequest, table: Tuple[str, ...]) -> Target:
    device, dtype = request.param
    if device == "cpu":
        if not INTERPRETED:
            pytest.skip("the kernels are compiled for the GPU of this machine")
        require_triton()
    callspec = getattr(request.node, "callspec", None)
    case = None if callspec is None else callspec.params.get("case")
    if case is None and dtype not in DTYPE_OF_OTHER_TESTS[device]:
        pytest.skip("tested in another dtype: compiling takes minutes")
    if case is not None and case.options.get("softcap"):
        pytest.skip("Triton ignores softcap, as the API reference says")
    if case is not None and not (case.name.startswith(CASES_OF[device, dtype]) and case.name.startswith(table)):
        pytest.skip("tested in another dtype, with lse or in the interpreter: compiling takes minutes")
    return Target(flash_dmattn_func_auto("triton"), device, dtype, "triton")


def require_triton() -> None:
    reason = triton.unavailable_reason()
    if reason is not None:
        pytest.skip(f"Triton cannot run: {reason}")


def run_python(program: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**inherited, **environment}
    )


@pytest.mark.parametrize("tile", [(16, 16), (32, 32), (64, 128)])
@pytest.mark.parametrize("name", ["mask hides whole tiles, causal", "dynamic mask attention", "bias -inf hides a key"])
def test_tiles_of_other_gpus(name: str, tile: Tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    from flash_dmattn.triton_kernels import configs

    if not INTERPRETED:
        pytest.skip("the kernels are compiled for the GPU of this machine")
    require_triton()
    config = configs.Config(*tile, num_warps=4, num_stages=1)
    monkeypatch.setattr(configs, "_INTERPRETED", configs.Configs(config, config, config))
    case = next(case for case in CASES if case.name == name)
    test_output_and_gradients(
        replace(case, batch=1, heads=2, heads_kv=1), Target(triton_dmattn_func, "cpu", torch.float32, "triton")
    )


@pytest.mark.parametrize("options", [{"softcap": 0.5}, {"deterministic": True}], ids=["softcap", "deterministic"])
def test_options_of_libfdma_are_ignored(options: Dict[str, object], target: Target) -> None:
    inputs = CASES[0].inputs(target.dtype, target.device)
    assert torch.equal(target.attention(**inputs, **options), target.attention(**inputs))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_masks_of_wide_unsigned_integers(dtype: torch.dtype, target: Target) -> None:
    case = Case("masked", mask="BHQK")
    inputs = case.inputs(target.dtype, target.device)
    expected = target.attention(**inputs)
    inputs["attn_mask"] = (inputs["attn_mask"].to(torch.int64) << (8 * dtype.itemsize - 1)).to(dtype)
    assert torch.equal(target.attention(**inputs), expected)


def test_smallest_float_of_a_mask_shows(target: Target) -> None:
    inputs = CASES[0].inputs(target.dtype, target.device)
    expected = target.attention(**inputs)
    inputs["attn_mask"] = torch.full((1, 1, 70, 70), 2.0**-149, device=target.device)
    assert torch.equal(target.attention(**inputs), expected)


@pytest.mark.parametrize("name", [name for name in test_refusals.REFUSALS if name != "query: meta"])
def test_refuses_what_libfdma_refuses(name: str) -> None:
    require_triton()
    arguments, exception, _ = test_refusals.REFUSALS[name]
    with pytest.raises(exception, match=rf"\b{name.split(':')[0]}\b.*(accepted|must be|cannot be read|pass|share)"):
        triton_dmattn_func(**arguments)


def test_devices_that_it_does_not_take() -> None:
    require_triton()
    meta = torch.zeros(1, 4, 1, 8, device="meta")
    with pytest.raises(ValueError, match=r"query is on meta; accepted( in Triton's interpreter)?: "):
        triton_dmattn_func(meta, meta, meta)
    with pytest.raises(RuntimeError, match="backend 'triton' takes cuda or cpu tensors, query is on meta"):
        flash_dmattn_func_auto("triton")(meta, meta, meta)


@pytest.mark.skipif(not INTERPRETED, reason="the kernels are compiled for the GPU of this machine")
def test_bfloat16_is_refused_in_the_interpreter_whose_products_are_wrong() -> None:
    require_triton()
    query = torch.zeros(1, 4, 1, 8, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"query.dtype is bfloat16; accepted in Triton's interpreter: float16, float32"):
        triton_dmattn_func(query, query, query)


@pytest.mark.gpu
def test_cpu_tensors_are_refused_without_the_interpreter() -> None:
    query = torch.zeros(1, 4, 1, 8)
    with pytest.raises(ValueError, match="query is on cpu; accepted: cuda, or cpu in Triton's interpreter"):
        triton_dmattn_func(query, query, query)


def test_is_not_chosen_for_cpu_tensors() -> None:
    query = torch.zeros(1, 4, 1, 8, requires_grad=True)
    assert "Triton" not in flash_dmattn_func_auto()(query, query, query).grad_fn.name()


def test_availability() -> None:
    assert TRITON_AVAILABLE == ("triton" in get_available_backends()) == (triton.unavailable_reason() is None)


def test_options_that_it_ignores_leave_the_choice_to_another_backend() -> None:
    kind = CallKind(torch.device("cpu"), torch.float16, has_softcap=True, deterministic=True)
    reasons = triton.backend.unsupported_reasons(kind)
    assert [reason.split()[0] for reason in reasons] == ["softcap", "deterministic"]
    assert not triton.backend.unsupported_reasons(kind._replace(has_softcap=False, deterministic=False))


def test_old_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    kind = CallKind(torch.device("cuda", 0), torch.float16, has_softcap=False, deterministic=False)
    assert triton.backend.unsupported_reasons(kind) == [
        "cuda:0 has compute capability 7.5; accepted: 8.0 or newer",
    ]


PROGRAM = """
import sys
{prepare}
import torch
torch.cuda.is_available = lambda: False
from flash_dmattn.backends.triton import unavailable_reason
print(unavailable_reason())
"""
REASONS = {
    "missing": ("sys.modules['triton'] = None", {}, "triton is not installed; pip install triton"),
    "old": ("import triton; triton.__version__ = '2.1.0'", {}, "triton is 2.1.0; accepted: 3.0 or newer"),
    "no GPU": ("", {}, "finds no usable GPU; TRITON_INTERPRET=1 in the environment runs the kernels on the CPU"),
    "interpreter and NumPy": (
        "import numpy, triton; numpy.__version__ = '2.4.0'; triton.__version__ = '3.6.0'",
        {"TRITON_INTERPRET": "1"},
        "the interpreter of triton 3.6.0 cannot run with numpy 2.4.0; accepted: numpy older than 2.4, or triton 3.7",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_unavailable_reason(name: str) -> None:
    prepare, environment, reason = REASONS[name]
    done = run_python(PROGRAM.format(prepare=prepare), **environment)
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout


def test_function_raises_the_reason() -> None:
    program = "from flash_dmattn import triton_dmattn_func; triton_dmattn_func(None, None, None)"
    done = run_python("import sys; sys.modules['triton'] = None; " + program)
    assert "RuntimeError: backend 'triton' is not available: triton is not installed" in done.stderr


def test_import_of_the_package_does_not_import_triton() -> None:
    done = run_python("import sys, flash_dmattn; print([name for name in sys.modules if name.startswith('triton')])")
    assert done.stdout == "[]\n", done.stderr


VARIANTS = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from flash_dmattn.testing.cases import Case
from flash_dmattn.triton_kernels.attention import attention_backward, attention_forward

class Hopper:
    # Asked what to compile for; nothing is compiled or run.
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

variants = set()

def note(*, key, fn, **_):
    variants.add((fn.name, str(key)))
    return True

driver.set_active(Hopper())
triton.knobs.runtime.jit_cache_hook = note
for lengths in {lengths}:
    case = Case("", 2, *lengths, heads=4, heads_kv=2, mask="BHQK", bias="BHQK")
    inputs = case.inputs(torch.bfloat16, "cpu")
    for is_causal in (False, True):
        out, lse, mask = attention_forward(**inputs, scale=0.5 + is_causal, is_causal=is_causal)
        kept = (inputs["query"], inputs["key"], inputs["value"], mask, inputs["attn_bias"], out, lse)
        attention_backward(out, None, *kept, 0.5, is_causal, needs=(True,) * 4)
    print(len(variants))
"""


@pytest.mark.parametrize(
    "lengths", [[(128, 128), (144, 1040), (2048, 64)], [(101, 101), (33, 1003), (211, 51)]], ids=["even", "odd"]
)
def test_one_kernel_for_all_lengths_scales_and_causality(lengths: List[Tuple[int, int]]) -> None:
    if not hasattr(pytest.importorskip("triton"), "knobs"):
        pytest.skip("this triton has no hook before compilation")
    done = run_python(VARIANTS.replace("{lengths}", str(lengths)))
    assert done.returncode == 0, done.stderr
    # Forward, two of backward, a pass over the mask, one over the output, and lists of tiles by rows and by keys.
    assert list(map(int, done.stdout.split())) == [7] * len(lengths)


BROADCAST = Case("broadcast bias", len_q=2048, len_k=2048, heads=8, head_dim=64, options={"is_causal": True})


@pytest.mark.gpu
@pytest.mark.parametrize("extents", ["BH1K", "1HQ1", "1111"])
def test_no_temporary_of_the_size_of_the_scores(extents: str) -> None:
    inputs = BROADCAST.inputs(torch.bfloat16, "cuda")
    inputs["attn_bias"] = torch.zeros(BROADCAST.score_shape(extents), device="cuda", dtype=torch.bfloat16)
    grad_out = BROADCAST.grad_out(torch.bfloat16, "cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call_with_gradients(triton_dmattn_func, inputs, BROADCAST.options, grad_out)
    scores = BROADCAST.heads * BROADCAST.len_q * BROADCAST.len_k * torch.bfloat16.itemsize
    assert torch.cuda.max_memory_allocated() - before < scores / 2


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [*((torch.bfloat16, dim) for dim in (16, 32, 64, 128, 256)), *((torch.float32, dim) for dim in (64, 128, 256))],
    ids=str,
)
def test_every_tile_fits_the_gpu(dtype: torch.dtype, head_dim: int) -> None:
    # Of float32, the largest.
    case = Case("", len_q=150, len_k=200, head_dim=head_dim, mask="BHQK", bias="BHQK", bias_dtype=torch.float32)
    inputs = case.inputs(dtype, "cuda")
    for without in ((), ("attn_mask", "attn_bias")):
        call = {**inputs, **dict.fromkeys(without)}
        results = call_with_gradients(triton_dmattn_func, call, {"is_causal": True}, case.grad_out(dtype, "cuda"))
        assert results.out.isfinite().all()
        assert all(grad.isfinite().all() for grad in results.grads.values())


@pytest.mark.gpu
def test_mask_and_bias_of_more_than_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    heads, length = 3, 28672  # 2.47e9 scores
    bias = torch.zeros(1, heads, length, length, device="cuda", dtype=torch.bfloat16)
    mask = torch.ones(1, heads, length, length, device="cuda", dtype=torch.bool)
    # The last rows of the last head, whose offsets need 64 bits, are then a call of their own.
    mask[0, -1, -64:, ::2] = False
    bias[0, -1, -64:].normal_()
    query, key, value = (
        torch.randn(1, length, heads, 64, device="cuda", dtype=torch.bfloat16, requires_grad=name == "query")
        for name in ("query", "key", "value")
    )
    bias.requires_grad_()
    out = triton_dmattn_func(query, key, value, attn_mask=mask, attn_bias=bias)
    grad_out = torch.randn_like(out)
    out.backward(grad_out)
    rows, head = slice(length - 64, length), slice(heads - 1, heads)
    part = {
        "query": query.detach()[:, rows, head],
        "key": key[:, :, head],
        "value": value[:, :, head],
        "attn_mask": mask[:, head, rows],
        "attn_bias": bias.detach()[:, head, rows],
    }
    reference = reference_results(part, {}, grad_out[:, rows, head])
    eager = reference_results(part, {}, grad_out[:, rows, head], torch.bfloat16)
    assert_matches(out[:, rows, head], reference.out, eager.out, "out")
    for name, grad in (("query", query.grad[:, rows, head]), ("attn_bias", bias.grad[:, head, rows])):
        assert_matches(grad, reference.grads[name], eager.grads[name], f"gradient of {name}")
