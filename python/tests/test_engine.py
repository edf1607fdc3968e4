"""examples/engine: a decoder on the installed libfdma computes what the same model does here, in one call a layer."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import pytest
import torch
import torch.nn.functional as F
from tools.built_library import LIBRARY, LIBRARY_DIR, stale_reason

from flash_dmattn import flash_dmattn_func

ROOT = Path(__file__).parents[2]
CONFIG = {"layers": 2, "hidden": 48, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 80, "vocab": 96}
PROMPT_LENGTHS = (1, 30, 77, 160)  # with the chunks and windows below: shorter and longer than each, and no multiple
PRODUCE = 24


def missing(*programs: str) -> Optional[str]:
    for program in programs:
        if shutil.which(program) is None:
            return f"no {program}"
    return None if LIBRARY.exists() else f"no {LIBRARY}"


def run(*command: Any) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def build_engine(folder: Path, *options: str) -> Path:
    reason = stale_reason(LIBRARY)
    assert reason is None, reason
    for component in ("runtime", "dev"):
        run("cmake", "--install", LIBRARY_DIR.parent, "--component", component, "--prefix", folder / "prefix")
    prefix = f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", ROOT / "examples" / "engine", "-B", folder / "build", *generator, prefix, *options)
    run("cmake", "--build", folder / "build", "--parallel", "2")
    return folder / "build" / "engine"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reason = missing("cmake", os.environ.get("CXX", "c++"))
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # one build for all of pytest's processes
    with (folder / "engine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "engine" / "build" / "engine"
        return done if done.exists() else build_engine(folder / "engine")


def make_weights() -> List[torch.Tensor]:
    """In the order of the file, matrices as (in, out)."""
    generator = torch.Generator().manual_seed(0)
    hidden, ffn, vocab = CONFIG["hidden"], CONFIG["ffn"], CONFIG["vocab"]
    query, key = (CONFIG[heads] * CONFIG["head_dim"] for heads in ("heads", "kv_heads"))

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / rows**0.5

    def near_one(size: int) -> torch.Tensor:
        return 1 + 0.1 * torch.randn(size, generator=generator)

    weights = [torch.randn(vocab, hidden, generator=generator)]
    for _ in range(CONFIG["layers"]):
        weights += [near_one(hidden), matrix(hidden, query), matrix(hidden, key), matrix(hidden, key)]
        weights += [matrix(key, CONFIG["kv_heads"]), torch.tensor([1.0, -1.5]), matrix(query, hidden)]
        weights += [near_one(hidden), matrix(hidden, ffn), matrix(hidden, ffn), matrix(ffn, hidden)]
    return [*weights, near_one(hidden), matrix(hidden, vocab)]


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def rotary(x: torch.Tensor) -> torch.Tensor:
    """X is (1, L, H, D)."""
    half = x.shape[-1] // 2
    turns = 10000.0 ** (-torch.arange(half) / half)
    angle = (torch.arange(x.shape[1])[:, None] * turns)[:, None]
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], -1)


def reference_logits(
    weights: List[torch.Tensor], tokens: List[int], keep: Optional[int], dtype: torch.dtype
) -> torch.Tensor:
    """(L, vocab): all tokens at once, each query on the `keep` keys of largest bias up to its own, None for all.

    Attention is in `dtype`, all else in float32.
    """
    remaining = iter(weights)
    length, dim = len(tokens), CONFIG["head_dim"]
    x = next(remaining)[tokens]
    for _ in range(CONFIG["layers"]):
        normed = rms_norm(x, next(remaining))
        query, key, value = (normed @ next(remaining) for _ in range(3))
        bias = (next(remaining).T @ value.T, next(remaining))
        bias = (bias[1][:, None] * F.softplus(bias[0])).exp()[None]  # (1, H_kv, L)
        query, key, value = (part.view(1, length, -1, dim) for part in (query, key, value))
        options: Dict[str, Any] = {} if keep is None else {"keep_window_size": keep}
        inputs = (part.to(dtype) for part in (rotary(query), rotary(key), value))
        context = flash_dmattn_func(*inputs, attn_bias=bias[:, :, None], is_causal=True, **options)
        x = x + context.float().reshape(length, -1) @ next(remaining)
        normed = rms_norm(x, next(remaining))
        x = x + (F.silu(normed @ next(remaining)) * (normed @ next(remaining))) @ next(remaining)
    return rms_norm(x, next(remaining)) @ next(remaining)


class Inputs(NamedTuple):
    """What the engine reads, and where it is."""

    weights: List[torch.Tensor]
    prompts: List[List[int]]
    arguments: List[Any]


def write_inputs(folder: Path) -> Inputs:
    weights = make_weights()
    with (folder / "weights.bin").open("wb") as file:
        file.write(b"FDMAENG1")
        file.write(torch.tensor(list(CONFIG.values()), dtype=torch.int32).numpy().tobytes())
        for weight in weights:
            file.write(weight.contiguous().numpy().tobytes())
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(CONFIG["vocab"], (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]
    (folder / "prompts.txt").write_text("".join(" ".join(map(str, prompt)) + "\n" for prompt in prompts))
    files = ["--weights", folder / "weights.bin", "--prompts", folder / "prompts.txt", "--save", folder]
    return Inputs(weights, prompts, [*files, "--produce", PRODUCE])


def produced(folder: Path, mode: str, request: int) -> List[int]:
    return [int(line) for line in (folder / f"{mode}-{request}.tokens").read_text().split()]


def logits(folder: Path, mode: str, request: int) -> torch.Tensor:
    data = bytearray((folder / f"{mode}-{request}.logits").read_bytes())
    return torch.frombuffer(data, dtype=torch.float32).view(PRODUCE, CONFIG["vocab"])


def expected_logits(
    inputs: Inputs, request: int, tokens: List[int], keep: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Of the positions that chose `tokens`, given that the prompt and they were read."""
    prompt = inputs.prompts[request]
    everything = [*prompt, *tokens[:-1]]
    window = keep if keep < len(everything) else None
    return reference_logits(inputs.weights, everything, window, dtype)[len(prompt) - 1 :]


