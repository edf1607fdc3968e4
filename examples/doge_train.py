"""A training step of transformers' Doge: on this package's attention, and on the model's own paths beside it.

The model has the shape of Doge-320M (32 layers, hidden 1024, intermediate 2048, 8 heads and 4 kv heads of 128, a
vocabulary of 32768, tied) and random weights. On a GPU it trains on one sequence of 16384 tokens in bfloat16, of which
each query keeps 2048; on the CPU a small model on a short one. A step is forward, backward and AdamW.

    python examples/doge_train.py
    python examples/doge_train.py --device cpu --length 512 --keep 64
    python examples/doge_train.py --paths patched --length 65536 --checkpoint yes

The model's own paths build a mask and a bias of (query, key) in every layer. Without checkpoints all layers keep theirs
for backward; what does not fit says so in its row. They are given the causal mask as a tensor: left to themselves, the
Flex path gets none, and in some versions, transformers 5.17 among them, the SDPA path gets none either, and then looks
ahead. The first loss shows that all paths compute the same, up to equal biases, of which theirs keep either.
"""

import argparse
import gc
import statistics
import sys
import time
import traceback
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch

try:
    import transformers
    from transformers import DogeConfig, DogeForCausalLM
except ImportError as failure:
    sys.exit(f"this example needs transformers 4.56 or newer (pip install transformers): {failure}")

from flash_dmattn.integrations.transformers import patch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHAPES: Dict[str, Dict[str, Any]] = {
    "cuda": {"layers": 32, "hidden": 1024, "heads": 8, "kv_heads": 4, "vocabulary": 32768, "length": 16384},
    "cpu": {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "vocabulary": 512, "length": 256},
}
SHAPES["cuda"].update(keep=2048, dtype="bfloat16", paths=["patched", "sdpa", "flex"])
SHAPES["cpu"].update(keep=32, dtype="float32", paths=["patched", "sdpa", "eager"])


class Row(NamedTuple):
    """What was measured of one path."""

    path: str
    checkpoint: str
    milliseconds: str
    tokens: str
    peak: str
    loss: str


def parse_arguments() -> argparse.Namespace:
    """Read the command line; what is not given depends on the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda where there is a GPU")
    parser.add_argument("--paths", nargs="+", choices=["patched", "sdpa", "flex", "eager"])
    parser.add_argument("--checkpoint", choices=["no", "yes", "both"], default="both", help="of gradients, each layer")
    for name in ("layers", "hidden", "heads", "kv-heads", "vocabulary", "length", "keep"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=sorted(DTYPES))
    parser.add_argument("--repeats", type=int, default=5, help="timed steps, after two that are not")
    arguments = parser.parse_args()
    if arguments.device is None:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, default in SHAPES[arguments.device].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    return arguments


def make_model(arguments: argparse.Namespace, path: str) -> DogeForCausalLM:
    """Build the same random model for each path."""
    torch.manual_seed(0)
    config = DogeConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=2 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.kv_heads,
        max_position_embeddings=arguments.length,
        keep_window_size=arguments.keep,
        tie_word_embeddings=True,
    )
    with torch.device(arguments.device):
        model = DogeForCausalLM(config)
    for parameter in model.parameters():  # and not the frequencies of positions, which stay float32
        parameter.data = parameter.data.to(DTYPES[arguments.dtype])
    for layer in model.model.layers:
        # As it comes, A is zero, and with it all keys are equal.
        torch.nn.init.uniform_(layer.self_attn.A, -2, 1)
    if path == "patched":
        return patch(model)
    # The model's own Flex function has its own name, which goes by the config alone; transformers' general one gives
    # all heads the bias of the first.
    model.config._attn_implementation = {"flex": "doge_flex_attention"}.get(path, path)
    return model


def make_step(model: DogeForCausalLM, arguments: argparse.Namespace, path: str) -> Callable[[], torch.Tensor]:
    """Forward, backward and the optimizer, on the same tokens each time; gives the loss."""
    generator = torch.Generator(arguments.device).manual_seed(1)
    shape = (arguments.batch, arguments.length)
    tokens = torch.randint(arguments.vocabulary, shape, device=arguments.device, generator=generator)
    inputs = {"input_ids": tokens, "labels": tokens, "use_cache": False}
    if path != "patched":
        causal = torch.ones(arguments.length, arguments.length, dtype=torch.bool, device=arguments.device).tril()
        inputs["attention_mask"] = causal[None, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def measure(arguments: argparse.Namespace, path: str, checkpoint: bool) -> Tuple[float, float, float]:
    """Median milliseconds of a step, its peak memory in GiB (of a GPU), and the loss of the first step."""
    on_gpu = arguments.device == "cuda"
    model = make_model(arguments, path).train()
    if checkpoint:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    step = make_step(model, arguments, path)
    loss = step().item()
    step()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times: List[float] = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        step().item()  # waits for the device
        times.append(1e3 * (time.perf_counter() - start))
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float("nan")
    return statistics.median(times), peak, loss


def row_of(arguments: argparse.Namespace, path: str, checkpoint: bool) -> Row:
    """Measure one path, or say why one of the model's own does not run."""
    name = {"patched": "flash_dmattn"}.get(path, path)
    try:
        milliseconds, peak, loss = measure(arguments, path, checkpoint)
    except Exception as failure:
        if path == "patched":
            raise
        fits = not isinstance(failure, torch.cuda.OutOfMemoryError)
        if fits:
            traceback.print_exc()
        why = f"failed: {type(failure).__name__}" if fits else "out of memory"
        return Row(name, "yes" if checkpoint else "no", why, "", "", "")
    finally:
        gc.collect()
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    tokens = arguments.batch * arguments.length / milliseconds * 1e3
    memory = "" if arguments.device == "cpu" else f"{peak:.2f}"
    return Row(name, "yes" if checkpoint else "no", f"{milliseconds:.1f}", f"{tokens:,.0f}", memory, f"{loss:.4f}")


def main() -> int:
    """Print one table."""
    arguments = parse_arguments()
    on = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{on}, torch {torch.__version__}, transformers {transformers.__version__}")
    head_dim = arguments.hidden // arguments.heads
    print(
        f"Doge: {arguments.layers} layers, hidden {arguments.hidden}, {arguments.heads}/{arguments.kv_heads} heads of "
        f"{head_dim}, vocabulary {arguments.vocabulary}, {arguments.dtype}; batch {arguments.batch}, "
        f"length {arguments.length}, keep_window_size {arguments.keep}"
    )
    modes = {"no": [False], "yes": [True], "both": [False, True]}[arguments.checkpoint]
    rows = [Row("path", "checkpoints", "step, ms", "tokens/s", "peak, GiB", "first loss")]
    for checkpoint in modes:
        for path in arguments.paths:
            print(f"measuring {path}{' with checkpoints' if checkpoint else ''} ...", file=sys.stderr, flush=True)
            rows.append(row_of(arguments, path, checkpoint))
    widths = [max(len(row[column]) for row in rows) for column in range(len(Row._fields))]
    for index, row in enumerate(rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
