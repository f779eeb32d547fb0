"""Modules that attend by themselves: the model's own eager weights in float64 judge, its logits are the witness."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import NotReproducible
from probe.hooks.ablate_heads import ablate_heads
from probe.hooks.models.huggingface import load

_WIDE = {"embedding_size": 32, "input_embedding_size": 32, "output_embedding_size": 32, "is_decoder": True}
_DECODER = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
_FALCON = {"new_decoder_architecture": False, "multi_query": True, "alibi": False}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gptj": ("gptj", {"rotary_dim": 4}),
    "gptj-unrotated-part": ("gptj", {"rotary_dim": 2, "n_head": 2, "n_embd": 40}),
    "codegen": ("codegen", {"rotary_dim": 4, "n_ctx": 512}),
    "gpt-neo": ("gpt_neo", {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 7}),
    "gpt-neox-japanese": ("gpt_neox_japanese", {"intermediate_multiple_size": 2}),
    "bloom": ("bloom", {}),
    "bloom-5-heads": ("bloom", {"n_head": 5, "hidden_size": 60}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    "mpt-6-heads": ("mpt", {"d_model": 48, "n_heads": 6, "n_layers": 2, "max_seq_len": 256}),
    "falcon": ("falcon", _FALCON),
    "falcon-many-keys": ("falcon", {**_FALCON, "multi_query": False, "num_kv_heads": 4}),
    "falcon-groups": ("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("falcon", {**_FALCON, "alibi": True, "multi_query": False, "num_kv_heads": 4}),
    "falcon-alibi-6-heads": ("falcon", {**_FALCON, "alibi": True, "num_attention_heads": 6, "hidden_size": 48}),
    "xglm": ("xglm", {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}),
    "trocr": ("trocr", _DECODER),
    "mvp": ("mvp", {**_DECODER, "is_decoder": True, "is_encoder_decoder": False}),
    "megatron-bert": ("megatron-bert", {"is_decoder": True}),
    "rembert": ("rembert", _WIDE),
    "roformer": ("roformer", _WIDE),
    "big-bird": ("big_bird", {"is_decoder": True, "attention_type": "original_full"}),
    "openai-gpt": ("openai-gpt", {}),
    "xlm": ("xlm", {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": True}),
}
WITHOUT_CACHE = ("openai-gpt", "xlm")
EVERY = pytest.mark.parametrize("kind", KINDS)
CACHED = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WITHOUT_CACHE])


@pytest.fixture(name="random")
def _random(make: Any) -> Callable[..., PreTrainedModel]:
    def random(kind: str, attention: str | None = None, **changes: Any) -> PreTrainedModel:
        """A model whose attention is far from uniform, with the attention asked for, whatever its class says."""
        name, fields = KINDS[kind]
        model: PreTrainedModel = make(name, **{**fields, **changes})
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2 and parameter.std() < 0.2:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        # Falcon's class puts SDPA in the place of what it is asked for.
        if attention is not None:
            for module in model.modules():
                if hasattr(getattr(module, "config", None), "_attn_implementation_internal"):
                    module.config._attn_implementation_internal = attention  # type: ignore[union-attr]
        return model

    return random


def implementation(kind: str) -> str | None:
    """Falcon's eager attention adds ALiBi twice, so each of its two is held against itself."""
    return "eager" if "alibi" in kind else None


def eager_weights(random: Any, kind: str, **inputs: Any) -> list[Tensor]:
    """The attention weights that the model itself reports, in float64 where it runs so."""
    model = random(kind, "eager")
    with torch.no_grad():
        # Bloom and XGLM take a smallest number of one dtype into another.
        model = model if model.config.model_type in ("bloom", "xglm") else model.double()
        return [each.double() for each in model(**inputs, output_attentions=True).attentions]


@EVERY
@pytest.mark.parametrize("num_tokens", [1, 2, 15, 129])
def test_calls_are_the_models_own_weights_and_its_logits_stay_bit_identical(
    random: Any, tokens: Any, attention: Any, kind: str, num_tokens: int
) -> None:
    model, prompt = load(random(kind, implementation(kind))), tokens(1, num_tokens)
    inside = [dict(vars(module)) for module in model.hf.modules()]
    with torch.no_grad():
        before = model.hf(input_ids=prompt).logits
        with model.calls(attention):
            during = model.hf(input_ids=prompt).logits
        after = model.hf(input_ids=prompt).logits
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert [set(vars(module)) for module in model.hf.modules()] == [set(each) for each in inside]
    expected = eager_weights(random, kind, input_ids=prompt)
    matrices = attention.matrices(num_tokens)
    assert sorted(matrices) == [(0, 0), (1, 0)]
    for (layer, _), found in matrices.items():
        torch.testing.assert_close(found, expected[layer][0], rtol=0, atol=1e-5)
    for phases in attention.phases().values():
        assert phases == ["prefill"] * (num_tokens - 1) + ["decode"]


