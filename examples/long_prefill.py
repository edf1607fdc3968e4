"""A prompt of a million tokens on one GPU, and generation after it, from a cache of 2048 tokens a kv head.

Queries, keys and values are made chunk by chunk, as the layers of a model would hand them over, so that memory is that
of a chunk and the cache. The bias of a key is -A * softplus(normal), with A from 0.5 to 2 over the kv heads: a few keys
stay near 0, most fall below. Rows of the result are compared with a plain computation on the keys that they keep.

    python examples/long_prefill.py
    python examples/long_prefill.py --device cpu --length 4096 --keep 256 --chunk 1024
"""

import argparse
import math
import sys
import time
from typing import Dict, List, NamedTuple

import torch

from flash_dmattn import DynamicKVCache
from flash_dmattn.testing.compare import assert_matches

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# length, chunk, keep, heads, kv_heads, head_dim, dtype
DEFAULTS = {
    "cuda": (1 << 20, 65536, 2048, 16, 8, 128, "bfloat16"),
    "cpu": (8192, 2048, 256, 4, 2, 64, "float32"),
}


class Tokens(NamedTuple):
    """Some tokens of a prompt: ``(1, T, H|H_kv, D)``, the bias ``(1, H_kv, T)``."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attn_bias: torch.Tensor


class Prompt:
    """Random tokens that are made when they are asked for, chunk by chunk, and are the same every time."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments

    def tokens(self, begin: int, count: int) -> Tokens:
        """Tokens from `begin` on, which is where a chunk begins."""
        arguments = self.arguments
        generator = torch.Generator(arguments.device).manual_seed(arguments.seed * (1 << 32) + begin)

        def normal(*shape: int) -> torch.Tensor:
            dtype = DTYPES[arguments.dtype]
            return torch.randn(shape, device=arguments.device, dtype=dtype, generator=generator)

        of_keys = (1, count, arguments.kv_heads, arguments.head_dim)
        query, key, value = normal(1, count, arguments.heads, arguments.head_dim), normal(*of_keys), normal(*of_keys)
        spread = torch.linspace(0.5, 2.0, arguments.kv_heads, device=arguments.device)[:, None]
        bias = -spread * torch.nn.functional.softplus(normal(1, arguments.kv_heads, count).float())
        return Tokens(query, key, value, bias.to(query.dtype))


def parse_arguments() -> argparse.Namespace:
    """Read the command line; sizes that are not given depend on the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda where there is a GPU")
    parser.add_argument("--length", type=int, help="tokens of the prompt")
    parser.add_argument("--chunk", type=int, help="tokens of a chunk")
    parser.add_argument("--keep", type=int, help="tokens that the cache holds for each kv head")
    parser.add_argument("--heads", type=int)
    parser.add_argument("--kv-heads", type=int)
    parser.add_argument("--head-dim", type=int)
    parser.add_argument("--dtype", choices=sorted(DTYPES))
    parser.add_argument("--steps", type=int, default=64, help="tokens generated after the prompt")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.device is None:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    names = ("length", "chunk", "keep", "heads", "kv_heads", "head_dim", "dtype")
    for name, default in zip(names, DEFAULTS[arguments.device]):
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    return arguments


def now(device: str) -> float:
    """Seconds, once the device has done what was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def chunks(length: int, chunk: int) -> List[slice]:
    """The prompt, cut."""
    return [slice(begin, min(begin + chunk, length)) for begin in range(0, length, chunk)]


