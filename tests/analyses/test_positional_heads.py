"""Positional heads are found where they were planted, and asked of models with rotary positions alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import probe
from probe.analyses.measures.rope_reading import rope_readings, wavelengths
from probe.analyses.positional_heads import positional_heads
from probe.errors import UsageError
from probe.selection import LeftOut
from tests.effects import positional_heads as effects


@pytest.fixture(scope="module")
def planted():
    return effects.planted(1.0, 0)


def test_planted_heads_are_found_with_both_variants(planted):
    finding = positional_heads(planted, trained_length=effects.TRAINED)
    assert finding.verdict == "supported"
    assert effects.found(finding) == effects.TRUTH
    assert finding.measured.n == effects.NUM_PROMPTS // 2
    # What goes with the query's place alone, shuffled distances keep: the queries' slow channel grows along the text.
    assert finding.measured.interval.low > max(0.1, finding.control.value)
    assert finding.comparison.interval.low > 0
    assert "own operational definition" in finding.source
    # The slow channels carry the planted heads' logits: variant 2 agrees.
    rows = {(row["layer"], row["head"]): row for row in finding.records()}
    assert min(rows[at]["by_logit"] for at in effects.TRUTH) > max(
        row["by_logit"] for at, row in rows.items() if at not in effects.TRUTH
    )


def test_it_suggests_the_top_of_all_heads(planted):
    finding = positional_heads(planted, trained_length=effects.TRAINED, top=25)
    assert {tuple(at) for at in finding.suggests[0].fields["heads"]} == effects.TRUTH


def test_low_pairs_are_those_whose_wavelength_is_above_the_training_length(planted):
    # 2π·(1, 10, 100, 1000) tokens.
    np.testing.assert_allclose(wavelengths(effects.POSITIONS, 0), 2 * np.pi * np.array([1, 10, 100, 1000]), rtol=1e-12)
    trace = planted[0]
    for trained, first in ((60, 1), (256, 2), (700, 3), (5_000, 3)):
        [reading] = rope_readings([trace], trained, 64, LeftOut())
        np.testing.assert_allclose(reading.by_distance, trace["rope_correlation_distance"].values[..., first])
        logit = trace["rope_correlation"].values.astype(float)
        np.testing.assert_allclose(reading.by_logit, logit[..., first:].mean(-1) - logit[..., :first].mean(-1))
        share = trace["rope_share"].values.astype(float)[..., first:].sum(-1)
        np.testing.assert_allclose(reading.low_share, share, rtol=1e-6)


@pytest.mark.parametrize(
    ("trained", "reason"), [(10_000, "no rotary pair has a wavelength above the 10,000"), (3, "all rotary pairs")]
)
def test_a_training_length_that_leaves_one_kind_alone_is_inconclusive(planted, trained, reason):
    finding = positional_heads(planted, trained_length=trained)
    assert finding.verdict == "inconclusive"
    assert reason in " ".join(finding.notes)
    assert "RoPE" in finding.claim


def test_the_configurations_training_length_is_the_default(planted):
    given = positional_heads(planted, trained_length=256)
    assert positional_heads(planted).measured == given.measured
    unknown = [dataclasses.replace(trace, provenance={}) for trace in planted]
    assert "give `trained_length`" in positional_heads(unknown).claim


def test_one_half_of_a_run_is_halved_again(planted):
    def in_half(trace, half):
        sample = dataclasses.replace(trace.sample, facts={**trace.sample.facts, "half": half})
        return dataclasses.replace(trace, sample=sample)

    whole = positional_heads(planted, half="find", trained_length=256)
    assert whole.measured.n == 0
    finding = positional_heads([in_half(trace, "find") for trace in planted], half="find", trained_length=256)
    assert effects.found(finding) == effects.TRUTH
    assert finding.measured.n == effects.NUM_PROMPTS // 2


def test_too_few_prompts_are_no_verdict(planted):
    assert positional_heads(planted[:4]).verdict == "inconclusive"
    assert positional_heads(planted[:1]).verdict == "inconclusive"


@pytest.mark.parametrize("wrong", [{"margin": 1.0}, {"top": 0}, {"nearest": -1}])
def test_impossible_parameters_are_refused(planted, wrong):
    with pytest.raises(UsageError, match="expected"):
        positional_heads(planted, **wrong)


def test_another_nearest_distance_is_read_where_it_was_captured():
    model = probe.load("needle")
    prompts = list(probe.needle(lengths=(128,), depths=(0.5,), samples=6, seed=77).build(model.tokenizer))
    statistics = ["rope_share", {"rope_correlation": {"nearest": 32}}]
    traces = [probe.trace(model, each, statistics=statistics, max_new_tokens=1) for each in prompts]
    finding = positional_heads(traces, trained_length=256, nearest=32)
    # Layers of window 2 never look so far.
    assert {row["layer"] for row in finding.records()} == {2}
    assert "32 heads never see" in " ".join(finding.notes)
