"""Calls hold what the model computes: its own eager attention weights are the judge, its logits the witness."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probe.errors import NotReproducible
from probe.hooks.models.huggingface import load

VOCABULARY = 61
ARCHITECTURES = [
    "llama", "llama-gqa", "llama-mqa", "qwen3-sliding-full", "mistral-window", "gemma3", "gemma2-softcap", "gpt2",
    "gpt-neox", "gpt-oss-sinks", "phi3", "olmo2", "deepseek-v3-value-width",
]  # fmt: skip
EAGER_ONLY = ("gemma2-softcap", "gpt-oss-sinks")
EVERY = pytest.mark.parametrize("kind", ARCHITECTURES)


def eager_weights(make: Any, kind: str, **inputs: Any) -> list[torch.Tensor]:
    """The attention weights that the model itself reports when asked, with eager attention."""
    model = make(kind, "eager")
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True, use_cache=False).attentions
    return [each.double() for each in weights]


@EVERY
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("num_tokens", [1, 2, 15, 129])
def test_logits_are_bit_identical_with_and_without_capture(
    make: Any, tokens: Any, attention: Any, kind: str, implementation: str, num_tokens: int
) -> None:
    if kind in EAGER_ONLY and implementation == "sdpa":
        pytest.skip("transformers refuses SDPA for it")
    model = load(make(kind, implementation))
    prompt = tokens(1, num_tokens)
    with torch.no_grad():
        before = model.hf(input_ids=prompt).logits
        with model.calls(attention, lambda layer, sample, hidden: None):
            during = model.hf(input_ids=prompt).logits
        after = model.hf(input_ids=prompt).logits
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert len(attention.calls) == 2 * (1 if num_tokens == 1 else 2)
    assert model.hf.config._attn_implementation == implementation


@EVERY
@pytest.mark.parametrize("num_tokens", [1, 2, 15, 129])
def test_probabilities_from_calls_equal_the_models_own_eager_weights(
    make: Any, tokens: Any, attention: Any, kind: str, num_tokens: int
) -> None:
    model, prompt = load(make(kind)), tokens(1, num_tokens)
    with torch.no_grad(), model.calls(attention):
        model.hf(input_ids=prompt)
    expected = eager_weights(make, kind, input_ids=prompt)
    for (layer, _), found in attention.matrices(num_tokens).items():
        torch.testing.assert_close(found, expected[layer][0], rtol=0, atol=1e-5)
    assert set(attention.phases()) == {0, 1}
    for phases in attention.phases().values():
        assert phases == ["prefill"] * (num_tokens - 1) + ["decode"]


@EVERY
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_sliced_off_and_the_rest_is_exact(
    make: Any, tokens: Any, attention: Any, kind: str, side: str
) -> None:
    model, prompt, lengths = load(make(kind)), tokens(3, 15), [15, 9, 1]
    mask = torch.zeros(3, 15, dtype=torch.long)
    for sample, length in enumerate(lengths):
        mask[sample, 15 - length :] = 1
    if side == "right":
        mask = mask.flip(1)
    with torch.no_grad():
        before = model.hf(input_ids=prompt, attention_mask=mask).logits
        with model.calls(attention):
            during = model.hf(input_ids=prompt, attention_mask=mask).logits
    assert torch.equal(before, during)
    expected = eager_weights(make, kind, input_ids=prompt, attention_mask=mask)
    for sample, length in enumerate(lengths):
        kept = slice(15 - length, 15) if side == "left" else slice(0, length)
        own = [(each, call) for each, call in attention.calls if each == sample]
        assert {call.num_keys for _, call in own if call.phase == "decode"} == {length}
        part = type(attention)()
        part.calls = own
        for (layer, _), found in part.matrices(length).items():
            torch.testing.assert_close(found, expected[layer][sample, :, kept, kept], rtol=0, atol=1e-5)


@EVERY
@pytest.mark.parametrize("chunk_tokens", [1, 5, 64])
def test_prefill_in_chunks_and_decoding_equal_the_whole(
    make: Any, tokens: Any, attention: Any, kind: str, chunk_tokens: int
) -> None:
    model, prompt = load(make(kind)), tokens(1, 29)
    expected = eager_weights(make, kind, input_ids=prompt)
    with model.calls(attention):
        state = model.prefill(prompt[0, :25].tolist(), chunk_tokens=chunk_tokens)
        for token in prompt[0, 25:27].tolist():
            model.step(state, [token])
        model.step(state, prompt[0, 27:].tolist())
    for (layer, _), found in attention.matrices(29).items():
        torch.testing.assert_close(found, expected[layer][0], rtol=0, atol=1e-5)
    for phases in attention.phases().values():
        assert phases == ["prefill"] * 25 + ["decode"] * 4
    for _, call in attention.calls:
        assert call.tokens is not None
        stop = call.key_start + call.num_keys
        assert call.tokens.tolist() == prompt[0, call.key_start : stop].tolist()


@pytest.mark.parametrize("kind", ["qwen3-sliding-full", "mistral-window", "gemma3", "gpt-oss-sinks"])
def test_positions_follow_a_sliding_cache_that_dropped_keys(make: Any, tokens: Any, attention: Any, kind: str) -> None:
    model, prompt = load(make(kind)), tokens(1, 20)[0].tolist()
    state = model.prefill(prompt)
    with model.calls(attention):
        model.step(state, [5])
    windowed = [call for _, call in attention.calls if call.window == 7]
    assert windowed
    for call in windowed:
        assert (call.query_start, call.key_start, call.num_keys) == (20, 14, 7)


@EVERY
def test_generate_is_watched_token_by_token(make: Any, tokens: Any, attention: Any, kind: str) -> None:
    model, prompt = load(make(kind)), tokens(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    greedy = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options = {"attention_mask": mask, **greedy}
    expected = model.hf.generate(prompt, **options)
    with model.calls(attention):
        found = model.hf.generate(prompt, **options)
    assert torch.equal(found, expected)
    real = torch.cat([mask, torch.ones(2, 3, dtype=torch.long)], dim=1)
    positions = (real.cumsum(dim=1) - 1).clamp_min(0)
    whole = eager_weights(make, kind, input_ids=found[:, :-1], attention_mask=real, position_ids=positions)
    for (layer, sample), weights in attention.matrices(15).items():
        start = 4 if sample else 0
        torch.testing.assert_close(
            weights[:, : 15 - start, : 15 - start], whole[layer][sample, :, start:, start:], rtol=0, atol=1e-5
        )
    first = type(attention)()
    first.calls = [each for each in attention.calls if each[0] == 1]
    for phases in first.phases().values():
        assert phases == ["prefill"] * 7 + ["decode"] * 4


def test_a_bidirectional_model_hands_out_calls_that_see_both_ways(tokens: Any, attention: Any) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = BertConfig(**sizes, num_attention_heads=4, initializer_range=0.3)
    hf, prompt = BertModel(config).eval(), tokens(1, 9)
    with torch.no_grad(), load(hf).calls(attention):
        hf(input_ids=prompt)
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        expected = hf(input_ids=prompt, output_attentions=True).attentions
    assert {(call.layer, call.causal, call.phase) for _, call in attention.calls} == {
        (0, False, "prefill"),
        (1, False, "prefill"),
    }
    for (layer, _), found in attention.matrices(9).items():
        torch.testing.assert_close(found, expected[layer][0].double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2", "gemma3", "gpt-neox"])
def test_residuals_are_the_hidden_states_that_the_model_reports(make: Any, tokens: Any, kind: str) -> None:
    model, prompt = load(make(kind)), tokens(2, 11)
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[1, :3] = 0
    found: dict[tuple[int, int], torch.Tensor] = {}
    with torch.no_grad(), model.calls(None, lambda layer, sample, hidden: found.update({(layer, sample): hidden})):
        model.hf(input_ids=prompt, attention_mask=mask)
    with torch.no_grad():
        hidden = model.hf(input_ids=prompt, attention_mask=mask, output_hidden_states=True).hidden_states
    # The last entry of transformers' list has the final norm applied, so the first layer's output is compared.
    assert torch.equal(found[0, 0], hidden[1][0])
    assert torch.equal(found[0, 1], hidden[1][1, 3:])
    assert set(found) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_half_precision_is_captured_in_its_own_dtype(make: Any, tokens: Any, attention: Any) -> None:
    model, prompt = load(make("llama-gqa").to(torch.bfloat16)), tokens(1, 33)
    with torch.no_grad():
        before = model.hf(input_ids=prompt).logits
        with model.calls(attention):
            assert torch.equal(model.hf(input_ids=prompt).logits, before)
    assert {call.query.dtype for _, call in attention.calls} == {torch.bfloat16}


def test_weights_that_give_nan_are_captured_and_not_refused(make: Any, tokens: Any, attention: Any) -> None:
    hf = make("llama-gqa")
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight[3] = torch.nan
    with torch.no_grad(), load(hf).calls(attention):
        logits = hf(input_ids=tokens(1, 9)).logits
    assert logits.isnan().any()
    assert any(call.query.isnan().any() for _, call in attention.calls if call.layer == 1)


def test_a_forward_that_raises_leaves_the_model_as_it_was(make: Any, tokens: Any, attention: Any) -> None:
    model, prompt = load(make("llama-gqa")), tokens(1, 9)
    with torch.no_grad():
        before = model.hf(input_ids=prompt).logits

    def stop(sample: int, call: Any) -> None:
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"), model.calls(stop):
        model.hf(input_ids=prompt)
    with model.calls(attention), pytest.raises(IndexError):
        model.hf(input_ids=torch.tensor([[VOCABULARY]]))
    assert model.hf.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    with torch.no_grad():
        assert torch.equal(model.hf(input_ids=prompt).logits, before)
        with model.calls(attention):
            assert torch.equal(model.hf(input_ids=prompt).logits, before)


def test_an_interrupt_within_a_forward_does_not_spoil_the_next_one(make: Any, tokens: Any, attention: Any) -> None:
    model, again = load(make("llama-gqa")), [KeyboardInterrupt()]

    def interrupted(sample: int, call: Any) -> None:
        if again:
            raise again.pop()

    with torch.no_grad(), model.calls(interrupted), model.calls(attention):
        with pytest.raises(KeyboardInterrupt):
            model.hf(input_ids=tokens(1, 30))
        attention.calls.clear()
        model.hf(input_ids=tokens(1, 9))
    assert attention.phases() == {0: ["prefill"] * 8 + ["decode"], 1: ["prefill"] * 8 + ["decode"]}


def test_two_readers_nest_and_each_sees_every_call_once(make: Any, tokens: Any, attention: Any) -> None:
    model, inner = load(make("llama-gqa")), type(attention)()
    with torch.no_grad(), model.calls(attention):
        with model.calls(inner):
            model.hf(input_ids=tokens(1, 9))
        model.hf(input_ids=tokens(1, 9))
    assert (len(inner.calls), len(attention.calls)) == (4, 8)


def test_the_mask_registry_knows_our_name_and_gives_the_loaded_mask(make: Any) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    model = load(make("llama-gqa", "eager"))
    with model.calls(None):
        name = model.hf.config._attn_implementation
        assert name.startswith("probe_over_")
        assert model.attention_implementation == "eager"
        assert ALL_MASK_ATTENTION_FUNCTIONS[name] is ALL_MASK_ATTENTION_FUNCTIONS["eager"]


def test_facts_of_a_model_are_its_own(make: Any) -> None:
    llama, gpt2 = load(make("llama-gqa")), load(make("gpt2"))
    assert (llama.num_layers, llama.num_heads, llama.num_kv_heads, llama.head_dim) == (2, [4, 4], [2, 2], [8, 8])
    assert (llama.max_length, llama.hard_limit) == (512, False)
    assert (gpt2.max_length, gpt2.hard_limit) == (512, True)
    assert (llama.vocab_size, llama.attention_implementation) == (61, "sdpa")


def test_a_residual_stream_of_several_streams_side_by_side_is_refused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "q_lora_rank": 16,
        "n_routed_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("hy_v4", **sizes)).eval()
    found: list[Any] = []
    watched = load(model).calls(None, lambda layer, sample, hidden: found.append(hidden))
    refused = pytest.raises(NotReproducible, match="layer 0: its output is not batch × token × channel")
    with torch.no_grad(), refused, watched:
        model(input_ids=torch.arange(3, 12)[None])
    assert not found
