"""Dense masks of a size at which libfdma brings the keys that queries see together: cpp/kernels/policy/compact.hpp."""

from dataclasses import replace
from typing import Any, Dict, List

import pytest
import torch

from flash_dmattn import DynamicMask, flash_dmattn_func
from flash_dmattn.testing.cases import Case, Shape
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.reference import Results, call_with_gradients, reference_results

BLIND = 7  # one row in so many sees no key


def scattered_columns(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """A quarter of the keys of each head, anywhere; a row sees three in four of them, or none."""
    columns = torch.rand((*shape[:2], 1, shape[3]), generator=generator) < 0.25
    mask = columns & (torch.rand(shape, generator=generator) < 0.75)
    mask[:, :, ::BLIND] = False
    return mask


def best_columns(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Each row sees the best eighth of the keys up to its own, by a value of the key; or none."""
    values = torch.rand((*shape[:2], 1, shape[3]), generator=generator)
    mask = DynamicMask.topk(values, shape[3] // 8).to_dense(shape[2])
    mask[:, :, ::BLIND] = False
    return mask


# What AttentionProblem::compacts asks for: as many queries and keys, and on CUDA as many products, B H Lq Lk D.
QUERIES, KEYS = 512, 2048
CUDA_SIZES = {"len_q": 5800, "len_k": 5800, "heads": 16, "heads_kv": 8, "head_dim": 128}
CASES = [
    Case("scattered columns", make_mask=scattered_columns, mask="BGQK", bias="BG1K"),
    Case("best columns, causal", make_mask=best_columns, mask="BGQK", bias="BG1K", options={"is_causal": True}),
    Case("columns that heads share", make_mask=scattered_columns, mask="B1QK", bias="BH1K", options={"softcap": 2.0}),
]
CASES = [replace(case, len_q=QUERIES, len_k=KEYS, heads=4, head_dim=16) for case in CASES]


def of_size_for(case: Case, device: str) -> Case:
    return replace(case, **CUDA_SIZES) if device == "cuda" else case


def reference_by_kv_heads(case: Case, inputs: Dict[str, Any], grads: Any, dtype: torch.dtype) -> Results:
    """`reference_results`, for one kv head after the other: scores of a size for CUDA fill a GPU in float64."""

    def part(tensor: torch.Tensor, dim: int, index: int) -> torch.Tensor:
        heads = tensor.shape[dim] // case.heads_kv
        return tensor if heads == 0 else tensor.narrow(dim, index * heads, heads)

    parts: List[Results] = []
    for index in range(case.heads_kv):
        of_head = {name: part(t, 2 if name in ("query", "key", "value") else 1, index) for name, t in inputs.items()}
        grads_of_head = (part(grads[0], 2, index), part(grads[1], 1, index))
        parts.append(reference_results(of_head, {**case.options, "return_lse": True}, grads_of_head, dtype))
    out, lse = (torch.cat([p.out[i] for p in parts], dim) for i, dim in enumerate((2, 1)))
    dims = {"query": 2, "key": 2, "value": 2, "attn_bias": 1}
    return Results((out, lse), {name: torch.cat([p.grads[name] for p in parts], dim) for name, dim in dims.items()})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outputs_and_gradients(case: Case, libfdma_target: Any) -> None:
    target = libfdma_target
    case = of_size_for(case, target.device)
    inputs = case.inputs(target.dtype, target.device)
    grads = (case.grad_out(target.dtype, target.device), case.grad_lse(target.device))
    reference = reference_by_kv_heads(case, inputs, grads, torch.float64)
    eager = reference_by_kv_heads(case, inputs, grads, target.dtype)
    assert reference.out[1].eq(-torch.inf).any(), "some rows see no key"

    actual = call_with_gradients(target.attention, inputs, {**case.options, "return_lse": True}, grads)
    for name, results in zip(("out", "lse"), zip(actual.out, reference.out, eager.out)):
        assert_matches(*results, name)
    assert set(actual.grads) == {"query", "key", "value", "attn_bias"}
    for name, grad in actual.grads.items():
        assert_matches(grad, reference.grads[name], eager.grads[name], f"gradient of {name}")
    plain = target.attention(**inputs, **case.options)  # keeps nothing for backward
    assert torch.equal(plain, actual.out[0])


def with_bias_of_every_score(case: Case, inputs: Dict[str, Any]) -> Dict[str, Any]:
    """The same call with its bias spelled out, which keeps keys in their natural order."""
    return {**inputs, "attn_bias": inputs["attn_bias"].expand(-1, -1, case.len_q, -1).contiguous()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("len_q", "len_k", "compacts"),
    [(QUERIES, KEYS, True), (QUERIES - 1, KEYS, False), (QUERIES, KEYS - 1, False)],
    ids=["smallest", "too few queries", "too few keys"],
)
def test_cases_compact_on_the_cpu(case: Case, len_q: int, len_k: int, compacts: bool) -> None:
    """Sums of the same numbers in the same order have the same bits, in another order they have not."""
    case = replace(case, len_q=len_q, len_k=len_k)
    inputs = case.inputs(torch.float32, "cpu")
    out = flash_dmattn_func(**inputs, **case.options)
    natural = flash_dmattn_func(**with_bias_of_every_score(case, inputs), **case.options)
    torch.testing.assert_close(out, natural)
    assert torch.equal(out, natural) is not compacts


def scratch_bytes(inputs: Dict[str, Any], options: Dict[str, Any]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    flash_dmattn_func(**inputs, **options)
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.gpu
def test_cases_compact_on_cuda() -> None:
    """In their order keys and values are copies, for which a call needs scratch."""
    case = of_size_for(CASES[0], "cuda")
    inputs = case.inputs(torch.bfloat16, "cuda")
    more = scratch_bytes(inputs, case.options) - scratch_bytes(with_bias_of_every_score(case, inputs), case.options)
    assert more >= inputs["key"].nbytes + inputs["value"].nbytes
