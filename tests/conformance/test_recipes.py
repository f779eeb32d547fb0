"""The harness itself: what it makes, that it would see an error, and that nothing is left out of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from probe.conformance import ways
from probe.conformance.check import check, deviation
from probe.conformance.eager import eager_copy, eager_run
from probe.conformance.random_configs import random_recipes
from probe.conformance.random_model import random_model, recipe, recipes
from probe.conformance.recurrent import EVERY, states_by_step
from probe.errors import UsageError
from probe.hooks.attention import switch as attention_switch
from probe.kernels.statistic import names, parse

MUST = {
    *("llama", "llama3", "llama4_text", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "mistral", "mixtral", "gemma"),
    *("gemma2", "gemma3_text", "phi3", "gpt2", "gptj", "gpt_neox", "olmo2", "granite", "cohere", "falcon", "bloom"),
    *("mpt", "opt", "stablelm", "starcoder2", "glm4", "smollm3", "deepseek_v3", "gpt_oss", "mamba", "mamba2", "rwkv"),
    *("jamba", "zamba2", "falcon_h1", "nemotron_h", "qwen3_next", "t5"),
}


def test_what_people_use_is_tried() -> None:
    assert set(recipes()) >= MUST
    assert len(recipes()) >= 60
    with pytest.raises(UsageError, match="no architecture 'llama9' is tried; there are llama"):
        recipe("llama9")


def test_no_statistic_of_attention_is_left_out() -> None:
    captured = {parse(each).name() for each in [*ways.STATISTICS, *ways.OF_TOKENS]}
    kinds = {name: parse(name).kind for name in names() if name != "queries_and_keys"}
    # What rotary pairs add is computed of drawn pairs of tokens: tests/hooks/test_rotary_pairs.py.
    # What heads write for an answer rests on the path to the logits, against which tests/hooks hold it; what the last
    # queries give each key, and what sparse shapes of attention retain, is held against float64 in tests/kernels.
    elsewhere = {name for name in kinds if parse(name).needs_rotary_pairs or parse(name).needs_logit_direction}
    kinds = {name: kind for name, kind in kinds.items() if name not in elsewhere | {"window_mass", "sparse_shape_mass"}}
    assert {name for name, kind in kinds.items() if kind != "recurrence"} == captured


def test_tiny_models_are_tiny_and_the_same_each_time() -> None:
    first, second = random_model(recipe("gpt_oss")), random_model(recipe("gpt_oss"))
    assert sum(weight.numel() for weight in first.parameters()) < 1e5
    for name, weight in first.named_parameters():
        assert torch.equal(weight, dict(second.named_parameters())[name]), name
        # A bias of 0 would hide that it is forgotten.
        assert bool(weight.any()), name


def test_what_is_watched_in_eager_attention_is_its_arithmetic() -> None:
    """The softmax that was watched, over the product that was watched, gives what the model hands out."""
    copy = eager_copy(random_model(recipe("mistral")))
    run = eager_run(copy, {"input_ids": torch.arange(3, 30)[None]}, [(0, 27)])
    with torch.no_grad():
        handed_out = copy(input_ids=torch.arange(3, 30)[None], output_attentions=True).attentions
    for pattern, weights in zip(run.samples[0], handed_out, strict=True):
        np.testing.assert_allclose(pattern.probability, weights[0].double().numpy(), atol=1e-6)
        assert pattern.query is not None
        assert pattern.key is not None
        logit = pattern.query @ pattern.key.transpose(0, 2, 1) / np.sqrt(8)
        i, j = np.arange(27)[:, None], np.arange(27)[None, :]
        logit = np.where((i >= j) & (i - j < 7), logit, -np.inf)
        expected = np.exp(logit - logit.max(-1, keepdims=True))
        np.testing.assert_allclose(pattern.probability, expected / expected.sum(-1, keepdims=True), atol=1e-12)


def test_states_token_by_token_are_those_of_the_models_cache() -> None:
    """Mamba's recurrence in NumPy, from the weights alone."""
    copy = eager_copy(random_model(recipe("mamba")))
    tokens = np.random.default_rng(0).integers(3, 61, 20).tolist()
    states = states_by_step(copy, tokens)
    assert [len(each) for each in states.values()] == [len({*range(EVERY, 21, EVERY), 20})] * 2
    weights = {name: value.detach().numpy() for name, value in copy.named_parameters()}
    mixer = "backbone.layers.0.mixer."
    x = weights["backbone.embeddings.weight"][tokens]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + copy.config.layer_norm_epsilon)
    x = (x * weights["backbone.layers.0.norm.weight"]) @ weights[f"{mixer}in_proj.weight"].T
    x = x[:, : x.shape[1] // 2]
    kernel = weights[f"{mixer}conv1d.weight"][:, 0]
    padded = np.concatenate([np.zeros((kernel.shape[1] - 1, x.shape[1])), x])
    x = np.stack([(padded[t : t + kernel.shape[1]] * kernel.T).sum(0) for t in range(len(tokens))])
    x = x + weights[f"{mixer}conv1d.bias"]
    x = x / (1 + np.exp(-x))
    rank, size = copy.config.time_step_rank, copy.config.state_size
    parts = x @ weights[f"{mixer}x_proj.weight"].T
    step = parts[:, :rank] @ weights[f"{mixer}dt_proj.weight"].T + weights[f"{mixer}dt_proj.bias"]
    step = np.logaddexp(0, step)
    decay = -np.exp(weights[f"{mixer}A_log"])
    state = np.zeros_like(decay)
    for t in range(len(tokens)):
        written = step[t][:, None] * parts[t, rank : rank + size][None] * x[t][:, None]
        state = np.exp(step[t][:, None] * decay) * state + written
    np.testing.assert_allclose(states[0][-1].numpy().reshape(state.shape), state, rtol=1e-4, atol=1e-6)


class _off_by_one(attention_switch.verified_calls):
    def _verified(self, here: Any, *args: Any) -> Any:
        call = super()._verified(here, *args)
        return dataclasses.replace(call, window=call.window + 1) if call.window else call


def test_a_window_that_is_one_too_wide_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_switch, "verified_calls", _off_by_one)
    found = check(random_model(recipe("mistral")))
    verdicts = {way: outcome.verdict for way, outcome in found.outcomes.items()}
    # On a cache the toolkit itself sees that a key is missing.
    assert verdicts["padded"] == "wrong"
    assert "exact" not in verdicts.values()


def test_what_is_missing_on_one_side_is_no_agreement() -> None:
    assert deviation(np.array([1.0, np.nan]), np.array([1.0, 2.0])) == np.inf
    assert deviation(np.zeros(2), np.zeros(3)) == np.inf
    assert deviation(np.array([200.0, np.nan]), np.array([100.0, np.nan])) == 1.0


def test_random_configurations_are_the_same_for_a_seed_and_differ() -> None:
    first = [drawn for _, drawn in random_recipes(40, 3)]
    assert first == [drawn for _, drawn in random_recipes(40, 3)]
    assert first != [drawn for _, drawn in random_recipes(40, 4)]
    assert {"60", "80"} & {drawn["head_dim"] for drawn in first}
    assert len({drawn.get("rope") for drawn in first}) >= 5
