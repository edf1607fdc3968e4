"""Bitwise reproducibility."""

import inspect

import pytest
import torch

from flash_dmattn import flash_dmattn_func, ops
from flash_dmattn.testing.cases import Case
from flash_dmattn.testing.reference import call_with_gradients

# Heads share kv heads and a bias row: every sum that threads could do in any order.
CASE = Case(
    "contended",
    batch=2,
    len_q=150,
    len_k=170,
    heads=4,
    heads_kv=1,
    mask="BHQK",
    bias="1G1K",
    options={"is_causal": True, "deterministic": True},
)


def test_a_hundred_repeats_are_equal(libfdma_target) -> None:
    inputs = CASE.inputs(libfdma_target.dtype, libfdma_target.device)
    grad_out = CASE.grad_out(libfdma_target.dtype, libfdma_target.device)
    first = call_with_gradients(libfdma_target.attention, inputs, CASE.options, grad_out)
    for _ in range(99):
        again = call_with_gradients(libfdma_target.attention, inputs, CASE.options, grad_out)
        assert torch.equal(again.out, first.out)
        for name, grad in first.grads.items():
            assert torch.equal(again.grads[name], grad), name


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_cpu_results_do_not_depend_on_the_number_of_threads(threads) -> None:
    inputs = CASE.inputs(torch.float32, "cpu")
    grad_out = CASE.grad_out(torch.float32, "cpu")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = call_with_gradients(flash_dmattn_func, inputs, CASE.options, grad_out)
        torch.set_num_threads(threads)
        several = call_with_gradients(flash_dmattn_func, inputs, CASE.options, grad_out)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(several.out, single.out)
    for name, grad in single.grads.items():
        assert torch.equal(several.grads[name], grad), name


@pytest.mark.parametrize("setting", [False, True])
@pytest.mark.parametrize("argument", [None, False, True])
def test_default_follows_torch(setting, argument, libfdma_target, monkeypatch) -> None:
    seen = []
    run = ops.attention_backward

    def spy(*args, **kwargs):
        seen.append(inspect.signature(run).bind(*args, **kwargs).arguments["deterministic"])
        return run(*args, **kwargs)

    monkeypatch.setattr(ops, "attention_backward", spy)
    inputs = CASE.inputs(libfdma_target.dtype, libfdma_target.device)
    grad_out = CASE.grad_out(libfdma_target.dtype, libfdma_target.device)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(setting)
        call_with_gradients(libfdma_target.attention, inputs, {"deterministic": argument}, grad_out)
    finally:
        torch.use_deterministic_algorithms(before)
    assert seen == [setting if argument is None else argument]
