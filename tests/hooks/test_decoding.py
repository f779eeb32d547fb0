"""A sequence in chunks, token by token and back: the same numbers as the model gives by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from probe.errors import NotReproducible, UsageError
from probe.hooks.models.huggingface import load

KINDS = ["llama", "llama-gqa", "qwen3-sliding-full", "mistral-window", "gemma3", "gpt2", "gpt-neox", "gpt-oss-sinks"]
EVERY = pytest.mark.parametrize("kind", KINDS)


def bits(state: Any) -> list[torch.Tensor]:
    """Everything that the cache of a sequence holds."""
    return [each.clone() for layer in state.cache.layers for each in (layer.keys, layer.values)]


@EVERY
def test_greedy_steps_give_the_tokens_that_generate_gives(make: Any, tokens: Any, kind: str) -> None:
    model, prompt = load(make(kind)), tokens(1, 23)
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.hf.generate(prompt, attention_mask=torch.ones_like(prompt), **greedy)[0, 23:].tolist()
    state, found = model.prefill(prompt[0, :-1].tolist(), chunk_tokens=8), [int(prompt[0, -1])]
    for _ in range(12):
        found.append(int(model.step(state, found[-1:])[-1].argmax()))
    assert found[1:] == expected


@EVERY
@pytest.mark.parametrize("num_prompt", [0, 3, 23])
@pytest.mark.parametrize("num_surplus", [1, 9])
def test_a_sequence_rolled_back_is_bit_identical_to_one_that_never_went_on(
    make: Any, tokens: Any, kind: str, num_prompt: int, num_surplus: int
) -> None:
    model, prompt = load(make(kind)), tokens(num_prompt).tolist()
    state, untouched = (model.prefill(prompt, chunk_tokens=8) for _ in range(2))
    before = model.mark(state)
    model.step(state, tokens(num_surplus, seed=1).tolist())
    model.rollback(state, before)
    assert state.num_tokens == num_prompt
    for token in (7, 11, 13):
        assert torch.equal(model.step(state, [token]), model.step(untouched, [token]))
    for one, other in zip(bits(state), bits(untouched), strict=True):
        assert torch.equal(one, other)


def test_rolling_back_twice_to_one_mark_is_allowed(make: Any) -> None:
    model = load(make("qwen3-sliding-full"))
    state = model.prefill(list(range(3, 20)))
    before = model.mark(state)
    first = model.step(state, [4, 5])
    model.rollback(state, before)
    second = model.step(state, [4, 5])
    model.rollback(state, before)
    assert torch.equal(first, second)
    assert state.num_tokens == 17


@EVERY
@pytest.mark.parametrize("chunk_tokens", [7, 64])
def test_logits_of_every_chunk_are_those_of_the_whole(make: Any, tokens: Any, kind: str, chunk_tokens: int) -> None:
    model, prompt = load(make(kind)), tokens(1, 23)
    with torch.no_grad():
        expected = model.hf(input_ids=prompt).logits[0]
    starts, found = [], []

    def on_logits(start: int, logits: torch.Tensor) -> None:
        starts.append(start)
        found.append(logits)

    model.prefill(prompt[0].tolist(), chunk_tokens=chunk_tokens, on_logits=on_logits)
    assert starts == list(range(0, 23, chunk_tokens))
    assert max(len(each) for each in found) == min(chunk_tokens, 23)
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_prompt_of_no_tokens_is_an_empty_state_and_a_step_of_none_is_refused(make: Any) -> None:
    model = load(make("llama"))
    state = model.prefill([])
    assert state.num_tokens == 0
    with pytest.raises(UsageError, match="no tokens"):
        model.step(state, [])
    with pytest.raises(UsageError, match="at least 1"):
        model.prefill([3], chunk_tokens=0)


def test_a_mark_ahead_of_the_sequence_is_refused(make: Any) -> None:
    model = load(make("llama"))
    ahead = model.mark(model.prefill([3, 4, 5]))
    with pytest.raises(UsageError, match="fewer than the 3 of the mark"):
        model.rollback(model.prefill([3]), ahead)


def test_a_cache_that_nobody_knows_is_refused_a_mark_by_name(make: Any) -> None:
    class unknown(DynamicLayer):  # type: ignore[misc]
        pass

    model = load(make("llama"))
    state = model.prefill([3, 4])
    state.cache.layers[1] = unknown()
    with pytest.raises(
        NotReproducible, match=r"LlamaForCausalLM: the cache of layer 1 \(unknown\) cannot be rolled back"
    ):
        model.mark(state)