@EVERY
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_sliced_off(random: Any, tokens: Any, attention: Any, kind: str, side: str) -> None:
    if (kind, side) == ("xlm", "left"):
        pytest.skip("its causal mask does not hide padding, so it is refused")
    model, prompt, lengths = load(random(kind, implementation(kind))), tokens(3, 15), [15, 9, 1]
    mask = torch.zeros(3, 15, dtype=torch.long)
    for sample, length in enumerate(lengths):
        mask[sample, slice(15 - length, 15) if side == "left" else slice(0, length)] = 1
    with torch.no_grad(), model.calls(attention):
        model.hf(input_ids=prompt, attention_mask=mask)
    expected = eager_weights(random, kind, input_ids=prompt, attention_mask=mask)
    for sample, length in enumerate(lengths):
        kept = slice(15 - length, 15) if side == "left" else slice(0, length)
        part = type(attention)()
        part.calls = [each for each in attention.calls if each[0] == sample]
        for (layer, _), found in part.matrices(length).items():
            torch.testing.assert_close(found, expected[layer][sample, :, kept, kept], rtol=0, atol=1e-5)


@CACHED
@pytest.mark.parametrize("chunk_tokens", [1, 6, 64])
def test_chunks_and_decoded_tokens_equal_the_whole(
    random: Any, tokens: Any, attention: Any, kind: str, chunk_tokens: int
) -> None:
    model, prompt = load(random(kind, implementation(kind))), tokens(1, 29)
    with model.calls(attention):
        state = model.prefill(prompt[0, :25].tolist(), chunk_tokens=chunk_tokens)
        for token in prompt[0, 25:27].tolist():
            model.step(state, [token])
        model.step(state, prompt[0, 27:].tolist())
    expected = eager_weights(random, kind, input_ids=prompt)
    for (layer, _), found in attention.matrices(29).items():
        torch.testing.assert_close(found, expected[layer][0], rtol=0, atol=1e-5)


