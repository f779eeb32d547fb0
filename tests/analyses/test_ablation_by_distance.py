"""What an ablation costs far answers is told from what it costs any."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pytest

from probe.analyses.ablation_by_distance import ablation_by_distance
from probe.analyses.measures.answer_distance import answer_distance, shuffled_p
from probe.errors import UsageError
from tests.effects import ablation_by_distance as effects


def test_lost_far_answers_are_found_with_their_number():
    finding = ablation_by_distance(effects.experiment(1.0, 0.0, 0))
    assert finding.verdict == "supported"
    # Beyond the median distance, at two of five depths, every answer is lost, and nowhere else; others lose one in
    # twenty: -95 less +5.
    assert finding.measured.value == pytest.approx(-100, abs=5)
    assert finding.control.value == pytest.approx(5, abs=3)
    assert finding.comparison.p_value < 0.001
    assert [row["num_prompts"] for row in finding.records()] == [8, 8, 8, 8, 8]


def test_answers_lost_anywhere_are_not_about_distance():
    assert ablation_by_distance(effects.experiment(0.0, 0.0, 0)).verdict != "supported"


def test_the_permutation_is_that_of_all_relabellings():
    each, far = np.array([-100.0, -80.0, -60.0, 0.0, 10.0, -20.0, 5.0]), np.array([1, 1, 1, 0, 0, 0, 0], bool)
    observed = abs(each[far].mean() - each[~far].mean())
    apart = [
        abs(each[list(c)].mean() - np.delete(each, list(c)).mean()) >= observed - 1e-9
        for c in combinations(range(7), 3)
    ]
    assert shuffled_p(each, far, 0) == pytest.approx(np.mean(apart), abs=0.01)


def test_distances_are_from_the_prompts_end(sample):
    made = sample(0, length=64, depth=0.0)
    assert answer_distance(made) == 64 - made.span("needle_value").start
    assert answer_distance(dataclasses.replace(made, spans=())) is None


def test_what_is_missing_is_said(sample, trace):
    finding = ablation_by_distance([trace(sample(i), role="treatment") for i in range(6)])
    assert finding.verdict == "inconclusive"
    assert "others removed" in finding.claim
    one_place = [t for t in effects.experiment(1.0, 0.0, 0) if t.sample.facts["needle_depth"] == 0.5]
    assert "different distances" in ablation_by_distance(one_place).claim
    with pytest.raises(UsageError, match="no treatment 'x'"):
        ablation_by_distance(one_place, treatment="x")
