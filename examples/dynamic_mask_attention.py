"""Dynamic mask attention, forward and backward, checked against float64.

Every query keeps the keys of largest bias, as a model that learns which keys matter would have it. The bias here is
random, one value for each (head, query, key). Runs at full size on a GPU and at a smaller one on the CPU:

    python examples/dynamic_mask_attention.py
    python examples/dynamic_mask_attention.py --device cpu --length 2048 --keep 256 --dtype bfloat16
"""

import argparse
import io
import statistics
import sys
import time
from typing import Callable, Dict, List, NamedTuple

import torch

from flash_dmattn import explain, flash_dmattn_func_auto, get_available_backends
from flash_dmattn.testing.compare import assert_matches
from flash_dmattn.testing.reference import Results, call_with_gradients, reference_results

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# batch, heads, length, head_dim, keep, dtype
DEFAULTS = {"cuda": (2, 12, 4096, 128, 1024, "bfloat16"), "cpu": (1, 4, 1024, 64, 256, "float32")}
# Scores that float64 on the CPU checks in seconds; of a larger problem, that many are checked, head by head.
CHECKED_SCORES = {"cuda": 1 << 27, "cpu": 1 << 23}


class Timing(NamedTuple):
    """Milliseconds of one step."""

    name: str
    median: float


def parse_arguments() -> argparse.Namespace:
    """Read the command line; sizes that are not given depend on the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda where there is a GPU")
    parser.add_argument("--backend", choices=["cuda", "triton", "flex", "cpu"], help="default: the best for the device")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--kv-heads", type=int, help="default: as many as --heads")
    parser.add_argument("--length", type=int, help="queries and keys")
    parser.add_argument("--head-dim", type=int)
    parser.add_argument("--keep", type=int, help="keys that a query keeps")
    parser.add_argument("--dtype", choices=sorted(DTYPES))
    parser.add_argument("--full", action="store_true", help="not causal")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs, after one that is not")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.device is None:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, default in zip(("batch", "heads", "length", "head_dim", "keep", "dtype"), DEFAULTS[arguments.device]):
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    if arguments.kv_heads is None:
        arguments.kv_heads = arguments.heads
    return arguments


def top_keys_mask(attn_bias: torch.Tensor, keep: int) -> torch.Tensor:
    """1 for the `keep` keys of largest bias of each query, 0 for the others."""
    if attn_bias.shape[-1] <= keep:
        return torch.ones_like(attn_bias)
    indices = torch.topk(attn_bias, keep, dim=-1, largest=True).indices
    return torch.zeros_like(attn_bias).scatter_(-1, indices, 1.0)


def make_inputs(arguments: argparse.Namespace) -> Dict[str, torch.Tensor]:
    """Build random query, key, value and bias."""
    generator = torch.Generator(arguments.device).manual_seed(arguments.seed)

    def normal(*shape: int) -> torch.Tensor:
        dtype = DTYPES[arguments.dtype]
        return torch.randn(shape, device=arguments.device, dtype=dtype, generator=generator)

    batch, length, head_dim = arguments.batch, arguments.length, arguments.head_dim
    return {
        "query": normal(batch, length, arguments.heads, head_dim),
        "key": normal(batch, length, arguments.kv_heads, head_dim),
        "value": normal(batch, length, arguments.kv_heads, head_dim),
        "attn_bias": normal(batch, arguments.heads, length, length),
    }


def timed(name: str, device: str, repeats: int, step: Callable[[], object]) -> Timing:
    """Median time of `step`."""

    def once() -> float:
        if device == "cpu":
            start = time.perf_counter()
            step()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    once()
    return Timing(name, statistics.median(once() for _ in range(repeats)))


def time_steps(
    attention: Callable[..., torch.Tensor],
    inputs: Dict[str, torch.Tensor],
    options: Dict[str, object],
    grad_out: torch.Tensor,
    arguments: argparse.Namespace,
) -> List[Timing]:
    """Selection, forward and backward."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in ("query", "key", "value", "attn_bias")}
    out = attention(**leaves, attn_mask=inputs["attn_mask"], **options)
    steps: Dict[str, Callable[[], object]] = {
        f"torch.topk, {arguments.keep} of {arguments.length} keys": lambda: top_keys_mask(
            inputs["attn_bias"], arguments.keep
        ),
        "forward": lambda: attention(**inputs, **options),
        "forward, keeping what backward needs": lambda: attention(**leaves, attn_mask=inputs["attn_mask"], **options),
        "backward, with the gradient of the bias": lambda: torch.autograd.grad(
            out, list(leaves.values()), grad_out, retain_graph=True
        ),
    }
    return [timed(name, arguments.device, arguments.repeats, step) for name, step in steps.items()]


