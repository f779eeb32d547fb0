"""A trace says which scan made it, and which heads held NaN or infinity; the others' statistics are intact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import probe

TOKENS = [i % 50 for i in range(40)]
STATISTICS = ["entropy", "received_mass", "key_norm", "max_probability"]


def make_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("chunk_tokens", [7, 2048])
def test_a_bad_head_is_counted_and_located_and_the_others_are_intact(value: float, chunk_tokens: int) -> None:
    clean = probe.trace(make_model(), TOKENS, statistics=STATISTICS, chunk_tokens=chunk_tokens)
    model = make_model()
    # The last of the layers, or those after it would be bad as a whole.
    model.model.layers[1].self_attn.q_proj.weight.data[8] = value
    trace = probe.trace(model, TOKENS, statistics=STATISTICS, chunk_tokens=chunk_tokens)
    assert trace.outcome is not None
    assert "NaN or infinity" in str(trace.outcome.failed)
    (bad,) = trace.non_finite
    assert (bad["layer"], bad["side"], bad["head"], bad["first_position"]) == (1, "query", 1, 0)
    # Rotation mixes the bad channel with one other.
    assert bad["num_values"] in (trace.num_queries, 2 * trace.num_queries)
    for name in ("entropy", "received_mass"):
        here, there = trace[name].values, clean[name].values[..., : trace[name].shape[-1]]
        np.testing.assert_allclose(here[0], there[0], atol=1e-5)
        np.testing.assert_allclose(here[1, [0, 2, 3]], there[1, [0, 2, 3]], atol=1e-5)
        assert np.isnan(here[1, 1]).any()
    assert clean.non_finite == []


def test_a_trace_says_which_scan_made_it() -> None:
    assert probe.trace(make_model(), TOKENS, statistics=["entropy"]).provenance["engine"] == "blocked"
    assert probe.trace(make_model(), TOKENS, statistics=["key_norm"]).provenance["engine"] is None
