"""The aligned temperature, against a root that scipy finds on dense float64 attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from probe.errors import UsageError
from probe.hooks.align_attention import Sharpness, align_attention
from probe.hooks.temperature import temperature
from probe.sample import Sample
from tests.interventions.dense_model import VOCABULARY, causal, dense_logits, plain, tokens

SHORT, LONG = [tokens(40, 1), tokens(40, 2)], [tokens(150, 3), tokens(150, 4)]


def one_layer() -> Any:
    """A layer's logits do not depend on its own temperature."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def sharpness(model: Any, rows: list[list[int]], tau: float, measure: Sharpness, last: int) -> float:
    found: list[Tensor] = []

    def seeing(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        probability = causal(query @ key.transpose(1, 2) * scale / tau).softmax(-1)[:, -last:]
        entropy = torch.special.entr(probability).sum(-1)
        found.append(entropy if measure == "entropy" else probability.amax(-1))
        return plain(layer, query, key, value, scale)

    for row in rows:
        dense_logits(model, row, seeing)
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("measure", ["max_probability", "entropy"])
@pytest.mark.parametrize("swapped", [False, True])
def test_it_is_the_root_of_the_dense_measure(measure: Sharpness, swapped: bool) -> None:
    model = one_layer()
    short, long = (LONG, SHORT) if swapped else (SHORT, LONG)
    wanted = sharpness(model, short, 1.0, measure, 16)
    expected = brentq(lambda tau: sharpness(model, long, tau, measure, 16) - wanted, 0.125, 8.0)
    found = align_attention(model, short, long, measure=measure, last_queries=16)
    assert found.tau == pytest.approx(expected, rel=2e-4)
    assert (found.tau > 1) == swapped


def test_two_sets_of_like_sharpness_need_no_temperature() -> None:
    samples = [Sample("a", tuple(row)) for row in SHORT]
    assert align_attention(one_layer(), samples, SHORT) == temperature(1.0)


def test_layers_go_with_the_temperature() -> None:
    assert align_attention(one_layer(), SHORT, LONG, layers=[0]).layers == (0,)


def test_what_cannot_be_matched_is_refused() -> None:
    """A first query has one key: its attention is 1 at every temperature."""
    model = one_layer()
    with pytest.raises(UsageError, match=r"samples_long do not come to the max_probability.*from 0.125 to 1"):
        align_attention(model, [[3]], [tokens(150)], last_queries=1)
    with pytest.raises(UsageError, match="samples_short needs samples of at least last_queries"):
        align_attention(model, [[1, 2]], LONG)
    with pytest.raises(UsageError, match="samples_long needs samples"):
        align_attention(model, SHORT, [])
    with pytest.raises(UsageError, match="measure is 'peak'"):
        align_attention(model, SHORT, LONG, measure="peak")  # type: ignore[arg-type]


def test_the_model_is_as_before() -> None:
    model, ids = one_layer(), torch.tensor([tokens(30)])
    with torch.no_grad():
        before = model(ids).logits
        align_attention(model, SHORT, LONG)
        assert torch.equal(model(ids).logits, before)