def check(
    inputs: Dict[str, torch.Tensor],
    options: Dict[str, object],
    grad_out: torch.Tensor,
    actual: Results,
    arguments: argparse.Namespace,
) -> None:
    """Compare output and gradients with float64, whole kv heads at a time, from the last one on.

    A kv head and its query heads depend on no other, so that what is checked is checked completely.
    """
    group = arguments.heads // arguments.kv_heads
    units = [(b, g) for b in range(arguments.batch) for g in range(arguments.kv_heads)]
    unit_scores = group * arguments.length**2
    checked = units[-max(1, CHECKED_SCORES[arguments.device] // unit_scores) :]
    print(
        f"check      {len(checked)} of {len(units)} (batch, kv head) pairs, all of their rows, against float64;\n"
        "           errors are the largest, beside those of eager attention in the same dtype"
    )
    worst: Dict[str, List[float]] = {}
    for b, g in checked:
        heads = slice(g * group, (g + 1) * group)
        cut = {
            "query": lambda t, b=b, heads=heads: t[b : b + 1, :, heads],
            "key": lambda t, b=b, g=g: t[b : b + 1, :, g : g + 1],
            "scores": lambda t, b=b, heads=heads: t[b : b + 1, heads],
        }
        parts = {"query": "query", "key": "key", "value": "key", "attn_mask": "scores", "attn_bias": "scores"}
        unit = {name: cut[part](inputs[name]) for name, part in parts.items()}
        reference = reference_results(unit, options, cut["query"](grad_out))
        eager = reference_results(unit, options, cut["query"](grad_out), DTYPES[arguments.dtype])
        results = {"out": (cut["query"](actual.out), reference.out, eager.out)}
        for name, grad in actual.grads.items():
            results[f"grad {name}"] = (cut[parts[name]](grad), reference.grads[name], eager.grads[name])
        for name, (ours, exact, same_dtype) in results.items():
            assert_matches(ours, exact, same_dtype, f"{name} of batch {b}, kv head {g}")
            errors = [(tensor.double() - exact).abs().max().item() for tensor in (ours, same_dtype)]
            worst[name] = [max(pair) for pair in zip(errors, worst.get(name, errors))]
    for name, (ours, same_dtype) in worst.items():
        print(f"           {name:<16} {ours:.2e}   eager {same_dtype:.2e}")


def main() -> int:
    """Run the example; 0 when the check passes."""
    arguments = parse_arguments()
    try:
        attention = flash_dmattn_func_auto(arguments.backend)
    except RuntimeError as refusal:
        print(refusal)
        return 1
    inputs = make_inputs(arguments)
    backend = arguments.backend
    if backend is None:
        explanation = explain(inputs["query"], inputs["key"], inputs["value"], file=io.StringIO())
        if explanation.chosen is None:
            print(explanation)
            return 1
        backend = explanation.chosen
    on = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"backend    {backend} on {on}; available: {', '.join(get_available_backends())}")

    inputs["attn_mask"] = top_keys_mask(inputs["attn_bias"], arguments.keep)
    options: Dict[str, object] = {"is_causal": not arguments.full, "scale": arguments.head_dim**-0.5}
    grad_out = torch.randn_like(inputs["query"])
    print(
        f"problem    query {tuple(inputs['query'].shape)}, key and value {tuple(inputs['key'].shape)}, "
        f"bias {tuple(inputs['attn_bias'].shape)}, {arguments.dtype}, {'full' if arguments.full else 'causal'}"
    )
    print(f"mask       {inputs['attn_mask'].mean(dtype=torch.float32).item():.1%} of the scores, the largest biases")

    for timing in time_steps(attention, inputs, options, grad_out, arguments):
        print(f"time       {timing.median:9.3f} ms  {timing.name}")
    actual = call_with_gradients(attention, inputs, options, grad_out)
    try:
        check(inputs, options, grad_out, actual, arguments)
    except AssertionError as failure:
        print(f"FAILED     {failure}")
        return 1
    print("passed     output and all gradients")
    return 0


if __name__ == "__main__":
    sys.exit(main())
