"""Models of transformers on this package's attention, beside their own eager attention."""

import copy
import doctest
import importlib
import io
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
import torch

pytest.importorskip("transformers", minversion="4.56", reason="needs transformers 4.56 or newer")

from transformers import (
    AutoModelForCausalLM,
    DogeConfig,
    DogeForCausalLM,
    DogeModel,
    DynamicCache,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    StaticCache,
)

from flash_dmattn import DynamicMask, flash_dmattn_func
from flash_dmattn.integrations import doge
from flash_dmattn.integrations.attention_interface import attention_forward
from flash_dmattn.integrations.transformers import BoundedCache, patch, register

VOCABULARY = 64
SIZES: Dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
}

GREEDY: Dict[str, Any] = {
    "max_new_tokens": 20,
    "min_new_tokens": 20,
    "do_sample": False,
    "pad_token_id": 0,
    "no_repeat_ngram_size": 1,  # no token twice: see tokens_of
}


def doge_model(keep: int = 8, kv_heads: int = 2, **options: Any) -> DogeForCausalLM:
    """A tiny model on its own eager attention, whose biases differ from key to key."""
    torch.manual_seed(0)
    sizes = {**SIZES, "num_key_value_heads": kv_heads, "keep_window_size": keep, **options}
    config = DogeConfig(**sizes)
    config._attn_implementation = "eager"
    model = DogeForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.uniform_(layer.self_attn.A, -2, 1)
        torch.nn.init.normal_(layer.self_attn.dt_proj.weight)
    return model


def patched_copy(model: DogeForCausalLM) -> DogeForCausalLM:
    return patch(copy.deepcopy(model))


