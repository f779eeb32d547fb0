from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from probe.analyses.measures.depth_indices import position_indices
from probe.analyses.position_bias import position_bias
from probe.errors import UsageError

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def grid(sample, trace, profiles, num=12, seed=0, **fields):
    """Prompts whose chance of a right answer is the profile's at their length and depth."""
    generator = np.random.default_rng(seed)
    return [
        trace(sample(i, length=length, depth=depth), correct=bool(generator.random() < rate), **fields)
        for length, profile in profiles.items()
        for depth, rate in zip(DEPTHS, profile, strict=True)
        for i in range(num)
    ]


def test_indices_of_the_published_profile():
    # Liu et al. 2023, GPT-3.5-Turbo, 20 documents, positions 1, 5, 10, 15, 20.
    value = position_indices(np.array([75.8, 57.2, 53.8, 55.4, 63.2]))
    assert value["U"] == pytest.approx(15.7)
    assert value["primacy"] == pytest.approx(22.0)
    assert value["recency"] == pytest.approx(9.4)
    assert value["gap"] == pytest.approx(22.0)


def test_indices_of_two_depths_are_not_made_up():
    value = position_indices(np.array([80.0, 60.0]))
    assert value["gap"] == pytest.approx(20.0)
    assert np.isnan(value["U"])


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ((1, 0.3, 0.1, 0.3, 1), "the middle is lost"),
        ((0, 0.1, 0.6, 1, 1), "the beginning is lost"),
        ((1, 1, 0.6, 0.1, 0), "the end is lost"),
    ],
)
def test_a_planted_bias_is_found_and_named(sample, trace, profile, words):
    finding = position_bias(grid(sample, trace, {64: (1,) * 5, 128: profile, 256: (0,) * 5}))
    assert finding.verdict == "supported"
    assert "128 tokens" in finding.claim
    assert words in finding.claim
    assert finding.measured.value > 70
    assert finding.comparison.p_value < 0.001
    gaps = {m.name: m.value for m in finding.details}
    assert gaps["gap at 64 tokens"] == 0
    assert gaps["gap at 256 tokens"] == 0


def test_flat_profiles_stay_quiet_in_most_seeds(sample, trace):
    found = [
        position_bias(grid(sample, trace, {64: (1,) * 5, 128: (0.5,) * 5, 256: (0.3,) * 5}, seed=seed)).verdict
        for seed in range(20)
    ]
    # At p < 0.05 one of twenty is expected by chance.
    assert found.count("supported") <= 3


def test_weak_effects_of_several_lengths_add_up(sample, trace):
    weak = (0.3, 0.4, 0.5, 0.6, 0.75)
    finding = position_bias(grid(sample, trace, dict.fromkeys((128, 256, 512, 1024), weak), num=8, seed=3))
    assert finding.comparison.n == 160
    assert finding.verdict == "supported"


def counted(sample, trace, counts, num=4, **fields):
    """Prompts of which so many are right, by length and depth."""
    return [
        trace(sample(i, length=length, depth=depth), correct=i < right, **fields)
        for length, profile in counts.items()
        for depth, right in zip(DEPTHS, profile, strict=True)
        for i in range(num)
    ]


@pytest.mark.parametrize(
    ("num", "counts"),
    [
        (4, {256: (4,) * 5, 512: (0, 0, 3, 4, 4), 1024: (0, 0, 0, 1, 2)}),
        (2, {256: (2,) * 5, 512: (0, 0, 1, 2, 2), 1024: (0, 0, 0, 0, 2)}),
    ],
)
def test_the_shipped_casebook_loses_the_beginning(sample, trace, num, counts):
    finding = position_bias(counted(sample, trace, counts, num))
    assert finding.verdict == "supported"
    assert finding.headline == "The beginning is lost at 512 and 1,024 tokens"
    assert "Over the lengths 512 and 1,024" in finding.claim
    assert f"0 of {2 * num} are right with the needle at depth 0" in finding.claim
    assert f"n = {10 * num} prompts" in finding.claim
    assert finding.measured.n == finding.comparison.n == finding.control.n == 10 * num


def test_an_effect_at_other_lengths_lends_no_shape_to_noise_at_one(sample, trace):
    late = (0.1, 0.1, 0.2, 0.6, 0.9)
    for seed in range(15):
        finding = position_bias(grid(sample, trace, {512: (0.5,) * 5, 1024: late, 2048: late}, seed=seed))
        assert finding.headline == "The beginning is lost at 512, 1,024 and 2,048 tokens"
        assert finding.comparison.n == finding.measured.n == 180


def test_an_effect_at_one_length_is_found_beside_a_flat_one(sample, trace):
    finding = position_bias(counted(sample, trace, {512: (4,) * 5, 1024: (0, 0, 2, 8, 8)}, 8))
    assert finding.verdict == "supported"
    assert "the beginning is lost" in finding.claim


