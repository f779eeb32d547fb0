"""Three ways to have a model, one trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe.hooks.ablate_heads import ablate_heads
from probe.sample import Sample, Span
from tests.backends.conftest import CONFIGS, WAYS, made

STATISTICS = [
    "log_sum_exp", "entropy", "max_probability", "max_logit", "sink_mass", "recent_mass", "offset_mass",
    "match_mass", "mean_distance", "distance_histogram", "received_mass", "attention_map", "span_mass", "top_keys",
    "output_norm_share", "key_norm", "value_norm", "key_channel_energy", "residual_norm", "residual_max", "loss",
]  # fmt: skip


def sample(length: int) -> Sample:
    tokens = np.random.default_rng(length).integers(1, 90, length).tolist()
    spans = (Span("first", 0, max(1, length // 3)),)
    return Sample("random", tuple(tokens), spans, answer_tokens=(5, 7))


def assert_equal(actual: Any, expected: Any, *, atol: float = 2e-5) -> None:
    assert set(actual.dataset.data_vars) == set(expected.dataset.data_vars)
    for name, array in expected.dataset.data_vars.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(
                actual.dataset[name].values, array.values, rtol=2e-4, atol=atol, equal_nan=True, err_msg=str(name)
            )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", CONFIGS)
def test_every_statistic_is_the_same(family: str, way: str) -> None:
    asked = {"statistics": STATISTICS, "chunk_tokens": 32, "max_new_tokens": 3}
    expected = probe.trace(probe.load(made(family)), sample(70), **asked)
    loaded = probe.load(WAYS[way](made(family)))
    actual = probe.trace(loaded, sample(70), **asked)
    assert_equal(actual, expected)
    assert actual.outcome.response_tokens == expected.outcome.response_tokens
    np.testing.assert_allclose(
        actual.outcome.answer_log_probability, expected.outcome.answer_log_probability, atol=1e-4
    )
    assert loaded.num_heads == [4, 4]
    assert actual.provenance["backend"] == way.replace("rehearsed_on_ndif", "nnsight")
    assert actual.provenance["positions"] == expected.provenance["positions"]
    assert {"transformer_lens", "nnsight"} & set(actual.provenance["versions"])


@pytest.mark.parametrize("way", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("length", [2, 15, 129])
def test_lengths_and_chunks_change_nothing(way: str, length: int) -> None:
    expected = probe.trace(probe.load(made("llama")), sample(length), statistics=STATISTICS)
    loaded = probe.load(WAYS[way](made("llama")))
    for chunk_tokens in (7, 1000):
        assert_equal(probe.trace(loaded, sample(length), statistics=STATISTICS, chunk_tokens=chunk_tokens), expected)


@pytest.mark.parametrize("way", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_seen(way: str, side: str) -> None:
    lengths, longest = (9, 20), 20
    rows = [torch.arange(1, length + 1) for length in lengths]
    pad = [(longest - length, 0) if side == "left" else (0, longest - length) for length in lengths]
    tokens = torch.stack([torch.nn.functional.pad(row, width) for row, width in zip(rows, pad, strict=True)])
    mask = (tokens > 0).long()

    def calls(model: Any) -> dict[tuple[int, int, str], Any]:
        found = {}
        with torch.no_grad(), model.calls(lambda s, call: found.update({(s, call.layer, call.phase): call})):
            model.hf(input_ids=tokens, attention_mask=mask)
        return found

    expected, actual = calls(probe.load(made("llama"))), calls(probe.load(WAYS[way](made("llama"))))
    assert set(actual) == set(expected)
    for where, call in expected.items():
        assert (actual[where].query_start, actual[where].num_keys) == (call.query_start, call.num_keys)
        torch.testing.assert_close(actual[where].query, call.query, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(actual[where].key, call.key, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("form", ["zero", "mean", "uniform"])
def test_an_ablation_does_the_same(way: str, form: Any) -> None:
    reference = [[3, 1, 4, 1, 5, 9, 2, 6]]
    ablation = ablate_heads([(0, 1), (1, 3)], form=form, reference=reference if form == "mean" else None)
    expected_model, given = probe.load(made("qwen3")), WAYS[way](made("qwen3"))
    loaded = probe.load(given)
    asked = {"statistics": ["entropy", "mean_distance", "loss"], "chunk_tokens": 16}
    with ablation(expected_model):
        expected = probe.trace(expected_model, sample(40), **asked)
    plain = probe.trace(loaded, sample(40), **asked)
    # The object that the user has will do, too.
    with ablation(given):
        actual = probe.trace(loaded, sample(40), **asked)
    assert_equal(actual, expected)
    assert not np.allclose(plain["loss"].values[1:], actual["loss"].values[1:], atol=1e-4)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_the_specimen_by_name(backend: str) -> None:
    pytest.importorskip(backend)
    asked = {"statistics": ["entropy", "received_mass", "loss"], "max_new_tokens": 2}
    text = "the code of red is 3 7 1 . " * 4
    expected = probe.trace(probe.load("needle"), text, **asked)
    loaded = probe.load("needle", backend=backend)
    actual = probe.trace(loaded, text, **asked)
    assert actual.sample.tokens == expected.sample.tokens
    assert_equal(actual, expected, atol=1e-4)
    assert actual.outcome.response == expected.outcome.response
    assert loaded.name == "needle"
