"""Every family's states, gates and hidden attention are those of its recurrence, written out from the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probe

STATE = ["state_mean", "state_variance", "state_max", "state_norm"]
FAMILIES = [
    *("mamba", "falcon_mamba", "jamba", "zamba", "mamba2", "nemotron_h", "zamba2", "bamba", "falcon_h1"),
    *("granitemoehybrid", "qwen3_next", "qwen3_5_text", "kimi_linear", "minimax", "recurrent_gemma", "rwkv", "xlstm"),
]
EVERY = 8


def of_states(states: torch.Tensor) -> dict[str, torch.Tensor]:
    entries = states.flatten(2)
    return {
        "state_mean": entries.mean(-1),
        "state_variance": entries.var(-1, unbiased=entries.shape[-1] > 1),
        "state_max": entries.abs().amax(-1),
        "state_norm": entries.square().sum(-1).sqrt(),
    }


def assert_close(name: str, actual: np.ndarray, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    wanted = expected.numpy()
    assert actual.shape == wanted.shape, name
    off = np.abs(actual - wanted).max() / max(np.abs(wanted).max(), 1e-30)
    assert off <= tolerance, f"{name} is off by {off:.2g} of its largest"


@pytest.mark.parametrize("length", [1, 33])
@pytest.mark.parametrize("kind", FAMILIES)
def test_statistics_are_those_of_the_recurrence(kind, length, make, tokens, first_steps):
    model, ids = make(kind), tokens(length)
    steps = first_steps(model, ids)
    asked = [*({name: {"every": EVERY}} for name in STATE), "decay", "input_gate"]
    trace = probe.trace(model, ids, statistics=[*asked, "effective_attention", "effective_distance"])
    heads = steps.value.shape[1]
    assert trace["num_state_heads"].values[0] == heads
    found = {name: trace[name].values[0, :heads] for name in trace.dataset if "state_head" in trace[name].dims}

    states, _ = steps.run()
    positions = sorted({*range(EVERY - 1, length, EVERY), length - 1})
    assert trace[f"state_mean_every_{EVERY}"].coords["position"].values.tolist() == positions
    for name, expected in of_states(states[positions]).items():
        assert_close(name, found[f"{name}_every_{EVERY}"], expected.T)
    assert_close("decay", found["decay"], steps.decay.mean((-2, -1)).T)
    assert_close("input gate", found["input_gate"], steps.gate.mean(-1).T)

    hidden = steps.attention()[:, -1:]
    assert_close("effective attention", found["effective_attention"], hidden.mean(-1))
    magnitude = hidden.abs().mean(-1)
    assert_close("its magnitude", found["effective_attention_magnitude"], magnitude)
    distance = (magnitude * torch.arange(length - 1, -1, -1)).sum(-1) / magnitude.sum(-1)
    assert_close("effective distance", found["effective_distance"], distance)


@pytest.mark.parametrize("kind", ["mamba2", "mamba", "qwen3_next", "kimi_linear", "rwkv"])
def test_the_last_row_of_the_hidden_attention_gives_what_is_read(kind, make, tokens, first_steps):
    model, ids = make(kind), tokens(21)
    steps = first_steps(model, ids)
    _, read = steps.run()
    hidden = steps.attention()[:, -1]
    assert torch.allclose(torch.einsum("hkp,khp->hp", hidden, steps.value), read[-1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.02, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["mamba2", "jamba", "qwen3_next", "rwkv", "minimax"])
def test_rounding_is_not_taken_for_a_disagreement(kind, dtype, scale, make, tokens):
    model = make(kind, initializer_range=scale).to(dtype)
    assert probe.trace(model, tokens(150), statistics="state_norm", chunk_tokens=60).dataset


@pytest.mark.parametrize("kind", ["mamba2", "falcon_mamba", "qwen3_next", "rwkv", "minimax", "recurrent_gemma"])
def test_in_bfloat16_it_is_the_model_s_own_recurrence_in_float32(kind, make, tokens, first_steps):
    model, ids = make(kind).to(torch.bfloat16), tokens(40)
    steps = first_steps(model, ids)
    trace = probe.trace(model, ids, statistics=["state_norm", "decay"])
    heads = steps.value.shape[1]
    assert_close(
        "norm", trace["state_norm"].values[0, :heads, -1:], steps.run()[0][-1:].flatten(2).norm(dim=-1).T, 0.05
    )
    assert_close("decay", trace["decay"].values[0, :heads], steps.decay.mean((-2, -1)).T, 0.02)