def tokens_of(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    """No token twice in a row: in the first layer equal tokens have equal biases, of which eager keeps either."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(VOCABULARY, generator=generator)[:length] for _ in range(batch)])


def padding(lengths: List[int], length: int, side: str) -> torch.Tensor:
    position = torch.arange(length)
    shown = [position >= length - n if side == "left" else position < n for n in lengths]
    return torch.stack(shown).long()


def assert_equal_logits_and_gradients(model: Any, other: Any, *inputs: Any, **options: Any) -> None:
    """Logits of all positions, whether padded or not; gradients of all parameters, for a loss on what is not padded."""
    shown = options.get("attention_mask", torch.ones_like(inputs[0]))[..., None]
    results = []
    for each in (model, other):
        logits = each(*inputs, use_cache=False, **options).logits
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
        each.zero_grad()
        (logits * weights * shown).sum().backward()
        results.append((logits.detach(), {name: weight.grad for name, weight in each.named_parameters()}))
    (expected, gradients), (actual, actual_gradients) = results
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == actual_gradients.keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item()
        assert scale > 0, name
        error = (actual_gradients[name] - gradient).abs().max().item()
        assert error <= 3e-4 * scale, f"{name}: {error} of {scale}"


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("keep", [2, 8, 23, 24, 64])
def test_patched_doge_equals_its_own_eager_attention(keep: int, kv_heads: int) -> None:
    model = doge_model(keep, kv_heads).train()
    assert_equal_logits_and_gradients(model, patched_copy(model), tokens_of(2, 24))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("keep", [5, 64])
def test_patched_doge_with_padding_is_equal_at_every_position(side: str, keep: int) -> None:
    model = doge_model(keep)
    mask = padding([24, 13, 1], 24, side)
    assert_equal_logits_and_gradients(model, patched_copy(model), tokens_of(3, 24), attention_mask=mask)


def test_patched_doge_with_experts_and_padding() -> None:
    # Routing mixes tokens of a batch, so that what padded positions come to is seen by others.
    model = doge_model(5, is_moe=True, num_experts=16, num_experts_per_tok=4)
    inputs = {"input_ids": tokens_of(2, 24), "attention_mask": padding([24, 13], 24, "left")}
    try:
        expected = model(**inputs).logits
    except TypeError as failure:
        pytest.skip(f"this transformers' own model with experts does not run: {failure}")
    torch.testing.assert_close(patched_copy(model)(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", [5, 64])
def test_patched_doge_with_several_sequences_in_a_row(keep: int) -> None:
    model = doge_model(keep)
    position_ids = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in ([9, 14, 1], [24])])
    assert_equal_logits_and_gradients(model, patched_copy(model), tokens_of(2, 24), position_ids=position_ids)


def test_patched_doge_in_bfloat16() -> None:
    model = doge_model(64).to(torch.bfloat16)
    inputs = tokens_of(2, 24)
    expected, actual = model(inputs).logits, patched_copy(model)(inputs).logits
    assert actual.dtype == torch.bfloat16
    exact = model.float()(inputs).logits
    assert (actual - exact).abs().max() <= 2 * (expected - exact).abs().max() + 1e-3


def test_patched_doge_under_checkpoints_and_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    model = patched_copy(doge_model()).train()
    attention, dtypes = doge._attention, []

    def recorded(query: torch.Tensor, *others: Any) -> torch.Tensor:
        dtypes.append(query.dtype)  # the backend is chosen by it
        return attention(query, *others)

    monkeypatch.setattr(doge, "_attention", recorded)
    inputs = tokens_of(2, 24)
    gradients = []
    for checkpoints in (False, True):
        if checkpoints:
            model.gradient_checkpointing_enable()  # its newer name is not in transformers 4
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            model(inputs, labels=inputs, use_cache=False).loss.backward()
        gradients.append(model.model.layers[0].self_attn.A.grad.clone())
    assert torch.equal(*gradients)
    assert set(dtypes) == {torch.bfloat16}
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.generate(inputs, **GREEDY).shape == (2, 44)


def test_no_mask_of_scores_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    model = patched_copy(doge_model(8))
    made = []

    def recorded(*args: Any, **options: Any) -> DynamicMask:
        made.append(DynamicMask.topk(*args, **options))
        return made[-1]

    monkeypatch.setattr(doge, "DynamicMask", types.SimpleNamespace(topk=recorded))
    inputs = tokens_of(1, 40)
    with LargestTensor() as largest:
        model(inputs, labels=inputs, use_cache=False).loss.backward()
    assert [(mask.form, mask.shape) for mask in made] == [("interval", (1, 2, 40))] * 2
    assert largest.elements < 40 * 40 * 2


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """The elements of the largest tensor that any operator gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[Any] = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_patch_returns_the_model_with_its_parameters_and_twice_is_once() -> None:
    model = doge_model()
    names = list(model.state_dict())
    assert patch(model) is model
    assert patch(model) is model
    assert list(model.state_dict()) == names
    assert type(model) is DogeForCausalLM
    assert len(model.model._forward_pre_hooks) == 1
    assert isinstance(patch(DogeModel(DogeConfig(**SIZES))), DogeModel)


def test_other_models_of_the_same_config_stay_as_they_are() -> None:
    model = doge_model(5)
    other = DogeForCausalLM(model.config)
    other.load_state_dict(model.state_dict())
    patch(other)
    assert model.config._attn_implementation == "eager"
    assert {id(module.config) for module in other.modules() if hasattr(module, "config")} == {id(other.config)}
    torch.testing.assert_close(other(tokens_of(1, 24)).logits, model(tokens_of(1, 24)).logits, rtol=1e-4, atol=1e-4)


def test_copies_and_files_of_a_patched_model(tmp_path: Path) -> None:
    model = patched_copy(doge_model(5)).eval()
    inputs = tokens_of(1, 12)
    expected = model.generate(inputs, **GREEDY)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        assert other.generate.args == (other,)
        assert torch.equal(other.generate(inputs, **GREEDY), expected)
    model.save_pretrained(tmp_path)
    own = DogeForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert not any(isinstance(layer.self_attn, doge.SelectedAttention) for layer in own.model.layers)
    assert own.config._attn_implementation == "eager"
    assert torch.equal(own.generate(inputs, **GREEDY), expected)


def test_patch_after_outputs_were_recorded() -> None:
    model = doge_model()
    expected = model(tokens_of(1, 24), output_attentions=True, output_hidden_states=True).logits
    patch(model)
    assert all(type(layer.self_attn) is doge.SelectedAttention for layer in model.model.layers)
    out = model(tokens_of(1, 24), output_hidden_states=True)
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-4)
    assert len(out.hidden_states) == 3