class Selected(NamedTuple):
    """The keys that the last token so far keeps: ``(H_kv, n)`` and ``(H_kv, n, D)``. Its own little cache."""

    bias: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    def after(self, tokens: Tokens, keep: int) -> "Selected":
        """With more tokens. Newer ones come first, so that a stable sort prefers them among equals."""
        bias = torch.cat([tokens.attn_bias[0].flip(-1), self.bias], dim=1)
        order = torch.sort(bias, dim=1, descending=True, stable=True).indices[:, :keep]
        # Back to newest first, for the next time.
        order = order.sort(dim=1).values
        key, value = (
            torch.cat([new[0].transpose(0, 1).flip(1), old], dim=1)
            for new, old in ((tokens.key, self.key), (tokens.value, self.value))
        )
        rows = order[..., None].expand(-1, -1, key.shape[-1])
        return Selected(bias.gather(1, order), key.gather(1, rows), value.gather(1, rows))

    def attend(self, query: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Attention of one query ``(H, D)``, plainly, in `dtype`."""
        heads_kv, head_dim = self.key.shape[0], query.shape[-1]
        rows = query.to(dtype).view(heads_kv, -1, head_dim)
        scores = rows @ self.key.to(dtype).transpose(1, 2) / math.sqrt(head_dim) + self.bias.to(dtype)[:, None]
        return (scores.softmax(-1) @ self.value.to(dtype)).view(query.shape)


def nothing_selected(tokens: Tokens) -> Selected:
    """Before the first token."""
    key = tokens.key[0].transpose(0, 1)[:, :0]
    return Selected(tokens.attn_bias[0, :, :0], key, key)


def check(prompt: Prompt, kept_rows: Dict[int, torch.Tensor], arguments: argparse.Namespace) -> float:
    """Compare rows of the result with a plain computation; the largest error."""
    selected, worst = None, 0.0
    for rows in chunks(arguments.length, arguments.chunk):
        tokens = prompt.tokens(rows.start, rows.stop - rows.start)
        selected = nothing_selected(tokens) if selected is None else selected
        begin = 0
        for row in sorted(row for row in kept_rows if rows.start <= row < rows.stop):
            end = row - rows.start + 1
            part = Tokens(*(tensor[:, begin:end] for tensor in tokens[:3]), tokens.attn_bias[..., begin:end])
            selected, begin = selected.after(part, arguments.keep), end
            query = tokens.query[0, end - 1]
            exact, eager = selected.attend(query, torch.float64), selected.attend(query, query.dtype)
            assert_matches(kept_rows[row], exact, eager, f"out of row {row}")
            worst = max(worst, (kept_rows[row].double() - exact).abs().max().item())
        rest = Tokens(*(tensor[:, begin:] for tensor in tokens[:3]), tokens.attn_bias[..., begin:])
        selected = selected.after(rest, arguments.keep)
    return worst


def prefill(cache: DynamicKVCache, prompt: Prompt, checked: List[int], arguments: argparse.Namespace) -> Dict:
    """Give the prompt to the cache; the rows of the result that will be checked."""
    kept_rows, seconds = {}, 0.0
    for rows in chunks(arguments.length, arguments.chunk):
        tokens = prompt.tokens(rows.start, rows.stop - rows.start)
        start = now(arguments.device)
        out = cache.attend(*tokens)
        seconds += now(arguments.device) - start
        for row in checked:
            if rows.start <= row < rows.stop:
                kept_rows[row] = out[0, row - rows.start].clone()
        del tokens, out
    rate = arguments.length / seconds
    count = len(chunks(arguments.length, arguments.chunk))
    print(f"prefill    {arguments.length} tokens in {count} chunks: {seconds:.3f} s, {rate:,.0f} tokens/s")
    return kept_rows


def decode(cache: DynamicKVCache, prompt: Prompt, arguments: argparse.Namespace) -> None:
    """Generate after the prompt."""
    steps = prompt.tokens(arguments.length, arguments.steps)
    start = now(arguments.device)
    for t in range(arguments.steps):
        row = slice(t, t + 1)
        cache.attend(steps.query[:, row], steps.key[:, row], steps.value[:, row], steps.attn_bias[..., row])
    milliseconds = 1e3 * (now(arguments.device) - start) / max(1, arguments.steps)
    print(
        f"decode     {arguments.steps} tokens: {milliseconds:.3f} ms a token, of a past of {cache.seen_tokens} tokens"
    )


def main() -> int:
    """Run the example; 0 when the check passes."""
    arguments = parse_arguments()
    on_cuda = arguments.device == "cuda"
    shape = {"num_kv_heads": arguments.kv_heads, "head_dim": arguments.head_dim}
    place = {"dtype": DTYPES[arguments.dtype], "device": arguments.device}
    cache = DynamicKVCache(arguments.keep, batch_size=1, **shape, **place)
    on = torch.cuda.get_device_name() if on_cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"problem    H {arguments.heads}/{arguments.kv_heads}, D {arguments.head_dim}, {arguments.dtype}, on {on}")
    of_all = 2 * arguments.length * arguments.kv_heads * arguments.head_dim * cache.key.element_size()
    print(
        f"cache      {cache.nbytes / 2**20:.1f} MiB; keys and values of all tokens would take {of_all / 2**20:.1f} MiB"
    )

    prompt = Prompt(arguments)
    if on_cuda:  # so that the time is not that of loading kernels
        DynamicKVCache(arguments.keep, batch_size=1, **shape, **place).attend(*prompt.tokens(0, arguments.chunk))
        torch.cuda.reset_peak_memory_stats()
    last = arguments.length - 1
    checked = sorted(
        {0, arguments.keep, min(arguments.chunk, last), arguments.length // 2, last} & set(range(last + 1))
    )
    with torch.inference_mode():
        kept_rows = prefill(cache, prompt, checked, arguments)
        decode(cache, prompt, arguments)
        if on_cuda:
            peak = torch.cuda.max_memory_allocated() / 2**20
            print(f"memory     {peak:.0f} MiB at the peak, a chunk's tensors included")
        try:
            worst = check(prompt, kept_rows, arguments)
        except AssertionError as failure:
            print(f"FAILED     {failure}")
            return 1
    print(f"passed     rows {', '.join(map(str, checked))} against float64; largest error {worst:.2e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
