"""Attention in chunks and packed sequences are documents of a call: the model's own eager weights are the judge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from probe.hooks.models.huggingface import load

LLAMA4 = {
    "intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1,
    "attention_chunk_size": 8, "layer_types": ["chunked_attention", "full_attention"], "floor_scale": 8,
}  # fmt: skip


def eager_weights(model: Any, **inputs: Any) -> list[Tensor]:
    """The attention weights that the model reports, in float64."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model.double()(**inputs, output_attentions=True, use_cache=False).attentions
    return list(weights)


@pytest.mark.parametrize("num_tokens", [1, 8, 9, 15, 129])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_in_chunks_is_exact(
    make: Any, tokens: Any, attention: Any, num_tokens: int, implementation: str
) -> None:
    model, prompt = load(make("llama4_text", implementation, **LLAMA4)), tokens(1, num_tokens)
    with torch.no_grad():
        before = model.hf(input_ids=prompt).logits
        with model.calls(attention):
            during = model.hf(input_ids=prompt).logits
    assert torch.equal(before, during)
    expected = eager_weights(make("llama4_text", **LLAMA4), input_ids=prompt)
    for (layer, _), found in attention.matrices(num_tokens).items():
        torch.testing.assert_close(found, expected[layer][0], rtol=0, atol=1e-5)
    assert {(call.layer, call.document is None) for _, call in attention.calls} == {(0, False), (1, True)}


@pytest.mark.parametrize("side", ["left", "right"])
def test_chunks_begin_at_each_samples_first_token(make: Any, tokens: Any, attention: Any, side: str) -> None:
    model, prompt, lengths = load(make("llama4_text", **LLAMA4)), tokens(2, 20), [20, 13]
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, slice(0, 7) if side == "left" else slice(13, 20)] = 0
    with torch.no_grad(), model.calls(attention):
        model.hf(input_ids=prompt, attention_mask=mask)
    expected = eager_weights(make("llama4_text", **LLAMA4), input_ids=prompt, attention_mask=mask)
    for sample, length in enumerate(lengths):
        kept = slice(20 - length, 20) if side == "left" else slice(0, length)
        part = type(attention)()
        part.calls = [each for each in attention.calls if each[0] == sample]
        for (layer, _), found in part.matrices(length).items():
            torch.testing.assert_close(found, expected[layer][sample, :, kept, kept], rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [1, 6, 64])
def test_chunks_go_on_over_a_cache(make: Any, tokens: Any, attention: Any, chunk_tokens: int) -> None:
    model, prompt = load(make("llama4_text", **LLAMA4)), tokens(1, 29)
    with model.calls(attention):
        state = model.prefill(prompt[0, :21].tolist(), chunk_tokens=chunk_tokens)
        for token in prompt[0, 21:27].tolist():
            model.step(state, [token])
        model.step(state, prompt[0, 27:].tolist())
    expected = eager_weights(make("llama4_text", **LLAMA4), input_ids=prompt)
    for (layer, _), found in attention.matrices(29).items():
        torch.testing.assert_close(found, expected[layer][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama-gqa", "mistral-window"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("cached", [False, True])
def test_packed_sequences_are_kept_apart_where_the_model_does_so(
    make: Any, tokens: Any, attention: Any, kind: str, implementation: str, cached: bool
) -> None:
    model, prompt = load(make(kind, implementation)), tokens(1, 17)
    positions = torch.cat([torch.arange(4), torch.arange(10), torch.arange(3)])[None]
    with torch.no_grad(), model.calls(attention):
        model.hf(input_ids=prompt, position_ids=positions, use_cache=cached)
    eager = make(kind, "eager").double()
    with torch.no_grad():
        expected = eager(input_ids=prompt, position_ids=positions, use_cache=cached, output_attentions=True).attentions
    for (layer, _), found in attention.matrices(17).items():
        torch.testing.assert_close(found, expected[layer][0], rtol=0, atol=1e-5)
    # With a cache transformers does not ask whether sequences are packed, and lets them see one another.
    assert {call.document is None for _, call in attention.calls} == {cached}