def test_nulls_are_supported_no_more_often_than_the_test_allows(sample, trace):
    null = {256: (1,) * 5, 512: (0.5,) * 5, 1024: (0.2,) * 5}
    findings = [position_bias(grid(sample, trace, null, num=4, seed=seed)) for seed in range(150)]
    # 99 % of binomial(150, 0.01) lie at or below 5, 95 % of binomial(150, 0.05) at or below 12.
    assert sum(finding.verdict == "supported" for finding in findings) <= 5
    assert sum(finding.measured.interval.low > 0 for finding in findings) <= 12
    assert not any(finding.verdict == "refuted" for finding in findings)


def test_depths_that_no_two_lengths_share_are_held_against_their_own_length(sample, trace):
    # Flat at both lengths, one easy and one hard: the raw accuracies by depth would differ by 60 points.
    traces = [
        trace(sample(i, length=length, depth=depth), correct=i < right)
        for length, depths, right in ((512, (0.0, 0.5), 8), (1024, (0.75, 1.0), 2))
        for depth in depths
        for i in range(10)
    ]
    finding = position_bias(traces)
    assert finding.measured.value == pytest.approx(0)
    assert finding.verdict == "inconclusive"


def test_no_difference_needs_many_prompts(sample, trace):
    flat = [trace(sample(i, length=64, depth=depth), correct=i % 2 == 0) for depth in (0.0, 1.0) for i in range(1000)]
    finding = position_bias(flat)
    assert finding.verdict == "refuted"
    assert "no difference of more than 10 points" in finding.claim


def test_the_loss_shows_what_a_ceiling_hides(sample, trace):
    traces = [
        trace(sample(i, length=64, depth=depth), loss=0.01 * (i + 1) * (10 if depth == 0.5 else 1))
        for depth in DEPTHS
        for i in range(6)
    ]
    finding = position_bias(traces)
    assert finding.measured.value is None
    assert any("loss" in note and "p = 0.00" in note for note in finding.notes)


@pytest.mark.parametrize(("num", "said"), [(1, "n = 1 prompt)"), (3, "n = 3 prompts)")])
def test_one_depth_is_said_in_plain_words(sample, trace, num, said):
    claim = position_bias([trace(sample(i), correct=i > 0) for i in range(num)]).claim
    assert "same depth" in claim
    assert said in claim


@pytest.mark.parametrize(("rate", "words"), [(1.0, "every answer is right"), (0.0, "every answer is wrong")])
def test_a_floor_or_a_ceiling_shows_nothing_and_says_so(sample, trace, rate, words):
    finding = position_bias(grid(sample, trace, {64: (rate,) * 5}))
    assert finding.measured.value is None
    assert finding.verdict == "inconclusive"
    assert words in finding.claim


def test_intervals_of_cells_are_exact(sample, trace):
    rows = position_bias(grid(sample, trace, {64: (1,) * 5}, num=10)).records()
    # Clopper-Pearson of 10 in 10: (alpha / 2) ** (1 / 10).
    assert rows[0]["accuracy_low"] == pytest.approx(0.025 ** (1 / 10), rel=1e-3)
    assert rows[0]["accuracy_high"] == 1.0


def test_attention_to_the_needle_is_that_of_the_first_row_and_the_heads_asked_for(sample, trace):
    mass = np.zeros((2, 3, 4, 2))
    mass[1, 2, 0, 0] = 0.9
    mass[:, :, 1:, 0] = 0.5
    made = trace(sample(0), arrays={"span_mass": (("layer", "head", "row", "span"), mass)})
    made.dataset = made.dataset.assign_coords(span=["needle", "question"])
    row = position_bias([made]).records()[0]
    assert row["attention_to_needle"] == pytest.approx(0.9 / 6)
    assert row["attention_of_strongest_head"] == pytest.approx(0.9)
    assert position_bias([made], heads=[[1, 2]]).records()[0]["attention_to_needle"] == pytest.approx(0.9)
    with pytest.raises(UsageError, match="7"):
        position_bias([made], heads=[[7, 0]])


def test_failures_and_nan_are_counted_not_averaged(sample, trace):
    traces = grid(sample, trace, {128: (1, 1, 0, 1, 1)})
    traces.append(trace(sample(90, length=128, depth=0.5), failed="out of memory"))
    traces.append(trace(sample(91, length=128, depth=0.5), answer_log_probability=(float("nan"),) * 4))
    traces.append(trace(sample(92, length=128, depth=0.5), correct=None))
    finding = position_bias(traces)
    assert finding.measured.dropped == 3
    assert finding.measured.n == 60


def test_other_roles_do_not_mix_in(sample, trace):
    traces = grid(sample, trace, {128: (1, 1, 0, 1, 1)})
    absent = grid(sample, trace, {128: (0,) * 5}, role="needle_absent")
    assert position_bias([*traces, *absent]) == position_bias(traces)


def test_figures_are_valid_plotly_and_the_grid_counts_prompts(sample, trace):
    finding = position_bias(grid(sample, trace, {64: (1,) * 5, 128: (1, 0, 0, 0, 1)}))
    for figure in finding.figures:
        go.Figure(figure.plotly)
    cells = next(f for f in finding.figures if f.name == "needle_grid").plotly["data"][0]
    assert cells["text"][1] == ["12/12", "0/12"]