def test_growing_cache_equals_the_model_without_one() -> None:
    model = patched_copy(doge_model()).eval()
    inputs = tokens_of(2, 30)
    mask = padding([30, 21], 30, "left")
    with torch.no_grad():
        expected = model(inputs, attention_mask=mask).logits
        first = model(inputs[:, :20], attention_mask=mask[:, :20], use_cache=True)
        cache = first[doge.CACHE_NAME]
        logits = [first.logits]
        for begin, end in ((20, 25), (25, 26), (26, 30)):
            step = {doge.CACHE_NAME: cache, "attention_mask": mask[:, :end]}
            logits.append(model(inputs[:, begin:end], **step).logits)
    shown = mask.bool()
    torch.testing.assert_close(torch.cat(logits, 1)[shown], expected[shown], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [[12, 12], [12, 5, 1]])
@pytest.mark.parametrize("keep", [5, 12, 64])
def test_greedy_generation_is_the_same_with_every_cache(keep: int, lengths: List[int]) -> None:
    model = doge_model(keep).eval()
    inputs = {"input_ids": tokens_of(len(lengths), 12), "attention_mask": padding(lengths, 12, "left")}
    expected = model.generate(**inputs, **GREEDY)
    assert expected.shape[1] == 32
    model = patched_copy(model)
    out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    cache = out[doge.CACHE_NAME]
    assert isinstance(cache, BoundedCache)
    assert cache.get_seq_length() == 31
    assert cache.layers[0].states.key.shape == (len(lengths), keep, 2, 8)
    assert torch.equal(out.sequences, expected)
    for options in ({doge.CACHE_NAME: DynamicCache()}, {"use_cache": False}):
        assert torch.equal(model.generate(**inputs, **GREEDY, **options), expected)


def test_beam_search_with_a_bounded_cache() -> None:
    model = patched_copy(doge_model(5)).eval()
    options = {**GREEDY, "num_beams": 3}
    inputs = {"input_ids": tokens_of(2, 12), "attention_mask": padding([12, 7], 12, "left")}
    expected = model.generate(**inputs, **options, **{doge.CACHE_NAME: DynamicCache()})
    assert torch.equal(model.generate(**inputs, **options), expected)


def test_generation_that_goes_back_takes_a_growing_cache() -> None:
    model = patched_copy(doge_model(5)).eval()
    expected = model.generate(tokens_of(1, 12), **GREEDY)
    assert torch.equal(model.generate(tokens_of(1, 12), **GREEDY, prompt_lookup_num_tokens=2), expected)


