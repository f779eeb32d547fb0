from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest
from scipy import stats

from probe.analyses.lost_in_the_middle import lost_in_the_middle
from probe.analyses.measures.ends_and_middle import end_weights, fitted_curve, fitted_weights
from probe.analyses.measures.place_profile import holm

PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)


def counted(sample, trace, counts, num=20, **fields):
    """Prompts of which so many are right, by length and place."""
    return [
        trace(sample(i, length=length, depth=place), correct=i < right, **fields)
        for length, profile in counts.items()
        for place, right in zip(PLACES, profile, strict=True)
        for i in range(num)
    ]


def values(finding):
    return {each.name: each.value for each in finding.details}


@pytest.mark.parametrize("places", [(0, 0.5, 1), PLACES, (0, 0.21, 0.47, 0.74, 1), tuple(np.linspace(0, 1, 20))])
def test_the_fit_is_least_squares(places):
    generator = np.random.default_rng(3)
    profile = generator.random(len(places))
    # numpy's own polynomial fit, evaluated at both ends and between them.
    c, b, a = np.polyfit(places, profile, 2)
    first, middle, last = a, a + b / 2 + c / 4, a + b + c
    got = fitted_weights(places) @ profile
    assert got == pytest.approx([(first + last) / 2 - middle, first - middle, last - middle])
    assert got[0] == pytest.approx(c / 4)
    assert fitted_curve(places, profile, [0.3]) == pytest.approx(a + 0.3 * b + 0.09 * c)


