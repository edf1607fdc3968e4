"""Calls from several threads at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from flash_dmattn import flash_dmattn_func
from flash_dmattn.testing.cases import Case
from flash_dmattn.testing.reference import call_with_gradients

CASE = Case("shared", len_q=150, len_k=170, heads=4, mask="BHQK", bias="BH1K", options={"deterministic": True})


def test_concurrent_calls_do_not_disturb_each_other(target) -> None:
    seeds = range(8)
    inputs = [CASE.inputs(target.dtype, target.device, seed) for seed in seeds]
    grad_out = CASE.grad_out(target.dtype, target.device)

    def call(seed: int):
        return call_with_gradients(target.attention, inputs[seed], CASE.options, grad_out)

    expected = [call(seed) for seed in seeds]
    with ThreadPoolExecutor(max_workers=4) as pool:
        for round_of_results in (list(pool.map(call, seeds)) for _ in range(5)):
            for actual, single in zip(round_of_results, expected):
                assert torch.equal(actual.out, single.out)
                assert all(torch.equal(actual.grads[name], grad) for name, grad in single.grads.items())


def test_messages_belong_to_their_thread() -> None:
    barrier = threading.Barrier(2)

    def refused(scale: float) -> str:
        query = torch.zeros(1, 4, 1, 8)
        messages = set()
        for _ in range(50):
            barrier.wait()
            try:
                flash_dmattn_func(query, query, query, scale=scale)
            except ValueError as error:
                messages.add(str(error))
        assert len(messages) == 1
        return messages.pop()

    with ThreadPoolExecutor(max_workers=2) as pool:
        infinite, nan = pool.map(refused, [float("inf"), float("nan")])
    assert "scale is inf" in infinite
    assert "scale is nan" in nan


def test_gil_is_released() -> None:
    query = torch.randn(1, 1024, 8, 64)
    progress = 0
    done = threading.Event()

    def count() -> None:
        nonlocal progress
        while not done.is_set():
            progress += 1

    counter = threading.Thread(target=count)
    counter.start()
    before = progress
    flash_dmattn_func(query, query, query)
    during = progress - before
    done.set()
    counter.join()
    # Under a held GIL the counter stands still for the whole call.
    assert during > 100