@pytest.mark.parametrize(
    ("keep", "chunk", "page"), [(24, 48, 16), (7, 1, 21), (64, 200, 64), (200, 33, 16)], ids=lambda value: str(value)
)
def test_engine_computes_what_the_whole_sequence_does(
    engine: Path, tmp_path: Path, keep: int, chunk: int, page: int
) -> None:
    inputs = write_inputs(tmp_path)
    out = run(engine, *inputs.arguments, "--keep", keep, "--chunk", chunk, "--page", page)
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["bounded", "paged"]
    for request in range(len(PROMPT_LENGTHS)):
        tokens = produced(tmp_path, "bounded", request)
        assert produced(tmp_path, "paged", request) == tokens
        expected = expected_logits(inputs, request, tokens, keep)
        assert expected.argmax(-1).tolist() == tokens
        for mode in ("bounded", "paged"):
            torch.testing.assert_close(logits(tmp_path, mode, request), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "dense"], "--mode is dense; accepted: bounded, paged, both"),
        (["--keep", "0"], "--keep is 0; accepted: whole numbers from 1 on"),
        (["--chunk", "x"], "--chunk is x; accepted: whole numbers from 1 on"),
        (["--speed", "1"], "no option --speed"),
        (["--head-dim", "12"], "FDMA_INVALID_SHAPE: "),
        (["--weights", "{folder}/prompts.txt"], "prompts.txt does not start with FDMAENG1"),
        (["--prompts", "{folder}/weights.bin"], "a prompt is empty; accepted: 1 token or more"),
        (["--vocab", "2"], "; accepted: 0 to 1"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else "",
)
def test_engine_says_what_is_wrong(engine: Path, tmp_path: Path, arguments: List[str], message: str) -> None:
    write_inputs(tmp_path)
    given = [argument.format(folder=tmp_path) for argument in arguments]
    if given[0] == "--vocab":
        given += ["--prompts", str(tmp_path / "prompts.txt")]
    done = subprocess.run([str(engine), *given], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(missing("cmake", "nvcc") is not None, reason=str(missing("cmake", "nvcc")))
def test_engine_on_a_gpu(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    engine = build_engine(tmp_path, "-DFDMA_CUDA=ON")
    inputs = write_inputs(tmp_path)
    run(engine, *inputs.arguments, "--keep", 24, "--chunk", 48, "--page", 16)
    for request in range(len(PROMPT_LENGTHS)):
        for mode in ("bounded", "paged"):
            # Attention is in bf16, and a key whose bias is close to another's may be chosen otherwise: one of 24.
            tokens = produced(tmp_path, mode, request)
            expected = expected_logits(inputs, request, tokens, 24)
            in_bfloat16 = expected_logits(inputs, request, tokens, 24, torch.bfloat16)
            error, eager = (rms(found - expected) for found in (logits(tmp_path, mode, request), in_bfloat16))
            record_property(f"{mode}-{request}", f"error {error:.3g}, eager {eager:.3g}, rms {rms(expected):.3g}")
            assert error < 2 * eager + 1e-3 * rms(expected), (mode, request, error, eager, rms(expected))