def test_two_places_have_no_middle():
    with pytest.raises(ValueError, match="three"):
        fitted_weights([0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="three"):
        end_weights(2)


@pytest.mark.parametrize("num_places", [3, 5, 20])
def test_a_profile_that_only_rises_has_no_primacy(num_places):
    generator = np.random.default_rng(num_places)
    for _ in range(50):
        rising = np.sort(generator.beta(0.3, 0.3, num_places))
        u, primacy, recency = end_weights(num_places) @ rising
        assert primacy <= 1e-12
        assert recency >= -1e-12
        assert u == pytest.approx((primacy + recency) / 2)
        assert (end_weights(num_places) @ rising[::-1])[2] <= 1e-12


def test_the_published_profile_has_its_indices(sample, trace):
    # Liu et al. 2023, GPT-3.5-Turbo with 20 documents at places 1, 5, 10, 15, 20: of 500, to the nearest.
    right = (379, 286, 269, 277, 316)
    found = values(lost_in_the_middle(counted(sample, trace, {2048: right}, num=500)))
    assert found["U over the worst inner place, at 2,048 tokens"] == pytest.approx(15.7, abs=0.1)
    assert found["primacy over the worst inner place, at 2,048 tokens"] == pytest.approx(22.0, abs=0.1)
    assert found["recency over the worst inner place, at 2,048 tokens"] == pytest.approx(9.4, abs=0.1)
    assert found["gap over the worst inner place, at 2,048 tokens"] == pytest.approx(22.0, abs=0.1)


def test_a_lost_middle_is_found_from_the_length_on_where_it_is_lost(sample, trace):
    counts = {256: (20,) * 5, 512: (18,) * 5, 1024: (19, 12, 6, 12, 19), 2048: (18, 6, 2, 6, 18)}
    finding = lost_in_the_middle(counted(sample, trace, counts))
    assert finding.verdict == "supported"
    assert finding.headline == "The middle is lost from 1,024 tokens on"
    assert values(finding)["shortest length that loses the middle"] == 1024
    # 20 a place: 90 % at both ends, less (30 + 10 + 30) / 3.
    assert finding.measured.value == pytest.approx(90 - 70 / 3)
    assert finding.measured.n == 100
    assert finding.measured.interval.low > 10
    assert abs(finding.control.value) < 2
    assert "18 of 20 are right with the answer first, 18 of 20 with it last, 14 of 60 between" in finding.claim
    assert "at 512 tokens no U is seen" in finding.claim


def test_a_length_lost_between_others_is_not_said_to_be_the_first_of_all(sample, trace):
    counts = {512: (19, 10, 3, 10, 19), 1024: (10,) * 5}
    finding = lost_in_the_middle(counted(sample, trace, counts))
    assert finding.headline == "The middle is lost at 512 tokens"
    assert finding.measured.name.endswith("at 512 tokens")


@pytest.mark.parametrize("profile", [(2, 4, 8, 14, 20), (20, 14, 8, 4, 2), (0, 0, 0, 10, 20), (2, 14, 20, 14, 2)])
def test_a_slope_or_a_hump_is_no_u(sample, trace, profile):
    finding = lost_in_the_middle(counted(sample, trace, {512: profile}))
    assert finding.verdict == "refuted"
    assert "not ahead of the places between by more than 10 points" in finding.claim


def test_few_flat_prompts_tell_nothing_and_many_refute(sample, trace):
    few = lost_in_the_middle(counted(sample, trace, {512: (2,) * 5}, num=4))
    assert few.verdict == "inconclusive"
    assert any("prompts would do" in note for note in few.notes)
    many = lost_in_the_middle(counted(sample, trace, {512: (200,) * 5}, num=400))
    assert many.verdict == "refuted"
    assert many.headline == "The middle is not lost"


def test_permuted_places_take_the_effect_away(sample, trace):
    generator = np.random.default_rng(5)
    found = []
    for _ in range(60):
        right = generator.permutation(np.repeat([True, False], [64, 36])).reshape(5, 20)
        traces = [
            trace(sample(i, length=512, depth=place), correct=bool(row[i]))
            for place, row in zip(PLACES, right, strict=True)
            for i in range(20)
        ]
        found.append(lost_in_the_middle(traces).verdict)
    assert found.count("supported") <= 1


def test_the_p_value_is_that_of_all_shuffles(sample, trace):
    # Three places of two prompts, 3 of 6 right: all 20 ways to place them, counted by hand below.
    counts = {64: (2, 0, 1)}
    traces = [
        trace(sample(i, length=64, depth=place), correct=i < right)
        for place, right in zip((0.0, 0.5, 1.0), counts[64], strict=True)
        for i in range(2)
    ]
    finding = lost_in_the_middle(traces)
    profiles = [
        (a, b, 3 - a - b, stats.multivariate_hypergeom.pmf([a, b, 3 - a - b], [2, 2, 2], 3))
        for a in range(3)
        for b in range(3)
        if 0 <= 3 - a - b <= 2
    ]
    primacy = sum(p for a, b, _, p in profiles if a - b >= 2)
    recency = sum(p for _, b, c, p in profiles if c - b >= 1)
    assert finding.comparison.p_value == pytest.approx(max(primacy, recency), abs=0.03)


def test_intervals_are_newcombes(sample, trace):
    finding = lost_in_the_middle(counted(sample, trace, {512: (18, 10, 5, 10, 18)}))
    primacy = next(d for d in finding.details if d.name == "primacy over the worst inner place, at 512 tokens").interval
    # Newcombe 1998, method 10, for the difference of 18 and 5 of 20, from Wilson's intervals.
    a, b = (stats.binomtest(k, 20).proportion_ci(method="wilson") for k in (18, 5))
    assert primacy.low == pytest.approx(100 * (0.65 - np.hypot(0.9 - a.low, b.high - 0.25)))
    assert primacy.high == pytest.approx(100 * (0.65 + np.hypot(a.high - 0.9, 0.25 - b.low)))


def test_holm_as_in_his_paper():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_the_loss_shows_a_middle_where_every_answer_is_right(sample, trace):
    traces = [
        trace(sample(i, length=64, depth=place), loss=0.1 + (0.4 if place == 0.5 else 0) + 0.001 * i)
        for place in PLACES
        for i in range(6)
    ]
    finding = lost_in_the_middle(traces)
    assert finding.verdict == "inconclusive"
    assert "every answer is right at 64 tokens" in finding.claim
    rise = next(each for each in finding.details if each.name.startswith("answer loss at inner places"))
    assert rise.value == pytest.approx(0.4 / 3)
    assert rise.interval.low > 0


@pytest.mark.parametrize(
    ("depths", "words"), [((0.5,), "one place"), ((0.0, 1.0), "two places"), ((0.0, 0.5, 1.0), "every answer is right")]
)
def test_too_few_places_are_said_in_a_sentence(sample, trace, depths, words):
    finding = lost_in_the_middle([trace(sample(i, depth=at)) for at in depths for i in range(3)])
    assert finding.verdict == "inconclusive"
    assert finding.measured.value is None
    assert words in finding.claim
    assert finding.claim.endswith(".")


def test_what_is_answered_without_the_gold_stands_beside_it(sample, trace):
    traces = counted(sample, trace, {512: (18, 10, 5, 10, 18)})
    traces += [trace(sample(i), correct=i < 3, role="needle_absent") for i in range(10)]
    traces += [trace(sample(i), correct=i < 9, role="gold_only") for i in range(10)]
    found = values(lost_in_the_middle(traces))
    assert found["right without the gold"] == pytest.approx(0.3)
    assert found["right with the gold alone"] == pytest.approx(0.9)


def test_a_withheld_text_and_a_failed_unit_are_no_obstacle(sample, trace):
    traces = counted(sample, trace, {512: (18, 10, 5, 10, 18)})
    traces.append(trace(sample(99, length=512, depth=0.5), failed="out of memory"))
    traces.append(trace(sample(98, length=512, depth=0.5, given="all_dummies"), correct=False))
    finding = lost_in_the_middle(traces)
    assert finding.measured.dropped == 2
    assert finding.measured.n == 100


def test_figures_are_valid(sample, trace):
    finding = lost_in_the_middle(counted(sample, trace, dict.fromkeys((64, 128, 256), (18, 10, 5, 10, 18))))
    assert [figure.name for figure in finding.figures] == ["accuracy_by_place", "u_by_length"]
    for figure in finding.figures:
        go.Figure(figure.plotly)