def test_a_bounded_cache_takes_chunks_and_goes_on() -> None:
    model = patched_copy(doge_model(5)).eval()
    inputs, mask = tokens_of(2, 40), padding([40, 31], 40, "left")
    cache = BoundedCache(model.config)
    logits = []
    with torch.no_grad():
        expected = model(inputs, attention_mask=mask, use_cache=False).logits
        for _ in range(2):
            for begin, end in ((0, 20), (20, 33), (33, 34), (34, 40)):
                step = {doge.CACHE_NAME: cache, "attention_mask": mask[:, :end]}
                logits.append(model(inputs[:, begin:end], **step).logits)
            torch.testing.assert_close(torch.cat(logits, 1)[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)
            cache.reset()
            logits.clear()


def test_refusals_of_a_bounded_cache() -> None:
    model = patched_copy(doge_model())
    cache = BoundedCache(model.config)
    with pytest.raises(RuntimeError, match="a gradient of query and key and value and attn_bias is asked for"):
        model(tokens_of(1, 8), **{doge.CACHE_NAME: cache})
    states = torch.zeros(1, 2, 8, 8)
    with pytest.raises(NotImplementedError, match=r"BoundedCache.update has no bias to select by; accepted: models"):
        cache.update(states, states, 0)
    with pytest.raises(NotImplementedError, match=r"BoundedCache.crop cannot bring back keys that were pushed out"):
        cache.crop(-1)
    with pytest.raises(NotImplementedError, match="BoundedCache keeps its batch size; use a DynamicCache"):
        cache.batch_repeat_interleave(2)
    with pytest.raises(NotImplementedError, match="BoundedCache takes its sizes from the first call of"):
        cache.layers[0].lazy_initialization(states, states)


def test_refusals_of_patch() -> None:
    with pytest.raises(TypeError, match="model is a Linear; accepted: transformers' own DogeForCausalLM or DogeModel"):
        patch(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="sliding_window of the config is 4; accepted: None"):
        patch(doge_model(sliding_window=4))
    with pytest.raises(ValueError, match="is_causal of the config is False; accepted: True"):
        patch(doge_model(is_causal=False))
    model = doge_model()
    model.model.layers[1].self_attn.forward = lambda *_, **__: None
    with pytest.raises(ValueError, match="forward of a DogeAttention has been replaced; accepted: a model"):
        patch(model)
    assert all(type(layer.self_attn) is not doge.SelectedAttention for layer in model.model.layers)


def test_refusals_of_a_patched_model() -> None:
    inputs = tokens_of(2, 24)
    model = patched_copy(doge_model(attention_dropout=0.25)).train()
    with pytest.raises(ValueError, match=r"attention_dropout is 0.25; accepted in training: 0"):
        model(inputs)
    model.eval()
    model(inputs)
    with pytest.raises(ValueError, match=r"attention_mask is float32 of shape \(2, 1, 24, 24\); accepted in a patched"):
        model(inputs, attention_mask=torch.zeros(2, 1, 24, 24))
    with pytest.raises(ValueError, match=r"attention_mask.shape is \(2, 23\); accepted: \(B, 24\)"):
        model(inputs, attention_mask=torch.ones(2, 23))
    with pytest.raises(ValueError, match="is a StaticCache; accepted in a patched model: BoundedCache, DynamicCache"):
        model(inputs, **{doge.CACHE_NAME: StaticCache(config=model.config, max_cache_len=32)})
    restarting = torch.arange(12).repeat(2)[None]
    with pytest.raises(ValueError, match=r"hold several sequences a row and .* is given; accepted: use_cache=False"):
        model(inputs, position_ids=restarting, use_cache=True)
    ends = torch.tensor([0, 12, 48], dtype=torch.int32)
    hidden = {"attention_mask": padding([24, 13], 24, "left"), "max_length_q": 36}
    with pytest.raises(ValueError, match="several sequences a row and attention_mask is given; accepted: use_ca"):
        model(inputs, use_cache=False, cu_seq_lens_q=ends, **hidden)
    with pytest.raises(ValueError, match="cu_seq_lens_q is given and max_length_q is None; accepted: both"):
        model(inputs, use_cache=False, cu_seq_lens_q=ends)


def other_model(name: str) -> Any:
    """A tiny model of another kind on its own eager attention."""
    torch.manual_seed(0)
    sizes = {**SIZES, "num_key_value_heads": 2}
    configs = {
        "llama": lambda: LlamaConfig(**sizes),
        "gemma2": lambda: Gemma2Config(
            **sizes, head_dim=8, attn_logit_softcapping=2.0, query_pre_attn_scalar=8, sliding_window=7
        ),
        "qwen2": lambda: Qwen2Config(**sizes),
        "mistral": lambda: MistralConfig(**sizes, sliding_window=5),
    }
    return AutoModelForCausalLM.from_config(configs[name](), attn_implementation="eager").eval()


def on_this_package(model: Any) -> Any:
    register()
    model = copy.deepcopy(model)
    model.set_attn_implementation("flash_dmattn")
    assert model.config._attn_implementation == "flash_dmattn"
    return model


OTHER_MODELS = ["llama", "gemma2", "qwen2", "mistral"]


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_registered_attention_equals_eager(name: str) -> None:
    model = other_model(name)
    assert_equal_logits_and_gradients(model, on_this_package(model), tokens_of(2, 24))


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_registered_attention_generates_what_eager_does(name: str) -> None:
    model = other_model(name)
    inputs = {"input_ids": tokens_of(2, 12), "attention_mask": padding([12, 7], 12, "left")}
    options = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
    actual = on_this_package(model).generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(actual.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(actual.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-4)


def test_registered_attention_takes_several_sequences_in_a_row() -> None:
    model = other_model("llama")
    position_ids = torch.cat([torch.arange(n) for n in (9, 14, 1)])[None]
    assert_equal_logits_and_gradients(model, on_this_package(model), tokens_of(1, 24), position_ids=position_ids)


@pytest.mark.parametrize("cached", ["static", "dynamic"])
def test_registered_attention_with_a_cache_of_transformers(cached: str) -> None:
    model = other_model("llama")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(tokens_of(1, 12), **options)
    options.update(cache_implementation=cached, disable_compile=True)
    assert torch.equal(on_this_package(model).generate(tokens_of(1, 12), **options), expected)


def test_masks_of_callers() -> None:
    model = other_model("llama")
    other, inputs = on_this_package(model), tokens_of(2, 24)
    mask = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(3)) < 0.5
    mask = mask.tril() | torch.eye(24, dtype=torch.bool)
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected = model(inputs, attention_mask=added).logits
    for given in (mask, added):
        torch.testing.assert_close(other(inputs, attention_mask=given).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_encoder_and_a_bias_of_positions() -> None:
    query, bias = torch.randn(1, 4, 12, 16), torch.randn(1, 4, 12, 12)
    key, value = torch.randn(2, 1, 2, 12, 16).unbind()
    rows = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    encoder = types.SimpleNamespace(is_causal=False)
    out, weights = attention_forward(encoder, query, key, value, None, position_bias=bias, scaling=0.5)
    assert weights is None
    assert torch.equal(out, flash_dmattn_func(*rows, attn_bias=bias, scale=0.5))
    mask = torch.rand(1, 1, 12, 12) < 0.5
    out, _ = attention_forward(encoder, query, key, value, mask, position_bias=bias)
    assert torch.equal(out, flash_dmattn_func(*rows, attn_mask=mask, attn_bias=bias))
    out, _ = attention_forward(encoder, query, key, value, None, is_causal=True, softcap=3.0)
    assert torch.equal(out, flash_dmattn_func(*rows, is_causal=True, softcap=3.0))
    row = mask[:, :, :, :1].expand(1, 1, 12, 12)
    out, _ = attention_forward(encoder, query, key, value, row)
    assert torch.equal(out, flash_dmattn_func(*rows, attn_mask=row.contiguous()))


def test_sequences_by_their_lengths() -> None:
    query, key, value = torch.randn(3, 1, 4, 12, 16).unbind()
    ends = torch.tensor([0, 5, 12], dtype=torch.int32)
    lengths = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 7, "max_length_k": 7}
    decoder = types.SimpleNamespace(is_causal=True)
    out, _ = attention_forward(decoder, query, key, value, None, **lengths)
    for begin, end in ((0, 5), (5, 12)):
        rows = (tensor[:, :, begin:end].transpose(1, 2) for tensor in (query, key, value))
        torch.testing.assert_close(out[:, begin:end], flash_dmattn_func(*rows, is_causal=True))


def test_refusals_of_registered_attention() -> None:
    query, key, value = torch.randn(3, 2, 4, 12, 16).unbind()

    def refused(kind: Any, match: str, mask: Any = None, **options: Any) -> None:
        with pytest.raises(kind, match=match):
            attention_forward(types.SimpleNamespace(is_causal=True), query, key, value, mask, **options)

    refused(ValueError, r"dropout is 0.1; accepted: 0, since attention that keeps no weights drops none", dropout=0.1)
    refused(ValueError, "head_mask is given; accepted by 'flash_dmattn': None", head_mask=torch.ones(4))
    refused(ValueError, "s_aux is given; accepted by 'flash_dmattn': None", s_aux=torch.ones(4))
    refused(ValueError, "output_attentions is True; accepted by 'flash_dmattn': False", output_attentions=True)
    refused(ValueError, r"attention_mask.shape is \(2, 12\); accepted by 'flash_dmattn': \(\{B", torch.ones(2, 12))
    refused(
        TypeError,
        "attention_mask.dtype is int64; accepted by 'flash_dmattn': bool, or f",
        torch.ones(1, 1, 12, 12).long(),
    )
    refused(ValueError, "sliding_window is 4 for 12 keys and attention_mask is None", sliding_window=4)
    ends = torch.tensor([0, 12], dtype=torch.int32)
    refused(ValueError, "cu_seq_lens_q is given and the batch is 2; accepted: a batch of 1", cu_seq_lens_q=ends)
    bias = torch.zeros(1, 1, 12, 12)
    refused(ValueError, "position_bias is given with cu_seq_lens_q", cu_seq_lens_q=ends, position_bias=bias)


def test_dropout_in_training_is_refused() -> None:
    model = on_this_package(other_model("llama")).train()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    with pytest.raises(ValueError, match=r"dropout is 0.5; accepted: 0"):
        model(tokens_of(1, 8))


def test_example() -> None:
    example = Path(__file__).parents[2] / "examples" / "doge_train.py"
    command = [
        sys.executable,
        str(example),
        "--device",
        "cpu",
        "--repeats",
        "1",
        "--length",
        "64",
        "--paths",
        "patched",
    ]
    done = subprocess.run([*command, "sdpa"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [(row[0].strip(), row[1].strip()) for row in rows[1:]] == [
        ("flash_dmattn", "no"),
        ("sdpa", "no"),
        ("flash_dmattn", "yes"),
        ("sdpa", "yes"),
    ]
    losses = [float(row[5]) for row in rows[1:]]
    assert max(losses) - min(losses) < 0.01


@pytest.mark.parametrize("module", ["attention_interface", "bounded_cache", "doge"])
def test_docstring_examples(module: str) -> None:
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(f"flash_dmattn.integrations.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.gpu
@pytest.mark.parametrize("keep", [8, 64])
def test_patched_doge_on_a_gpu(keep: int) -> None:
    # One layer: the same values, and so the same biases bit for bit, for which the choice is the same.
    model = doge_model(keep, num_hidden_layers=1).to("cuda", torch.float16).train()
    other, inputs = patched_copy(model), tokens_of(2, 24).cuda()
    results = []
    for each in (model, other, copy.deepcopy(model).float()):
        logits = each(inputs, use_cache=False).logits
        (logits * torch.linspace(-1, 1, VOCABULARY, device="cuda", dtype=logits.dtype)).mean(1).sum().backward()
        gradients = {name: weight.grad.float() for name, weight in each.named_parameters()}
        results.append({"logits": logits.detach().float(), **gradients})
    for name, exact in results[2].items():
        eager, actual = ((result[name] - exact).abs().max().item() for result in results[:2])
        assert actual <= 2 * eager + 2e-3 * exact.abs().max().item(), name


@pytest.mark.gpu
def test_bounded_cache_on_a_gpu() -> None:
    model = patched_copy(doge_model(5, num_hidden_layers=1).to("cuda", torch.float16)).eval()
    inputs, mask = tokens_of(2, 40).cuda(), padding([40, 31], 40, "left").cuda()
    with torch.no_grad():
        expected = model(inputs, attention_mask=mask, use_cache=False).logits
        for cache in (BoundedCache(model.config), DynamicCache()):
            logits = []
            for begin, end in ((0, 20), (20, 33), (33, 34), (34, 40)):
                step = {doge.CACHE_NAME: cache, "attention_mask": mask[:, :end]}
                logits.append(model(inputs[:, begin:end], **step).logits)
            shown = mask.bool()
            torch.testing.assert_close(torch.cat(logits, 1)[shown], expected[shown], rtol=2e-2, atol=1e-2)
    assert model.generate(inputs, attention_mask=mask, **GREEDY).shape == (2, 60)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OTHER_MODELS)
def test_registered_attention_on_a_gpu(name: str) -> None:
    model = other_model(name).to("cuda", torch.float16)
    inputs, mask = tokens_of(2, 24).cuda(), padding([24, 13], 24, "left").cuda()
    expected, actual = (each(inputs, attention_mask=mask).logits for each in (model, on_this_package(model)))
    exact = model.float()(inputs, attention_mask=mask).logits
    eager, error = ((logits.float() - exact)[mask.bool()].abs().max().item() for logits in (expected, actual))
    assert error <= 2 * eager + 2e-3 * exact.abs().max().item()
