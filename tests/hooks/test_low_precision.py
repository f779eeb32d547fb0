"""Models in half precision: sums are taken in float32, so that statistics err less than the model's own attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import probe
from probe.hooks.models.huggingface import load


def measured(weights: Tensor) -> dict[str, np.ndarray]:
    """Statistics of attention weights [layer head query key] by their definitions, in float64."""
    weights = weights.double()
    length = weights.shape[-1]
    distance = (torch.arange(length)[:, None] - torch.arange(length)).double()
    found = {
        "entropy": torch.special.entr(weights).sum(-1),
        "max_probability": weights.amax(-1),
        "received_mass": weights.sum(-2),
        "mean_distance": (weights * distance).sum(-1),
        "sink_mass": weights[..., :4].sum(-1),
    }
    return {name: values.numpy() for name, values in found.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama-gqa", "gemma3", "gemma2-softcap", "gpt-neox"])
@pytest.mark.parametrize("length", [15, 129])
def test_statistics_err_less_than_eager_attention(
    make: Any, tokens: Any, attention: Any, kind: str, dtype: Any, length: int
) -> None:
    loaded = load(make(kind, "eager").to(dtype))
    prompt = tokens(length)
    with loaded.calls(attention), torch.no_grad():
        eager = torch.stack(loaded.hf(prompt[None], output_attentions=True, use_cache=False).attentions)[:, 0]
    matrices = attention.matrices(length)
    exact = measured(torch.stack([matrices[layer, 0] for layer in range(2)]))
    rounded = measured(eager)
    # One query more than the prompt would be decoded: the last token's is, and its row is the prompt's last.
    trace = probe.trace(loaded, prompt, statistics=list(exact), max_new_tokens=1, chunk_tokens=length)
    for name, expected in exact.items():
        found = np.asarray(trace[name], dtype=np.float64)
        allowed = 1.5 * np.abs(rounded[name] - expected).max()
        assert np.abs(found - expected).max() <= allowed, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_is_taken_in_float32(make: Any, tokens: Any, dtype: Any) -> None:
    hf, prompt = make("llama-gqa").to(dtype), tokens(40)
    trace = probe.trace(hf, prompt, statistics=["loss"], chunk_tokens=64)
    with torch.no_grad():
        logits = hf(prompt[None, :-1]).logits[0].double()
    expected = torch.nn.functional.cross_entropy(logits, prompt[1:], reduction="none").numpy()
    np.testing.assert_allclose(np.asarray(trace["loss"])[1:], expected, atol=3e-5)
