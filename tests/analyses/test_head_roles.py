"""Roles are named where attention goes there by more than its reach; scores are the statistics' means."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from probe import discovery
from probe.analyses.measures.token_matches import by_distance_alone, matching_pairs
from probe.errors import UsageError
from tests.effects import head_roles as effects

head_roles = discovery.get("analyses", "head_roles")


def test_pairs_of_equal_tokens_are_counted_by_distance():
    tokens = np.random.default_rng(0).integers(0, 5, 60)
    i, j = np.indices((60, 60))
    edges = [0, 1, 2, 4, 8, 16, 32, 60]
    equal = tokens[:, None] == tokens
    wanted = [int((equal & (i - j >= a) & (i - j < b)).sum()) for a, b in pairwise(edges)]
    assert matching_pairs(tokens.tolist(), edges).tolist() == wanted


def test_attention_that_is_even_within_each_bin_hits_matches_as_often_as_is_said():
    tokens = np.random.default_rng(1).integers(0, 7, 70)
    generator, low = np.random.default_rng(2), [0, 1, 2, 4, 8, 16, 32, 64]
    i, j = np.indices((70, 70))
    weights = np.zeros((70, 70))
    for a, b in zip(low, [*low[1:], 128], strict=True):
        weights[(i - j >= a) & (i - j < b)] = generator.random()
    arrays = effects.statistics(weights[None, None], tokens)
    histogram = arrays["distance_histogram"][1][0, 0]
    duplicate, induction = by_distance_alone(histogram, low, tokens.tolist())
    assert duplicate == pytest.approx(arrays["match_mass"][1].mean())
    assert induction == pytest.approx(arrays["match_mass_by_induction"][1].mean())


def test_each_planted_head_gets_its_own_role_and_its_score_is_the_mean_attention():
    traces = effects.planted(0.97, 3)
    finding = head_roles(traces, lazy_window=32)
    rows = {(row["layer"], row["head"]): row for row in finding.records()}
    assert "previous token" in rows[0, 1]["roles"]
    assert "duplicate token" in rows[1, 0]["roles"]
    assert "induction" in rows[1, 2]["roles"]
    assert "streaming" in rows[1, 3]["roles"]
    again = [np.mean([token in t.sample.tokens[:at] for at, token in enumerate(t.sample.tokens)]) for t in traces]
    induction = np.mean(
        [t["match_mass_by_induction"].values[1, 2].mean() / a for t, a in zip(traces, again, strict=True)]
    )
    assert rows[1, 2]["induction"] == pytest.approx(induction, rel=1e-3)
    before = np.mean([t["offset_mass"].values[0, 1, 1] / (effects.LENGTH + 0 - 1) for t in traces])
    assert rows[0, 1]["previous_token"] == pytest.approx(before, rel=1e-3)
    first = 4 * effects.RECENT
    streaming = np.mean([(t["sink_mass"] + t["recent_mass_recent_32"]).values[1, 3, first:].mean() for t in traces])
    assert rows[1, 3]["streaming"] == pytest.approx(streaming, rel=1e-3)


def test_a_lazy_layer_is_one_whose_last_query_looks_at_both_ends():
    traces = effects.planted(0.0, 0)
    wanted = np.mean([
        (t["sink_mass"].values[:, :, effects.LENGTH - 1] + t["recent_mass_recent_32"].values[:, :, effects.LENGTH - 1])
        for t in traces
    ], axis=0).mean(axis=1)  # fmt: skip
    finding = head_roles(traces, lazy_window=32)
    lazy = {d.name: d.value for d in finding.details if d.name.startswith("lazy layers")}
    assert (
        lazy["lazy layers at a window of 32, above 0.65 (the threshold for Llama 2, at 1024)"]
        == 100 * (wanted > 0.65).mean()
    )
    figure = next(f for f in finding.figures if f.name == "lazy_layers")
    np.testing.assert_allclose(figure.plotly["data"][0]["y"], wanted, rtol=1e-3)


def test_a_window_that_leaves_only_recent_keys_makes_no_recency_head():
    generator = np.random.default_rng(0)
    traces = []
    for index in range(8):
        tokens = generator.integers(0, 50, effects.LENGTH)
        weights = effects.attention(generator, 0.5)
        i, j = np.indices((effects.LENGTH, effects.LENGTH))
        weights *= i - j < 4
        weights /= weights.sum(-1, keepdims=True)
        made = effects.trace(index, weights, tokens)
        made.dataset["received_mass_num_queries"][:] = np.minimum(4, effects.LENGTH - np.arange(effects.LENGTH))
        traces.append(made)
    finding = head_roles(traces, lazy_window=32)
    assert finding.verdict == "refuted"
    assert all(row["recency"] == pytest.approx(1) and row["could_stream"] for row in finding.records())


def test_prompts_that_are_too_short_or_too_few_are_said():
    traces = effects.planted(0.97, 0)
    finding = head_roles(traces, recent=64)
    assert finding.measured.value is None
    assert "four times the 64 recent tokens" in finding.claim
    few = head_roles(traces[:3], lazy_window=32)
    assert few.verdict == "inconclusive"
    assert any("too few" in note for note in few.notes)
    long = head_roles(traces)
    assert any("lazy" in note for note in long.notes)


def test_it_asks_for_both_matches_and_both_windows():
    needs = head_roles.needs(recent=16, lazy_window=128)
    assert needs["match_mass"] == [{}, {"by": "induction"}]
    assert needs["recent_mass"] == [{"recent": 16}, {"recent": 128}]
    with pytest.raises(UsageError):
        head_roles([], threshold=1.5)


def test_the_shape_that_retains_most_is_told_where_it_was_captured():
    traces = effects.planted(0.97, 0)
    plain = head_roles(traces, lazy_window=32)
    assert all(row["best_shape"] is None for row in plain.records())
    generator = np.random.default_rng(0)
    names = {"a_shape": "_a_shape", "vertical_and_slash": "", "block_sparse": "_block_sparse"}
    values = {name: generator.random((len(traces), *effects.SHAPE)) for name in names}
    for index, trace in enumerate(traces):
        for name, end in names.items():
            # The first layer sees a window.
            values[name][index, 0] = np.nan
            trace.dataset[f"sparse_shape_mass{end}"] = (("layer", "head"), values[name][index])
    finding = head_roles(traces, lazy_window=32)
    assert finding.verdict == plain.verdict
    told = {"a_shape": "A-shape", "vertical_and_slash": "vertical and slash", "block_sparse": "block-sparse"}
    counts = dict.fromkeys(told.values(), 0)
    for row in finding.records():
        at = row["layer"], row["head"]
        if row["layer"] == 0:
            assert row["best_shape"] is row["a_shape"] is None
            continue
        means = {name: values[name][(slice(None), *at)].mean() for name in names}
        for name, mean in means.items():
            assert row[name] == pytest.approx(mean, rel=1e-3)
        best = told[max(means, key=lambda name: means[name])]
        assert row["best_shape"] == best
        counts[best] += 1
    for shape, count in counts.items():
        share = next(d.value for d in finding.details if d.name.endswith(f"one key in eight: {shape}"))
        assert share == pytest.approx(100 * count / effects.SHAPE[1])
