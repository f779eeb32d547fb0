"""What an intervention does to attention is the same through Hugging Face, TransformerLens and nnsight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe.hooks.block_attention import block_attention
from probe.hooks.cap_logits import cap_logits
from probe.hooks.limit_distance import limit_distance
from probe.hooks.patch_heads import patch_heads
from probe.hooks.scale_heads import scale_heads
from probe.hooks.temperature import temperature
from probe.hooks.together import together
from tests.backends.conftest import WAYS, made
from tests.backends.test_one_trace import assert_equal, sample

TOKENS = torch.tensor([np.random.default_rng(5).integers(1, 90, 61).tolist()])
INTERVENTIONS = {
    "gpt2": limit_distance(12, num_first=3, limit=None),
    "llama": limit_distance(12, num_first=3),
    "heads": together(
        [
            scale_heads([(0, 1)], 0.5),
            block_attention((5, 12), (20, 50)),
            patch_heads([(1, 2)], range(1, 60)),
            patch_heads([(1, 0)], range(1, 60), "pattern", queries=(9, 40)),
        ]
    ),
    "two": together([limit_distance(12, num_first=3, layers=[1]), temperature(0.5, heads=[(0, 1), (1, 2)])]),
}
STATISTICS = ["log_sum_exp", "entropy", "max_logit", "mean_distance", "received_mass", "span_mass", "loss"]


def logits(model: Any, given: Any, *entered: Any) -> torch.Tensor:
    """The logits of a forward of the transformers model inside, the interventions entered on what the user has."""
    with torch.no_grad():
        if not entered:
            return model.hf(TOKENS).logits
        with entered[0](given):
            return model.hf(TOKENS).logits


@pytest.mark.parametrize("way", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_the_logits_are_the_same(name: str, way: str) -> None:
    family, intervention = "gpt2" if name == "gpt2" else "llama", INTERVENTIONS[name]
    plain = probe.load(made(family))
    expected, before = logits(plain, plain, intervention), logits(plain, plain)
    assert not torch.allclose(expected, before, atol=1e-3)
    given = WAYS[way](made(family))
    loaded = probe.load(given)
    for entered_on in (given, loaded):
        torch.testing.assert_close(logits(loaded, entered_on, intervention), expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(logits(loaded, given), before, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("way", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_the_librarys_own_forward_is_changed_too(name: str, way: str) -> None:
    family, intervention = "gpt2" if name == "gpt2" else "llama", INTERVENTIONS[name]
    plain = probe.load(made(family))
    expected = logits(plain, plain, intervention)
    given = WAYS[way](made(family))
    with torch.no_grad(), intervention(given):
        if way == "transformer_lens":
            actual = given(TOKENS)
        else:
            with given.trace(TOKENS):
                actual = given.output.logits.save()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("way", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_trace_taken_meanwhile_is_the_same(name: str, way: str) -> None:
    family, intervention = "gpt2" if name == "gpt2" else "llama", INTERVENTIONS[name]
    asked: dict[str, Any] = {"statistics": STATISTICS, "chunk_tokens": 16, "max_new_tokens": 3}
    plain = probe.load(made(family))
    with intervention(plain):
        expected = probe.trace(plain, sample(40), **asked)
    loaded = probe.load(WAYS[way](made(family)))
    untouched = probe.trace(loaded, sample(40), **asked)
    with intervention(loaded):
        actual = probe.trace(loaded, sample(40), **asked)
    assert_equal(actual, expected)
    assert actual.outcome.response_tokens == expected.outcome.response_tokens
    assert not np.allclose(untouched["entropy"].values, actual["entropy"].values, atol=1e-3)
    assert_equal(probe.trace(loaded, sample(40), **asked), untouched, atol=0)


@pytest.mark.parametrize("way", ["transformer_lens", "nnsight"])
def test_what_contradicts_is_seen_through_a_wrapper(way: str) -> None:
    given = WAYS[way](made("llama"))
    refused = pytest.raises(probe.ProbeError, match="both set softcap")
    with cap_logits(5.0)(given), refused, cap_logits(3.0)(probe.load(given)):
        pytest.fail("it was entered")