def test_groups_are_not_handed_out_repeated(random: Any, tokens: Any, attention: Any) -> None:
    model = load(random("falcon-groups"))
    with torch.no_grad(), model.calls(attention):
        model.hf(input_ids=tokens(1, 9))
    assert {(call.num_heads, call.num_kv_heads) for _, call in attention.calls} == {(4, 2)}
    assert model.num_kv_heads == [2, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gptj", "codegen", "bloom-5-heads", "mpt-6-heads", "falcon", "xglm"])
def test_products_in_float32_of_a_half_precision_model_are_understood(
    random: Any, tokens: Any, attention: Any, kind: str, dtype: torch.dtype
) -> None:
    model, prompt = load(random(kind).to(dtype)), tokens(1, 40)
    with torch.no_grad(), model.calls(attention):
        model.hf(input_ids=prompt)
    expected = eager_weights(random, kind, input_ids=prompt)
    for (layer, _), found in attention.matrices(40).items():
        assert (found - expected[layer][0]).abs().mean() < 0.02
    assert all(call.key.dtype == call.query.dtype for _, call in attention.calls)


_PROJECTIONS = {
    "gptj": "out_proj", "codegen": "out_proj", "gpt-neo": "out_proj", "gpt-neox-japanese": "dense", "bloom": "dense",
    "mpt": "out_proj", "falcon": "dense", "falcon-groups": "dense", "xglm": "out_proj", "openai-gpt": "c_proj",
    "xlm": "out_lin",
}  # fmt: skip


@pytest.mark.parametrize("kind", _PROJECTIONS)
@pytest.mark.parametrize("form", ["zero", "mean"])
def test_ablation_equals_a_hook_on_the_output_projection(random: Any, tokens: Any, kind: str, form: Any) -> None:
    model, prompt, reference = random(kind), tokens(1, 12), tokens(1, 9, seed=1)
    heads = [(0, 1), (1, 0), (1, 3)]
    projections = [
        getattr(each.module(), _PROJECTIONS[kind]) for _, each in sorted(load(model).attention_layers.items())
    ]
    means: dict[int, Tensor] = {}

    def change(layer: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            mixed = args[0].unflatten(-1, (4, -1)).clone()
            for at, head in heads:
                if at == layer:
                    mixed[:, :, head] = means[layer][head] if form == "mean" else 0
            return (mixed.flatten(-2),)

        return hook

    def remember(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            means[layer] = args[0].unflatten(-1, (4, -1)).double().mean(dim=(0, 1)).float()

        return hook

    for hook_of, inputs in ((remember, reference), (change, prompt)):
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for layer, projection in enumerate(projections):
                stack.callback(projection.register_forward_pre_hook(hook_of(layer)).remove)
            expected = model(input_ids=inputs).logits
    with torch.no_grad(), ablate_heads(heads, form=form, reference=reference.tolist())(model):
        found = model(input_ids=prompt).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=prompt).logits, found)


@pytest.mark.parametrize(("kind", "name"), [("gptj", "q_proj"), ("gpt-neo", "q_proj"), ("xglm", "q_proj")])
def test_a_uniform_head_is_one_whose_queries_are_projected_to_nothing(
    random: Any, tokens: Any, kind: str, name: str
) -> None:
    model, other, prompt = random(kind), random(kind), tokens(1, 12)
    with torch.no_grad():
        for layer, head in ((0, 2), (1, 1)):
            projection = getattr(load(other).attention_layers[layer].module(), name)
            for tensor in projection.parameters():
                tensor[8 * head : 8 * (head + 1)] = 0
        expected = other(input_ids=prompt).logits
        with ablate_heads([(0, 2), (1, 1)], form="uniform")(model):
            found = model(input_ids=prompt).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_alibi_is_refused(random: Any, tokens: Any, dtype: torch.dtype) -> None:
    # Falcon rounds its biases to bfloat16, which shows where slopes are no powers of two.
    model = load(random("falcon-alibi", num_attention_heads=16, num_kv_heads=16, hidden_size=64).to(dtype))
    with (
        torch.no_grad(),
        model.calls(lambda sample, call: None),
        pytest.raises(NotReproducible, match=r"FalconForCausalLM, layer 0: what it adds .* is no ALiBi"),
    ):
        model.hf(input_ids=tokens(1, 129))


@pytest.mark.parametrize("kind", ["openai-gpt", "bloom", "gptj"])
def test_residuals_are_the_hidden_states_that_the_model_reports(random: Any, tokens: Any, kind: str) -> None:
    # Blocks of the first GPT return a list.
    model, prompt = load(random(kind)), tokens(1, 9)
    found: dict[int, Tensor] = {}
    with torch.no_grad(), model.calls(None, lambda layer, sample, hidden: found.update({layer: hidden})):
        model.hf(input_ids=prompt)
    with torch.no_grad():
        expected = model.hf(input_ids=prompt, output_hidden_states=True).hidden_states
    assert torch.equal(found[0], expected[1][0])


def test_a_forward_that_accelerate_has_wrapped_is_watched(random: Any, tokens: Any, attention: Any) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    model, prompt = load(random("gptj")), tokens(1, 9)
    for block in model.hf.transformer.h:
        add_hook_to_module(block.attn, ModelHook())
    before = [dict(vars(block.attn)) for block in model.hf.transformer.h]
    with torch.no_grad(), model.calls(attention):
        model.hf(input_ids=prompt)
    assert [dict(vars(block.attn)) for block in model.hf.transformer.h] == before
    expected = eager_weights(random, "gptj", input_ids=prompt)
    for (layer, _), found in attention.matrices(9).items():
        torch.testing.assert_close(found, expected[layer][0], rtol=0, atol=1e-5)


def test_another_product_inside_the_module_is_refused(
    random: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.gptj.modeling_gptj import GPTJAttention

    own = GPTJAttention._attn

    def twice(self: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> Any:
        output, weights = own(self, query, key, value, mask)
        return output + own(self, query, key, value, mask)[0], weights

    model = load(random("gptj"))
    monkeypatch.setattr(GPTJAttention, "_attn", twice)
    reason = "GPTJForCausalLM, layer 0: GPTJAttention computes more than the two"
    with pytest.raises(NotReproducible, match=reason), model.calls(lambda sample, call: None):
        model.hf(input_ids=tokens(1, 9))
